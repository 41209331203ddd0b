# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (longer)=
# # Ten times the training
#
# :::{admonition} The question
# The paper trains for 164 epochs, the networks of most pages here for 8 (natural) and 4 (adversarial), since
# that is what two CPU cores can do. Is a result of theirs one of the paper's claims, or of short training?
# :::
#
# ## The experiment
#
# ResNet-20 with BatchNorm and with RobustNorm, trained for 100 epochs naturally and for 40 adversarially on a
# GPU: the paper's learning rate of 0.1, divided by 10 after the same share of the epochs as in the paper, in
# float32 (on this GPU with convolutions in TF32, PyTorch's default). One seed. The attack in
# adversarial training is the one of all pages, three steps of eps / 2. Then
#
# * Table 2 and the clean accuracies of Table 3 again, on twice as many test images;
# * the statistics ladder ({doc}`e03`): if a misfit to the *clean* images at hand made networks vulnerable,
#   statistics frozen at the clean batch would be more robust than tracked ones. They do not fit the
#   *attacked* images; statistics that do are in the next point, under an attack that takes them as given;
# * transfer ({doc}`e01`), with a third way to craft images: *detached* takes the batch's statistics as given,
#   so that no gradient passes through them. If batch statistics make the network robust, they stay ahead of
#   tracked ones under this attack as well. If only the attack's gradient through them is misled, the lead
#   goes;
# * on BatchNorm after natural training, PGD that climbs the margin, and 100 steps of it ({doc}`e04`).

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from study.report import beside, decision, decisive, ledger, pages, panels, results
from study import store
from study.report.claims import judge
from study.report.figures import ATTACKS as NAMES
from study.report.figures import PALETTE, accuracy_figure, style
from study.runs import TRAININGS, grid, shown

style()
LONG = "gpu"  # the profile of these runs
there = LONG in shown(profile)
if there:
    display(pages.setting(LONG))
    display(panels.pending(LONG, "transfer", "transfer_8px", "ladder", "adequacy", "black_box"))
else:
    display(Markdown(f"The book of the profile `{profile}` does not show these runs; that of `laptop` does."))


def table(name):
    """A diagnostic of the long runs, by network; without rows where the book does not show them."""
    found = decisive.networks(LONG, name)
    return found if there else found.iloc[:0]


def claims(*names):
    return [f"longer-{name}" for name in names]


def told(*names):
    return ledger.differences(*(judge(claim, profile) for claim in claims(*names)))


# %% [markdown]
# ## The paper's comparison

# %% tags=["hide-input"]
SERIES = [(norm, mode) for norm in decisive.NORMS for mode in decisive.MODES]
ATTACKS = ["clean", "noise", "grad_sign", "bim_linf", "pgd_linf"]
if there:
    display(
        pages.show(
            accuracy_figure(LONG, 2, list(TRAININGS), ATTACKS, SERIES),
            caption=(
                "After 100 epochs of natural and 40 of adversarial training. BatchNorm, batch minus tracked"
                " statistics, the same weights, in points, ours and in brackets the paper's: natural"
                f" {told('natural-attacks', 'natural-noise')}; adversarial"
                f" {told('adversarial-attacks', 'adversarial-noise')}."
            ),
            alt=(
                "Accuracy clean and under four attacks for BatchNorm and RobustNorm in both statistics modes,"
                " the paper's numbers of BatchNorm beside ours; a panel for each training."
            ),
            notebook="longer",
            profile=profile,
        )
    )

# %% [markdown]
# Every attack of the suite; verdicts are at the paper's eps of 0.03, about 1.5/255 in pixels:

# %% tags=["hide-input"]
pages.accuracies(LONG, ["batch_norm", "robust_norm"]) if there else None

# %% tags=["hide-input"]
TABLE2 = claims(*(f"{t}-{name}" for t in TRAININGS for name in ("attacks", "noise", "clean")))
TABLE2 += claims("natural-twenty", "adversarial-thirty")
for claim in TABLE2:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The gap against the length of training
#
# The trainings of a ResNet-20 with BatchNorm on CIFAR-10 in this book that differ in length (experiments
# `headline`, `short`, `long`, and these), with the paper's 164 epochs. They differ in more than that: up to
# 30 epochs the learning rate follows one cycle and training is in bfloat16, in the longest and in the paper
# the rate falls in steps and training is in float32. Bars are 95% intervals, over seeds where there are
# three, else over images.


# %% tags=["hide-input"]
def gaps():
    """Batch minus tracked under an attack, in points, for every training of BatchNorm of a ResNet-20."""
    rows = []
    for name in shown(profile):
        ours = results.table(name, "evaluations")
        ours = ours[(ours.norm == "batch_norm") & (ours.architecture == "resnet20")]
        ours = ours[ours.dataset.eq("cifar10-jpeg") & ours.experiment.isin(["headline", "short", "long"])]
        for (training, epochs, attack), found in ours.groupby(["training", "epochs", "attack"]):
            differences = [results.gap(name, "evaluations", pair) for _, pair in found.groupby("seed")]
            mean, low, high = differences[0]
            if len(differences) > 1:
                means = [mean for mean, _, _ in differences]
                mean, (low, high) = sum(means) / len(means), results.over_seeds(means)
            rows.append((training, epochs, attack, mean, low, high))
    return pd.DataFrame(rows, columns=["training", "epochs", "attack", "gap", "low", "high"])


def gap_figure(found):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    theirs = results.select(results.paper(2), {"norm": "batch_norm"})
    for axis, training in zip(axes, TRAININGS, strict=True):
        for colour, shift, (attack, label) in zip(PALETTE, (0.92, 1, 1.08), LABELS.items(), strict=False):
            rows = found[(found.training == training) & (found.attack == attack)].sort_values("epochs")
            errors = [rows.gap - rows.low, rows.high - rows.gap]
            axis.errorbar(rows.epochs, rows.gap, errors, color=colour, marker="o", capsize=2, label=label)
            paper = results.select(theirs, {"training": training, "attack": attack})
            paper = paper.set_index("statistics").accuracy
            axis.plot(164 * shift, paper.batch - paper.tracked, "o", color=colour, markerfacecolor="none")
        axis.axhline(0, color="0.3", linewidth=1)
        ticks = [*sorted(found[found.training == training].epochs.unique()), 164]
        axis.set(title=f"{training.capitalize()} training", xlabel="epochs", xscale="log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize="small")
        axis.set_xticks([], minor=True)
    axes[0].set_ylabel("batch minus tracked (points)")
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color="0.3", marker="o", markerfacecolor="none", linestyle=""))
    figure.legend(handles, [*labels, "the paper"], loc="outside lower center", ncols=4, fontsize="small")
    return figure


LABELS = {"noise": "noise", "grad_sign": "GradSign", "pgd_linf": "PGD"}
if there:
    found = gaps()
    ends = "; ".join(
        f"{training} " + ", ".join(f"{row.gap:+.1f} after {row.epochs}" for row in rows.itertuples())
        for training in TRAININGS
        if len(rows := found[(found.training == training) & (found.attack == "pgd_linf")])
    )
    display(
        pages.show(
            gap_figure(found),
            caption=(
                "BatchNorm, batch minus tracked statistics of the same weights, against the epochs of"
                f" training. Under PGD, in points: {ends}."
            ),
            alt="Gap in points against epochs under noise, GradSign and PGD, a panel for each training.",
            notebook="longer",
            profile=profile,
        )
    )

# %% [markdown]
# ## What the gap is
#
# Statistics from six sources, all with the same weights. The *clean twin* is frozen at the clean batch: it
# fits the images at hand, and cannot follow the attack. Tracked averages are of augmented images, those of a
# batch and of its twin are not. *Plain* averages are not either: what these are behind *tracked* is the price
# of leaving the augmentation out, and what the twin is behind *plain* comes from fitting one batch.

# %% tags=["hide-input"]
if len(ladder := table("ladder")):
    display(
        pages.show(
            decisive.ladder_figure(ladder),
            caption=(
                "Accuracy with statistics from each source, attacked as they are. BatchNorm, clean twin minus"
                f" tracked, in points: natural {told('twin-natural')}; adversarial"
                f" {told('twin-adversarial')}; minus plain: natural {told('twin-plain-natural')}; adversarial"
                f" {told('twin-plain-adversarial')}. Batch minus clean twin: natural"
                f" {told('follow-natural')}; adversarial {told('follow-adversarial')}."
            ),
            alt="For each network, four dots for each source of statistics: clean, noise, GradSign, PGD.",
            notebook="longer",
            profile=profile,
        )
    )

# %% [markdown]
# The same images of PGD, crafted in three ways and classified in both modes:

# %% tags=["hide-input"]
if len(transfer := table("transfer")):
    display(
        pages.show(
            decisive.transfer_figure(transfer),
            caption=(
                "PGD crafted in one way (below) and classified in another (colour). Batch statistics under"
                " the detached attack minus tracked ones under their own, BatchNorm, in points: natural"
                f" {told('detached-natural')}; adversarial {told('detached-adversarial')}."
            ),
            alt=decisive.TRANSFER_ALT,
            notebook="longer",
            profile=profile,
        )
    )

# %% [markdown]
# Images attacked with the statistics of their batch taken as given, against frozen averages of training
# images that are not augmented either: batch statistics under the detached attack minus *plain*.

# %% tags=["hide-input"]
rows = []
for name in transfer.network.unique():
    for attack in ("grad_sign", "pgd_linf"):
        where = {"network": name, "attack": attack}
        given = results.select(transfer, where | {"crafted": "detached", "tested": "batch"})
        plain = results.select(ladder, where | {"source": "plain"})
        if len(given) and len(plain):
            first, second = (
                100.0 * results.outcomes(LONG, kind, side.iloc[0])
                for kind, side in (("transfer", given), ("ladder", plain))
            )
            mean, low, high = results.difference(first, second)
            told_of = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            rows.append((name, attack, first.mean().round(1), second.mean().round(1), told_of))
columns = ["network", "attack", "batch, detached (%)", "plain (%)", "difference (95% interval)"]
pd.DataFrame(rows, columns=columns).replace({"attack": NAMES}).set_index(columns[:2])

# %% [markdown]
# An image counts here only where it stays correct under *every* one of the three ways of crafting. For
# tracked statistics an attacker can have all three; for batch statistics this is a bound, since a batch is
# crafted in one way:

# %% tags=["hide-input"]
decisive.strongest(LONG, transfer)

# %% tags=["hide-input"]
PARTS = ("twin", "twin-plain", "follow", "detached")
CAUSES = claims(*(f"{part}-{t}" for part in PARTS for t in TRAININGS))
CAUSES += claims("margin-natural", "steps-natural", "square-natural")
for claim in CAUSES:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# The attacks of {doc}`e04` on BatchNorm after natural training, accuracy in percent:

# %% tags=["hide-input"]
if len(adequacy := table("adequacy")):
    wide = adequacy.pivot(index="attack", columns="statistics", values="accuracy")
    display(wide.loc[adequacy.attack.unique()].round(1))
    every = adequacy[adequacy.n == adequacy.n.max()]
    tracked, batch = (
        decisive.withstood(LONG, "adequacy", every[every.statistics == mode]) for mode in ("tracked", "batch")
    )
    gap, low, high = results.difference(batch, tracked)
    display(
        Markdown(
            f"Correct under every one of those on all {len(tracked):,} images: {tracked.mean():.1f}% with"
            f" tracked statistics, {batch.mean():.1f}% with those of the batch (a bound, since a"
            f" batch meets one attack): {gap:+.1f} points ({low:+.1f} to {high:+.1f})."
        )
    )
else:
    display(Markdown("Nothing of it has been measured yet."))

# %% [markdown]
# By the conditions of {ref}`verdict`, as far as they are measured. These are older than the runs of this
# page, whose claims mirror those of {doc}`table2`, {doc}`e03` and {doc}`e04` and were written after them:

# %% tags=["hide-input"]
Markdown("\n".join(f"- {decision.sentence(profile, training, LONG)}" for training in TRAININGS))

# %% [markdown]
# ## At 8/255
#
# All of this is at the paper's eps, about 1.5/255 in pixels. At 8/255, the eps of later work, by PGD:

# %% tags=["hide-input"]
PIXELS = claims(*(f"pixels-{part}{t}" for t in TRAININGS for part in ("", "detached-")))
PIXELS += claims("pixels-robust-norm-own", "pixels-robust-norm-given")
if len(pixels := table("transfer_8px")):
    display(
        pages.show(
            decisive.transfer_figure(pixels),
            caption=(
                "PGD at 8/255, crafted in one way (below) and classified in another (colour). Batch minus"
                " tracked statistics, BatchNorm, in points, each under the attack on itself: natural"
                f" {told('pixels-natural')}, adversarial {told('pixels-adversarial')}; batch statistics under"
                f" the detached attack: natural {told('pixels-detached-natural')}, adversarial"
                f" {told('pixels-detached-adversarial')}."
            ),
            alt=decisive.TRANSFER_ALT,
            notebook="longer",
            profile=profile,
        )
    )
for claim in PIXELS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## RobustNorm

# %% tags=["hide-input"]
PARTS = ("robust-norm-clean", "robust-norm", "robust-norm-tracked")
ROBUST = claims("natural-robust-norm-kept", *(f"{t}-{part}" for t in TRAININGS for part in PARTS))
ROBUST += claims("robust-norm-detached", "robust-norm-given")
for claim in ROBUST:
    display(ledger.verdict(claim, profile))
Markdown(
    "At 8/255 RobustNorm without tracking is ahead of the same weights with tracking by"
    f" {told('pixels-robust-norm-own')} points under the attack on itself (after natural training), and by"
    f" {told('pixels-robust-norm-given')} under the attack that takes the statistics as given."
)

# %% [markdown]
# ## Along the training
#
# The validation losses of Figures 3 and 8. Steps of the learning rate, as in the paper, leave time at a high
# rate.

# %% tags=["hide-input"]
curves = beside.series(results.curves(LONG))
looks = beside.looks(SERIES)
if there and len(curves):
    by_epoch = curves.sort_values("training", ascending=False)
    display(
        pages.show(
            panels.lines(
                by_epoch[by_epoch.series.isin(looks)], x="epoch", series="series", looks=looks,
                panel="training", xlabel="epoch", value="val_loss", ylabel="validation loss", ticks=False,
                titles={t: f"{t.capitalize()} training" for t in TRAININGS},
            ),
            caption=(
                "Validation loss by epoch on 1,000 clean test images, the same training in both modes. How"
                " far it lies above its lowest so far in adversarial training, mean over epochs, tracked"
                f" minus batch statistics, in nats: {told('rising')}."
            ),
            alt="Validation loss against epochs in both statistics modes, a panel for each training.",
            notebook="longer",
            profile=profile,
        )
    )  # fmt: skip
ledger.verdict("longer-rising", profile)

# %% [markdown]
# ## The numbers
#
# Differences in points (of losses in nats), first condition minus second, of the same images; the intervals
# are over images and say nothing of other seeds; those of the validation loss are over epochs, which are not
# independent.

# %% tags=["hide-input"]
VERDICTS = [judge(claim, profile) for claim in TABLE2 + CAUSES + PIXELS + ROBUST + claims("rising")]
display(ledger.comparisons(VERDICTS))
decisive.multiplicity(VERDICTS)

# %% [markdown]
# ## What it means
#
# * **Short and long.** Where {doc}`table2` has no gap and this page has one, the paper's observation needs
#   more training than that. The length, the schedule and the precision changed together; in the second
#   figure the points of one cycle, all but the longest training, differ in length alone. Pages on the short
#   training are then about networks without a gap to explain.
# * **What a gap is.** Three things that have to hold if the misfit of tracked statistics is its cause can be
#   looked at on the same weights: whether statistics that fit the clean batch help, whether the gap stays
#   under an attack that takes the statistics as given, and whether it stays under other losses. The verdicts
#   above say which hold. An attack that finds more by *leaving out* a part of the gradient was misled by that
#   part, because it points elsewhere or because the summed loss is spent on images that are fooled already
#   ({doc}`e04`). Where no lead is left under it, the lead was over that attack, as in gradient masking
#   ({cite:t}`athalye2018`), and is lost to whoever knows of it.
# * **Augmentation.** A part of what batch statistics and the twin are behind *tracked* ones is the price of
#   leaving the augmentation out. Held against *plain* averages, which leave it out as well, the differences
#   are smaller; the claims on *plain* and the table above say what remains.
# * **Adversarial training.** There images are crafted through batch statistics while the network is trained;
#   see {doc}`e09` for what the mode of crafting does. The paper's tracked row after it has the widest
#   intervals of its Table 2, and its text says that validation curves with tracking differ much between
#   restarts.
# * **One eps.** Verdicts are at the paper's eps, but for those on 8/255, where the sign can be another one
#   ({doc}`e08`).
# * One seed of each network, one architecture, one data set. The trainings of 8 and 4 epochs have three
#   seeds.
#
# ## Run it again

# %% tags=["remove-input"]
histories = [run.directory / store.HISTORY for run in grid(LONG)]
if found := [pd.read_csv(path).seconds.sum() / 60 for path in histories if path.exists()]:
    display(
        Markdown(
            f"The {len(found)} trainings ran side by side on one GPU; the longest took {max(found):.0f}"
            " minutes, evaluation not counted:"
        )
    )

# %% [markdown]
# ```
# snakemake -j4 --config profile=gpu
# papermill notebooks/longer.ipynb out.ipynb -p profile laptop
# ```

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
# (e14)=
# # E14: the gap along training
#
# :::{admonition} The hypothesis
# The paper trains for 164 epochs, most networks of this book for a few. If the gap between batch and
# tracked statistics grows with training, short trainings miss it. And *why* it grows would say what it is.
# A network that is sure of its images has a cross-entropy near 0 and gradients near 0, which starves an
# attack that climbs this loss: gradient masking. Then the gap opens as the training loss goes to 0, closes
# under a loss whose gradient does not vanish, and under arithmetic that loses no small numbers. If the gap
# is robustness, it stays.
# :::
#
# ## The experiment
#
# One long natural training of a ResNet-20 with BatchNorm, and one with RobustNorm, keep their weights after
# some of their epochs. Each is attacked in both statistics modes by PGD of 20 steps that
# climbs
#
# * the **cross-entropy**, as everywhere;
# * the **margin loss**, the largest other logit minus the true one, whose gradient stays however sure the
#   network is ({cite:t}`carlini2017`);
# * the cross-entropy of the same network computed in **double precision**, from the same starting points, on
#   fewer images because it is dear.
#
# On 1,000 training images the mean loss and confidence are measured in the same modes, and how many images
# have a gradient that is exactly 0 in single precision: those no step can move.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import style
from study.runs import chosen_runs

style()
LOSSES = {
    "PGD": "cross-entropy",
    "PGD, margin loss": "margin loss",
    "PGD, double precision": "double precision",
}
CLAIMS = ["e14-opens", "e14-last", "e14-margin", "e14-double", "e14-loss"]
runs = chosen_runs(profile, {"experiment": ["long"]})
table = results.diagnostic(profile, "snapshots", "long")
display(pages.setting(profile, "long"))
if runs:
    kept = ", ".join(str(epoch) for epoch in runs[0].snapshots)
    display(Markdown(f"The runs of this page keep their weights after epochs {kept}; one seed each."))
else:
    display(Markdown(f"The profile `{profile}` has no such run; `laptop` has."))
panels.pending(profile, "snapshots")

# %% [markdown]
# ## Accuracy along training

# %% tags=["hide-input"]
NAMES = {"batch_norm": "BatchNorm", "robust_norm": "RobustNorm"}
measured = [norm for norm in NAMES if norm in set(table.norm)]


def accuracies(norm):
    titles = {"clean": "clean", **LOSSES}
    return panels.lines(
        table[(table.norm == norm) & table.attack.isin(list(titles))],
        x="epoch",
        series="statistics",
        looks=panels.look(norm),
        panel="attack",
        titles={name: title.capitalize() for name, title in titles.items()},
        xlabel="epoch",
        xscale="log",
        height=2.7,
    )


def last(norm):
    """Batch minus tracked after the last snapshot of a run, by attack, in words."""
    epoch = table[table.norm == norm].epoch.max()
    gaps = {title: gap(norm, epoch, attack) for attack, title in LOSSES.items()}
    told = ", ".join(
        f"{title} {mean:+.1f} ({low:+.1f} to {high:+.1f})" for title, (mean, low, high) in gaps.items()
    )
    return f"after epoch {epoch}: {told}"


def gap(norm, epoch, attack):
    """Batch minus tracked in points on the same images, with its 95% interval."""
    rows = table[(table.norm == norm) & (table.epoch == epoch) & (table.attack == attack)]
    return results.gap(profile, "snapshots", rows)


for norm in measured:
    display(
        pages.show(
            accuracies(norm),
            caption=(
                f"{NAMES[norm]} along one training, the same weights in both modes: clean, and under PGD that"
                f" climbs three losses. Batch minus tracked, in points, {last(norm)}."
            ),
            alt="Accuracy against epochs in both statistics modes, clean and under three sorts of PGD.",
            notebook="e14",
            profile=profile,
        )
    )
if not measured:
    display(Markdown("Nothing of it has been measured yet."))

# %% [markdown]
# ## The gap against what training does
#
# Batch minus tracked, with its 95% interval over images, against the epoch, and against the mean loss and
# confidence on training images under batch statistics, the mode of training. If the gap is masking, it
# follows the loss to 0, under the cross-entropy alone.


# %% tags=["hide-input"]
LOSS_TICKS = [2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]


def gaps():
    axes_of = {
        "epoch": "epoch",
        "loss": "loss on training images",
        "confidence": "confidence on training images",
    }
    looks = panels.names(list(LOSSES), LOSSES)
    figure, grid = plt.subplots(
        len(measured), 3, figsize=(9, 0.7 + 2.5 * len(measured)), sharey=True, sharex="col", squeeze=False
    )
    for axes, norm in zip(grid, measured, strict=True):
        state = results.select(table, {"norm": norm, "attack": "training images", "statistics": "batch"})
        for attack, (_, colour, line) in looks.items():
            found = [gap(norm, epoch, attack) for epoch in state.epoch]
            means = [mean for mean, _, _ in found]
            errors = [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
            for axis, column in zip(axes, axes_of, strict=True):
                axis.errorbar(
                    state[column], means, errors, color=colour, linestyle=line, marker="o", markersize=4,
                    capsize=2, linewidth=1.3, alpha=0.45 if "double" in attack else 1.0,
                )  # fmt: skip
        for axis in axes:
            axis.axhline(0, color="0.3", linewidth=1)
        axes[0].set_ylabel(f"{NAMES[norm]}\nbatch minus tracked")
    for axis, label in zip(grid[-1], axes_of.values(), strict=True):
        axis.set_xlabel(label)
    epochs = sorted(set(table.epoch))
    grid[-1][0].set(xscale="log")
    grid[-1][0].set_xticks(epochs, [f"{epoch:g}" for epoch in epochs])
    grid[-1][0].set_xticks([], minor=True)
    grid[-1][1].set(xscale="log")
    grid[-1][1].set_xticks(LOSS_TICKS, [f"{loss:g}" for loss in LOSS_TICKS])
    grid[-1][1].set_xticks([], minor=True)
    grid[-1][1].set_xlim(*sorted(grid[-1][1].dataLim.intervalx * [0.9, 1.1], reverse=True))
    handles = [
        plt.Line2D([], [], color=colour, linestyle=line, marker="o", label=f"PGD, {name}")
        for name, colour, line in looks.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
    return figure


if measured:
    opened = ledger.differences(judge("e14-opens", profile))
    display(
        pages.show(
            gaps(),
            caption=(
                "How far batch statistics are ahead of tracked ones, along training. Gap of BatchNorm under"
                f" the cross-entropy after the last epoch minus after the first, in points: {opened}. Time"
                " runs to the right in all panels: the axis of the loss is reversed."
            ),
            alt="Gap in points against epochs, training loss and confidence, a line for each loss of PGD.",
            notebook="e14",
            profile=profile,
        )
    )

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Differences in points, first condition minus second, paired over images; the first is a difference of two
# gaps. One training each: the intervals say nothing of other seeds.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# How sure the networks are of training images; *vanished* is the percentage whose gradient is exactly 0:

# %% tags=["hide-input"]
if measured:
    state = table[table.attack == "training images"].rename(columns={"accuracy": "accuracy (%)"})
    shown = state.pivot(
        index=["norm", "epoch"],
        columns="statistics",
        values=["loss", "confidence", "vanished", "accuracy (%)"],
    )
    display(shown.round(4).rename(index=NAMES))

# %% [markdown]
# ## What it means
#
# * If the gap opens and stays under the margin loss, longer training makes batch statistics harder to attack
#   by PGD of any loss, and the explanation has to be looked for among the other experiments of this part.
# * If it opens under the cross-entropy alone, it is the attack that fails: that the margin loss takes more
#   accuracy than the cross-entropy in a mode is the sign of it ({cite:t}`athalye2018`). Gradients that vanish
#   explain it only if *vanished* is above 0, if the surer mode is hit most and if double precision closes the
#   gap. Otherwise the cause is another one, such as a summed loss that is spent on images which are fooled
#   already and pull the statistics of the others ({doc}`e04`).
# * If it does not open at all, short training is no excuse: the paper's gap of about 20 points has another
#   origin than the number of epochs, at least up to the length of this run. {doc}`longer` has networks that
#   trained for longer still, with the paper's schedule.
# * {doc}`e04` asks the same of more steps, restarts and step sizes at the end of a short training.
#
# ## Run it again
#
# ```
# papermill notebooks/train.ipynb out.ipynb -p profile laptop -p experiment long
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p experiment long -p diagnostic snapshots
# papermill notebooks/e14.ipynb out.ipynb -p profile laptop
# ```

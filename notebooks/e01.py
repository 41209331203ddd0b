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
# (e01)=
# # E1 and E2: one set of weights, two modes, and transfer between them
#
# :::{admonition} The hypothesis
# A network is easier to fool with tracked statistics than with those of the batch, whoever crafts the images:
# then tracking has cost it robustness. The rival: the two modes are two different targets, an attack fits the
# one it was aimed at, and each mode looks robust to what was aimed at the other.
# :::
#
# ## The experiment
#
# **E1.** One set of weights, evaluated in both modes on the same images in the same batches, each mode
# attacked as it is. Outcomes are paired image by image.
#
# (e02)=
# **E2.** Images are crafted in one mode and classified in another. Crafted they are
#
# * through *tracked* statistics, which are constants;
# * through *batch* statistics, so that the gradient knows how an image moves the statistics, and by them all
#   other images;
# * through *detached* batch statistics ({py:class}`rnlib.Detached`): renewed at each step of the attack, but
#   constants of its gradient.
#
# Classified they are with tracked statistics, with those of the batch they were crafted in, and with those of
# *reshuffled* batches, where each image meets other attacked images than it was crafted among.
#
# **What would support it:** batch statistics stay ahead for every way of crafting, and images do best in the
# mode they were crafted in. **What would refute it:** images crafted elsewhere harm batch statistics more
# than their own do (their attack is then masked); or the modes change places with the way of crafting, which
# says that an image, not a network, fits a mode.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from study.report import decisive, ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, PALETTE, style
from study.runs import TRAININGS

style()
E1 = ["table2-natural-attacks", "table2-adversarial-attacks"]
CLAIMS = [
    f"e01-{name}-{training}" for name in ("own-batch", "own-tracked", "reshuffled") for training in TRAININGS
]
transfer = decisive.networks(profile, "transfer")
display(pages.setting(profile, runs=lambda run: run.norm in decisive.NORMS))
panels.pending(profile, "transfer")

# %% [markdown]
# ## E1: the same images in both modes
#
# Their mean difference is a row of {ref}`table-2`; here is what it is made of: how many images are classified
# correctly in both modes, in one of them alone, or in neither.

# %% tags=["hide-input"]
SHARES = {"both": PALETTE[7], "batch alone": PALETTE[1], "tracked alone": PALETTE[0], "neither": "0.9"}
evaluated = results.evaluations(profile)
evaluated = evaluated[evaluated.norm.isin(list(decisive.NORMS)) & evaluated.attack.isin(list(ATTACKS))]
rows = []
for run, both in evaluated.groupby("run"):
    for attack, pair in both.groupby("attack"):
        hits = {row.statistics: results.outcomes(profile, "evaluations", row) for _, row in pair.iterrows()}
        if set(hits) >= {"tracked", "batch"} and all(hit is not None for hit in hits.values()):
            tracked, batch = hits["tracked"], hits["batch"]
            split = (tracked & batch, batch & ~tracked, tracked & ~batch, ~tracked & ~batch)
            shares = dict(zip(SHARES, [100 * part.mean() for part in split], strict=True))
            network = f"{decisive.NORMS[pair.norm.iloc[0]]}, {pair.training.iloc[0]} training"
            rows.append({"run": run, "network": network, "attack": attack} | shares)
split = pd.DataFrame(rows, columns=["run", "network", "attack", *SHARES])
if len(split):
    networks = sorted(split.network.unique(), key=lambda name: ("adversarial" in name, name))
    figure, axes = plt.subplots(1, len(networks), figsize=(9, 3.4), sharey=True, squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        means = split[split.network == network].groupby("attack")[list(SHARES)].mean()
        means = means.reindex([name for name in ATTACKS if name in means.index][::-1]).rename(ATTACKS)
        means.plot.barh(stacked=True, color=list(SHARES.values()), ax=axis, legend=False, width=0.8)
        axis.set(title="\n".join(network.split(", ")), xlabel="images (%)", ylabel="", xlim=(0, 100))
        axis.title.set_fontsize("small")
        axis.grid(visible=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize="small")
    pgd = split[split.attack == "pgd_linf"].groupby("network")[list(SHARES)].mean().round(1)
    display(
        pages.show(
            figure,
            caption=(
                "The same images in both modes, on average over seeds. Correct under PGD with batch"
                " statistics alone, and with tracked ones alone, in percent of the images: "
                + "; ".join(f"{name} {row[1]:.1f}, {row[2]:.1f}" for name, *row in pgd.itertuples())
                + "."
            ),
            alt=(
                "For each network a stack of bars, one an attack, divided into images that both modes, batch"
                " statistics alone, tracked statistics alone, and neither mode classify correctly."
            ),
            notebook="e01",
            profile=profile,
        )
    )
else:
    display(Markdown("No network has been evaluated in both modes yet."))

# %% tags=["hide-input"]
ledger.summary(profile, E1)

# %% [markdown]
# ## E2: transfer

# %% tags=["hide-input"]
if len(transfer):
    display(
        pages.show(
            decisive.transfer_figure(transfer),
            caption=(
                "PGD crafted in one mode (below) and classified in another (colour). Harm to batch statistics"
                " of images crafted through them, over those crafted elsewhere, in points, natural training:"
                f" {ledger.differences(judge('e01-own-batch-natural', profile))}; to tracked ones of"
                f" images crafted there: {ledger.differences(judge('e01-own-tracked-natural', profile))}."
            ),
            alt=decisive.TRANSFER_ALT,
            notebook="e01",
            profile=profile,
        )
    )
else:
    display(Markdown("No transfer has been measured yet."))

# %% [markdown]
# The strongest of the three ways of crafting is what a mode has to withstand. An image counts here only where
# it stays correct under *every* one of them:


# %% tags=["hide-input"]
decisive.strongest(profile, transfer)

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Differences in points, first condition minus second, of the same weights. The interval is over images,
# paired where both conditions have the same ones.

# %% tags=["hide-input"]
VERDICTS = [judge(claim, profile) for claim in CLAIMS]
display(ledger.comparisons(VERDICTS))
decisive.multiplicity(VERDICTS)

# %% [markdown]
# ## What it means
#
# * The two modes share every weight, and still are two functions: how well images carry over from one to the
#   other says how different they are. Where each mode is harmed most by its own images, and little by the
#   other's, neither has an advantage in general; the figure of the paper is then the difference between two
#   white-box attacks on two targets.
# * *Detached* crafting differs from *batch* in one thing only, the gradient through the statistics. Where it
#   harms batch statistics less, images of a batch do gain by pulling the statistics together; where it harms
#   them as much, the coupling of images is no weapon of this attack. Where it harms them *more*, the gradient
#   through the statistics misleads the attack: the paper's attack is then not the strongest one on batch
#   statistics, and a part of their lead is masking.
# * If reshuffling saves images, they were crafted for their neighbours as much as for themselves. If it does
#   not, what moves the statistics is common to all attacked batches.
# * An image lost under one of three ways of crafting is lost: the last table is nearer to what an attacker
#   can do than any single row; for batch statistics it is a bound, since a batch is crafted in one way.
# * {doc}`longer` repeats this on networks that trained ten times as long and more.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic transfer
# papermill notebooks/e01.ipynb out.ipynb -p profile laptop
# ```

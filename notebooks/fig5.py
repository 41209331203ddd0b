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
# (fig-5)=
# # Figure 5: small inference batches
#
# :::{admonition} The claim
# Without tracking a network needs a batch at inference. With very few images BatchNorm without tracking and
# RobustNorm fail; RobustNorm's results are restored by increasing the batch by a small number. This is why
# the paper calls tracking a necessary evil. Fig 5 gives no numbers.
# :::
#
# ## The experiment
#
# The same weights and the same images in batches of 1 to 500, classes mixed, every image in one batch: clean,
# under noise and under GradSign. With tracked statistics the size of the batch cannot matter, so that these
# were measured once and are drawn as level lines. A "batch" of one image still has statistics: those over its
# own pixels.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import Markdown, display

from study.report import beside, ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, style

style()
PAIRS = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "batch"),
    ("robust_norm", "tracked"),
]
CLAIMS = ["fig5-fails-batch-norm", "fig5-fails-robust-norm", "fig5-tracked", "fig5-restored", "fig5-sooner"]
table = beside.series(results.diagnostic(profile, "batch_size"))
display(pages.setting(profile, runs=lambda run: run.norm != "no_norm" and run.seed == 0))
panels.pending(profile, "batch_size")

# %% [markdown]
# ## Accuracy against the size of the batch

# %% tags=["hide-input"]
if len(table):
    looks = beside.looks(PAIRS)
    level = table[table.statistics == "tracked"]
    ends = (table["size"].min(), table["size"].max())
    shown = pd.concat([table[table.statistics == "batch"], *(level.assign(size=end) for end in ends)])
    shown["panel"] = shown.training.str.capitalize() + " training, " + shown.attack.map(ATTACKS)
    shown = shown.sort_values(["training", "row"], ascending=[False, True], kind="stable")
    clean = table[(table.attack == "clean") & (table.statistics == "batch")]
    means = clean.groupby(["training", "series", "size"]).accuracy.mean()
    told = "; ".join(
        f"{training}, {looks[name][0]}: "
        + ", ".join(f"{rows[size]:.0f} with {size}" for size in rows.index[:4])
        for training in ("natural", "adversarial")
        for name in looks
        if (training, name) in means.index.droplevel(2)
        for rows in [means[training, name]]
    )
    display(
        pages.show(
            panels.lines(
                shown,
                x="size",
                series="series",
                looks=looks,
                panel="panel",
                titles={name: name for name in shown.panel},
                xlabel="images in a batch",
                xscale="log",
                columns=3,
                height=2.7,
            ),
            caption=f"Accuracy against the size of the batch. Clean, in percent: {told}.",
            alt=(
                "Curves of accuracy against batch size, clean, under noise and under GradSign, for"
                " BatchNorm and RobustNorm with batch statistics; level lines for tracked ones; a row for"
                " each training."
            ),
            notebook="fig5",
            profile=profile,
        )
    )
else:
    display(Markdown("Nothing of it has been measured yet."))

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Differences in points, first side minus second, as each claim names them; *fig5-sooner*: how many points
# more BatchNorm loses than RobustNorm.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# ## What it means
#
# * The statistics of a small batch are the tracked ones plus sampling noise, and too narrow on average: a few
#   images spread less than many do ({doc}`background`). The noise falls with the root of the number of
#   images: a failure at 1 or 2 images and a recovery within a few more is what statistics predicts for any
#   norm.
# * RobustNorm divides by a *power* of the range. At p = 0.2 an error of 10% in the range changes the scale by
#   2%. If RobustNorm recovers at smaller batches than BatchNorm, this is the simplest reason; the mean, which
#   both take from the batch, is then what is left of the loss. If it does not recover sooner, the mean
#   dominates.
# * Accuracy under attack at small batches is not robustness. An attacker of a batch of one controls all of
#   its statistics, one of a batch of 500 shares them: {doc}`e05` attacks single images among clean ones.
# * Classes are mixed here, in small batches as well as they can be. That the *kind* of the neighbours matters
#   as much as their number is {doc}`e13`.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic batch_size
# papermill notebooks/fig5.ipynb out.ipynb -p profile laptop
# ```

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
# (figure-1)=
# # Figure 1: batch statistics against tracked ones
#
# :::{admonition} The claim
# For all channels, mean and variance of a mini-batch at the start of training are very different from the
# tracked values that inference uses. So a network is trained with one set of statistics and used with
# another, and this mismatch is the paper's suspect for its vulnerability.
# :::
#
# ## The experiment
#
# The paper's comparison changes two things at once: the statistics *and* the weights, which at the start are
# random and at inference are trained. We repeat it (condition *start*) and then hold the weights fixed at the
# trained ones: batches of 100 training images (*train*), test images (*clean*), the same test images with the
# paper's Gaussian noise (*noise*), and under PGD (*adversarial*), ten batches each. For every channel of
# every norm layer we measure how far the batch's centre lies from the tracked one, in units of the tracked
# spread, and the log2 ratio of the spreads ({func}`rnlib.distance`). Training images are augmented as in
# training, so that *train* differs from the tracked values by little but sampling; test images are not, and
# *clean* is what inference really meets: the yardstick for the others.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from study.report import ledger, pages, results
from study.report.figures import style

style()
pages.setting(profile)

# %% [markdown]
# ## The paper's picture: start of training against tracked

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import seaborn as sns

NAMES = {"shift_abs": "shift of the centre (tracked spreads)", "log_ratio_abs": "log2 ratio of spreads"}
table = results.select(
    results.statistics(profile), {"norm": "batch_norm", "training": "natural", "architecture": "resnet20"}
)
medians = table.groupby("condition", sort=False)[list(NAMES)].median()


def against_clean(condition):
    """A sentence that sets the medians of a condition against those of clean batches."""
    if condition not in medians.index:
        return "Not measured yet."
    parts = [
        f"{name} {medians[key][condition]:.2f} against {medians[key]['clean']:.2f}"
        for key, name in NAMES.items()
    ]
    return (
        f"Median over {len(table[table.condition == condition])} channels of {table.run.nunique()} trainings,"
        f" {condition} against clean: {'; '.join(parts)}."
    )


wide = table.pivot(index=["run", "layer", "channel"], columns="condition", values=list(NAMES))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
for axis, (key, name) in zip(axes, NAMES.items(), strict=True):
    if not table.empty:
        axis.scatter(
            wide[key]["clean"], wide[key]["start"], s=8, alpha=0.5, color=sns.color_palette("colorblind")[0]
        )
    axis.plot([0.01, 10], [0.01, 10], color="0.4", linestyle=":", label="equal")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="clean batch, trained weights",
        ylabel="start of training",
        title=name,
    )
pages.show(
    figure,
    caption=(
        "Every dot is a channel of a norm layer of ResNet-20 with BatchNorm, naturally trained: distance"
        " from the tracked statistics at the start of training against that of clean test batches through"
        f" the trained weights. {against_clean('start')}"
    ),
    alt=(
        "Two scatter plots of per-channel distances, start of training against clean batches, with the"
        " diagonal."
    ),
    notebook="fig1",
    profile=profile,
)

# %% [markdown]
# ## The same weights throughout

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
for axis, (key, name) in zip(axes, NAMES.items(), strict=True):
    sns.boxenplot(
        table, x="condition", y=key, ax=axis, showfliers=False, color=sns.color_palette("colorblind")[0]
    )
    axis.set(yscale="log", xlabel="", ylabel=name)
pages.show(
    figure,
    caption=(
        "Distance of the statistics of a batch from the tracked ones, over all channels (box: middle half,"
        f" line: median). Only 'start' has other weights. {against_clean('adversarial')}"
        f" {against_clean('noise')}"
    ),
    alt=(
        "Distributions over channels of the distance between batch and tracked statistics for five"
        " conditions."
    ),
    notebook="fig1",
    profile=profile,
)

# %% tags=["hide-input"]
ledger.verdict("fig1-start", profile)

# %% [markdown]
# ## The numbers
#
# Median over channels of the absolute shift of the centre and of the absolute log2 ratio of spreads, for
# every network that was probed:

# %% tags=["hide-input"]
everything = results.statistics(profile)
everything["norm"] = everything.norm.map(lambda norm: ledger.WHAT.get(norm, norm))
by_norm = everything.groupby(["norm", "training", "condition"], sort=False)[list(NAMES)].median()
by_norm.unstack("condition").round(3).rename(columns=NAMES)

# %% [markdown]
# ## What it means
#
# * That statistics at the start of training differ from the tracked ones says that the network has learned.
#   It is not evidence of a mismatch at inference, because nobody runs inference with the weights of the
#   start.
# * The mismatch that inference really meets is *clean* against tracked. A batch of training images differs
#   from the tracked average by sampling, and by what the weights moved while the average was taken; what
#   *clean* is further away than *train* comes from images that are new and, above all, not augmented
#   ({doc}`e03` takes that apart).
# * The figure compares sizes, *adversarial* against *clean*. A shift that an attack gives to all images of a
#   batch can matter even where it is smaller than the scatter of sampling: {doc}`e03` measures what it is
#   worth to have statistics that follow it.
#
# ## Run it again
#
# ```
# snakemake -j2 --config profile=laptop  # runs what is missing, then builds the book
# papermill notebooks/fig1.ipynb out.ipynb -p profile laptop
# ```

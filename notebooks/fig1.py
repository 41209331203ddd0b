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
# For all channels, mean and variance of a mini-batch at the start of training are very different from the tracked values that
# inference uses. So a network is trained with one set of statistics and used with another, and this mismatch is the paper's
# suspect for its vulnerability.
# :::
#
# ## The experiment
#
# The paper's comparison changes two things at once: the statistics *and* the weights, which at the start are random and at
# inference are trained. We repeat it (condition *start*) and then hold the weights fixed at the trained ones: batches of 100
# training images (*train*), test images (*clean*), the same test images with the paper's Gaussian noise (*noise*), and under PGD (*adversarial*), ten
# batches each. For every channel of every norm layer we measure how far the batch's centre lies from the tracked one, in
# units of the tracked spread, and the log2 ratio of the spreads ({func}`rnlib.distance`). *clean* is the yardstick: between batches of the
# very images that inference is meant for there is nothing but sampling.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from rnlib.study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import display

from rnlib.study import pages
from rnlib.study.figures import style

style()
pages.setting(profile)

# %% [markdown]
# ## The paper's picture: start of training against tracked

# %% tags=["hide-input"]
pages.show(
    pages.scatter_figure(profile),
    caption="Every dot is a channel of a norm layer: its distance at the start of training against that of a clean batch through the "
    f"trained weights. {pages.probe_sentence(profile, 'start')}",
    alt="Scatter of per-channel distances between batch and tracked statistics, start of training against clean test batches.",
    notebook="fig1",
    profile=profile,
)

# %% [markdown]
# ## The same weights throughout

# %% tags=["hide-input"]
pages.show(
    pages.condition_figure(profile),
    caption="Distance of batch statistics from the tracked ones, over all channels, by condition; line: median. "
    f"{pages.probe_sentence(profile, 'adversarial')}",
    alt="Distributions over channels of the distance between batch and tracked statistics for five conditions.",
    notebook="fig1",
    profile=profile,
)

# %% tags=["hide-input"]
for claim in ("fig1-start", "fig1-adversarial"):
    display(pages.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Median over channels of the absolute shift and of the absolute log2 ratio:

# %% tags=["hide-input"]
pages.probe_table(profile)

# %% [markdown]
# ## What it means
#
# * That statistics at the start of training differ from the tracked ones says that the network has learned. It is not evidence of a
#   mismatch at inference, because nobody runs inference with the weights of the start.
# * The mismatch that inference really meets is *train* or *clean* against tracked: the tracked values are an average over recent batches, and
#   a batch differs from it by sampling, and by what the weights moved while the average was taken.
# * An attack can use batch statistics only through the shift that it causes, *adversarial* against *clean*. Where that is small against
#   sampling noise, replacing one set of statistics by the other cannot undo an attack by moving the activations back.
#
# ## Run it again
#
# ```
# snakemake -j2 --config profile=laptop           # trains, evaluates and probes what is missing, then builds the book
# papermill notebooks/fig1.ipynb out.ipynb -p profile laptop
# ```

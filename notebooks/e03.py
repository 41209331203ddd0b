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
# (e03)=
# # E3: the statistics ladder
#
# :::{admonition} The hypothesis
# The mismatch between the statistics of a batch and the tracked ones is what makes a network easy to fool.
# Then statistics that fit the batch, and stay as they are, should be the most robust of all. The rival: what
# helps is that batch statistics *move* with the attack.
# :::
#
# ## The experiment
#
# One set of weights, and six sources of statistics, from the usual ones to those of the batch itself:
#
# * *tracked*: the running averages of training;
# * *augmented*, *plain*, *adversarial*: averages over ten batches of training images, augmented as in
#   training, as they are, or augmented and attacked ({py:func}`rnlib.recalibrate`);
# * *clean twin*: the statistics of the clean version of the batch at hand, frozen. They fit the
#   images, and cannot follow the attack;
# * *batch*: those of the batch at hand, which move with every step of the attack.
#
# Each network so made is attacked as it is, in batches of 100.
#
# **What would support the hypothesis:** the clean twin is more robust than the tracked statistics. **What
# would refute it:** it is not, while the batch's own, moving statistics are: then fitting the batch is not
# what helps.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import decisive, ledger, pages, panels
from study.report.claims import judge
from study.report.figures import style
from study.runs import TRAININGS

style()
PARTS = ("twin", "twin-plain", "follow", "plain", "noise")
CLAIMS = [f"e03-{name}-{training}" for name in PARTS for training in TRAININGS]
ladder = decisive.networks(profile, "ladder")
display(pages.setting(profile, runs=lambda run: run.norm in decisive.NORMS))
panels.pending(profile, "ladder", runs=lambda run: run.experiment == "headline")

# %% [markdown]
# ## The ladder

# %% tags=["hide-input"]
if len(ladder):
    display(
        pages.show(
            decisive.ladder_figure(ladder),
            caption=(
                "Accuracy with statistics from each source, attacked as they are. Clean twin minus tracked,"
                f" natural training: {ledger.differences(judge('e03-twin-natural', profile))} points; batch"
                f" minus clean twin: {ledger.differences(judge('e03-follow-natural', profile))}."
            ),
            alt="For each network, four dots for each source of statistics: clean, noise, GradSign, PGD.",
            notebook="e03",
            profile=profile,
        )
    )
else:
    display(Markdown("No ladder has been measured yet."))

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
# * The clean twin is inference with the statistics that the images really have. If it is behind the tracked
#   ones, fitting the images has not made the network harder to fool, and whatever batch statistics gain must
#   come from elsewhere. That it makes the network *easier* to fool does not follow: the next point.
# * The twin fits the images and not the training, which saw augmented ones. *Plain* averages share this
#   difference, and *augmented* ones do not: what *plain* is behind *tracked* is the price of leaving out the
#   augmentation, and only what the twin is behind *plain* comes from fitting one batch.
# * The twin fits the *clean* images. That attacked ones need statistics of their own is another hypothesis:
#   {doc}`e01` has it, with batch statistics that the attack takes as given.
# * The step from the twin to the batch adds one thing only, that the statistics follow the attack. What is
#   gained there is a defence of the batch by its own perturbations; it is lost when images are attacked alone
#   ({ref}`e05`).
# * Under noise the same step tells where the gain of batch statistics comes from: the twin has not seen the
#   noise. A gain that needs statistics which have seen it is an adaptation to a shift of all images, not
#   robustness of the network ({cite:t}`schneider2020`).
# * {doc}`longer` has the same ladder after a longer training.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic ladder
# papermill notebooks/e03.ipynb out.ipynb -p profile laptop
# ```

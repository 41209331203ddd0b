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
# (e11)=
# # E11: jitter
#
# :::{admonition} The hypothesis
# The statistics of a batch are an estimate that varies from batch to batch: batch normalisation at inference
# is a random network. Randomness alone is known to blunt attacks. If the gap between batch and tracked
# statistics is only this, then tracked statistics that are disturbed by as much are as robust.
# :::
#
# ## The experiment
#
# For every layer and channel the scatter of the statistics from one batch of 100 clean training images to
# the next is measured on the same weights ({py:func}`rnlib.jitter.sampling_noise`): the standard deviation
# of the batch mean, and that of the logarithm of the batch variance. Then the network is evaluated with its
# *tracked* statistics plus Gaussian noise of this size ({py:func}`rnlib.jitter.jittered`), and of three
# times this size:
#
# * **held**: one draw for a batch, the same while it is attacked and when it is classified. The attacker
#   knows the network that it attacks; between batches the network changes.
# * **redrawn**: a new draw at every forward pass. The attack climbs a loss that moves, and is judged by a
#   draw that it has not seen: a moving target, as with any randomised defence.
#
# What this leaves out: real batch statistics of different channels vary together, and they move with the
# attack.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.experiments.conditions import JITTER
from study.report.figures import ATTACKS, style

style()
CLAIMS = ["e11-jitter", "e11-noise", "e11-redrawn"]
table = results.diagnostic(profile, "jitter")
table = table[table.norm == "batch_norm"]
display(pages.setting(profile, runs=lambda run: run.norm == "batch_norm" and run.seed == 0))
panels.pending(profile, "jitter")

# %% [markdown]
# ## Accuracy with disturbed statistics

# %% tags=["hide-input"]


def figure():
    order = [list(JITTER), list(ATTACKS)]
    shown = table.sort_values("statistics", key=lambda names: names.map(order[0].index), kind="stable")
    shown = shown.sort_values("attack", key=lambda names: names.map(order[1].index), kind="stable")
    return panels.categories(
        shown,
        x="statistics",
        series="training",
        looks=panels.names(
            ["natural", "adversarial"], {t: f"{t} training" for t in ("natural", "adversarial")}
        ),
        panel="attack",
        titles=ATTACKS,
        columns=2,
        height=2.8,
        rotation=25,
    )


if len(table):
    display(
        pages.show(
            figure(),
            caption=(
                "BatchNorm with tracked statistics, with tracked ones that are disturbed as much as batches"
                " of 100 scatter (and three times as much), and with batch statistics. Batch minus disturbed"
                f" under PGD, in points: {ledger.differences(judge('e11-jitter', profile))}."
            ),
            alt="Accuracy clean, under noise, GradSign and PGD: six sorts of statistics, two trainings.",
            notebook="e11",
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
# Differences in points, first condition minus second, paired over images.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# ## What it means
#
# * If batch statistics are ahead of disturbed ones, their advantage has another source than randomness:
#   that they follow the images at hand. If disturbed ones are level, randomness is enough, and the
#   advantage is one that an attacker averages away by more steps.
# * The comparison of *held* and *redrawn* tells what kind of protection randomness gives. A network that is
#   more robust only when it is redrawn is not harder to fool; its attacker is only worse informed.
# * Under Gaussian noise the question is a different one: noise shifts the statistics of every batch in the
#   same way, and only statistics of the batch at hand can follow that shift. Random disturbances cannot.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic jitter
# papermill notebooks/e11.ipynb out.ipynb -p profile laptop
# ```

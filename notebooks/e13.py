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
# (e13)=
# # E13: what is in the batch
#
# :::{admonition} The hypothesis
# The accuracy of a network with batch statistics belongs to the batch, not to the image. So it falls when the
# classes of a batch are not mixed, on clean images already, and whatever robustness it has falls with it.
# With tracked statistics an image's answer does not depend on its neighbours.
# :::
#
# ## The experiment
#
# The paper evaluates in batches of 100 images of all classes, and does not say that this matters. Here the
# *same* test images are put into batches in four ways, every image into one batch, and all images of a batch
# are attacked together:
#
# * **mixed**: in the fixed random order of every other page;
# * **skewed**: half of a batch is of one class, the other half of all;
# * **sorted**: in the order of the classes, cut every 100 images. That is what a data loader yields that
#   reads one folder after the other without shuffling, as test loaders do: an easy mistake, and a silent
#   one;
# * **single**: every batch is of one class.
#
# How the *number* of images matters is Figure 5's subject ({ref}`fig-5`).

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, style

style()
CLAIMS = ["e13-sorted", "e13-skewed", "e13-tracked", "e13-robust"]
table = results.diagnostic(profile, "composition")
table = table[table.norm == "batch_norm"]
display(pages.setting(profile, runs=lambda run: run.norm == "batch_norm"))
panels.pending(profile, "composition")

# %% [markdown]
# ## Accuracy by composition

# %% tags=["hide-input"]
if len(table):
    shown = table.assign(panel=table.training + " training, " + table.attack.map(ATTACKS))
    order = [
        f"{training} training, {ATTACKS[attack]}"
        for training in ("natural", "adversarial")
        for attack in ("clean", "grad_sign", "pgd_linf")
    ]
    shown = shown.sort_values("panel", key=lambda names: names.map(order.index), kind="stable")
    display(
        pages.show(
            panels.categories(
                shown,
                x="composition",
                series="statistics",
                looks=panels.look("batch_norm"),
                panel="panel",
                columns=3,
                height=2.6,
            ),
            caption=(
                "The same images in batches of other compositions. Clean accuracy with batch statistics,"
                f" mixed minus other batches, in points: {ledger.differences(judge('e13-sorted', profile))}."
                f" With tracked statistics: {ledger.differences(judge('e13-tracked', profile))}."
            ),
            alt=(
                "Accuracy in mixed, skewed, sorted and single-class batches, with tracked and with batch"
                " statistics, clean and under two attacks, after natural and after adversarial training."
            ),
            notebook="e13",
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
# Differences in points, first condition minus second. Where several seeds are there the interval is over
# seeds, else over images, paired.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# ## What it means
#
# * In a batch of one class the mean of a channel *is* the feature of the class. Normalisation subtracts it,
#   and with it what tells the class apart. If the first two claims hold, that is what happened; if they do
#   not, later layers make up for it.
# * So the number that the paper's comparison gives to BatchNorm without tracking describes a network together
#   with a sampler of balanced batches. A camera that sees one scene, a queue of similar requests, or a test
#   set in order of class is another sampler.
# * Whoever can choose an image's neighbours can choose its answer: that, as an attack, is {doc}`e05`.
# * `rnlib.audit_batch_dependence` measures the same for any PyTorch model.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic composition
# papermill notebooks/e13.ipynb out.ipynb -p profile laptop
# ```

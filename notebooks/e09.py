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
# (e09)=
# # E9: how images are crafted in training
#
# :::{admonition} The hypothesis
# After adversarial training the paper finds BatchNorm with tracked statistics far behind BatchNorm without
# (Table 2). In the released code the images to train on are crafted in training mode: against batch
# statistics, and with every forward pass of the attack entering the running averages. So the two rows differ
# in more than tracking: one is tested in the mode it was trained against, and the other relies on averages
# over half-made attacks. If that makes the gap, then other averages for the same weights close a part of it,
# and crafting in evaluation mode turns it around.
# :::
#
# ## The experiment
#
# One ResNet-20 with BatchNorm is trained adversarially three times, alike but for the mode in which its
# images are crafted ({py:class}`rnlib.Training`, `crafting`):
#
# * **train**: as the released code;
# * **train-frozen**: against batch statistics, but the attack's passes do not enter the averages;
# * **eval**: against the tracked statistics.
#
# Each is evaluated on the ladder of statistics: *tracked* as training left them; the average over clean,
# augmented or adversarial training images on the same weights ({py:func}`rnlib.recalibrate`); the clean
# version of the batch at hand; and the batch itself. Every one is attacked as it is.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import Markdown, display

from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, style
from study.runs import chosen_runs

style()
CRAFTING = {"short": "train", "crafting_frozen": "train-frozen", "crafting_eval": "eval"}
SOURCES = {
    "ema": "tracked",
    "plain": "clean",
    "augmented": "augmented",
    "adversarial": "adversarial",
    "twin": "clean batch",
    "batch": "batch",
}
CLAIMS = ["e09-averages", "e09-clean", "e09-eval", "e09-gap"]
where = {"experiment": list(CRAFTING), "norm": ["batch_norm"], "training": ["adversarial"]}
runs = chosen_runs(profile, where)
tables = [results.diagnostic(profile, "ladder", experiment) for experiment in CRAFTING]
table = pd.concat(tables, ignore_index=True)
table = table[(table.norm == "batch_norm") & (table.training == "adversarial")]
display(
    pages.setting(profile, "short", lambda run: run.norm == "batch_norm" and run.training == "adversarial")
)
if runs:
    epochs = " or ".join(str(epochs) for epochs in sorted({run.epochs for run in runs}))
    display(Markdown(f"The runs of this page are trained for {epochs} epochs, one seed each."))
else:
    display(Markdown(f"The profile `{profile}` has no such runs; `laptop` has."))
panels.pending(profile, "ladder", runs=lambda run: run.experiment in CRAFTING)

# %% [markdown]
# ## Three trainings on the ladder

# %% tags=["hide-input"]
if len(table):
    shown = table.sort_values("source", key=lambda names: names.map(list(SOURCES).index), kind="stable")
    shown = shown.sort_values("attack", key=lambda names: names.map(list(ATTACKS).index), kind="stable")
    display(
        pages.show(
            panels.categories(
                shown,
                x="source",
                series="experiment",
                looks=panels.names(list(CRAFTING), {key: f"crafting: {CRAFTING[key]}" for key in CRAFTING}),
                panel="attack",
                labels=SOURCES,
                titles=ATTACKS,
                columns=2,
                height=2.8,
                rotation=25,
            ),
            caption=(
                "Adversarially trained BatchNorm, by the mode its training images were crafted in and the"
                " statistics it is evaluated with. How much more batch statistics gain over tracked ones"
                " after crafting in training mode than in evaluation mode, in points:"
                f" {ledger.differences(judge('e09-gap', profile))}."
            ),
            alt="Accuracy clean and under three attacks for six sources of statistics and three trainings.",
            notebook="e09",
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
# Differences in points, first condition minus second, paired over images; of one seed each, so that they say
# nothing of other seeds.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# ## What it means
#
# * The weights are the same along a line of the ladder. What averaging other images changes is the fault of
#   the averages, and can be repaired after training by one pass over some batches. What is left between the
#   best of these and the batch's own statistics is what tracking as such could be blamed for.
# * Between the three trainings the weights differ. A network that is trained against attacks on its tracked
#   statistics has been asked to be robust in that mode. If it is, the paper's gap says which mode was trained
#   for, and not which is robust.
# * The paper's text does not mention the mode, and its comparison mixes the two
#   ({doc}`/background/paper-and-code`).
#
# ## Run it again
#
# ```
# papermill notebooks/train.ipynb out.ipynb -p profile laptop -p experiment crafting_eval \
#     -p training adversarial
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p experiment crafting_eval \
#     -p training adversarial -p diagnostic ladder
# papermill notebooks/e09.ipynb out.ipynb -p profile laptop
# ```

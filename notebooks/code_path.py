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
# (code-path)=
# # The paper's own code path
#
# :::{admonition} The question
# The paper's text and its released code differ ({doc}`/background/paper-and-code`), and this book follows now
# one, now the other. Could one of the code's habits, which this book does not share, make the gap that the
# paper prints between batch and tracked statistics?
# :::
#
# ## The experiment
#
# The same trained BatchNorm networks are tested again by the released code's protocol, each of its habits
# switched on alone, and all of its tests' habits together ({py:class}`rnlib.released.Protocol`):
#
# * **clipping to the batch**: attacked images are not clipped to [0, 1] but to the smallest and largest
#   number of the normalised batch, two numbers for all channels; noise is not clipped at all;
# * **noise 0.1**: Gaussian noise of this standard deviation in normalised units, the text's is 0.5;
# * **std + eps**: batch norms divide by the sum of the *unbiased* standard deviation and eps, not by the root
#   of variance plus eps;
# * **batches of 128**: at inference;
# * **all of its test**: these four together.
#
# Two more rows are no habits of its tests, and are asked about:
#
# * **attack in training mode**: the released tests attack in evaluation mode, but its *training* crafts
#   images in training mode, and every forward pass enters the running averages. Here the test does that as
#   well: the attack sees batch statistics, and the averages drift with it from batch to batch;
# * **eps in pixels**: the text's $\epsilon = 0.03$ read as 0.03 of the pixels' range, five times as much.
#   This book and the code add it after the images are normalised.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import Markdown, display

from rnlib.released import HABITS
from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, style
from study.runs import TRAININGS

style()
CLAIMS = ["code-path-gap", "code-path-moves", "code-path-noise"]
NORMS = {"batch_norm": "native", "batch_norm_released": "released"}
table = results.diagnostic(profile, "code_path")
ATTACKED = ["clean", "noise", "grad_sign", "pgd_linf"]
measured = [training for training in TRAININGS if training in set(table.training)]
display(pages.setting(profile, runs=lambda run: run.norm == "batch_norm" and run.seed == 0))
panels.pending(profile, "code_path")

# %% [markdown]
# ## Accuracy, habit by habit


# %% tags=["hide-input"]
def gaps(training):
    """A row a habit, a column an attack; as in this book where the habit changes nothing."""
    cells = {}
    for (habit, attack), rows in table[table.training == training].groupby(["habit", "attack"]):
        if set(rows.statistics) == {"tracked", "batch"} and rows.seed.nunique() == 1:
            found = results.gap(profile, "code_path", rows)
            cells[habit, attack] = "{:+.1f} ({:+.1f} to {:+.1f})".format(*found)
    frame = pd.Series(cells, dtype=object).unstack().reindex(index=list(HABITS), columns=ATTACKED)
    return frame.fillna("unchanged").rename(columns=ATTACKS)


def with_all(training):
    """Batch minus tracked with all habits of the released test, attack by attack."""
    cells = GAPS[training].loc["all of its test"].drop([ATTACKS["clean"], ATTACKS["noise"]])
    return ", ".join(f"{attack} {cell.split()[0]}" for attack, cell in cells.items())


GAPS = {training: gaps(training) for training in measured}

for training in measured:
    shown = table[table.training == training]
    shown = shown.sort_values("attack", key=lambda names: names.map(ATTACKED.index), kind="stable")
    shown = shown.sort_values("habit", key=lambda names: names.map(list(HABITS).index), kind="stable")
    display(
        pages.show(
            panels.categories(
                shown,
                x="habit",
                series="statistics",
                looks=panels.look("batch_norm"),
                panel="attack",
                titles=ATTACKS,
                columns=2,
                height=3.4,
                rotation=35,
            ),
            caption=(
                f"{training.capitalize()} training: one network, tested as this book does and with each habit"
                " of the released code. No dot: the habit changes nothing there."
                f" Batch minus tracked with all habits of its test, in points: {with_all(training)}."
            ),
            alt="Accuracy by habit, with tracked and batch statistics; panels for clean, noise and attacks.",
            notebook="code_path",
            profile=profile,
        )
    )
if not measured:
    display(Markdown("Nothing of it has been measured yet."))

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Batch minus tracked in points, with its 95% interval over images, for every habit:


# %% tags=["hide-input"]
for training in measured:
    display(Markdown(f"**{training.capitalize()} training**"), GAPS[training])

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in [*CLAIMS, "code-path-norm"]])

# %% [markdown]
# ## The epoch that is kept
#
# The released code keeps the weights of the epoch of best clean accuracy on *test* images, in the mode of the
# norm at hand. From the histories of the trainings: what that choice gains on the images that make it, over
# the last epoch.

# %% tags=["hide-input"]
curves = pd.concat([results.histories(profile, experiment) for experiment in ("headline", "long")])
curves = curves[curves.norm == "batch_norm"]
if len(curves):
    rows = []
    for (experiment, training, seed), part in curves.groupby(["experiment", "training", "seed"], sort=False):
        for mode in ("tracked", "batch"):
            accuracy = part.set_index("epoch")[f"val_accuracy_{mode}"]
            rows.append({
                "experiment": experiment, "training": training, "seed": seed, "statistics": mode,
                "epochs": accuracy.index[-1], "best epoch": accuracy.idxmax(), "best (%)": accuracy.max(),
                "last (%)": accuracy.iloc[-1], "gain": accuracy.max() - accuracy.iloc[-1],
            })  # fmt: skip
    kept = pd.DataFrame(rows)
    gain = kept.groupby("statistics").gain.agg(["mean", "max"])
    told = "; ".join(
        f"{mode}: {row['mean']:.1f} on average, {row['max']:.1f} at most" for mode, row in gain.iterrows()
    )
    display(
        Markdown(f"Gain in points of clean accuracy by choosing on the test images: {told}."), kept.round(1)
    )
else:
    display(Markdown("No training of BatchNorm has been measured yet."))

# %% [markdown]
# A schedule whose learning rate ends at 0, as in the profile `laptop`, leaves less to choose. In the
# paper's 164 epochs of adversarial training the validation loss of tracked statistics differs much between
# restarts (its Figures 3 and 8), and the two modes may keep different epochs, hence different weights.
# {doc}`e14` has the attacked accuracies of the weights along one training.
#
# ## Its batch norm, from the first step on
#
# Above, networks that learned with native batch norms are tested with the layer of the released code. Here
# one is trained with it ({py:class}`rnlib.norms.ReleasedBatchNorm`), on the small budget of all norms of this
# book (experiment `short`, one seed), beside one with the native layer on the same budget.

# %% tags=["hide-input"]
display(pages.setting(profile, "short", lambda run: run.norm in NORMS and run.training == "natural"))
trained = results.select(results.evaluations(profile, "short"), {"training": "natural"})
trained = trained[trained.norm.isin(list(NORMS)) & trained.attack.isin(ATTACKED)]
trained = trained.sort_values("attack", key=lambda names: names.map(ATTACKED.index), kind="stable")
if len(trained):
    display(
        pages.show(
            panels.categories(
                trained.sort_values("norm", kind="stable"),
                x="norm",
                series="statistics",
                looks=panels.look("batch_norm"),
                panel="attack",
                labels=NORMS,
                titles=ATTACKS,
                columns=4,
                height=3.0,
            ),
            caption=(
                "Natural training with the native layer and with the released code's, 95% intervals over"
                " images. Batch minus tracked with the released code's, in points:"
                f" {ledger.differences(judge('code-path-norm', profile))}."
            ),
            alt="Accuracy of the two layers with tracked and batch statistics: clean, noise and two attacks.",
            notebook="code_path",
            profile=profile,
        )
    )

# %% tags=["hide-input"]
ledger.verdict("code-path-norm", profile)

# %% [markdown]
# ## What it means
#
# * If no habit moves the gap, neither this book's way of testing nor the released code's is what makes it:
#   then the weights do, by their training, or the number of runs.
# * A habit that moves both rows alike changes printed numbers and no conclusion. The size of eps is not one
#   of these: it decides how much of the clean accuracy is left under attack, and moves the rows
#   by different amounts (*eps in pixels* in the tables above). A gap belongs to the eps at which it was
#   measured.
# * Clipping to the range of the batch and batch statistics are alike in that an image's fate depends on the
#   images beside it.
# * In training mode the attack always meets batch statistics. Tested with tracked ones, that is an attack
#   transferred from another network, on averages that it has moved: the two rows are then attacked with
#   different knowledge, and their difference is no measure of robustness.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic code_path
# papermill notebooks/code_path.ipynb out.ipynb -p profile laptop
# ```

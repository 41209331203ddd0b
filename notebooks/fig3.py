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
# (fig-3)=
# (fig-8)=
# # Figures 3 and 8: training and validation curves
#
# :::{admonition} The claim
# In adversarial training on CIFAR-100 the training loss of all norms falls alike. The validation loss does
# not: with tracked statistics it is noisy, differs much from one restart to the next and stays high or even
# rises; with batch statistics it falls as it should, lowest with RobustNorm. The paper takes this as
# overfitting by tracking, and as a hint at the minima of Fig 9.
# :::
#
# ## The experiment
#
# ResNet-20 with BatchNorm and with RobustNorm. After every epoch the network is measured on clean images of
# the test set, once with its tracked and once with batch statistics, so that every run gives two validation
# curves to its one training curve. Nothing is chosen by these curves. Training loss is that of the images
# trained on: attacked ones, in adversarial training.
#
# "Noisy" and "rising" become one number, the *rise*: how far the validation loss lies above its lowest value
# so far, on average over epochs. It is zero for a curve that only falls, however fast. How far a curve moves
# from epoch to epoch would not do, since that is large for one that simply falls far.

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
from study.report.figures import style

style()
PAIRS = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "batch"),
    ("robust_norm", "tracked"),
]
NORMS = {"batch_norm": "BatchNorm", "robust_norm": "RobustNorm"}
CLAIMS = ["fig3-rising", "fig3-higher", "fig3-best", "fig3-training", "fig3-natural"]
looks = beside.looks(PAIRS)
curves = beside.series(results.curves(profile))
curves = curves[(curves.architecture == "resnet20") & curves.series.isin(looks)]
headline, long = (curves[curves.experiment == name] for name in ("headline", "long"))
# The curves of a profile are of one data set, unless it has several: then of the paper's.
if headline.dataset.nunique() > 1:
    headline = headline[headline.dataset == "cifar100"]
pages.setting(profile, runs=lambda run: run.norm != "no_norm")

# %% [markdown]
# ## Loss


# %% tags=["hide-input"]
def both(table, quantity):
    """Validation and training curves of a quantity in one column, ``value``."""
    parts = {"validation": f"val_{quantity}", "training": f"train_{quantity}"}
    return pd.concat(
        rows.assign(value=rows[column], panel=f"{training}, {name}")
        for name, column in parts.items()
        for training, rows in table.groupby("training", sort=False)
    )


def curve_figure(table, quantity, unit):
    return panels.lines(
        both(table.sort_values("training", ascending=False), quantity),
        x="epoch",
        series="series",
        looks=looks,
        panel="panel",
        xlabel="epoch",
        value="value",
        ylabel=unit,
        titles={
            f"{training}, {name}": f"{training.capitalize()} training: {name} {quantity}"
            for training in ("natural", "adversarial")
            for name in ("validation", "training")
        },
        columns=2,
        height=2.7,
    )


def told(claim):
    ones = judge(claim, profile).comparisons
    return ", ".join(f"{NORMS[one.what]} {one.ours:+.3f}" for one in ones) or "not measured yet"


def rose(table):
    """Which validation losses of adversarial training rose above their lowest, and by how much at most."""
    rises = table[table.training == "adversarial"].groupby("series", sort=False).rise.max()
    over = ", ".join(f"{name} {rise:.2f}" for name, rise in rises.items() if rise > 0)
    epochs = table[table.training == "adversarial"].epoch.max()
    return f"rose above their lowest by at most: {over}" if over else f"never rose in {epochs} epochs"


ALT = (
    "Curves by epoch of BatchNorm and RobustNorm with tracked and with batch statistics: validation above,"
    " training below; natural training on the left, adversarial on the right."
)
if len(headline):
    display(
        pages.show(
            curve_figure(headline, "loss", "loss"),
            caption=(
                "Loss by epoch, with 95% bands over seeds. Validation losses of adversarial training"
                f" {rose(headline)}. Tracked minus batch statistics after its last epoch:"
                f" {told('fig3-higher')}. The two training curves of a norm are one: it is the same training."
            ),
            alt=ALT,
            notebook="fig3",
            profile=profile,
        )
    )
else:
    display(Markdown("Nothing has been trained yet: `snakemake -j2 --config profile=laptop`."))

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## Accuracy

# %% tags=["hide-input"]
if len(headline):
    last = headline[headline.epoch == headline.groupby("run").epoch.transform("max")]
    ends = last.groupby(["training", "series"]).val_accuracy.mean().round(1)
    listed = "; ".join(
        f"{training}: "
        + ", ".join(f"{looks[name][0]} {value}" for name, value in ends[training].sort_values().items())
        for training in ("natural", "adversarial")
        if training in ends
    )
    display(
        pages.show(
            curve_figure(headline, "accuracy", "accuracy (%)"),
            caption=f"Accuracy by epoch, clean images in validation. After the last epoch, {listed}.",
            alt=ALT,
            notebook="fig3",
            profile=profile,
        )
    )

# %% [markdown]
# ## From seed to seed
#
# The paper's word for the tracked curves is uncertainty: restarts that differ. Standard deviation over our
# seeds after the last epoch, and mean rise over all epochs:

# %% tags=["hide-input"]
if len(headline):
    groups = ["training", "series"]
    kept = {
        "seeds": ("seed", "nunique"),
        "val. loss": ("val_loss", "std"),
        "val. accuracy": ("val_accuracy", "std"),
        "training loss": ("train_loss", "std"),
    }
    steadiness = last.groupby(groups).agg(**kept)
    steadiness = steadiness.join(headline.groupby(groups)[["rise"]].mean())
    steadiness = steadiness.rename(index=lambda key: looks[key][0] if key in looks else key)
    display(steadiness.rename_axis(["training", "norm"]).round(3))

# %% [markdown]
# ## A longer training
#
# The budget above is small, and a curve that has no time to overfit cannot rise. Natural trainings that went
# on for more epochs (experiment `long`, one seed):

# %% tags=["hide-input"]
display(pages.setting(profile, "long"))
if len(long):
    losses = both(long, "loss")
    ends = long[long.epoch == long.epoch.max()].set_index("series")
    listed = "; ".join(
        f"{looks[name][0]} {ends.val_loss[name]:.2f}, {ends.rise[name]:.2f} above its lowest"
        for name in looks
        if name in ends.index
    )
    display(
        pages.show(
            panels.lines(
                losses,
                x="epoch",
                series="series",
                looks=looks,
                panel="panel",
                xlabel="epoch",
                value="value",
                ylabel="loss",
                titles={"natural, validation": "Validation loss", "natural, training": "Training loss"},
                ticks=False,
            ),
            caption=(
                f"{int(long.epoch.max())} epochs of natural training. Validation loss at the end: {listed}."
            ),
            alt="Validation and training loss by epoch of a long natural training.",
            notebook="fig3",
            profile=profile,
        )
    )
else:
    display(
        Markdown(
            "Not trained yet: `papermill notebooks/train.ipynb out.ipynb -p profile laptop -p experiment long"
            " -p norm batch_norm`."
        )
    )

# %% [markdown]
# ## The numbers
#
# Tracked minus batch statistics (training loss: first epoch minus last; *fig3-best*: BatchNorm minus
# RobustNorm), t intervals over seeds:

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# ## What it means
#
# * Both validation curves of a run belong to the *same weights* at every epoch. Whatever they do differently
#   is the work of the averages, not of the minimum that training found. A noisy tracked curve beside a quiet
#   one of batch statistics therefore speaks of stale averages; it is no evidence of overfitting, which would
#   show in both.
# * Averages with momentum 0.1 look back about ten forward passes. While the learning rate is high, weights
#   move far in that time; and where the attack's passes are averaged as well, as in adversarial training by
#   the released code and here, the last ten passes hold one batch in several states of attack, with the fewer
#   steps of the profile `laptop` two or three batches. A
#   schedule that ends at a low learning rate, as ours does, lets the averages catch up in the last epochs;
#   the paper's steps down after three quarters of its epochs.
# * If our curves do not show what the paper's do, the budget is a possible reason: few epochs, no time at a
#   high learning rate. The first claim above waits for more epochs for that reason. After more of them, with
#   steps of the learning rate as in the paper ({doc}`longer`):

# %% tags=["remove-input"]
ledger.summary(profile, ["longer-rising"])

# %% [markdown]
# * The paper's own numbers of adversarial training hold the sign of unsteadiness that its text speaks of, see
#   {doc}`contradictions`.
# * {doc}`e09` replaces the averages of finished trainings by better ones and measures what that changes.
#
# ## Run it again
#
# ```
# snakemake -j2 --config profile=laptop  # runs what is missing, then builds the book
# papermill notebooks/fig3.ipynb out.ipynb -p profile laptop
# ```

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
# (road)=
# # Section 4, Equations 11 to 14: the road to RobustNorm
#
# :::{admonition} The claim
# The paper reaches its norm in three steps. Min-max normalisation ([Eq. 11](#eq-11)) converges poorly. With
# the mean in place of the minimum ([Eq. 12](#eq-12)) it converges better, but suppresses activations much
# more strongly than BatchNorm does, as Popoviciu's inequality ([Eq. 13](#eq-13)) lets expect, and its
# performance stays inadequate. A power p of the range ([Eq. 14](#eq-14)), 0.2 throughout the paper, repairs
# that. The paper shows none of these observations.
# :::
#
# ## The experiment
#
# Three of the norms and BatchNorm are trained with all else alike, on one small budget. All of them normalise
# with the statistics of the batch in training; the validation images are measured with batch statistics as
# well, so that tracking plays no part here.
#
# Whether Eq 12 suppresses activations is a question about a given input. So it is put to one network: at the
# input of every norm layer of the trained BatchNorm network, the standard deviation and the range of each
# channel are measured over test batches of 100 images, and from them what each normaliser would leave
# ({py:func}`study.experiments.spreads.spreads`). Scale and shift, which are learned, are left aside.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import style

style()
NORMS = {
    ("min_max_norm", None): "Eq 11: x - min, range",
    ("robust_norm", 1.0): "Eq 12: x - mean, range",
    ("robust_norm", 0.2): "Eq 14: x - mean, range^0.2",
    ("batch_norm", None): "BatchNorm",
}
NORMALISERS = {  # in an order that gives a norm the colour that it has above
    "two_sigma": "2 sigma, the bound of Eq 13",
    "mean_range_norm": "Eq 12: range",
    "robust_norm": "Eq 14: range^0.2",
    "batch_norm": "BatchNorm: sigma",
}
LOSS, CLEAN = ["road-eq11-loss"], ["road-eq11-clean", "road-eq14-clean"]
WIDTH = ["road-eq12-suppresses", "road-eq13", "road-eq14-widens"]
TITLES = {training: f"{training.capitalize()} training" for training in ("natural", "adversarial")}
display(pages.setting(profile, "short", lambda run: (run.norm, run.p) in NORMS))
panels.pending(profile, "spreads")

# %% [markdown]
# ## Training curves

# %% tags=["hide-input"]
curves = results.select(results.curves(profile), {"experiment": "short", "statistics": "batch"})
keys = [(norm, None if p != p else p) for norm, p in zip(curves.norm, curves.p.astype(float), strict=True)]
curves = curves.assign(series=keys, accuracy=curves.val_accuracy)
looks = panels.names(list(NORMS), NORMS)
if curves.series.isin(list(NORMS)).any():
    shared = {"x": "epoch", "series": "series", "looks": looks, "panel": "training", "titles": TITLES}
    shared |= {"xlabel": "epoch"}
    display(
        pages.show(
            panels.lines(curves, value="train_loss", ylabel="training loss", **shared),
            caption=(
                "Training loss by epoch. Eq 11 minus Eq 12, mean over epochs:"
                f" {ledger.differences(judge('road-eq11-loss', profile))}."
            ),
            alt="Training loss along the epochs for Eq 11, Eq 12, Eq 14 and BatchNorm, a panel a training.",
            notebook="road",
            profile=profile,
        )
    )
    display(
        pages.show(
            panels.lines(curves, value="val_accuracy", ylabel="clean accuracy (%)", **shared),
            caption=(
                "Clean accuracy of the validation images by epoch, with batch statistics. On the test images"
                " at the end, in points, Eq 12 minus Eq 11:"
                f" {ledger.differences(judge('road-eq11-clean', profile))}; Eq 14 minus Eq 12:"
                f" {ledger.differences(judge('road-eq14-clean', profile))}."
            ),
            alt="Validation accuracy along the epochs for the same norms, a panel a training.",
            notebook="road",
            profile=profile,
        )
    )
else:
    display(Markdown("None of these trainings has been run yet."))

# %% tags=["hide-input"]
for claim in LOSS + CLEAN:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## What each normaliser leaves of one input


# %% tags=["hide-input"]
def logarithmic(axis):
    axis.set_yscale("log")
    axis.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    axis.set_yticks([], minor=True)


widths = results.diagnostic(profile, "spreads")
if len(widths):
    layers = {layer: depth for depth, layer in enumerate(dict.fromkeys(widths.layer), start=1)}
    widths = widths.assign(depth=widths.layer.map(layers))
    medians = widths.groupby("normaliser")["std"].median()
    display(
        pages.show(
            panels.lines(
                widths,
                x="depth",
                series="normaliser",
                looks=panels.names(list(NORMALISERS), NORMALISERS),
                panel="training",
                titles=TITLES,
                value="std",
                xlabel="norm layer, counted from the input",
                ylabel="standard deviation left",
                ticks=False,
                mark=logarithmic,
            ),
            caption=(
                "Standard deviation of a channel after each normaliser, median over the channels of a layer,"
                " at the inputs of the norms of the BatchNorm network. Median over layers and trainings:"
                f" {medians['mean_range_norm']:.2f} after Eq 12, {medians['robust_norm']:.2f} after Eq 14,"
                " 1 after BatchNorm; Eq 13 allows Eq 12 at most 0.5."
            ),
            alt="Standard deviation after four normalisers, by layer, a panel a training, logarithmic.",
            notebook="road",
            profile=profile,
        )
    )
else:
    display(Markdown("Nothing of it has been measured yet."))

# %% tags=["hide-input"]
for claim in WIDTH:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# First side minus second. Accuracies in percentage points over the same images; losses over epochs and
# standard deviations over layers. One seed each, so that the intervals say nothing of other seeds.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in LOSS + CLEAN + WIDTH])

# %% [markdown]
# ## What it means
#
# * That Eq 12 leaves less than BatchNorm is mathematics ({doc}`/background/popoviciu`); by how much is not.
#   The range grows with the number of values and with their tails, so that the factor is far from the 2 of
#   the inequality.
# * The learned scale can undo any factor that is the same for a whole channel, and training can move it. If
#   Eq 12 trains as well as Eq 14, the suppression was a matter of the start of training; if it does not,
#   then a scale of 1 in the beginning is too little for every layer at once, and Eq 14 works as an
#   initialisation as much as as a norm.
# * Eq 14 has no fixed width: what it leaves depends on the width of the input, as range^(1 - p) of it. The
#   network is then no longer free of the scale of its weights, which BatchNorm and Eq 12 are.
#
# ## Run it again
#
# ```
# papermill notebooks/train.ipynb out.ipynb -p profile laptop -p experiment short -p norm min_max_norm
# papermill notebooks/evaluate.ipynb out.ipynb -p profile laptop -p experiment short -p norm min_max_norm
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic spreads
# papermill notebooks/road.ipynb out.ipynb -p profile laptop
# ```

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
# (fashion)=
# # A second data set: Fashion-MNIST
#
# :::{admonition} The hypothesis
# If the effects of Tables 2 and 3 come from normalisation, they show on another data set as well: batch
# statistics make the same BatchNorm network more robust, and RobustNorm keeps that gain with less loss of
# clean accuracy.
# :::
#
# ## The experiment
#
# The headline comparison on the whole of Fashion-MNIST {cite:p}`xiao2017`: 60,000 grey images of 28 by 28,
# unaltered, where the CIFAR-10 of this book is a JPEG copy. ResNet-20 with BatchNorm, RobustNorm and no norm,
# natural and adversarial training, half of the headline's epochs. The paper does not use this data set.
# Its eps of 0.03 after normalisation is about 0.0106 in pixels, 2.7/255: contrast is high here and the
# standard deviation larger, so that the same number is a larger step.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from rnlib.study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import display

from rnlib.study import beside, ledger, pages, panels, results
from rnlib.study.claims import judge
from rnlib.study.figures import ATTACKS, SERIES, accuracy_figure, style

style()
PAIRS = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "batch"),
    ("robust_norm", "tracked"),
    ("no_norm", "none"),
]
NAMES = ["clean", "noise", *beside.ATTACK_CELLS]
CLAIMS = {
    training: [f"fashion-{training}-{part}" for part in ("attacks", "noise", "robust-norm", "clean")]
    for training in ("natural", "adversarial")
}
table = results.evaluations(profile, "fashion")
pages.setting(profile, "fashion")

# %% [markdown]
# ## Natural and adversarial training

# %% tags=["hide-input"]
pages.show(
    accuracy_figure(
        profile,
        None,
        ["natural", "adversarial"],
        NAMES,
        PAIRS,
        experiment="fashion",
        dataset="fashion-mnist",
        columns=1,
    ),
    caption=(
        "Fashion-MNIST, ours. Batch minus tracked statistics of BatchNorm, in points: natural training"
        f" {ledger.differences(judge('fashion-natural-attacks', profile))}; adversarial training"
        f" {ledger.differences(judge('fashion-adversarial-attacks', profile))}."
    ),
    alt=(
        "Accuracy clean, under noise and under three attacks of BatchNorm and RobustNorm with tracked and"
        " with batch statistics and of a network without norm; natural training above, adversarial below."
    ),
    notebook="fashion",
    profile=profile,
)

# %% tags=["hide-input"]
for claim in [*CLAIMS["natural"], *CLAIMS["adversarial"]]:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Differences in points, first condition minus second, with intervals over images:

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claims in CLAIMS.values() for claim in claims])

# %% [markdown]
# Accuracy in percent (95% interval):

# %% tags=["hide-input"]
rows = panels.intervals(table, ["training", "norm", "statistics", "attack"])
rows["text"] = [f"{r.mean:.1f} ({r.low:.0f}-{r.high:.0f})" for r in rows.itertuples(index=False)]
rows["name"] = [SERIES[pair][0] for pair in zip(rows.norm, rows.statistics, strict=True)]
numbers = rows.pivot(index="attack", columns=["training", "name"], values="text")
numbers.reindex([name for name in NAMES if name in numbers.index]).rename(index=ATTACKS)

# %% [markdown]
# ## What it means
#
# * Where a verdict is the same here and on cifar10-jpeg ({doc}`table2`, {doc}`table3`), neither the JPEG
#   compression nor the kind of images explains it. Where it is not, the effect belongs to a data set or to a
#   training, and not to normalisation as such.
# * One seed was trained. A difference between statistics modes is one of the same weights; a difference
#   between norms holds the chance of two trainings.
#
# ## Run it again
#
# ```
# snakemake -j2 --config profile=laptop           # trains and evaluates what is missing, then builds the book
# papermill notebooks/fashion.ipynb out.ipynb -p profile laptop
# ```

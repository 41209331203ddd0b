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
# (table-5)=
# # Table 5: other architectures on CIFAR-100
#
# :::{admonition} The claim
# What the text says of CIFAR-10 it says of CIFAR-100, for ResNet-38, ResNet-50, VGG-11 and VGG-16, one
# training of each: BatchNorm is more robust without tracking, RobustNorm more robust still, and with tracking
# RobustNorm is more robust than BatchNorm.
# :::
#
# ## The experiment
#
# None of it was run in the profile `laptop`: CIFAR-100 is not at hand there. The profile `paper` has all
# rows, for a GPU; {py:func}`rnlib.data.load` takes the official files. The page shows the paper's numbers,
# and ours beside them as soon as there are any.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import display

from study.report import beside, ledger, pages, results
from study.report.figures import ATTACKS, beside_figure, style

style()
PAIRS = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "batch"),
    ("robust_norm", "tracked"),
]
TRAININGS = ("natural", "adversarial")
CLAIMS = [
    f"table5-{training}-{part}" for part in ("tracking", "robust-norm", "tracked") for training in TRAININGS
]
CLAIMS.append("table5-natural-vgg")
theirs, ours = (
    table.assign(panel=table.architecture + " " + table.training)
    for table in (results.paper(5), beside.ours(profile, 5))
)
pages.setting(profile, runs=lambda run: run.dataset == "cifar100")

# %% [markdown]
# ## Four networks

# %% tags=["hide-input"]
tracking = beside.cells(PAIRS[0], PAIRS[1])
tracking = tracking[tracking.dataset == "cifar100"]
gaps = (tracking.second - tracking["first"]).groupby(tracking.training).agg(["min", "max"])
told = "; ".join(f"{t} {gaps['min'][t]:+.1f} to {gaps['max'][t]:+.1f}" for t in TRAININGS)
pages.show(
    beside_figure(
        theirs,
        ours,
        x="attack",
        places={name: ATTACKS[name] for name in ("clean", "noise", *beside.ATTACK_CELLS)},
        panel="panel",
        titles={
            f"{network} {training}": f"{label}, {training}"
            for network, label in beside.ARCHITECTURES.items()
            if network != "resnet20"
            for training in TRAININGS
        },
        series=PAIRS,
        ylim=(-4, 100),
        height=2.6,
    ),
    caption=(
        "CIFAR-100. BatchNorm without tracking minus BatchNorm under the three attacks, the paper's numbers,"
        f" in points: {told} training."
    ),
    alt=(
        "Accuracy of BatchNorm and RobustNorm with tracked and with batch statistics, clean, under noise and"
        " under three attacks: a row of panels for each network, natural training left, adversarial right."
    ),
    notebook="table5",
    profile=profile,
)

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# The paper's, and ours behind a stroke, in percent:

# %% tags=["hide-input"]
beside.table(profile, 5)

# %% [markdown]
# ## What it means
#
# * In two things Table 5 repeats {doc}`table4`: BatchNorm is more robust without tracking, and after natural
#   training both VGGs are less robust with RobustNorm than with BatchNorm without tracking. An exception that
#   comes back on another data set is not the chance of one training. RobustNorm with tracking, however, is
#   ahead of BatchNorm after natural training in most cells of Table 4 and behind it in most of Table 5
#   ({doc}`contradictions` has the counts).
# * With ten times as many classes nearly all accuracies are lower, but for a row of zeros in Table 4, and
#   most differences in points with them; they do not compare with those of Table 4.
# * Nothing of this book's own evidence bears on CIFAR-100. A second data set that was run is {doc}`fashion`.
#
# ## Run it again
#
# ```
# snakemake -j2 --config profile=paper  # on a GPU
# papermill notebooks/table5.ipynb out.ipynb -p profile paper
# ```

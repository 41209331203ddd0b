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
# (e05)=
# # E5 and E6: one attacked image among clean ones, and attacks through neighbours
#
# :::{admonition} The hypothesis
# An image is harder to fool when it is normalised with the statistics of its batch. Then it should be so also
# where it is the only attacked image of its batch. The rival: attacked images defend *each other*, because
# each moves the statistics that the others are normalised with.
# :::
#
# ## The experiment
#
# **E5.** Of a batch of 100 only m images are attacked, for m = 1, 5, 25 and 100; the others stay clean.
# Every image is attacked once for each m. With tracked statistics neighbours do not matter. One attacked
# image costs as much as a hundred, so PGD takes five steps of eps / 2 here, in both modes.
#
# (e06)=
# **E6.** The other side of the coupling: k images of a batch are changed so that the *untouched* ones are
# misclassified ({py:func}`rnlib.attack_neighbours`). With tracked statistics that is impossible.
#
# **What would support the hypothesis:** the gap to tracked statistics stays at m = 1. **What would refute
# it:** it is there at m = 100 and gone, or turned round, at m = 1.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import decisive, ledger, pages, panels
from study.report.claims import judge
from study.report.figures import PALETTE, style
from study.runs import TRAININGS

style()
CLAIMS = [
    f"{name}-{training}"
    for name in ("e05-single", "e05-together", "e06-harm", "e06-large")
    for training in TRAININGS
]
fraction, neighbours = decisive.networks(profile, "fraction"), decisive.networks(profile, "neighbours")
display(pages.setting(profile, runs=lambda run: run.norm in decisive.NORMS))
panels.pending(profile, "fraction", "neighbours", runs=lambda run: run.experiment == "headline")

# %% [markdown]
# ## E5: how many of the batch are attacked


# %% tags=["hide-input"]
def told(claim, training):
    """The differences behind a claim after a training, as a phrase."""
    return f"{training} {ledger.differences(judge(f'{claim}-{training}', profile))}"


if len(fraction):
    display(
        pages.show(
            decisive.fraction_figure(fraction),
            caption=(
                "Accuracy of the attacked images against their number in a batch of 100. In points, batch"
                " minus tracked statistics where one is attacked: "
                + ", ".join(told("e05-single", training) for training in TRAININGS)
                + "; with batch statistics, all attacked minus one: "
                + ", ".join(told("e05-together", training) for training in TRAININGS)
                + "."
            ),
            alt="Accuracy of attacked images for 1, 5, 25 and 100 attacked of 100; one dot for tracked.",
            notebook="e05",
            profile=profile,
        )
    )
else:
    display(Markdown("No attacked fraction has been measured yet."))

# %% [markdown]
# ## E6: spoiling the others

# %% tags=["hide-input"]
SIZES = {
    0.0: ("unchanged", "0.5", ":"),
    0.03: ("eps 0.03", PALETTE[0], "-"),
    0.3: ("eps 0.3", PALETTE[3], "--"),
}
if len(neighbours):
    display(
        pages.show(
            panels.categories(
                neighbours, x="changed", series="eps", looks=SIZES, panel="network",
                xlabel="changed images of 100", columns=2 if neighbours.network.nunique() > 1 else 1,
            ),
            caption=(
                "Accuracy of the untouched images of a batch of 100 when so many others are changed, batch"
                " statistics. Loss in points by their number at ten times the paper's eps:"
                f" {'; '.join(told('e06-large', t) for t in TRAININGS)}."
            ),
            alt="Accuracy of untouched images against the number of changed ones, for three sizes of change.",
            notebook="e05",
            profile=profile,
        )
    )  # fmt: skip
else:
    display(Markdown("No attack through neighbours has been measured yet."))

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
# * At m = 100, the paper's setting, all images of a batch are attacked at once. An attacker of one user's
#   image has m = 1. If accuracy rises with m, the robustness belongs to the batch of attacked images, and
#   nobody who is attacked alone has it.
# * What E6 finds is a hole that tracked statistics do not have: the answer for an image depends on images
#   that others may have sent. {cite:t}`wu2023` use it against adaptation at test time.
# * Accuracy under attack contains what a mode costs on clean images. {doc}`verdict` has the comparison in
#   points lost from clean images as well.
# * A defence whose strength depends on how many are attacked together says nothing about mismatch: at m = 1
#   the statistics are those of 99 clean images and one other, as free of mismatch as statistics can be.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic fraction
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic neighbours
# papermill notebooks/e05.ipynb out.ipynb -p profile laptop
# ```

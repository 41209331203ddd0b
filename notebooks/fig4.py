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
# (fig-4)=
# (fig-6)=
# # Figures 4 and 6: growing eps
#
# :::{admonition} The claim
# As eps of the attack grows from 0.003 to 0.9, RobustNorm stays far more accurate than BatchNorm, and more
# accurate than BatchNorm without tracking. Under BIM both BatchNorms collapse at large eps and RobustNorm
# does not. Fig 4 shows CIFAR-10 with three restarts, Fig 6 CIFAR-100; neither gives numbers.
# :::
#
# ## The experiment
#
# ResNet-20, natural and adversarial training, each network with tracked and with batch statistics, attacked
# with Grad, BIM and PGD at the paper's seven eps, on half of the test images used elsewhere. The eps are in
# units of normalised images, so that 0.9 is far from small. Fig 6 is the same on CIFAR-100, which was not
# run: its claims stand at the end. The eps:

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import Markdown, display

import rnlib
from study.report import beside, ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import ATTACKS, style

style()
PAIRS = [
    ("batch_norm", "tracked"),
    ("batch_norm", "batch"),
    ("robust_norm", "batch"),
    ("robust_norm", "tracked"),
]
SIZES = [0.003, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9]
CLAIMS = {
    training: [f"fig4-{training}-{part}" for part in ("grad", "bim", "collapse")]
    for training in ("natural", "adversarial")
}
FIGURE6 = [f"fig6-{training}-{part}" for training in CLAIMS for part in ("grad", "bim")]
pixels = [255 * max(rnlib.paper_eps("cifar10", size)) for size in SIZES]
pd.DataFrame(
    {"of 255 steps of a pixel": [f"{pixel:.2g}" for pixel in pixels]},
    index=pd.Index([f"{size:g}" for size in SIZES], name="eps, normalised"),
).T

# %% tags=["hide-input"]
table = beside.series(results.diagnostic(profile, "eps"))
display(pages.setting(profile, runs=lambda run: run.norm != "no_norm" and run.seed == 0))
panels.pending(profile, "eps")

# %% [markdown]
# For Grad, eps is the length of the whole perturbation, spread over 3,072 numbers; a sign step of the same
# eps is about 55 times as long.
#
# ## Accuracy against eps


# %% tags=["hide-input"]
def marks(axis):
    axis.axhline(10, color="0.6", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(SIZES)), [f"{size:g}" for size in SIZES], fontsize="x-small")


if len(table):
    shown = table.assign(
        place=table.eps.map(SIZES.index),
        panel=table.training.str.capitalize() + " training, " + table.attack.map(ATTACKS),
    )
    shown = shown.sort_values(["training", "row"], ascending=[False, True], kind="stable")
    most = shown[(shown.eps == max(SIZES)) & (shown.attack == "bim_linf")]
    means = most.groupby(["training", "series"], sort=False).accuracy.mean()
    looks = beside.looks(PAIRS)
    told = "; ".join(
        f"{training}: "
        + ", ".join(f"{looks[name][0]} {value:.1f}" for name, value in means[training].items())
        for training in dict.fromkeys(most.training)
    )
    display(
        pages.show(
            panels.lines(
                shown,
                x="place",
                series="series",
                looks=looks,
                panel="panel",
                titles={name: name for name in shown.panel},
                xlabel="eps (normalised)",
                columns=3,
                height=2.7,
                ticks=False,
                mark=marks,
            ),
            caption=(
                "Accuracy against eps, evenly spaced; the dotted line is guessing. Left under"
                f" BIM at the largest eps, in percent: {told}."
            ),
            alt=(
                "Curves of accuracy against eps under Grad, BIM and PGD for BatchNorm and RobustNorm with"
                " tracked and with batch statistics, a row for each training."
            ),
            notebook="fig4",
            profile=profile,
        )
    )
else:
    display(Markdown("Nothing of it has been measured yet."))

# %% [markdown]
# ## Natural training

# %% tags=["hide-input"]
for claim in CLAIMS["natural"]:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## Adversarial training

# %% tags=["hide-input"]
for claim in CLAIMS["adversarial"]:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## Figure 6: CIFAR-100
#
# Its networks are those of the profile `paper`, with the sweep of each:
#
# ```
# P="-p profile paper -p dataset cifar100 -p norm robust_norm -p training natural"
# papermill notebooks/train.ipynb out.ipynb $P
# papermill notebooks/diagnose.ipynb out.ipynb $P -p diagnostic eps
# ```

# %% tags=["hide-input"]
for claim in FIGURE6:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# RobustNorm minus BatchNorm (*tracked*) and minus BatchNorm without tracking (*batch*), in points, at each
# eps; *collapse* is the largest eps once more. Intervals are over images where one seed was measured. The
# table is long; open the cell to read it.

# %% tags=["hide-cell"]
ledger.comparisons([judge(claim, profile) for claims in CLAIMS.values() for claim in claims])

# %% [markdown]
# ## What it means
#
# * At the largest eps every pixel may move by nearly 50 of its 255 steps in every direction. An attacker with
#   that freedom can put another picture in place of the first, so that accuracy above guessing says that the
#   attack does not find what is there, not that there is nothing to find. That RobustNorm keeps accuracy
#   under BIM at eps = 0.9 is on the list of {cite:t}`athalye2018` as a sign of *masked gradients*. The paper
#   reads it as robustness.
# * So the two outcomes mean this. If the curves of all norms go to zero, the attacks work on all of them and
#   the order at small eps may be believed. If a curve levels off, or rises, its whole row is in doubt: the
#   same failure can act at small eps, where nothing gives it away.
# * Accuracy *below* guessing at a large eps is in order: the attack then chooses the wrong class.
# * With batch statistics an attack of this size changes the statistics of its batch as well. What levels off
#   there may be a gradient that the normalisation has divided by a huge spread. {doc}`e04` attacks the same
#   batches without gradients, with more steps and with another loss.
# * The caption of Fig 4 refers for the same curves on CIFAR-10, which it shows, to the appendix, which has
#   CIFAR-100: {doc}`contradictions`.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm robust_norm -p diagnostic eps
# papermill notebooks/fig4.ipynb out.ipynb -p profile laptop
# ```

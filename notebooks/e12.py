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
# (e12)=
# # E12: what in RobustNorm does it
#
# :::{admonition} The hypothesis
# RobustNorm differs from BatchNorm in two ways at once: it measures width by the range instead of sigma, and
# it divides by a power of it. The paper credits its robustness to the norm as a whole. If the range does it,
# then the same power of twice sigma, which lies below the range by Popoviciu's inequality, does less; if the
# power does it, then the range is a detail.
# :::
#
# ## The experiment
#
# The two ways are separated in a table of norms, each trained naturally with all else alike on one small
# budget:
#
# | | first power | power 0.4 | power 0.2 |
# |---|---|---|---|
# | **range** | Eq 12 | RobustNorm | RobustNorm |
# | **2 sigma** | BatchNorm | {py:class}`rnlib.norms.SigmaNorm` | {py:class}`rnlib.norms.SigmaNorm` |
#
# At the first power 2 sigma is BatchNorm, up to a factor that the learned scale can take up. All are
# evaluated in both statistics modes. The power sweep is in {doc}`fig10`, the landscape of the same weights in
# both modes in {doc}`fig9`.

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
WIDTHS = {"sigma": "2 sigma (BatchNorm at power 1)", "range": "range (RobustNorm)"}
MODES = {"tracked": "tracked statistics", "batch": "batch statistics"}
# norm and its power -> how it measures width, and the power
CELLS = {("batch_norm", None): ("sigma", 1.0)}
CELLS |= {("sigma_norm", p): ("sigma", p) for p in (0.4, 0.2)}
CELLS |= {("robust_norm", p): ("range", p) for p in (1.0, 0.4, 0.2)}
CLAIMS = [
    "e12-power-robust",
    "e12-range-robust",
    "e12-range-alone",
    "e12-range-clean",
    "e12-power-tracked",
]
pages.setting(profile, "short", lambda run: (run.norm, run.p) in CELLS and run.training == "natural")

# %% [markdown]
# ## Range and power, one at a time

# %% tags=["hide-input"]
table = results.select(results.evaluations(profile, "short"), {"training": "natural"})
cells = [(norm, None if p != p else p) for norm, p in zip(table.norm, table.p.astype(float), strict=True)]
places = [CELLS.get(cell, (None, None)) for cell in cells]
table = table.assign(width=[width for width, _ in places], power=[power for _, power in places])
table = table.dropna(subset="width")
if len(table):
    kinds = list(dict.fromkeys(zip(table.statistics, table.attack, strict=True)))
    kinds.sort(key=lambda kind: (list(MODES).index(kind[0]), list(ATTACKS).index(kind[1])))
    table = table.assign(kind=list(zip(table.statistics, table.attack, strict=True)))
    table = table.sort_values("kind", key=lambda names: names.map(kinds.index), kind="stable")
    display(
        pages.show(
            panels.lines(
                table,
                x="power",
                series="width",
                looks=panels.names(list(WIDTHS), WIDTHS),
                panel="kind",
                titles={kind: f"{ATTACKS[kind[1]]}, {kind[0]}" for kind in kinds},
                xlabel="power",
                columns=4,
                height=2.7,
            ),
            caption=(
                "Accuracy by the power of twice sigma and of the range, the upper row with tracked and the"
                " lower with batch statistics. With batch statistics, in points: the power alone minus"
                f" BatchNorm {ledger.differences(judge('e12-power-robust', profile))}; range minus 2 sigma at"
                f" the power 0.2 {ledger.differences(judge('e12-range-robust', profile))}."
            ),
            alt=(
                "Accuracy clean, under noise, GradSign and PGD against the power, a line for the range and"
                " one for twice sigma, a row for each statistics mode."
            ),
            notebook="e12",
            profile=profile,
        )
    )
else:
    display(Markdown("None of these trainings has been evaluated yet."))

# %% tags=["hide-input"]
for claim in CLAIMS:
    display(ledger.verdict(claim, profile))

# %% [markdown]
# ## The numbers
#
# Differences in percentage points over the same images, first side minus second; one seed each.

# %% tags=["hide-input"]
ledger.comparisons([judge(claim, profile) for claim in CLAIMS])

# %% [markdown]
# ## What it means
#
# * Read along a line, the figure shows the power at work; between the lines, the range. What moves along both
#   lines alike is the power's doing.
# * A power below 1 makes a norm that depends on the scale of its input, and so on that of the weights. That
#   changes how fast a network learns; robust accuracy has to be read beside clean accuracy.
# * The range has one more property that sigma lacks: two pixels of the batch set it. Under attack with batch
#   statistics its gradient passes through those two alone.
#
# ## Run it again
#
# ```
# papermill notebooks/train.ipynb out.ipynb -p profile laptop -p experiment short \
#     -p norm sigma_norm -p p 0.2
# papermill notebooks/evaluate.ipynb out.ipynb -p profile laptop -p experiment short \
#     -p norm sigma_norm -p p 0.2
# papermill notebooks/e12.ipynb out.ipynb -p profile laptop
# ```

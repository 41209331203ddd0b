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
# (e08)=
# # E8: units of the attack and sizes of the noise
#
# :::{admonition} The hypothesis
# What the paper reports at one eps and one size of noise holds at others. Its eps of 0.03 is added to
# normalised images, about 1.5 of 255 in pixels ({doc}`/background/units`); its text has noise of standard
# deviation 0.5, its code 0.1.
# :::
#
# ## The experiment
#
# The same weights under PGD at eps from 0.5 to 8 of 255 in pixels, the units of later work, and under noise
# of standard deviation 0.05 to 0.7 on normalised images. **What would support it:** one mode is ahead over
# the whole range. **What would refute it:** the order of the modes depends on the size.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from study.report import decisive, ledger, pages, panels, results
from study.report.claims import judge
from study.report.figures import SERIES, style
from study.runs import TRAININGS

style()
CLAIMS = [f"e08-{name}-{training}" for name in ("pixels", "noise") for training in TRAININGS]
display(pages.setting(profile, runs=lambda run: run.norm in decisive.NORMS))
panels.pending(profile, "units")

# %% [markdown]
# ## The sweeps

# %% tags=["hide-input"]
for attack, claim, label in (
    ("pgd", "e08-pixels", "eps of PGD, in 255ths"),
    ("noise", "e08-noise", "standard deviation of the noise"),
):
    table = decisive.networks(profile, "units", attack=attack)
    if table.empty:
        display(Markdown(f"Not measured yet: {label}."))
        continue
    display(
        pages.show(
            panels.lines(
                table, x="size", series="statistics", looks=decisive.MODES, panel="network", xlabel=label,
                xscale="log", columns=2 if table.network.nunique() > 1 else 1,
            ),
            caption=(
                f"Accuracy against the {label}. Batch minus tracked, in points: "
                + "; ".join(f"{t} {ledger.differences(judge(f'{claim}-{t}', profile))}" for t in TRAININGS)
                + "."
            ),
            alt=f"For each network two falling curves, tracked and batch statistics, against the {label}.",
            notebook="e08",
            profile=profile,
        )
    )  # fmt: skip

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

# %% tags=["remove-input"]
large = results.select(results.evaluations(profile), {"attack": "pgd_linf_8px", "training": "natural"})
large = large[large.norm.isin(list(decisive.NORMS))]
kept = large.groupby(["norm", "statistics"], sort=False).accuracy.mean()
told = ", ".join(f"{SERIES[pair][0]} {accuracy:.1f}%" for pair, accuracy in kept.items())
Markdown(
    f"* At the eps of later work, 8 of 255, naturally trained networks keep: {told or 'not measured yet'}."
)

# %% [markdown]
# * BatchNorm's next to nothing there says that what the paper measures is robustness to perturbations a fifth
#   as large. A norm that keeps more with batch statistics than with tracked ones, on the same weights, need
#   not be harder to fool: under batch statistics the gradient of a range passes through two pixels a channel
#   only. {doc}`longer` puts it to an attack without that part of the gradient.
# * Noise shifts the statistics of all images alike, and batch statistics take the shift out; the larger the
#   noise, the more there is to take out. That is adaptation, and needs no adversary.
# * An order of the modes that changes along a sweep is a warning against conclusions from one size.
#
# ## Run it again
#
# ```
# papermill notebooks/diagnose.ipynb out.ipynb -p profile laptop -p norm batch_norm -p diagnostic units
# papermill notebooks/e08.ipynb out.ipynb -p profile laptop
# ```

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
# (fig-9)=
# # Figure 9: loss landscapes
#
# :::{admonition} The claim
# Around the weights of a ResNet-20 the loss is sharp when the norms use the statistics of the batch, and
# flat when they use tracked ones (Section B of the paper's appendix, which sees in it a hint at why the
# validation losses of tracked norms vary so much). Fig 9 shows surfaces for BatchNorm and RobustNorm, after
# natural and after adversarial training. It gives pictures and no number, and its columns contradict its own
# subcaptions, so that the direction of the claim has to be taken from the text.
# :::
#
# ## The experiment
#
# One set of weights has two landscapes, one in each statistics mode, and both pass through different losses
# at the weights themselves. The plane is spanned by two random Gaussian directions in which every filter is
# as long as that of the network ({cite:t}`li2018`); the same two for both modes. Scales and shifts of norms
# and biases stay where they are, and so do the running statistics. That last point matters: **tracked
# statistics belong to the weights that they were averaged over.** A step in the weights changes what a
# layer sees, batch statistics follow, tracked ones do not. So part of what the tracked surface shows is not
# curvature of the learned function but the growing mismatch of its averages.
#
# The loss is the mean cross-entropy over training images, without augmentation. Sharpness is also given as
# numbers: the rise of the loss at half the length of the filters, along further random directions, and the
# largest eigenvalue of the Hessian ({py:func}`rnlib.landscape.top_curvature`). Every point of a plane is
# computed from the weights anew; the `loss-landscapes` package, whose interfaces are used here, samples
# something that is not a plane, as a test of this project shows.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile"])

# %% tags=["hide-input"]
import json

import numpy as np
from IPython.display import HTML, Markdown, display
from matplotlib import pyplot as plt

from rnlib.landscape import BATCH_SIZE
from study.report import ledger, pages, panels, results
from study.report.claims import judge
from study.report.decisive import NORMS
from study.report.figures import SERIES, style
from study.runs import ROOT, read_profile

style()
PANELS = [(norm, mode) for norm in ("batch_norm", "robust_norm") for mode in ("tracked", "batch")]
TRAININGS = ["natural", "adversarial"]
planes, sharpness = results.landscapes(profile), results.sharpness(profile)
drawn = read_profile(profile)["landscape"]
display(
    Markdown(
        f"Our landscapes: profile `{profile}`, seed 0, {drawn['images']} *training* images in batches of"
        f" {BATCH_SIZE}, {drawn['points']} by {drawn['points']} points; the rise along {drawn['directions']}"
        " directions. The trainings that the weights are from:"
    ),
    pages.setting(profile, runs=lambda run: run.norm in dict(PANELS) and run.seed == 0),
)
if pending := panels.pending(profile, "landscape"):
    display(pending)

# %% [markdown]
# ## The landscapes


# %% tags=["hide-input"]
def plane(norm, training, statistics):
    rows = results.select(planes, {"norm": norm, "training": training, "statistics": statistics})
    return rows[rows.seed == rows.seed.min()].pivot(index="a", columns="b", values="loss")


def contours():
    figure, axes = plt.subplots(2, 4, figsize=(10, 4.7), sharex=True, sharey=True)
    low, high = np.log10(planes.loss.min()), np.log10(planes.loss.max())
    levels, drawn = np.linspace(low, high, 15), None
    for line, training in zip(axes, TRAININGS, strict=True):
        for axis, (norm, mode) in zip(line, PANELS, strict=True):
            table = plane(norm, training, mode)
            axis.set_aspect("equal")
            axis.grid(visible=False)
            axis.set_title(SERIES[norm, mode][0], fontsize="small")
            if table.empty:
                axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes, fontsize="small")
                continue
            drawn = axis.contourf(table.columns, table.index, np.log10(table), levels=levels, cmap="cividis")
            axis.contour(
                table.columns, table.index, np.log10(table), levels=levels[::2], colors="0.2", linewidths=0.4
            )
            axis.plot(0, 0, marker="+", color="white")
        line[0].set_ylabel(f"{training}\nstep along d1")
    for axis in axes[1]:
        axis.set_xlabel("step along d2")
    figure.colorbar(drawn, ax=axes, label="log10 of the loss", shrink=0.8, format="%.1f")
    return figure


if len(planes):
    rises = sharpness[sharpness.quantity == "rise"].groupby(["norm", "training", "statistics"]).value.mean()
    told = ", ".join(f"{SERIES[n, s][0]} {t} {v:.2f}" for (n, t, s), v in rises.items())
    display(
        pages.show(
            contours(),
            caption=(
                "Loss around the weights, one scale for all panels. Mean rise at half a filter's length:"
                f" {told}."
            ),
            alt=(
                "Contours of the loss on a plane around the weights, a column for each norm and statistics"
                " mode, a row for each training."
            ),
            notebook="fig9",
            profile=profile,
        )
    )
else:
    display(Markdown("No landscape has been sampled yet: `snakemake -j2 --config profile=laptop`."))

# %% [markdown]
# The same surfaces to turn around, tracked and batch statistics of one network side by side:

# %% tags=["hide-input"]
if len(planes):
    surfaces = {}
    for norm in ("batch_norm", "robust_norm"):
        for training in TRAININGS:
            pair = {mode: plane(norm, training, mode) for mode in ("tracked", "batch")}
            if not any(table.empty for table in pair.values()):
                name = f"{SERIES[norm, 'tracked'][0].removesuffix(' with tracking')}, {training} training"
                surfaces[name] = {mode: table.to_numpy().round(4).tolist() for mode, table in pair.items()}
    page = (ROOT / "book" / "_static" / "surface.html").read_text()
    display(HTML(page.replace("DATA", json.dumps(surfaces), 1) if surfaces else ""))

# %% [markdown]
# ## Sharpness in numbers

# %% tags=["hide-input"]
if len(sharpness):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, training in zip(axes, TRAININGS, strict=True):
        for place, (norm, mode) in enumerate(PANELS):
            where = {"norm": norm, "training": training, "statistics": mode, "quantity": "rise"}
            values = results.select(sharpness, where).value.to_numpy()
            if len(values):
                mean, low, high = results.bootstrap_mean(values)
                colour = SERIES[norm, mode][1]
                axis.scatter(values, [place] * len(values), color=colour, alpha=0.35, s=14)
                axis.errorbar(
                    mean, place, xerr=[[mean - low], [high - mean]], color=colour, marker="o", capsize=3
                )
        if not len(results.select(sharpness, {"training": training})):
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes, fontsize="small")
        axis.set(
            title=f"{training.capitalize()} training", xlabel="rise of the loss at half a filter's length"
        )
        axis.set_yticks(range(len(PANELS)), [SERIES[key][0] for key in PANELS])
        axis.invert_yaxis() if axis is axes[0] else None
    told = "; ".join(f"{t} training: {ledger.differences(judge(f'fig9-{t}', profile))}" for t in TRAININGS)
    display(
        pages.show(
            figure,
            caption=(
                "Rise of the loss along random directions (small dots), mean and 95% interval over them. With"
                f" batch statistics minus with tracked ones, {told}."
            ),
            alt=("A row of dots for each norm and statistics mode: the rise along random directions."),
            notebook="fig9",
            profile=profile,
        )
    )

# %% tags=["hide-input"]
for training in TRAININGS:
    display(ledger.verdict(f"fig9-{training}", profile))

# %% [markdown]
# ## The numbers

# %% tags=["hide-input"]
display(ledger.comparisons([judge(f"fig9-{training}", profile) for training in TRAININGS]))
if len(top := sharpness[sharpness.quantity == "curvature"]):
    top = top.assign(norm=top.norm.map(NORMS))
    display(top.pivot_table(index=["norm", "training"], columns="statistics", values="value").round(1))

# %% [markdown]
# The first table has differences of the rise, its intervals are over directions. The second has the
# eigenvalue of largest size of the Hessian of the loss, over all parameters, scales and shifts of the norms
# included.
#
# ## What it means
#
# * A landscape is that of a network *and* its statistics mode. What is called the minimum of batch
#   statistics is not the same function as the minimum of tracked ones: only during training are the two the
#   same network.
# * Pictures along two directions of as many as a network has parameters do not show which minimum is sharper;
#   more directions with an interval say a little more, and still nothing about robustness to changed
#   *images*, which is another derivative.
#
# ## Run it again
#
# ```
# papermill notebooks/landscape.ipynb out.ipynb -p profile laptop -p norm batch_norm -p training natural
# papermill notebooks/fig9.ipynb out.ipynb -p profile laptop
# ```

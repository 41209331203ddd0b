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
# (performance)=
# # How fast it is
#
# :::{admonition} You will learn
# :class: tip
# - how fast norms, training and attacks of this library are beside those of PyTorch and of other packages;
# - what an image costs under every norm, attack and kind of training, and how that grows;
# - where the remaining time goes, and how many core-hours a profile takes.
# :::
#
# `python -m benchmarks` makes every number of this page. The two sides of a ratio take turns in one process,
# on one thread; ratios are medians over rounds, whiskers their quartiles. Freed memory is kept on both sides:
# else a loop over one layer spends most of its time in the page faults of memory that the C library has just
# handed back to the system, which in a whole network are less than 2%.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper
file = None  # CSV file of python -m benchmarks; None: benchmarks/results.csv

# %% tags=["remove-cell"]
from rnlib.study.parameters import parameters

parameters(globals(), ["profile", "file"])

# %% tags=["remove-input"]
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from rnlib.study import pages
from rnlib.study.figures import PALETTE, attack_names, style
from rnlib.study.runs import ROOT

style()
COLUMNS = ["row", "case", "quantity", "value", "unit", "low", "high", "target", "met", "machine", "torch"]
COLUMNS += ["threads", "date"]
path = Path(file) if file else ROOT / "benchmarks" / "results.csv"
everything = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
ABSENT = "Not measured yet: `python -m benchmarks`."


def of(row, start=""):
    """The numbers of a row whose case begins with a word, the rest of the case in columns of its own."""
    found = everything[(everything.row == row) & everything.case.str.startswith(start)]
    return found.assign(part=found.case.str.removeprefix(start).str.removeprefix(", "))


def shown(figure, data, caption, alt):
    """The figure, or where there is no data a word that says so."""
    if data.empty:
        plt.close(figure)
        return Markdown(ABSENT)
    return pages.show(figure, caption=caption, alt=alt, notebook="performance", profile=profile)


if everything.empty:
    text = f"Nothing: there is no `{path.name}`. `python -m benchmarks` makes it, in about eight minutes."
else:
    runs = everything.groupby(["machine", "torch", "date"], sort=False).row.unique()
    text = "\n".join(
        f"- {', '.join(rows)}: {machine}; torch {torch}; {date}"
        for (machine, torch, date), rows in runs.items()
    )
Markdown(f":::{{admonition}} What was measured\n:class: note\n{text}\n:::")

# %% [markdown]
# ## Targets and what was reached

# %% tags=["remove-input"]
targets = everything[everything.target.notna()].copy()
measured = targets[targets.value.notna()].copy()
bound = measured.target.str.split(expand=True).reindex(columns=[0, 1])
at_most, limit = bound[0] == "<=", bound[1].astype(float)
# How much of what the target allows was used: below 1 it is met, whichever way the target reads.
for name, source in {"used": "value", "from": "low", "to": "high"}.items():
    measured[name] = np.where(at_most, measured[source] / limit, limit / measured[source])
missed = measured[measured.met == "no"]
lines = [ABSENT]
if len(targets):
    lines = [f"**{(targets.met == 'yes').sum()} of {len(targets)} targets are met.**"]
    if len(missed):
        lines += ["", "Missed:"]
    for miss in missed.sort_values("used", ascending=False).itertuples():
        what = miss.case if miss.quantity == "ratio" else f"{miss.case}, {miss.quantity}"
        by = f"target {miss.target}, missed by {100 * (miss.used - 1):.0f}%"
        lines.append(f"- {miss.row}: {what}: {miss.value:.3g} {miss.unit}, {by}")
    unmeasured = targets[targets.met == "not measured"]
    if len(unmeasured):
        lines += ["", f"Not measured: {'; '.join(unmeasured.case)}."]
Markdown("\n".join(lines))

# %% tags=["remove-input"]
points = measured[measured.quantity != "difference of success"]
rows = list(points.row.unique())
figure, axis = plt.subplots(figsize=(9, 1 + 0.24 * max(len(points), 4)))
for place, point in enumerate(points.itertuples()):
    colour = PALETTE[rows.index(point.row) % len(PALETTE)]
    low, high = sorted((points["from"].iloc[place], points["to"].iloc[place]))
    axis.plot([low, high], [place, place], color=colour)
    face = colour if point.met == "yes" else "white"
    axis.plot(point.used, place, "o", color=colour, markerfacecolor=face, markersize=6)
axis.axvspan(axis.get_xlim()[0], 1, color="0.93", zorder=0)
axis.axvline(1, color="0.3", linewidth=1)
labels = points.row + ": " + points.case + " (" + points.target + ")"
axis.set_yticks(range(len(points)), labels, fontsize=7.5)
axis.set(xscale="log", xlabel="part of what the target allows (1 is the target, left of it is better)")
axis.xaxis.set_major_formatter("{x:g}")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
shown(
    figure,
    points,
    caption=(
        f"Every ratio against its target (in brackets): {(points.met == 'yes').sum()} of {len(points)} lie on"
        " the good side (filled), the others are open. For speed-ups the axis is the target over what was"
        " reached."
    ),
    alt="One dot a comparison on a logarithmic axis of the share of what its target allows, with quartiles.",
)

# %% tags=["hide-input"]
sides = everything.pivot_table(index=["row", "case"], columns="quantity", values="value", sort=False)
wanted = targets[["row", "case", "quantity", "value", "unit", "low", "high", "target", "met"]]
wanted.merge(
    sides.reindex(columns=["ours", "baseline"]).reset_index(), on=["row", "case"], how="left"
).style.format(precision=3).hide(axis="index")

# %% [markdown]
# Ours and baseline are milliseconds, images a second (`training`, `grid`), bytes (`memory`) or seconds
# (`evaluation`). Where our BatchNorm *is* the native kernel, the target is met by that.
#
# ## What an image costs

# %% tags=["remove-input"]
norms, trainings = of("scaling", "norm"), of("scaling", "training")
attacks = of("evaluation", "attack")
figure, axes = plt.subplots(1, 3, figsize=(10, 4.2), width_ratios=[1, 1.2, 1])
panels = [(norms, "norm alone, (128, 16, 32, 32)", 1e3, "µs"), (attacks, "attack (batches of 100)", 1, "ms")]
for axis, (table, title, factor, unit) in zip((axes[0], axes[2]), panels, strict=True):
    parts = table.part.str.split(", ", expand=True).reindex(columns=[0, 1])
    wide = pd.DataFrame({"what": parts[0], "how": parts[1], "value": table.value.astype(float) * factor})
    wide = wide.pivot_table(index="what", columns="how", values="value", sort=False)
    axis.set_xscale("log" if unit == "ms" else "linear")
    for index, how in enumerate(wide):
        places = np.arange(len(wide)) + (index - (len(wide.columns) - 1) / 2) * 0.4
        axis.barh(places, wide[how], 0.38, color=PALETTE[index], label=how)
    axis.set_yticks(range(len(wide)), attack_names(list(wide.index)))
    axis.set_title(title, fontsize="small")
    axis.set_xlabel(f"{unit} an image")
    axis.xaxis.set_major_formatter("{x:g}")
    if len(wide):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize="small")
axes[1].barh(trainings.part, trainings.value.astype(float), color=PALETTE[2])
axes[1].set_title("training, batch 128", fontsize="small")
axes[1].set_xlabel("ms an image")
for axis in axes:
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def cost(table, part):
    """Milliseconds an image, as text."""
    found = table[table.part == part].value
    return f"{found.iloc[0]:.2f} ms" if len(found) else "not measured"


shown(
    figure,
    pd.concat([norms, trainings, attacks]),
    caption=(
        "Cost of an image, ResNet-20, one thread. A training step takes"
        f" {cost(trainings, 'batch_norm, natural, float32')} with BatchNorm and"
        f" {cost(trainings, 'robust_norm, natural, float32')} with RobustNorm, in bfloat16"
        f" {cost(trainings, 'batch_norm, natural, bfloat16')} and"
        f" {cost(trainings, 'robust_norm, natural, bfloat16')}."
    ),
    alt="Bars of the time an image takes, for every norm, kind of training and attack.",
)

# %% [markdown]
# ## How it grows

# %% tags=["remove-input"]
SIZES = {"batch size": "batch size", "width": "channels of the first stage", "depth": "layers",
         "attack steps": "steps of PGD"}  # fmt: skip
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), sharey=True)
growth = []
for axis, (start, label) in zip(axes, SIZES.items(), strict=True):
    table = of("scaling", start)
    sizes, values = table.part.astype(int).to_numpy(), table.value.astype(float).to_numpy()
    axis.plot(sizes, values, marker="o", color=PALETTE[0])
    axis.set(xlabel=label, xscale="log", yscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    if len(values) > 1:
        times = f"{values[-1] / values[0]:.2g}"
        growth.append(f"{label} from {sizes[0]} to {sizes[-1]}: {times} times the cost of an image")
axes[0].set_ylabel("ms an image")
shown(
    figure,
    of("scaling", "width"),
    caption=f"Training steps of ResNet-20 with BatchNorm (PGD for the last). {'; '.join(growth)}.",
    alt="Four curves of the cost of an image by batch size, width, depth and number of attack steps.",
)

# %% [markdown]
# ## Where the remaining time goes

# %% tags=["remove-input"]
steps = of("scaling", "step")
names = steps.part.str.split(", ", expand=True).reindex(columns=[0, 1])
wide = pd.DataFrame({"norm": names[0], "operator": names[1], "value": steps.value.astype(float)})
wide = wide.pivot_table(index="norm", columns="operator", values="value", sort=False).fillna(0)
speeds = of("scaling", "speed").set_index("part").value.astype(float)
figure, axis = plt.subplots(figsize=(9, 3.6))
left = np.zeros(len(wide))
for index, operator in enumerate(sorted(wide, key=lambda name: name == "others")):
    look = {"color": PALETTE[index % len(PALETTE)], "hatch": "///" if index >= len(PALETTE) else None}
    if operator == "others":
        look = {"color": "0.85"}
    axis.barh(wide.index, wide[operator], left=left, label=operator.lstrip("_"), **look)
    left += wide[operator].to_numpy()
axis.set(xlabel="share of a training step (%)", xlim=(0, 100))
axis.grid(axis="y", visible=False)
if len(wide):
    figure.legend(loc="outside lower center", ncols=4, fontsize="x-small")
shares = "; ".join(f"{norm} {share:.0f}%" for norm, share in wide.get("convolutions", pd.Series()).items())
peak = next((value for part, value in speeds.items() if part.startswith("matrix")), np.nan)
step = speeds.get("training step of ResNet-20", np.nan)
shown(
    figure,
    steps,
    caption=(
        "Operators of a training step of ResNet-20 at batch 128, as torch.profiler sees them. Convolutions"
        f" take {shares}. The step runs at {step:.0f} GFLOP/s, {100 * step / peak:.0f}% of the {peak:.0f} of"
        " a large matrix product on the same core."
    ),
    alt="One stacked bar for each norm with the share of every operator of a training step.",
)

# %% [markdown]
# The convolutions are PyTorch's, and the share above is what better norms, losses and loops cannot touch; the
# others (norms, ReLUs, the additions of the shortcuts) mostly wait for memory.
#
# ## What a profile costs
#
# Predicted from the cost of an image, the operations of each network and the number of its passes; measured
# from the seconds that the finished runs wrote down, on whatever machine and beside whatever else ran there.

# %% tags=["remove-input"]
hours = everything[(everything.row == "profiles") & (everything.unit == "core-hours")]
wide = hours.pivot_table(index="case", columns="quantity", values="value", sort=False)
wide.rename_axis(index="core-hours", columns=None).style.format("{:,.2f}", na_rep="")

# %% tags=["remove-input"]
pairs = wide.dropna() if {"predicted", "measured"} <= set(wide) else wide.iloc[:0]
sentences = [
    f"{case}: {row.measured:.1f} core-hours, {row.measured / row.predicted:.2g} times the prediction."
    for case, row in pairs.iterrows()
]
Markdown(" ".join(sentences) or "No finished run to compare the prediction with.")

# %% [markdown]
# ## Run it again
#
# ```
# python -m benchmarks                       # all of it, about eight minutes on two idle cores
# python -m benchmarks norms attacks         # some rows; the others keep their numbers
# papermill notebooks/performance.ipynb out.ipynb -p profile laptop
# ```
#
# The comparison with torchattacks needs an environment of its own; `benchmarks/attacks.py` says how to make
# one.

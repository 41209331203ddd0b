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
# on one thread; ratios are medians over rounds, whiskers their quartiles. A turn of a single layer lasts ten
# milliseconds, many calls of a small one. Freed memory is kept on both sides: else a loop over one layer
# spends most of its time in the page faults of memory that the C library has just handed back to the system,
# which a whole network hardly meets. The first figure also shows a second machine, on which other work
# could disturb the measurements.

# %% tags=["parameters", "remove-cell"]
profile = "quick"  # quick, laptop or paper
file = None  # CSV file of python -m benchmarks; None: benchmarks/results.csv

# %% tags=["remove-cell"]
from study.parameters import parameters

parameters(globals(), ["profile", "file"])

# %% tags=["remove-input"]
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from study.report import pages, results
from study.report.figures import PALETTE, attack_names, style
from study.runs import ROOT, diagnosed, grid

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
    text = f"Nothing: there is no `{path.name}`. `python -m benchmarks` makes it."
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


def used(table):
    """The targets that were measured, with how much of what each allows was used: below 1 it is met."""
    table = table[table.target.notna() & table.value.notna()].copy()
    bound = table.target.str.split(expand=True).reindex(columns=[0, 1])
    at_most, limit = bound[0] == "<=", bound[1].astype(float)
    for name, source in {"used": "value", "low_used": "low", "high_used": "high"}.items():
        table[name] = np.where(at_most, table[source] / limit, limit / table[source])
    return table


targets = everything[everything.target.notna()]
measured = used(everything)
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
files = [other for other in sorted(path.parent.glob("results-*.csv")) if other.name != path.name]
points, *others = (
    table[table.quantity != "difference of success"]
    for table in (measured, *(used(pd.read_csv(other)) for other in files))
)
places = {name: place for place, name in enumerate(zip(points.row, points.case, strict=True))}
rows = list(points.row.unique())
figure, axis = plt.subplots(figsize=(9, 1 + 0.24 * max(len(points), 4)))
for shift, marker, size, table in [(0, "o", 6, points), *((0.35, "D", 3.5, other) for other in others)]:
    for point in table[[name in places for name in zip(table.row, table.case, strict=True)]].itertuples():
        place = places[point.row, point.case] + shift
        colour = PALETTE[rows.index(point.row) % len(PALETTE)]
        axis.plot([point.low_used, point.high_used], [place, place], color=colour, linewidth=1)
        face = colour if point.met == "yes" else "white"
        axis.plot(point.used, place, marker, color=colour, markerfacecolor=face, markersize=size)
axis.set_xscale("log")
axis.autoscale_view()
left, right = axis.get_xlim()
axis.axvspan(left, 1, color="0.93", zorder=0)
axis.axvline(1, color="0.3", linewidth=1)
labels = points.row + ": " + points.case + " (" + points.target + ")"
axis.set_yticks(range(len(points)), labels, fontsize=7.5)
ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5) if left <= tick <= right]
axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
axis.set_xticks([], minor=True)
axis.set_xlim(left, right)
axis.set_xlabel("share of what the target allows (left of 1: met)", fontsize=9)
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
shown(
    figure,
    points,
    caption=(
        f"Every ratio against its target (in brackets): {(points.met == 'yes').sum()} of {len(points)} lie on"
        " the good side (filled), the others are open. For speed-ups the axis is the target over what was"
        " reached."
        + "".join(
            f" Diamonds: {other.machine.iloc[0]}, where {(other.met == 'yes').sum()} of {len(other)} are met."
            for other in others
            if len(other)
        )
    ),
    alt="One dot a comparison on a logarithmic axis of the share of what its target allows, with quartiles.",
)

# %% tags=["hide-cell"]
sides = everything.pivot_table(index=["row", "case"], columns="quantity", values="value", sort=False)
wanted = targets[["row", "case", "quantity", "value", "unit", "low", "high", "target", "met"]]
numbers = ["value", "low", "high", "ours", "baseline"]
wanted.merge(
    sides.reindex(columns=["ours", "baseline"]).reset_index(), on=["row", "case"], how="left"
).style.format(lambda value: f"{value:,.3f}" if value < 1000 else f"{value:,.0f}", numbers, na_rep="").hide(
    axis="index"
)

# %% [markdown]
# Ours and baseline are milliseconds, images a second (`training`, `grid`), bytes (`memory`) or seconds
# (`evaluation`). Where our BatchNorm *is* the native kernel, the target is met by that.

# %% [markdown]
# ### Where the targets are missed, and why

# %% tags=["remove-input"]
PURPOSES = ["statistics", "affine maps", "sums of the gradient", "finding the extremes", "small calls"]
operators = of("norms", "operators")
parts = operators.part.str.rsplit(", ", n=2, expand=True).reindex(columns=[0, 1, 2])
operators = operators.assign(where=parts[0], layer=parts[1], purpose=parts[2])
times = operators.pivot_table(index=["where", "layer"], columns="purpose", values="value", sort=False)
times = times.reindex(columns=PURPOSES).fillna(0)
figure, axis = plt.subplots(figsize=(9, 1.2 + 0.36 * max(len(times), 4)))
ticks = []
for place, ((where, layer), bar) in enumerate(times.iterrows()):
    native = times.loc[(where, "nn.BatchNorm2d")].sum()
    left, y = 0.0, place + 0.5 * (place // 2)
    for index, purpose in enumerate(PURPOSES):
        look = {"color": "0.75"} if purpose == "small calls" else {"color": PALETTE[index]}
        axis.barh(y, bar[purpose] / native, 0.85, left=left, label=purpose if not place else None, **look)
        left += bar[purpose] / native
    ticks.append((y, f"{where}: {layer}"))
axis.axvline(0.9, color="0.3", linewidth=1, linestyle="--")
axis.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=7.5)
axis.set_xlabel("forward and backward, native layer = 1 (dashed: the target)", fontsize=9)
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
if len(times):
    figure.legend(loc="outside lower center", ncols=5, fontsize="x-small")
share = times.div(times.sum(axis=1), axis=0)["small calls"].unstack() if len(times) else pd.DataFrame()
small = share.get("RobustNorm", pd.Series(dtype=float))
shown(
    figure,
    operators,
    caption=(
        "Operators of RobustNorm and of the native layer, as torch.profiler sees them. Calls of small"
        f" operators are {100 * small.min():.0f}% to {100 * small.max():.0f}% of RobustNorm. The native"
        " layer has its statistics, affine map and gradient in one kernel for each pass (shown as affine"
        " maps and sums of the gradient)."
    ),
    alt="Two stacked bars for each shape and memory format: operators of RobustNorm and of the native layer.",
)

# %% tags=["remove-input"]


def value(row, case, quantity):
    """One number of the table, NaN where it is not measured."""
    found = everything[(everything.row == row) & (everything.case == case)]
    found = found[found.quantity == quantity].value
    return float(found.iloc[0]) if len(found) else np.nan


def calls_alone(side):
    (case,) = set(everything.case[everything.case.str.startswith("calls alone")]) or {""}
    return value("norms", case, side)


def of_norms(miss):
    """A layer against the native one, or against its formula."""
    where = miss.case.split(", ", 1)[1]
    ours, native = (value("norms", f"RobustNorm / nn.BatchNorm2d, {where}", s) for s in ("ours", "baseline"))
    if "formula" in miss.case:
        slow = value("norms", miss.case, "baseline")
        return (
            f"the formula takes {slow / native:.1f} times as long as the native layer here, so that five"
            f" times faster than the formula would be {slow / native / 5:.2f} of the native layer"
        )
    small = value("norms", f"operators, {where}, RobustNorm, small calls", "time")
    return (
        f"it takes {ours:.2f} ms, natively {native:.2f}. In the profile {small:.2f} ms are calls of small"
        f" operators, without which the ratio would be about {(ours - small) / native:.2f}; on a tensor with"
        f" next to nothing in it RobustNorm takes {calls_alone('ours'):.2f} ms and the native layer, one call"
        f" each way, {calls_alone('baseline'):.2f}. Where every call finds what another layer left in the"
        f" caches the ratio is {value('norms', f'single calls, {where}', 'ratio'):.2f}"
    )


def of_training(miss):
    """Training with RobustNorm: its 19 layers against the native ones."""
    layers = {"128x16x32x32": 7, "128x32x16x16": 6, "128x64x8x8": 6}  # of ResNet-20
    ours, native = (
        sum(n * value("norms", f"single calls, {where}, channels_last", side) for where, n in layers.items())
        for side in ("ours", "baseline")
    )
    steps = [1e3 * 128 / value("training", miss.case, side) for side in ("ours", "baseline")]
    return (
        f"a step takes {steps[0]:.0f} ms, {steps[0] - steps[1]:.0f} ms more than with the native layer. Its"
        f" {sum(layers.values())} norm layers take {ours:.0f} ms as RobustNorm and {native:.0f} ms natively"
        " when they are called one by one (single calls, channels_last); in the step their small calls"
        " presumably cost more, between convolutions that leave nothing of theirs in the caches"
    )


def of_grid(miss):
    """Two threads against two processes, beside one alone."""
    alone = value("grid", "-j1 of 1 thread", "speed")
    two, threads = (value("grid", miss.case, side) for side in ("ours", "baseline"))
    return (
        f"one thread alone trains {alone:.0f} images/s, two threads {threads / alone:.2f} times and two"
        f" processes {two / alone:.2f} times as many: so well do threads scale on this machine that processes"
        f" which did not disturb each other at all would gain {2 * alone / threads:.2f}"
    )


def of_papermill(miss):
    """What of the overhead is the start of programs."""
    starts = everything[(everything.row == "papermill") & everything.case.str.startswith("start of ")]
    return "alone, the programs start in " + ", ".join(
        f"{start.value:.1f} s ({start.case.removeprefix('start of ')})" for start in starts.itertuples()
    )


def of_attacks(miss):
    """The same passes on both sides."""
    attack = miss.case.split(" / ")[0]
    last = value("attacks", f"{attack} / rnlib, ours in channels_last", "ratio")
    tie = "which is a tie" if miss.low <= 1 else "which is no tie"
    return (
        f"half of the rounds lie between {miss.low:.3f} and {miss.high:.3f}, {tie}; both sides make the same"
        f" passes through the network. In channels_last, in which not all peers run, ours takes {last:.2f} of"
        " its time here"
    )


REASONS = {
    "norms": of_norms,
    "training": of_training,
    "attacks": of_attacks,
    "grid": of_grid,
    "papermill": of_papermill,
}


def reason(miss):
    """Why a target is missed, from what is measured beside it."""
    if miss.row in REASONS and (miss.row != "training" or "step with RobustNorm /" in miss.case):
        return REASONS[miss.row](miss)
    return f"half of the rounds lie between {miss.low:.3f} and {miss.high:.3f}"


lines = [f"- {miss.row}: {miss.case}: {reason(miss)}." for miss in missed.itertuples()]
Markdown("\n".join(lines) if lines else (ABSENT if everything.empty else "No target is missed."))

# %% [markdown]
# ## What an image costs

# %% tags=["remove-input"]
norms, trainings = of("scaling", "norm"), of("scaling", "training")
attacks = of("evaluation", "attack")
height = 1.4 + 0.2 * max(len(trainings), len(norms) // 2, 10)
figure, axes = plt.subplots(1, 3, figsize=(10, height), width_ratios=[1.1, 1, 1])
panels = [(norms, "norm alone, (128, 16, 32, 32)", 1e3, "µs"), (attacks, "attack (batches of 100)", 1, "ms")]
for axis, (table, title, factor, unit) in zip((axes[0], axes[2]), panels, strict=True):
    parts = table.part.str.split(", ", expand=True).reindex(columns=[0, 1])
    wide = pd.DataFrame({"what": parts[0], "how": parts[1], "value": table.value.astype(float) * factor})
    wide = wide.pivot_table(index="what", columns="how", values="value", sort=False)
    axis.set_xscale("log" if unit == "ms" else "linear")
    for index, how in enumerate(wide):
        places = np.arange(len(wide)) + (index - (len(wide.columns) - 1) / 2) * 0.4
        axis.barh(places, wide[how], 0.38, color=PALETTE[index], label=how)
    axis.set_yticks(range(len(wide)), attack_names(list(wide.index)), fontsize=7.5)
    axis.set_title(title, fontsize="x-small")
    axis.set_xlabel(f"{unit} an image", fontsize="small")
    axis.xaxis.set_major_formatter("{x:g}")
    if len(wide):
        axis.legend(loc="upper center", bbox_to_anchor=(0.3, -0.55 / height), ncols=2, fontsize="x-small")
axes[1].barh(range(len(trainings)), trainings.value.astype(float), color=PALETTE[2])
axes[1].set_yticks(range(len(trainings)), trainings.part, fontsize=7)
axes[1].set_title("training, batch 128", fontsize="x-small")
axes[1].set_xlabel("ms an image", fontsize="small")
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
    if len(values) > 1:
        times = f"{values[-1] / values[0]:.2g}"
        growth.append(f"{label} from {sizes[0]} to {sizes[-1]}: {times} times the cost of an image")
axes[0].set_ylabel("ms an image")
low, high = axes[0].get_ylim()
ticks = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
axes[0].set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
axes[0].set_yticks([], minor=True)
axes[0].yaxis.set_major_formatter("{x:g}")
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
step = speeds.get("training step of ResNet-20", np.nan)
others = speeds.drop("training step of ResNet-20", errors="ignore")
peak, fastest = (others.max(), others.idxmax()) if len(others) else (np.nan, "large operator")
shown(
    figure,
    steps,
    caption=(
        "Operators of a training step of ResNet-20 at batch 128, as torch.profiler sees them. Convolutions"
        f" take {shares}. The step runs at {step:.0f} GFLOP/s, {100 * step / peak:.0f}% of the {peak:.0f} of"
        f" a {fastest} on the same core."
    ),
    alt="One stacked bar for each norm with the share of every operator of a training step.",
)

# %% [markdown]
# The convolutions are PyTorch's, and the share above is what better norms, losses and loops cannot touch; the
# others are norms, ReLUs and the additions of the shortcuts, a few operations for every number read.
#
# ## What a profile costs
#
# Predicted from the cost of an image, the operations of each network and the number of its passes; measured
# from the seconds that the runs finished so far wrote down, on whatever machine and beside whatever else ran
# there: often a slower one than that of the prediction.

# %% tags=["remove-input"]
HOURS = ["runs", "predicted"]
hours = everything[(everything.row == "profiles") & everything.quantity.isin(HOURS)]
wide = hours.pivot_table(index="case", columns="quantity", values="value", sort=False).reindex(columns=HOURS)
took = {
    case: [
        measured
        for run in grid(case.split(", ")[0])
        if ", " not in case or run.experiment == case.split(", ")[1]
        if (measured := results.hours(run)) is not None
    ]
    for case in wide.index
}
wide = wide.assign(finished=[len(took[case]) for case in wide.index])
wide = wide.assign(measured=[sum(took[case]) if took[case] else np.nan for case in wide.index])
formats = {name: "{:,.0f}" if name in ("runs", "finished") else "{:,.2f}" for name in wide}
wide.rename_axis(index="core-hours", columns=None).style.format(formats, na_rep="")

# %% tags=["remove-input"]
complete = wide[(wide.finished == wide.runs) & (wide.runs > 0)]
ratios = [f"{case} {row.measured / row.predicted:.2g}" for case, row in complete.iterrows()]
Markdown(
    f"Where all runs are finished, measured over predicted: {', '.join(ratios)}."
    if ratios
    else "No part is finished, to compare the prediction with."
)

# %% tags=["remove-input"]
files = [run.directory / f"{name}.csv" for run, name in diagnosed(profile)]
tables = [pd.read_csv(file) for file in files if file.exists()]
timed = [table.seconds.sum() for table in tables if "seconds" in table]
text = f"Not in the table: the {len(files)} diagnostics that `{profile}` asks for, and its landscapes. "
if timed:
    hours = len(files) * np.mean(timed) / 3600
    text += (
        f"The {len(timed)} diagnostics that wrote down their time took {np.mean(timed) / 60:.1f} core-minutes"
        f" on average, so that all of them are about {hours:.1f} core-hours."
    )
    if profile in wide.index:
        whole, done = wide.loc[profile], wide.finished[profile] or np.nan
        predicted, measured = whole.predicted + hours, whole.measured * whole.runs / done + hours
        text += (
            f" With the runs that is {predicted:.0f} core-hours, {predicted / 2:.0f} hours on two cores"
            " like those of the prediction; by what the finished runs took,"
            f" {measured:.0f} and {measured / 2:.0f}."
            " Landscapes and the statistics of Figure 1 wrote down no time."
        )
Markdown(text)

# %% [markdown]
# ## Run it again
#
# ```
# python -m benchmarks                       # all of it, on two idle cores
# python -m benchmarks norms attacks         # some rows; the others keep their numbers
# python -m benchmarks --output benchmarks/results-mine.csv           # one more machine in the first figure
# papermill notebooks/performance.ipynb out.ipynb -p profile laptop
# papermill notebooks/performance.ipynb out.ipynb -p file benchmarks/results-avx2.csv  # this page for another
# ```
#
# The comparison with torchattacks needs an environment of its own; `benchmarks/attacks.py` says how to make
# one.

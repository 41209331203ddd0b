"""Figures that many chapters share: accuracies by category or along a size, and what is still to be run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from study.report import results
from study.report.figures import PALETTE, SERIES
from study.runs import Run, chosen_runs, diagnosed, read_profile

Look = Mapping[Any, tuple[str, Any, Any]]
"""By value of a column: its name, colour and line style."""


def look(norm: str) -> Look:
    """How the statistics modes of a norm look in every figure."""
    return {mode: style for (name, mode), style in SERIES.items() if name == norm}


def names(values: Sequence[Any], labels: Mapping[Any, str] | None = None) -> Look:
    """A look for any values, in the order of the palette, by their labels."""
    lines = ("-", "--", ":", "-.")
    return {
        value: ((labels or {}).get(value, str(value)), PALETTE[i % len(PALETTE)], lines[i % len(lines)])
        for i, value in enumerate(values)
    }


def intervals(table: pd.DataFrame, keys: Sequence[str], value: str = "accuracy") -> pd.DataFrame:
    """One row for each combination of ``keys``: mean, low and high of the rows that share it.

    The 95% interval is over seeds where there are several, else over images (Wilson) for accuracies; another
    ``value`` of one seed has none (low = mean = high).
    """
    rows = []
    for found, group in table.groupby(list(keys), sort=False):
        if value == "accuracy":
            mean, low, high = results.summary(group)
        else:
            mean = low = high = float(group[value].mean())
            if len(group) > 1:
                low, high = results.over_seeds(list(group[value]))
        rows.append(dict(zip(keys, found, strict=True)) | {"mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high"])


def _axes(panels: Sequence[Any], titles: Mapping[Any, str], height: float, columns: int | None) -> Any:
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, height * rows), sharey=True, squeeze=False)
    flat = list(axes.flat)
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(flat, panels, strict=False):
        axis.set_title(titles.get(panel, str(panel)[:1].upper() + str(panel)[1:]), fontsize="small")
    return figure, flat, columns


def _panels(table: pd.DataFrame, panel: str | None) -> list[tuple[Any, pd.DataFrame]]:
    return [("", table)] if panel is None else list(table.groupby(panel, sort=False))


def _legend(figure: Figure, shown: Look) -> None:
    handles: list[Any] = [
        plt.Line2D([], [], color=colour, linestyle=line, marker="o", label=label)
        for label, colour, line in shown.values()
    ]
    if handles:
        across = min(4, len(handles))
        figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize="small")


def categories(
    table: pd.DataFrame, *, x: str, series: str, looks: Look, panel: str | None = None,
    labels: Mapping[Any, str] | None = None, titles: Mapping[Any, str] | None = None, value: str = "accuracy",
    xlabel: str = "", ylabel: str = "accuracy (%)", height: float = 3.4, columns: int | None = None,
    rotation: float = 0,
) -> Figure:  # fmt: skip
    """Dots with 95% intervals: a place for each value of ``x``, a colour for each of ``series``.

    Args:
        table: rows of results; those that share x, series and panel differ in the seed.
        x, series, panel: columns; a panel of the figure for each value of ``panel``.
        looks: of the values of ``series``; those that are not in it are not drawn.
        labels, titles: what to write for values of x, and of panel.
        value, ylabel: the column drawn.
        xlabel: under each panel.
        height: of a row of panels, in inches; ``columns`` of them stand side by side.
        rotation: of the labels of x, in degrees.
    """
    parts = _panels(table[table[series].isin(list(looks))], panel)
    figure, axes, across = _axes([key for key, _ in parts] or [""], titles or {}, height, columns)
    places = {key: i for i, key in enumerate(dict.fromkeys(table[x]))}
    present = [key for key in looks if key in set(table[series])]
    for axis, (_, part) in zip(axes, parts, strict=False):
        for row in intervals(part, [x, series], value).to_dict("records"):
            offset = (present.index(row[series]) - (len(present) - 1) / 2) * min(0.18, 0.7 / len(present))
            _, colour, _ = looks[row[series]]
            errors = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axis.errorbar(places[row[x]] + offset, row["mean"], errors, color=colour, marker="o", capsize=3)
        texts = [(labels or {}).get(key, str(key)) for key in places]
        axis.set_xticks(range(len(places)), texts, rotation=rotation, ha="right" if rotation else "center")
        axis.set(xlim=(-0.5, max(len(places), 1) - 0.5), xlabel=xlabel)
        axis.grid(axis="x", visible=False)
    for axis in axes[::across]:
        axis.set_ylabel(ylabel)
    _legend(figure, {key: (looks[key][0], looks[key][1], "") for key in present})
    return figure


def lines(
    table: pd.DataFrame, *, x: str, series: str, looks: Look, panel: str | None = None, xlabel: str,
    titles: Mapping[Any, str] | None = None, value: str = "accuracy", ylabel: str = "accuracy (%)",
    xscale: str = "linear", height: float = 3.2, columns: int | None = None, ticks: bool = True,
    mark: Callable[[Any], None] = lambda axis: None,
) -> Figure:  # fmt: skip
    """Curves along a number ``x`` with bands of 95%: a colour and line for each value of ``series``.

    Args:
        ticks: label every value of x that was measured, and no other.
        mark: called with each panel's axis, to add a reference.
        others: see :func:`categories`.
    """
    parts = _panels(table[table[series].isin(list(looks))], panel)
    figure, axes, across = _axes([key for key, _ in parts] or [""], titles or {}, height, columns)
    present = [key for key in looks if key in set(table[series])]
    for axis, (_, part) in zip(axes, parts, strict=False):
        for key in [key for key in present if key in set(part[series])]:
            rows = intervals(part[part[series] == key], [x], value).sort_values(x)
            _, colour, line = looks[key]
            axis.plot(rows[x], rows["mean"], color=colour, linestyle=line, marker="o", markersize=4)
            axis.fill_between(rows[x].astype(float), rows["low"], rows["high"], color=colour, alpha=0.18)
        axis.set(xlabel=xlabel, xscale=xscale)
        if ticks and len(part):
            values = sorted(set(part[x]))
            axis.set_xticks(values, [f"{v:g}" for v in values], fontsize="x-small")
            axis.set_xticks([], minor=True)
        mark(axis)
    for axis in axes[::across]:
        axis.set_ylabel(ylabel)
    _legend(figure, {key: looks[key] for key in present})
    return figure


def pending(profile: str, *names: str, runs: Callable[[Run], bool] = lambda run: True) -> Markdown | None:
    """Which of these diagnostics are still to be run, with the command for the first; None if none is.

    Args:
        names: of diagnostics that the profile asks for, or landscape.
        runs: which of its runs the page is about.
    """
    drawn = chosen_runs(profile, read_profile(profile)["landscape"]["runs"])
    missing = [
        (run, name)
        for run, name in diagnosed(profile) + [(run, "landscape") for run in drawn]
        if name in names and runs(run) and not (run.directory / f"{name}.csv").exists()
    ]
    if not missing:
        return None
    run, name = missing[0]
    listed = ", ".join(f"{name} of {run.norm}, {run.training}, seed {run.seed}" for run, name in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    worker, option = ("landscape", "") if name == "landscape" else ("diagnose", f" -p diagnostic {name}")
    command = f"papermill notebooks/{worker}.ipynb out.ipynb {run.options}{option}"
    return Markdown(
        f":::{{admonition}} Pending ({len(missing)}), shown nowhere below\n:class: note\n"
        f"{listed}{more}. For example\n\n```\n{command}\n```\n:::"
    )

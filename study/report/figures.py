"""How the study's figures look: one colour and name for everything, in every figure.

Two functions draw nearly all of them from tidy tables: :func:`dots` for categories, :func:`lines` along a
number. Both show 95% intervals that :mod:`study.report.results` computes, never seaborn's own.
"""

import base64
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML
from matplotlib.figure import Figure

from study.report import results
from study.runs import ROOT

# seaborn's "colorblind"; the package takes a second to import, and is where it draws.
PALETTE = [f"#{c}" for c in "0173b2 de8f05 029e73 d55e00 cc78bc ca9161 fbafe4 949494 ece133 56b4e9".split()]
NAMES: dict[Any, str] = yaml.safe_load(Path(__file__).with_name("names.yml").read_text())
# Norm and statistics mode in one, by the paper's names, with the colour of each in every figure.
SERIES = {
    ("batch_norm", "tracked"): ("BatchNorm", PALETTE[0]),
    ("batch_norm", "batch"): ("BatchNorm w/o tracking", PALETTE[1]),
    ("robust_norm", "batch"): ("RobustNorm", PALETTE[2]),
    ("robust_norm", "tracked"): ("RobustNorm with tracking", PALETTE[4]),
    ("no_norm", "none"): ("No norm", PALETTE[7]),
}
COLOURS = dict(SERIES.values()) | {NAMES["tracked"]: PALETTE[0], NAMES["batch"]: PALETTE[1]}
# The rows of a dot are its low, mean and high: seaborn is to show their median and range.
WHOLE: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 100)}
# What a figure shows, and the rows of results that it was made from, for the links below it.
DRAWN: WeakKeyDictionary[Figure, tuple[pd.DataFrame, pd.DataFrame]] = WeakKeyDictionary()
COUNT = itertools.count(1)


def name(value: Any, column: str = "") -> str:
    """What readers know a value of a column by."""
    plain = f"{value:g}" if isinstance(value, float) else str(value)
    return NAMES.get(f"{column}/{value}", NAMES.get(value, plain))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column ``series``: norm and statistics mode in one, by the paper's names."""
    both = zip(rows.norm, rows.statistics, strict=True)
    plain = [(pair, ", ".join(name(one) for one in pair if one != "none")) for pair in both]
    return rows.assign(series=[SERIES.get(pair, (label,))[0] for pair, label in plain])


def style() -> None:
    """Set the look of all figures of a notebook, and show its tables whole."""
    import seaborn as sns

    pd.set_option("display.max_rows", None)
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85)
    plt.rcParams |= {"legend.frameon": False, "savefig.bbox": "tight", "svg.hashsalt": "study"}


def dots(
    rows: pd.DataFrame,
    *,
    x: str = "attack",
    hue: str = "series",
    panel: str | None = None,
    paper: pd.DataFrame | None = None,
    value: str = "accuracy",
    xlabel: str = "",
    ylabel: str | None = None,
) -> Figure:
    """Dots with 95% intervals: a place for each value of ``x``, a colour for each of ``hue``.

    Args:
        rows: of :func:`study.report.results.table` (those alike in x, hue and panel differ in the seed), or
            with columns mean, low and high, as ``gaps`` and ``intervals`` return them.
        x, hue, panel: columns; ``series`` is norm and statistics in one. A panel for each value of ``panel``.
        paper: the paper's numbers in the same columns, drawn as open dots where ours have a place.
        value: the column drawn, where rows have no mean.
    """
    import seaborn as sns

    tidy, how = _tidy(rows, x, hue, panel, value)
    if tidy.empty:
        return nothing()
    shared = {key: how[key] for key in ("x", "y", "hue", "hue_order", "palette")} | WHOLE
    dodge = 0.5 if len(how["hue_order"]) > 1 else False
    shared |= {"order": _order(tidy, x), "dodge": dodge, "linestyle": "none"}
    grid = _finished(sns.catplot(tidy, kind="point", markersize=5, **how | shared), xlabel, value, ylabel)
    if sum(len(str(label)) for label in shared["order"]) > 50:
        grid.tick_params(axis="x", rotation=30)
    table = _wide(tidy)
    if paper is not None:
        half = paper.ci95.fillna(0) if "ci95" in paper else 0.0
        paper = paper.assign(mean=paper[value], low=paper[value] - half, high=paper[value] + half)
        theirs, _ = _tidy(paper, x, hue, panel, value)
        theirs = theirs[theirs[x].isin(shared["order"]) & theirs[hue].isin(how["hue_order"])]
        table = pd.concat([table.assign(whose="ours"), _wide(theirs).assign(whose="the paper's")])
        look = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2, "legend": False}
        for title, axis in grid.axes_dict.items() or [("", grid.ax)]:
            part = theirs[theirs[panel] == title] if title else theirs
            sns.pointplot(part, ax=axis, err_kws={"linewidth": 0.7}, **shared, **look)
            axis.set(xlabel=xlabel, ylabel=axis.get_ylabel() if axis.get_subplotspec().is_first_col() else "")
        grid.legend.set_title("filled dots: ours, open dots: the paper's")
    DRAWN[grid.figure] = table, rows
    return grid.figure


def lines(
    rows: pd.DataFrame,
    *,
    x: str,
    hue: str = "series",
    panel: str | None = None,
    value: str = "accuracy",
    xlabel: str | None = None,
    ylabel: str | None = None,
    xscale: str = "linear",
    zero: bool = False,
    sharey: bool = True,
) -> Figure:
    """Curves along a number ``x`` with bands of 95%: a colour and a dash for each value of ``hue``.

    ``zero``: with the line at nothing, for differences; ``sharey``: one scale for all panels; others as for
    :func:`dots`.
    """
    import seaborn as sns

    tidy, how = _tidy(rows, x, hue, panel, value)
    if tidy.empty:
        return nothing()
    how |= WHOLE | {"style": hue, "style_order": how["hue_order"], "facet_kws": {"sharey": sharey}}
    how |= {"markers": ["o"] * len(how["hue_order"]), "markeredgewidth": 0, "markersize": 5}
    grid = _finished(sns.relplot(tidy, kind="line", **how), xlabel or x, value, ylabel)
    measured = sorted(set(tidy[x]))
    for axis in grid.axes.flat:
        axis.set_xscale(xscale)
        if len(measured) < 13:
            axis.set_xticks(measured, [f"{number:g}" for number in measured], fontsize="x-small")
            axis.set_xticks([], minor=True)
        if zero:
            axis.axhline(0, color="0.4", linewidth=1, zorder=0)
    DRAWN[grid.figure] = _wide(tidy), rows
    return grid.figure


Tidy = tuple[pd.DataFrame, dict[str, Any]]


def _tidy(rows: pd.DataFrame, x: str, hue: str, panel: str | None, value: str) -> Tidy:
    """Three rows a dot, ``y`` its low, mean and high, by readers' names; how seaborn is to draw them."""
    used = list(dict.fromkeys(column for column in (x, hue, panel) if column))
    rows = named(rows) if "series" in used and "series" not in rows else rows
    if not {"mean", "low", "high"} <= set(rows):
        rows = results.intervals(rows.dropna(subset=[value]), used, value)
    tidy = rows.melt(used, ["low", "mean", "high"], value_name="y")
    told = {column: [name(one, column) for one in tidy[column]] for column in (hue, panel) if column}
    if not pd.api.types.is_numeric_dtype(tidy[x]):
        told[x] = [name(one, x) for one in tidy[x]]
    tidy = tidy.assign(**told)
    series = _order(tidy, hue)
    free = iter([colour for colour in PALETTE if colour not in map(COLOURS.get, series)] * 3)
    how: dict[str, Any] = {"x": x, "y": "y", "hue": hue, "hue_order": series, "height": 3.0, "aspect": 2.0}
    how["palette"] = {one: COLOURS.get(one) or next(free) for one in series}
    if panel and tidy[panel].nunique() > 1:
        how |= {"col": panel, "col_order": _order(tidy, panel), "col_wrap": 2, "aspect": 1.2}
    return tidy, how


def _wide(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row a dot, with its low, mean and high."""
    return tidy.pivot_table("y", list(tidy.columns[:-2]), "variable", sort=False).reset_index()


def _order(rows: pd.DataFrame, column: str) -> list[Any]:
    """The values of a column: numbers by size, else as in names.yml, else as they come."""
    found = list(dict.fromkeys(rows[column]))
    if pd.api.types.is_numeric_dtype(rows[column]):
        return sorted(found)
    known = [label for label, _ in SERIES.values()] + list(NAMES.values())
    return sorted(found, key=lambda one: known.index(one) if one in known else len(known))


def _finished(grid: Any, xlabel: str, value: str, ylabel: str | None) -> Any:
    """The grid with its labels, and with its legend below."""
    import seaborn as sns

    grid.set_axis_labels(xlabel, NAMES.get(value, value) if ylabel is None else ylabel)
    grid.set_titles("{col_name}") if len(grid.axes.flat) > 1 else None
    grid.figure.subplots_adjust(left=0.1, right=0.99)
    if grid.legend is not None:
        place = {"bbox_to_anchor": (0.55, 0), "ncols": min(4, len(grid.legend.texts)), "title": None}
        sns.move_legend(grid, "upper center", **place)
    return grid


def nothing() -> Figure:
    """What stands in place of a figure where nothing is measured yet."""
    figure, axis = plt.subplots(figsize=(6, 1))
    axis.set_axis_off()
    axis.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", color="0.4")
    return figure


def surfaces(planes: pd.DataFrame) -> Figure:
    """Fig 9: contours of the loss (table ``landscape``, one seed): a row a training, a column a norm."""
    if planes.empty:
        return nothing()
    planes = named(planes).assign(loss=np.log10(planes.loss.astype(float)))
    columns, trainings = _order(planes, "series"), list(dict.fromkeys(planes.training))
    figure = plt.figure(figsize=(1.9 * len(columns), 2.0 * len(trainings)), layout="constrained")
    axes = figure.subplots(len(trainings), len(columns), sharex=True, sharey=True, squeeze=False)
    levels = np.linspace(planes.loss.min(), planes.loss.max(), 15)
    for (training, column), axis in zip(itertools.product(trainings, columns), axes.flat, strict=True):
        rows = results.select(planes, {"training": training, "series": column})
        plane = rows.pivot(index="a", columns="b", values="loss")
        axis.set_aspect("equal")
        axis.set_title(column if training == trainings[0] else "", fontsize="small")
        axis.set_ylabel(name(training) if column == columns[0] else "")
        if len(rows):
            drawn = axis.contourf(plane.columns, plane.index, plane, levels=levels, cmap="cividis")
            axis.plot(0, 0, marker="+", color="white")
    figure.colorbar(drawn, ax=axes, label="log10 of the loss", format="%.1f")
    DRAWN[figure] = planes[["training", "series", "a", "b", "loss"]], planes
    return figure


def history(epochs: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and accuracy by epoch of one training: a history of :func:`rnlib.fit`, or its table."""
    wide = pd.DataFrame(list(epochs))
    long = wide.melt("epoch", [key for key in wide if "_loss" in key or "_accuracy" in key], "key", "mean")
    parts = long.dropna().key.str.extract(r"(train|val)_(loss|accuracy)_?(.*)")
    images = parts[0].map({"train": "training", "val": "validation"})
    images += parts[2].map(lambda mode: "" if mode in ("", "none") else f", {name(mode)}")
    rows = long.dropna().assign(low=long["mean"], high=long["mean"], quantity=parts[1], images=images)
    return lines(rows, x="epoch", hue="images", panel="quantity", sharey=False, ylabel="")


def show(figure: Figure, *, caption: str, alt: str, data: pd.DataFrame | None = None) -> HTML:
    """A figure as SVG with its caption (the finding first), and what it shows for those who cannot see it.

    Below it are the SVG and the table of what it shows as files, and what it was made from.

    Args:
        data: what a figure shows that none of the functions of this module has drawn, if that is a table.
    """
    table, rows = DRAWN.pop(figure, (data, data))
    file, page = io.BytesIO(), Path(os.environ.get("JPY_SESSION_NAME", "figure")).stem
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    source, stem = _uri("image/svg+xml", file.getvalue()), f"{page}-{next(COUNT)}"
    links = f'<a href="{source}" download="{stem}.svg">SVG</a>'
    if table is not None:
        uri = _uri("text/csv", table.to_csv(index=False).encode())
        links += f' <a href="{uri}" download="{stem}.csv">data (CSV)</a>'
    style = f"width:{96 * figure.get_figwidth():.0f}px;max-width:100%;background:white"
    image = f'<img src="{source}" alt="{escape(alt)}" style="{style}">'
    wide = ' class="wide" tabindex="0"' if figure.get_figwidth() > 7.2 else ""  # scrolls on a phone
    made = f"<details><summary>how it was made</summary>{_made(page, rows)}</details>"
    below = f'{escape(caption)}<div class="files">{links} {made}</div>'
    return HTML(f"<figure><div{wide}>{image}</div><figcaption>{below}</figcaption></figure>")


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _made(page: str, rows: pd.DataFrame | None) -> str:
    """From which results a figure was made, by which notebook, and how it is made again, as HTML."""
    told = "Made by the code of this page from the results that the page names."
    if rows is not None and {"run", "revision"} <= set(rows):
        runs, revisions = (sorted(set(rows[column].dropna().astype(str))) for column in ("run", "revision"))
        told = f"Results of {', '.join(runs)}, measured at revision {', '.join(revisions)}."
    paths = [path.relative_to(ROOT) for path in ROOT.glob(f"notebooks/**/{page}.ipynb")]
    again = [f" Again: <code>papermill {path} out.ipynb</code>" for path in paths]
    return told + "".join(again)

"""The paper's Tables 2 to 5 with our rows beside them, and its own cells set against each other."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.report import results
from study.report.figures import ATTACKS, PALETTE, SERIES

ATTACK_CELLS = ("grad_sign", "bim_linf", "pgd_linf")  # what the book counts in Tables 4 and 5
ARCHITECTURES = {"resnet20": "ResNet-20", "resnet38": "ResNet-38", "resnet50": "ResNet-50",
                 "vgg11": "VGG-11", "vgg16": "VGG-16"}  # fmt: skip
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
HIGHER, LOWER, EQUAL = "higher", "lower", "equal"


def series(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``series``, norm and statistics mode in one: a key of :func:`looks`."""
    return table.assign(series=table.norm + ", " + table.statistics if len(table) else [])


def looks(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, Any, Any]]:
    """The look of norms in statistics modes by the values of ``series``, for :mod:`study.report.panels`."""
    return {f"{norm}, {mode}": SERIES[norm, mode] for norm, mode in pairs}


def ours(profile: str, *tables: int) -> pd.DataFrame:
    """Our evaluations that stand beside tables of the paper, ``dataset`` named as there.

    These are the runs of the headline and of the experiment ``architectures``; cifar10-jpeg stands beside
    CIFAR-10, and the column ``data`` says which it was.
    """
    rows = results.table(profile, "evaluations")
    rows = rows[rows.experiment.isin(["headline", "architectures"])]
    rows = rows.assign(data=rows.dataset, dataset=rows.dataset.replace("cifar10-jpeg", "cifar10"))
    there = pd.concat([results.paper(table) for table in tables])
    keys = ["architecture", "dataset"]
    return rows.merge(there[keys].drop_duplicates(), on=keys)


def table(profile: str, number: int) -> pd.DataFrame:
    """A table of the paper in percent, in each cell the paper's number and ours; a column says what ran."""
    keys = ["architecture", "training", "norm", "statistics"]
    theirs, mine = results.paper(number), ours(profile, number)
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for found, cells in theirs.groupby(keys, sort=False):
        where = dict(zip(keys, found, strict=True))
        name = (ARCHITECTURES[where["architecture"]], where["training"],
                SERIES[where["norm"], where["statistics"]][0])  # fmt: skip
        rows = results.select(mine, where)
        line = {}
        for cell in cells.itertuples():
            measured = rows[rows.attack == cell.attack].accuracy
            said = f"{cell.accuracy:.2f}"
            line[ATTACKS[cell.attack]] = said + (f" / {measured.mean():.1f}" if len(measured) else "")
        seeds = f"{rows.seed.nunique()} seed{'s' if rows.seed.nunique() > 1 else ''}" if len(rows) else ""
        line["ours"] = f"{', '.join(rows.data.unique())}, {seeds}" if len(rows) else "not run here"
        lines[name] = line
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["network", "training", "norm"])
    return frame


def published() -> pd.DataFrame:
    """The numbers of Tables 4 and 5, one a row."""
    return pd.concat([results.paper(4), results.paper(5)], ignore_index=True)


def cells(first: tuple[str, str], second: tuple[str, str]) -> pd.DataFrame:
    """The 48 attack cells of Tables 4 and 5 in which two norms meet.

    Args:
        first, second: norm and statistics mode.

    Returns:
        One row a data set, architecture, training and attack: ``first`` and ``second``, accuracies in
        percent, and ``side``, on which of them the second is: higher, lower or equal.
    """
    rows, keys = published(), ["dataset", "architecture", "training", "attack"]
    rows = rows[rows.attack.isin(ATTACK_CELLS)]
    left, right = (results.select(rows, {"norm": norm, "statistics": mode}) for norm, mode in (first, second))
    return _paired(left, right, keys)


def attacks(rows: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Accuracy of the same networks under two attacks, a row a network and statistics mode: as :func:`cells`.

    Args:
        rows: of the paper, or of our evaluations.
    """
    keys = ["dataset", "architecture", "norm", "statistics", "training"]
    keys += ["run"] if "run" in rows else []
    return _paired(rows[rows.attack == first], rows[rows.attack == second], keys)


def _paired(first: pd.DataFrame, second: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    sides = [side[[*keys, "accuracy"]] for side in (first, second)]
    pairs = sides[0].merge(sides[1], on=keys, validate="one_to_one", suffixes=("_first", "_second"))
    pairs = pairs.rename(columns={"accuracy_first": "first", "accuracy_second": "second"})
    gap = pairs["second"] - pairs["first"]
    return pairs.assign(side=np.select([gap > 0, gap < 0], [HIGHER, LOWER], EQUAL))


def counted(pairs: pd.DataFrame, side: str = HIGHER) -> str:
    """In how many of the pairs the second is on a side, as "11 of 24"."""
    return f"{int((pairs.side == side).sum())} of {len(pairs)}"


def diagonal_figure(
    panels: Sequence[tuple[str, pd.DataFrame]], labels: Sequence[tuple[str, str]], *, top: float = 100
) -> Figure:
    """Pairs as points on a square with the diagonal on which both are equal.

    Colours tell natural from adversarial training, shapes ResNets from VGGs; points off the side that a
    claim says are easy to find.

    Args:
        panels: title and pairs of each, as :func:`cells` and :func:`attacks` return them.
        labels: what the first (across) and the second (up) are, a pair for each panel.
        top: largest accuracy shown, in percent.
    """
    colours = {"natural": PALETTE[0], "adversarial": PALETTE[1]}
    shapes = {"resnet": ("o", "ResNet"), "vgg": ("^", "VGG")}
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 9 / len(panels) + 0.9), squeeze=False)
    for axis, (title, pairs), (across, up) in zip(axes[0], panels, labels, strict=True):
        axis.plot([0, top], [0, top], color="0.5", linewidth=1)
        for training, colour in colours.items():
            for family, (shape, _) in shapes.items():
                part = pairs[(pairs.training == training) & pairs.architecture.str.startswith(family)]
                axis.scatter(part["first"], part["second"], color=colour, marker=shape, s=26, alpha=0.75)
        axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        axis.set_title(title, fontsize="small")
        axis.set_xlabel(across, fontsize="small")
        axis.set_ylabel(up, fontsize="small")
    handles = [
        plt.Line2D([], [], color=colour, marker=shape, linestyle="", label=f"{name}, {training}")
        for training, colour in colours.items()
        for shape, name in shapes.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    return figure

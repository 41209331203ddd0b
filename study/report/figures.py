"""How the study's figures look: one colour, line and name for every norm and statistics mode, in every
figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import DisplayHandle, display
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from study.report import results
from study.runs import read_profile
from rnlib.train import History

# seaborn's "colorblind". The package takes a second to import, which a job that trains can do without.
PALETTE = [
    to_rgb(f"#{code}")
    for code in "0173b2 de8f05 029e73 d55e00 cc78bc ca9161 fbafe4 949494 ece133 56b4e9".split()
]

# (norm, statistics) -> (name, colour, line style); the paper's own names
SERIES: dict[tuple[str, str], tuple[str, Any, str]] = {
    ("batch_norm", "tracked"): ("BatchNorm", PALETTE[0], "-"),
    ("batch_norm", "batch"): ("BatchNorm w/o tracking", PALETTE[1], "--"),
    ("robust_norm", "batch"): ("RobustNorm", PALETTE[2], "-"),
    ("robust_norm", "tracked"): ("RobustNorm with tracking", PALETTE[4], "--"),
    ("no_norm", "none"): ("No norm", PALETTE[7], ":"),
}

ATTACKS: dict[str, str] = {
    "clean": "Clean",
    "noise": "Noise",
    "grad": "Grad",
    "grad_sign": "GradSign",
    "bim_linf": "BIM",
    "pgd_linf": "PGD-l∞",
    "pgd_l2": "PGD-l2",
    "cw_l2": "CW-l2",
    "pgd_linf_2px": "PGD 2/255",
    "pgd_linf_8px": "PGD 8/255",
}


def style() -> None:
    """Set the look of all figures of a notebook, and show its tables whole."""
    import seaborn as sns

    pd.set_option("display.max_rows", None)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.bbox": "tight", "axes.spines.top": False, "axes.spines.right": False,
        "figure.constrained_layout.use": True, "legend.frameon": False, "axes.titlesize": "medium",
    })  # fmt: skip


def history_figure(history: History, title: str = "") -> Figure:
    """Loss and accuracy by epoch, on the training images and on the validation images in each statistics
    mode.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    epochs = [record["epoch"] for record in history]
    for axis, quantity, unit in zip(axes, ("loss", "accuracy"), ("loss", "accuracy (%)"), strict=True):
        keys = [key for key in history[0] if key.endswith(quantity) or f"_{quantity}_" in key]
        for key in keys:
            label = (
                key.replace(f"_{quantity}", "")
                .replace("_", " ")
                .replace("val", "validation,")
                .removesuffix(", none")
            )
            axis.plot(epochs, [record[key] for record in history], marker="o", label=label)
        axis.set(xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend()
    figure.suptitle(title)
    return figure


@contextmanager
def live() -> Iterator[DisplayHandle]:
    """A place in the notebook that shows how far the work is, and is empty when it is done."""
    handle = display({"text/plain": "starting"}, raw=True, display_id=True)
    yield handle
    handle.update({"text/plain": ""}, raw=True)


def attack_names(attacks: Sequence[str]) -> list[str]:
    """The attacks by the names that figures show."""
    return [ATTACKS.get(attack, attack) for attack in attacks]


def evaluation_figure(rows: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy under each attack as bars, one colour per statistics mode, with 95% Wilson intervals over the
    images.
    """
    figure, axis = plt.subplots(figsize=(9, 3.2))
    modes = list(dict.fromkeys(row["statistics"] for row in rows))
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    for index, mode in enumerate(modes):
        label, colour, _ = SERIES.get(
            (rows[0]["norm"], mode), (f"{rows[0]['norm']}, {mode}", PALETTE[index], "-")
        )
        of_mode = {row["attack"]: row for row in rows if row["statistics"] == mode}
        places = [
            place + (index - (len(modes) - 1) / 2) * 0.4
            for place, name in enumerate(attacks)
            if name in of_mode
        ]
        chosen = [of_mode[name] for name in attacks if name in of_mode]
        intervals = [results.wilson(row["correct"], row["n"]) for row in chosen]
        accuracy = [row["accuracy"] for row in chosen]
        errors = [[a - low for a, (low, _) in zip(accuracy, intervals, strict=True)],
                  [high - a for a, (_, high) in zip(accuracy, intervals, strict=True)]]  # fmt: skip
        axis.bar(places, accuracy, 0.38, yerr=errors, capsize=2, color=colour, label=label)
    axis.set(ylabel="accuracy (%)", title=title)
    axis.set_xticks(range(len(attacks)), attack_names(attacks), rotation=30, ha="right")
    axis.legend(ncols=2)
    return figure


def accuracy_figure(
    profile: str,
    table: int | None,
    trainings: Sequence[str],
    attacks: Sequence[str],
    series: Sequence[tuple[str, str]],
    *,
    architecture: str = "resnet20",
    experiment: str = "headline",
    dataset: str | None = None,
    paper_dataset: str = "cifar10",
    ylim: tuple[float, float] = (0, 100),
    columns: int | None = None,
) -> Figure:
    """Accuracy under each attack, the paper's (open) beside ours (filled); a panel a training.

    Args:
        table: of the paper; None where it gives no numbers.
        experiment, dataset: of our runs; the profile's own data set, if none is named.
        columns: panels side by side, all of them if it is left out.
    """
    condition = {"architecture": architecture}
    ours = results.select(
        results.evaluations(profile, experiment),
        condition | {"dataset": dataset or read_profile(profile)["defaults"]["dataset"]},
    )
    theirs = ours.iloc[:0]
    if table is not None:
        theirs = results.select(results.paper(table), condition | {"dataset": paper_dataset})
    return beside_figure(
        theirs, ours, x="attack", places={attack: ATTACKS.get(attack, attack) for attack in attacks},
        panel="training", titles={training: f"{training.capitalize()} training" for training in trainings},
        series=series, ylim=ylim, columns=columns or len(trainings),
    )  # fmt: skip


def beside_figure(
    theirs: pd.DataFrame, ours: pd.DataFrame, *, x: str, places: Mapping[Any, str], panel: str,
    titles: Mapping[Any, str], series: Sequence[tuple[str, str]], ylim: tuple[float, float] = (0, 100),
    columns: int = 2, height: float = 3.8,
) -> Figure:  # fmt: skip
    """Accuracies of the paper (open) beside ours (filled), with 95% intervals where there are any.

    A panel that has numbers of the paper and none of ours says so.

    Args:
        theirs, ours: rows with norm, statistics, accuracy, ``x`` and ``panel``; of ours, those that share all
            of these differ in the seed.
        x, places: a column, and its values from left to right with what to write below each.
        panel, titles: a column, and its values with the title of the panel of each.
        series: norms and statistics modes, see ``SERIES``.
        columns, height: how many panels stand side by side, and inches of a row of them.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, height * rows), sharey=True, squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    for axis, (key, title) in zip(axes.flat, titles.items(), strict=False):
        left, right = (results.select(table, {panel: key}) for table in (theirs, ours))
        for index, (norm, mode) in enumerate(series):
            colour = SERIES[norm, mode][1]
            for place, value in enumerate(places):
                where = {"norm": norm, "statistics": mode, x: value}
                at = place + (index - (len(series) - 1) / 2) * 0.8 / len(series)
                for row in results.select(left, where).itertuples():
                    square: dict[str, Any] = {"marker": "s", "markerfacecolor": "white"}
                    axis.errorbar(at - 0.06, row.accuracy, row.ci95, color=colour, capsize=2, **square)
                if len(chosen := results.select(right, where)):
                    mean, low, high = results.summary(chosen)
                    errors = [[mean - low], [high - mean]]
                    axis.errorbar(at + 0.06, mean, errors, color=colour, capsize=2, marker="o")
        known = any(len(right[(right.norm == n) & (right.statistics == s)]) for n, s in series)
        axis.set_xticks(range(len(places)), list(places.values()))
        axis.set(xlim=(-0.5, len(places) - 0.5), ylim=ylim)
        axis.set_title(title if known else f"{title} (ours: not run)")
        for place in range(len(places) - 1):
            axis.axvline(place + 0.5, color="0.8", linewidth=0.8)
        axis.grid(axis="x", visible=False)
    for line in axes:
        line[0].set_ylabel("accuracy (%)")
    handles = [plt.Line2D([], [], color=SERIES[key][1], marker="o", label=SERIES[key][0]) for key in series]
    if len(theirs):
        for face, marker, label in (("white", "s", "open: the paper"), ("0.3", "o", "filled: ours")):
            shape: dict[str, Any] = {"marker": marker, "markerfacecolor": face, "linestyle": ""}
            handles.append(plt.Line2D([], [], color="0.3", label=label, **shape))
    across = 4 if len(handles) == 4 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize="small")
    return figure

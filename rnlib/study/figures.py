"""How the study's figures look: one colour, line and name for every norm and statistics mode, in every
figure.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from rnlib.study import results
from rnlib.study.runs import read_profile
from rnlib.train import History

PALETTE = sns.color_palette("colorblind")

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
    """Set the look of all figures of a notebook."""
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
    table: int,
    trainings: Sequence[str],
    attacks: Sequence[str],
    series: Sequence[tuple[str, str]],
    *,
    architecture: str = "resnet20",
    paper_dataset: str = "cifar10",
    ylim: tuple[float, float] = (0, 100),
) -> Figure:
    """Accuracy under each attack, the paper's (open) beside ours (filled); a panel a training."""
    condition = {"architecture": architecture}
    theirs = results.select(results.paper(table), condition | {"dataset": paper_dataset})
    ours = results.select(
        results.evaluations(profile), condition | {"dataset": read_profile(profile)["defaults"]["dataset"]}
    )
    figure, panels = plt.subplots(1, len(trainings), figsize=(9, 3.8), sharey=True, squeeze=False)
    for axis, training in zip(panels[0], trainings, strict=True):
        for index, (norm, mode) in enumerate(series):
            for place, attack in enumerate(attacks):
                where = {"norm": norm, "statistics": mode, "training": training, "attack": attack}
                x = place + (index - (len(series) - 1) / 2) * 0.8 / len(series)
                colour = SERIES[norm, mode][1]
                for row in results.select(theirs, where).itertuples():
                    open_square = {"marker": "s", "markerfacecolor": "white"}
                    axis.errorbar(x - 0.06, row.accuracy, row.ci95, color=colour, capsize=2, **open_square)
                rows = results.select(ours, where)
                if len(rows):
                    mean, low, high = results.summary(rows)
                    axis.errorbar(
                        x + 0.06, mean, [[mean - low], [high - mean]], color=colour, capsize=2, marker="o"
                    )
        axis.set_xticks(range(len(attacks)), attack_names(attacks))
        axis.set(xlim=(-0.5, len(attacks) - 0.5), ylim=ylim, title=f"{training.capitalize()} training")
        for place in range(len(attacks) - 1):
            axis.axvline(place + 0.5, color="0.8", linewidth=0.8)
        axis.grid(axis="x", visible=False)
    panels[0][0].set_ylabel("accuracy (%)")
    handles = [plt.Line2D([], [], color=SERIES[key][1], marker="o", label=SERIES[key][0]) for key in series]
    handles += [
        plt.Line2D(
            [], [], color="0.3", marker="s", markerfacecolor="white", linestyle="", label="open: the paper"
        )
    ]
    handles += [plt.Line2D([], [], color="0.3", marker="o", linestyle="", label="filled: ours")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
    return figure

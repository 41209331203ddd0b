"""The networks of the page the_story, trained on the page or taken from stored weights.

``python -m study.story`` draws the picture of the README.
"""

from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import rnlib
from study.networks import new_model, trained_model, training_settings
from study.report import dial, figures
from study.report.pages import live as place
from study.runs import ROOT, Run, make_run

DATASET = "fashion-mnist-sample"
TRAIN = ("live", "all", "none")
KINDS: dict[str, dict[str, Any]] = {
    "30 epochs": {"experiment": "miniature"},
    "5 epochs": {"experiment": "miniature_five_epochs"},
    "30 epochs, smoothed labels": {"experiment": "miniature_smoothed"},
    "RobustNorm": {"experiment": "miniature", "norm": "robust_norm"},
    "GroupNorm": {"experiment": "miniature", "norm": "group_norm"},
}
CENTRAL, *OTHERS = KINDS


def check(train: str) -> None:
    """Raise ``ValueError`` unless this is one of TRAIN."""
    if train not in TRAIN:
        raise ValueError(f"train is {train!r}, it must be one of {', '.join(TRAIN)}")


def run(kind: str, profile: str) -> Run:
    """The run that a kind of network is, of seed 0: of quick, or for all other profiles of the book."""
    return make_run(_stored(profile), dataset=DATASET, seed=0, **KINDS[kind])


def _stored(profile: str) -> str:
    return profile if profile == "quick" else "book"


def fit(
    model: nn.Module, train_set: rnlib.Dataset, settings: rnlib.Training, test_set: rnlib.Dataset
) -> HTML:
    """Train a model in place with a live picture of it, which is returned; what it will take is said first.

    Args:
        test_set: measured after every epoch, with each kind of statistics; nothing is chosen by it.
    """
    steps = settings.epochs * -(-len(train_set) // settings.batch_size)
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    minutes = steps * _seconds_a_step(model, train_set, settings) / 60
    display(
        Markdown(
            f"This processor has {'' if supported else 'no '}bfloat16 units: training will take about"
            f" {minutes:.1f} minutes ({torch.get_num_threads()} threads)."
        )
    )
    with place() as picture:

        def watch(history: list[dict[str, float]]) -> None:
            figure = figures.history(history)
            picture.update(figure)
            plt.close(figure)

        history = rnlib.fit(model, train_set, settings, validation=test_set, on_epoch=watch)
    return figures.show(
        figures.history(history),
        caption=f"Loss and accuracy while it trained: {history[-1]['seconds'] * len(history):.0f} seconds.",
        alt="Loss and accuracy by epoch on training and test images, with tracked and with batch statistics.",
    )


def _seconds_a_step(model: nn.Module, train_set: rnlib.Dataset, settings: rnlib.Training) -> float:
    x = rnlib.data.to_float(train_set.images[: settings.batch_size])
    best = float("inf")
    with rnlib.track(model, False):
        for _ in range(3):
            start = perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
                logits = model(x)
            F.cross_entropy(logits.float(), train_set.labels[: len(x)]).backward()
            best = min(best, perf_counter() - start)
    model.zero_grad()
    return best


def stored(model: nn.Module, profile: str) -> Markdown:
    """Give a model the stored weights of the central network, and say so."""
    model.load_state_dict(trained_model(run(CENTRAL, profile)).state_dict())
    return Markdown("The weights are stored ones; `-p train live` trains them here.")


def others(train_set: rnlib.Dataset, train: str, profile: str) -> dict[str, nn.Module]:
    """The other networks by what is other about them, trained here if ``train`` is all."""
    found = {}
    for kind in OTHERS:
        one = run(kind, profile)
        found[kind] = new_model(one) if train == "all" else trained_model(one)
        if train == "all":
            rnlib.fit(found[kind], train_set, training_settings(one))
        found[kind].eval()
    return found


def dial_figure(profile: str) -> Figure:
    """Accuracy under PGD against the factor on the outputs: a panel for each kind of network and loss."""
    rows = dial.curves(_stored(profile))
    rows = rows[(rows.dataset == DATASET) & rows.loss.isin(["cross_entropy", "equal_weight"])]
    of = rows.network.str.removeprefix("Fashion-MNIST: ")
    rows = rows.assign(panel=of + ", " + rows.loss.map(lambda loss: figures.name(loss, "loss")))
    how: dict[str, Any] = {"xscale": "log", "xlabel": "outputs times", "ylabel": dial.UNDER_PGD}
    return figures.lines(rows, x="factor", hue="statistics", panel="panel", **how)


def dial_seeds(profile: str) -> int:
    """How many networks of the central kind have been measured."""
    rows = dial.table(_stored(profile))
    return int(
        rows[(rows.experiment == KINDS[CENTRAL]["experiment"]) & (rows.norm == "batch_norm")].seed.nunique()
    )


if __name__ == "__main__":  # draws the picture of the README
    figures.style()
    dial_figure("book").savefig(ROOT / "book" / "_static" / "dial.png", dpi=110)

"""Why batch statistics look robust: the scale of the logits, and whose gradient moves an image's pixels.

``papermill notebooks/workers/measure.ipynb out.ipynb -p measurement temperature``
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rnlib import PGD, Detached, gradient_shares, use_statistics
from study.experiments.subject import Outcome, Subject, classified

FACTORS = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 16.0)
QUOTED = (0.2, 1.0, 4.0)  # under the cross-entropy on all images, all else on a quarter of them
BATCH_SIZES = (2, 5, 10, 25, 50, 100, 250)
SHARES_IMAGES = 500
PREPARED = {"clean": 0, "on the way": 10}  # steps of PGD before the gradient is looked at


class Scaled(nn.Module):
    """A model with its logits multiplied by a constant, which changes no prediction."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


def temperature(subject: Subject) -> Iterator[Outcome]:
    """PGD on the network with its logits multiplied by each factor, under four losses.

    The margin loss is measured at factor 1 only: its sign does not depend on the factor. ``statistics as
    given`` lets no gradient through the statistics of the batch; with tracked statistics that is the usual
    attack. ``float64`` shows where the softmax in float32 saturates.
    """
    few = subject.first(len(subject.images) // 4)
    plans = [("cross_entropy", factor) for factor in FACTORS] + [("margin", 1.0)]
    plans += [("equal_weight", factor) for factor in FACTORS]
    plans += [("statistics as given", factor) for factor in FACTORS] + [("float64", FACTORS[-1])]
    for loss, factor in plans:
        of = subject if loss == "cross_entropy" and factor in QUOTED else few
        for mode in of.modes:
            if mode == "batch" or loss != "statistics as given":
                cell = {"loss": loss, "factor": factor, "statistics": mode}
                yield cell, partial(_attacked, of, loss, factor, mode)


def _attacked(subject: Subject, loss: str, factor: float, mode: str) -> Tensor:
    """Which images are classified correctly after PGD on the scaled network, bool (n,)."""
    model = Detached(subject.model) if loss == "statistics as given" else subject.model
    wide = torch.float64 if loss == "float64" else torch.float32
    if loss == "float64":
        model = copy.deepcopy(model).to(wide)  # the network itself stays as it is
    model = Scaled(model, factor)
    known = loss in ("equal_weight", "margin")
    attack = PGD(subject.radius(), loss=loss if known else "cross_entropy")
    parts = []
    for x, y, chance in subject.batches():
        with use_statistics(model, "tracked" if loss == "statistics as given" else mode):
            adv = attack(model, x.to(wide), y, generator=chance)
        parts.append(classified(subject.model, adv.to(x.dtype), y, mode))
    return torch.cat(parts)


def gradient_sources(subject: Subject) -> Iterator[Outcome]:
    """Of each image the gradient from its own loss and from its neighbours', and whether PGD fools it.

    A row an image: the shares of :func:`rnlib.gradient_shares`, the probability of its class, whether it is
    still correct where the gradient is looked at, and whether it is after all 20 steps. By factor on the
    logits, at the clean images and on the way, in batches of 100; and by the size of the batch at factor 1.
    """
    few = subject.first(SHARES_IMAGES)
    plans = [(at, factor, 100) for at in PREPARED for factor in QUOTED]
    plans += [("on the way", 1.0, size) for size in BATCH_SIZES if size != 100]
    for at, factor, size in plans:
        cell = {"at": at, "factor": factor, "batch_size": size}
        yield cell, partial(_sources, few, at, factor, size)


def _sources(subject: Subject, at: str, factor: float, size: int) -> list[dict[str, Any]]:
    model, steps = Scaled(subject.model, factor), PREPARED[at]
    step = tuple(eps / 10 for eps in subject.radius())
    rows: list[dict[str, Any]] = []
    for x, y, chance in replace(subject, batch_size=size).batches():
        state = chance.get_state()
        with use_statistics(model, "batch"):
            there = (
                PGD(subject.radius(), steps=steps, step_size=step)(model, x, y, generator=chance)
                if steps
                else x
            )
            chance.set_state(state)
            final = PGD(subject.radius())(model, x, y, generator=chance)
            with torch.no_grad():
                logits = model(there)
        shares = gradient_shares(model, there, y)
        sure = logits.softmax(1).gather(1, y[:, None])[:, 0]
        numbers = vars(shares) | {"probability": sure}
        columns = {name: [float(f"{one:.6g}") for one in of.tolist()] for name, of in numbers.items()}
        columns |= {"correct": (logits.argmax(1) == y).tolist()}
        columns |= {"survives": classified(subject.model, final, y, "batch").tolist()}
        rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows

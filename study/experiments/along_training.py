"""The weights of a run after some of its epochs: when the gap appears, how sure the network is by then."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib import PGD, use_statistics
from study.experiments.subject import Outcome, Subject
from study.networks import trained_model

TRAINING_IMAGES = 1000  # on which loss, confidence and vanished gradients are measured
DOUBLE_IMAGES = 100  # attacked in double precision, which takes six times as long


class _Double(nn.Module):
    """A network in double precision for images in single precision: only its arithmetic changes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, x: Tensor) -> Any:
        return self.model(x.double())


def along_training(subject: Subject) -> Iterator[Outcome]:
    """The weights of a run after the epochs whose snapshots it keeps (the last one if it keeps none).

    PGD climbs the cross-entropy, the margin loss, or the cross-entropy in double precision. The row of
    training images has :func:`training_state`.
    """
    run, radius, train = subject.run, subject.radius(), subject.training(TRAINING_IMAGES)
    attacks = {"clean": None, "PGD": PGD(radius), "PGD, margin loss": PGD(radius, loss="margin")}
    for epoch in run.snapshots or (run.epochs,):
        model = trained_model(run, epoch if run.snapshots else None).to(subject.device)
        then, seen = replace(subject, model=model), replace(train, model=model)
        in_double = replace(subject.first(DOUBLE_IMAGES), model=_Double(model))
        for mode in subject.modes:
            cell = {"epoch": epoch, "statistics": mode}
            yield cell | {"attack": "training images"}, partial(training_state, seen, mode)
            for name, attack in attacks.items():
                yield cell | {"attack": name}, partial(then.correct, attack, mode)
            yield cell | {"attack": "PGD, double precision"}, partial(in_double.correct, attacks["PGD"], mode)


def training_state(subject: Subject, statistics: str) -> tuple[dict[str, float], Tensor]:
    """How sure a network is of images, and which of them it classifies correctly, bool (n,).

    That is the mean ``loss``, the mean ``confidence`` (largest probability), and in percent those whose
    gradient is exactly 0 (``vanished``), so that no attack moves them.
    """
    found = []
    with use_statistics(subject.model, statistics):
        for x, y, _ in subject.batches():
            x.requires_grad_()
            logits = subject.model(x)
            loss = F.cross_entropy(logits, y, reduction="none")
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            vanished, hits = (gradient == 0).flatten(1).all(1), logits.argmax(1) == y
            found.append(torch.stack([loss, logits.softmax(1).amax(1), 100 * vanished, hits]).detach())
    *state, correct = torch.cat(found, 1).cpu()
    means = [round(values.mean().item(), 6) for values in state]
    return dict(zip(("loss", "confidence", "vanished"), means, strict=True)), correct.bool()

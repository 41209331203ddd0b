"""Images crafted with one kind of statistics and classified with another, or by other weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from rnlib import PGD, Attack, Detached, statistics_modes, use_statistics
from rnlib.data import test_order
from study.experiments.subject import Outcome, Subject, classified
from study.networks import trained_model
from study.runs import BATCH_SIZE, other_seed


def transfer(subject: Subject) -> Iterator[Outcome]:
    """Images crafted in one statistics mode, classified in another, and among other images.

    ``detached`` crafts with batch statistics through which no gradient flows (:class:`rnlib.Detached`).
    """
    return _transferred(subject, {name: subject.suite[name] for name in ("grad_sign", "pgd_linf")})


def transfer_8px(subject: Subject) -> Iterator[Outcome]:
    """:func:`transfer` under PGD at 8/255 in pixels, the eps of later work, five times the paper's."""
    return _transferred(subject, {"pgd_linf_8px": PGD(8 / 255)})


def _transferred(subject: Subject, attacks: dict[str, Attack]) -> Iterator[Outcome]:
    for name, attack in attacks.items():
        for mode in (*subject.modes, "detached"):
            adv = cache(partial(crafted, subject, attack, mode))
            for how in ("tracked", "batch", "reshuffled"):
                cell = {"attack": name, "crafted": mode, "tested": how}
                yield cell, partial(tested, subject, adv, how)


def crafted(subject: Subject, attack: Attack, statistics: str) -> Tensor:
    """The images attacked in their batches, float (N, C, H, W)."""
    model = subject.model
    if statistics == "detached":
        model, statistics = Detached(model), "tracked"
    with use_statistics(model, statistics):
        return torch.cat([attack(model, x, y, generator=chance) for x, y, chance in subject.batches()])


def tested(subject: Subject, images: Callable[[], Tensor], how: str) -> Tensor:
    """Which of these images (N, C, H, W) are classified correctly, in their batches or in others."""
    adv, labels = images(), subject.images.labels.to(subject.device)
    order = test_order(len(labels), 1) if how == "reshuffled" else torch.arange(len(labels))
    mode = "tracked" if how == "tracked" else "batch"
    parts = order.to(subject.device).split(BATCH_SIZE)
    correct = torch.cat([classified(subject.model, adv[part], labels[part], mode) for part in parts])
    return torch.empty_like(correct).index_copy_(0, order, correct)


def transfer_between_seeds(subject: Subject) -> Iterator[Outcome]:
    """PGD crafted on the weights of the next seed, in either mode, and classified by these weights.

    Gradients of other weights cannot be masked by these: where such images harm more than PGD on the weights
    ``itself``, that PGD is too weak.
    """
    other = replace(subject, model=trained_model(other_seed(subject.run)).to(subject.device))
    for size in (0.03, 0.1):
        attack = PGD(subject.radius(size))
        for mode in subject.modes:
            cell = {"eps": size, "crafted": "itself", "statistics": mode}
            yield cell, partial(subject.correct, attack, mode)
        for source in statistics_modes(other.model):
            adv = cache(partial(crafted, other, attack, source))
            for mode in subject.modes:
                cell = {"eps": size, "crafted": source, "statistics": mode}
                yield cell, partial(tested, subject, adv, mode)

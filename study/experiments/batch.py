"""What the other images of a batch do: how many there are, which, and which of them are attacked."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rnlib import PGD, Among, Attack, attack_neighbours, use_statistics
from rnlib.data import test_order
from study.experiments.subject import Outcome, Subject, classified
from study.runs import BATCH_SIZE

ATTACKED_IMAGES = 1000  # of attacked_fraction, the dearest: one attacked image takes the time of its batch
COMPOSITIONS = ("mixed", "skewed", "sorted", "single")


def batch_size(subject: Subject) -> Iterator[Outcome]:
    """Fig 5: inference in batches of 1 to 500 images of mixed classes."""
    attacks = {name: subject.suite.get(name) for name in ("clean", "noise", "grad_sign")}
    sizes = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if size <= len(subject.images)]
    for mode in subject.modes:
        for size in sizes if mode == "batch" else [BATCH_SIZE]:
            for name, attack in attacks.items():
                cell = {"attack": name, "size": size, "statistics": mode}
                yield cell, partial(subject.correct, attack, mode, size)


def compose(labels: Tensor, composition: str) -> list[Tensor]:
    """Indices of batches of about 100 images, each image in one, from int64 labels (n,) in class-mixed order.

    ``mixed``: in the given order; ``sorted``: by class, then cut every 100 images, as a data loader does that
    reads a folder of each class; ``single``: of one class each; ``skewed``: half of one class, half of all.
    """
    if composition == "mixed":
        return list(torch.arange(len(labels)).split(BATCH_SIZE))
    if composition == "sorted":
        return list(labels.argsort(stable=True).split(BATCH_SIZE))
    classes = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    each = max(1, round(len(labels) / (BATCH_SIZE * len(classes))))  # batches of a class
    if composition == "single":
        return [part for members in classes for part in members.tensor_split(each)]
    halves = [part for members in classes for part in members[::2].tensor_split(each)]
    others = torch.cat([members[1::2] for members in classes])
    others = others[test_order(len(others), 4)]
    return [torch.cat(pair) for pair in zip(halves, others.tensor_split(len(halves)), strict=True)]


def batch_composition(subject: Subject) -> Iterator[Outcome]:
    """The same images in batches of other compositions, each attacked as it is."""
    for mode in subject.modes:
        for composition in COMPOSITIONS:
            for name in ("clean", "grad_sign", "pgd_linf"):
                cell = {"composition": composition, "attack": name, "statistics": mode}
                yield cell, partial(_composed, subject, composition, subject.suite.get(name), mode)


def _composed(subject: Subject, composition: str, attack: Attack | None, mode: str) -> Tensor:
    correct = torch.zeros(len(subject.images), dtype=torch.bool)
    for index, members in enumerate(compose(subject.images.labels, composition)):
        part = replace(subject, images=subject.images.subset(members))
        correct[members] = part.correct(attack, mode, len(members), index)
    return correct


def attacked_fraction(subject: Subject) -> Iterator[Outcome]:
    """Only m images of a batch of 100 are attacked, among clean neighbours; accuracy of the attacked.

    Every image is attacked once for each m. That takes 100 / m times the work of attacking the whole batch,
    so PGD takes five steps of eps / 2 here. With tracked statistics neighbours do not matter: there the whole
    batch is attacked, for comparison.
    """
    subject, radius = subject.first(ATTACKED_IMAGES), subject.radius()
    attack = PGD(radius, steps=5, step_size=tuple(e / 2 for e in radius))
    for mode in subject.modes:
        yield {"attacked": BATCH_SIZE, "statistics": mode}, partial(subject.correct, attack, mode)
    for m in (25, 5, 1):
        yield {"attacked": m, "statistics": "batch"}, partial(_in_groups, subject, attack, m)


def _in_groups(subject: Subject, attack: Attack, m: int) -> Tensor:
    """The images of each batch attacked m at a time, while the rest of the batch stays clean."""
    parts = []
    for index, (x, y, _) in enumerate(subject.batches()):
        for start in range(0, len(x), m):
            mine = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            mine[start : start + m] = True
            among, chance = Among(subject.model, x[~mine]), subject.chance(BATCH_SIZE * index + start)
            with use_statistics(subject.model, "batch"):
                adv = attack(among, x[mine], y[mine], generator=chance)
            parts.append(classified(among, adv, y[mine], "batch"))
    return torch.cat(parts)


def attacks_through_neighbours(subject: Subject) -> Iterator[Outcome]:
    """k images of a batch are changed to spoil the others; accuracy of the untouched ones.

    With tracked statistics the gradient towards neighbours is zero, so that only batch statistics are tried.
    """
    for k in (1, 10, 25, 50):
        for size in (0.0, 0.03, 0.3):
            cell = {"changed": k, "eps": size, "statistics": "batch"}
            yield cell, partial(_untouched, subject, k, subject.radius(size))


def _untouched(subject: Subject, k: int, radius: tuple[float, ...]) -> Tensor:
    parts = []
    for x, y, _ in subject.batches():
        with use_statistics(subject.model, "batch"):
            adv = attack_neighbours(subject.model, x, y, k, radius) if max(radius) else x
        parts.append(classified(subject.model, adv, y, "batch")[k:])
    return torch.cat(parts)

"""Experiments on the weights of one run: stronger attacks, other sizes, and how many of a batch are attacked.

Functions like those of :mod:`study.experiments.experiments`.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from rnlib.attacks import PGD, Attack, GaussianNoise, paper_eps, paper_suite
from rnlib.data import Dataset, batches
from rnlib.modes import statistics_modes, use_statistics
from rnlib.neighbours import Among, attack_neighbours
from rnlib.square import Square
from study.experiments.experiments import BATCH_SIZE, Outcome, classified, generator, measured
from study.runs import Run


def _half(dataset: Dataset) -> Dataset:
    """For what is dear: the first half of the images."""
    return dataset.subset(torch.arange(len(dataset) // 2))


def adequacy(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E4: PGD with more steps, restarts, other step sizes and losses; and one step against many.

    Restarts are five times as dear, so they get half of the images.
    """
    radius = paper_eps(run.dataset)
    quarter = tuple(e / 4 for e in radius)
    attacks: dict[str, Attack] = {
        "PGD, 20 steps": PGD(radius),
        "100 steps": PGD(radius, steps=100),
        "margin loss": PGD(radius, loss="margin"),
        "margin loss, fooled images masked": PGD(radius, loss="masked_margin"),
        "steps of eps / 4": PGD(radius, step_size=quarter),
        "one step": paper_suite(run.dataset)["grad_sign"],
        "5 restarts": PGD(radius, restarts=5),
    }
    for name, attack in attacks.items():
        images = _half(dataset) if name == "5 restarts" else dataset
        for mode in statistics_modes(model):
            cell = {"attack": name, "statistics": mode}
            yield cell, partial(measured, model, images, attack, mode, device)


def fraction(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E5: only m images of a batch of 100 are attacked, among clean neighbours; accuracy of the attacked.

    Every image is attacked once for each m. That takes 100 / m times the work of attacking the whole batch,
    so PGD takes five steps of eps / 2 here. With tracked statistics neighbours do not matter: there the whole
    batch is attacked, for comparison.
    """
    radius = paper_eps(run.dataset)
    attack = PGD(radius, steps=5, step_size=tuple(e / 2 for e in radius))
    for mode in statistics_modes(model):
        cell = {"attacked": BATCH_SIZE, "statistics": mode}
        yield cell, partial(measured, model, dataset, attack, mode, device)
    for m in (25, 5, 1):
        cell = {"attacked": m, "statistics": "batch"}
        yield cell, partial(_in_groups, model, dataset, attack, m, device)


def _in_groups(model: nn.Module, dataset: Dataset, attack: Attack, m: int, device: str) -> Tensor:
    """The images of each batch attacked m at a time, while the rest of the batch stays clean."""
    parts = []
    for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
        for start in range(0, len(x), m):
            mine = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            mine[start : start + m] = True
            among, chance = Among(model, x[~mine]), generator(BATCH_SIZE * index + start, device)
            with use_statistics(model, "batch"):
                adv = attack(among, x[mine], y[mine], generator=chance)
            parts.append(classified(among, adv, y[mine], "batch"))
    return torch.cat(parts)


def neighbours(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E6: k images of a batch are changed to spoil the others; accuracy of the untouched ones.

    With tracked statistics the gradient towards neighbours is zero, so that only batch statistics are tried.
    """
    for k in (1, 10, 25, 50):
        for size in (0.0, 0.03, 0.3):
            cell = {"changed": k, "eps": size, "statistics": "batch"}
            yield cell, partial(_untouched, model, dataset, k, paper_eps(run.dataset, size), device)


def _untouched(model: nn.Module, dataset: Dataset, k: int, radius: tuple[float, ...], device: str) -> Tensor:
    parts = []
    for x, y in batches(dataset, BATCH_SIZE, device=device):
        with use_statistics(model, "batch"):
            adv = attack_neighbours(model, x, y, k, radius) if max(radius) else x
        parts.append(classified(model, adv, y, "batch")[k:])
    return torch.cat(parts)


def black_box(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E7: the Square attack on fixed batches, beside PGD at the same eps: masking shows as the weaker PGD.

    Queries are many: the larger eps, which only gives Square more room, is tried on half of the images.
    """
    for size, images in {0.03: dataset, 0.1: _half(dataset)}.items():
        radius = paper_eps(run.dataset, size)
        for name, attack in {"Square": Square(radius, queries=300), "PGD": PGD(radius)}.items():
            for mode in statistics_modes(model):
                cell = {"attack": name, "eps": size, "statistics": mode}
                yield cell, partial(measured, model, images, attack, mode, device)


def units(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E8: sweeps of the noise in normalised units and of PGD's eps in pixels."""
    attacks: dict[tuple[str, float], Attack] = {
        ("noise", s): GaussianNoise(paper_eps(run.dataset, s)) for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    }
    attacks |= {("pgd", e): PGD(e / 255) for e in (0.5, 1, 2, 4, 8)}
    for mode in statistics_modes(model):
        for (name, size), attack in attacks.items():
            cell = {"attack": name, "size": size, "statistics": mode}
            yield cell, partial(measured, model, dataset, attack, mode, device)


def eps(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """Figs 4 and 6: Grad, BIM and PGD at the seven eps of the paper, in normalised units.

    On half of the images: these are forty attacks of twenty steps.
    """
    half = _half(dataset)
    for mode in statistics_modes(model):
        for size in (0.003, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9):
            suite = paper_suite(run.dataset, size)
            for name in ("grad", "bim_linf", "pgd_linf"):
                cell = {"attack": name, "eps": size, "statistics": mode}
                yield cell, partial(measured, model, half, suite[name], mode, device)


def batch_size(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """Fig 5: inference in batches of 1 to 500 images of mixed classes."""
    suite = paper_suite(run.dataset)
    attacks = {"clean": None, "noise": suite["noise"], "grad_sign": suite["grad_sign"]}
    sizes = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if size <= len(dataset)]
    for mode in statistics_modes(model):
        for size in sizes if mode == "batch" else [BATCH_SIZE]:
            for name, attack in attacks.items():
                cell = {"attack": name, "size": size, "statistics": mode}
                yield cell, partial(measured, model, dataset, attack, mode, device, size)

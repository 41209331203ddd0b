"""Experiments on the weights of one run: Figs 4 to 6, and what decides whether tracking is the cause.

Each is a function of a run, its model and test images that yields (cell, correct): what was done, as a
dictionary, and for each image whether it was classified correctly; :mod:`rnlib.study.diagnostics` keeps it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rnlib.attacks import PGD, Attack, GaussianNoise, paper_eps, paper_suite
from rnlib.data import Dataset, batches, test_order
from rnlib.evaluate import measure
from rnlib.modes import statistics_modes, use_statistics
from rnlib.neighbours import Among, attack_neighbours
from rnlib.square import Square
from rnlib.study.runs import Run
from rnlib.study.work import training_set
from rnlib.tracking import recalibrate

BATCH_SIZE = 100
Outcome = tuple[dict[str, Any], Tensor]
Suite = dict[str, Attack | None]


def _generator(index: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(index)


def _classified(model: nn.Module, x: Tensor, y: Tensor, statistics: str) -> Tensor:
    with use_statistics(model, statistics), torch.no_grad():
        return (model(x).argmax(1) == y).cpu()


def _crafted(model: nn.Module, dataset: Dataset, attack: Attack, statistics: str, device: str) -> Tensor:
    """The whole set attacked in batches, float (N, C, H, W)."""
    with use_statistics(model, statistics):
        stream = enumerate(batches(dataset, BATCH_SIZE, device=device))
        return torch.cat([attack(model, x, y, generator=_generator(i, device)) for i, (x, y) in stream])


def transfer(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E2: images crafted in one statistics mode, classified in another, and among other images."""
    labels, other = dataset.labels.to(device), test_order(len(dataset), 1).to(device)
    for name in ("grad_sign", "pgd_linf"):
        for crafted in statistics_modes(model):
            adv = _crafted(model, dataset, paper_suite(run.dataset)[name], crafted, device)
            for tested, order in (("tracked", None), ("batch", None), ("reshuffled", other)):
                x, y = (adv, labels) if order is None else (adv[order], labels[order])
                mode = "tracked" if tested == "tracked" else "batch"
                parts = zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True)
                correct = torch.cat([_classified(model, a, b, mode) for a, b in parts])
                if order is not None:
                    correct = torch.empty_like(correct).index_copy_(0, order.cpu(), correct)
                yield {"attack": name, "crafted": crafted, "tested": tested}, correct


def _suite(run: Run) -> Suite:
    suite = paper_suite(run.dataset)
    return {"clean": None, **{name: suite[name] for name in ("noise", "grad_sign", "pgd_linf")}}


def ladder(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E3: the same weights with statistics frozen at several sources, each attacked as it is.

    Sources are the running averages of training; averages over ten batches of training images as they are,
    augmented as in training, and augmented and attacked; and the clean version of the batch at hand. Last
    comes the batch itself, whose statistics move with the attack.
    """
    train = training_set(run)
    train = train.subset(test_order(len(train), 2)[: 10 * BATCH_SIZE])
    pgd = paper_suite(run.dataset)["pgd_linf"]
    plain = [x for x, _ in batches(train, BATCH_SIZE, device=device)]
    chance = torch.Generator().manual_seed(2)
    augmented = list(batches(train, BATCH_SIZE, generator=chance, augmented=True, device=device))
    with use_statistics(model, "batch"):
        attacked = [pgd(model, x, y, generator=_generator(i, device)) for i, (x, y) in enumerate(augmented)]
    networks = {
        "ema": model,
        "augmented": recalibrate(copy.deepcopy(model), (x for x, _ in augmented)),
        "plain": recalibrate(copy.deepcopy(model), plain),
        "adversarial": recalibrate(copy.deepcopy(model), attacked),
    }
    for attack_name, attack in _suite(run).items():
        for source, network in networks.items():
            correct, _, _ = measure(network, dataset, attack, statistics="tracked", device=device)
            yield {"attack": attack_name, "source": source}, correct
        parts = []
        for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
            twin = recalibrate(copy.deepcopy(model), [x])  # statistics of the clean images, whatever comes
            adv = x if attack is None else attack(twin, x, y, generator=_generator(index, device))
            parts.append(_classified(twin, adv, y, "tracked"))
        yield {"attack": attack_name, "source": "twin"}, torch.cat(parts)
        correct, _, _ = measure(model, dataset, attack, statistics="batch", device=device)
        yield {"attack": attack_name, "source": "batch"}, correct


def adequacy(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E4: PGD with more steps, restarts, other step sizes and the margin loss; and one step against many."""
    radius = paper_eps(run.dataset)
    quarter = tuple(e / 4 for e in radius)
    attacks = {
        "PGD, 20 steps": PGD(radius),
        "100 steps": PGD(radius, steps=100),
        "steps of eps / 4": PGD(radius, step_size=quarter),
        "5 restarts": PGD(radius, restarts=5),
        "margin loss": PGD(radius, loss="margin"),
        "one step": paper_suite(run.dataset)["grad_sign"],
    }
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for name, attack in attacks.items():
            correct, _, _ = measure(model, half, attack, statistics=mode, device=device)
            yield {"attack": name, "statistics": mode}, correct


def fraction(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E5: only m images of a batch of 100 are attacked, among clean neighbours; accuracy of the attacked.

    With tracked statistics neighbours do not matter: there the whole batch is attacked, for comparison.
    """
    attack = paper_suite(run.dataset)["pgd_linf"]
    for m, groups in {1: 10, 5: 4, 25: 2}.items():  # groups of each batch, so that every m has enough images
        parts = []
        for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
            for group in range(groups):
                order = torch.arange(len(x), device=x.device).roll(-group * m)
                among = Among(model, x[order[m:]])
                with use_statistics(model, "batch"):
                    adv = attack(among, x[order[:m]], y[order[:m]], generator=_generator(index, device))
                parts.append(_classified(among, adv, y[order[:m]], "batch"))
        yield {"attacked": m, "statistics": "batch"}, torch.cat(parts)
    for mode in statistics_modes(model):
        correct, _, _ = measure(model, dataset, attack, statistics=mode, device=device)
        yield {"attacked": BATCH_SIZE, "statistics": mode}, correct


def neighbours(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E6: k images of a batch are changed to spoil the others; accuracy of the untouched ones.

    With tracked statistics the gradient towards neighbours is zero, so that only batch statistics are tried.
    """
    for k in (1, 10, 25, 50):
        for size in (0.0, 0.03, 0.3):
            parts = []
            for x, y in batches(dataset, BATCH_SIZE, device=device):
                with use_statistics(model, "batch"):
                    adv = attack_neighbours(model, x, y, k, paper_eps(run.dataset, size))
                parts.append(_classified(model, adv, y, "batch")[k:])
            yield {"changed": k, "eps": size, "statistics": "batch"}, torch.cat(parts)


def black_box(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E7: the Square attack on fixed batches, beside PGD at the same eps: masking shows as the weaker PGD."""
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for size in (0.03, 0.1):
            radius = paper_eps(run.dataset, size)
            for name, attack in {"Square": Square(radius, queries=300), "PGD": PGD(radius)}.items():
                correct, _, _ = measure(model, half, attack, statistics=mode, device=device)
                yield {"attack": name, "eps": size, "statistics": mode}, correct


def units(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E8: sweeps of the noise in normalised units and of PGD's eps in pixels."""
    attacks: dict[tuple[str, float], Attack] = {
        ("noise", s): GaussianNoise(paper_eps(run.dataset, s)) for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    }
    attacks |= {("pgd", e): PGD(e / 255) for e in (0.5, 1, 2, 4, 8)}
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for (name, size), attack in attacks.items():
            correct, _, _ = measure(model, half, attack, statistics=mode, device=device)
            yield {"attack": name, "size": size, "statistics": mode}, correct


def eps(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """Figs 4 and 6: Grad, BIM and PGD at the seven eps of the paper, in normalised units."""
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for size in (0.003, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9):
            suite = paper_suite(run.dataset, size)
            for name in ("grad", "bim_linf", "pgd_linf"):
                correct, _, _ = measure(model, half, suite[name], statistics=mode, device=device)
                yield {"attack": name, "eps": size, "statistics": mode}, correct


def batch_size(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """Fig 5: inference in batches of 1 to 500 images of mixed classes."""
    suite = paper_suite(run.dataset)
    attacks = {"clean": None, "noise": suite["noise"], "grad_sign": suite["grad_sign"]}
    sizes = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if size <= len(dataset)]
    for mode in statistics_modes(model):
        for size in sizes if mode == "batch" else [BATCH_SIZE]:
            for name, attack in attacks.items():
                correct, _, _ = measure(
                    model, dataset, attack, statistics=mode, batch_size=size, device=device
                )
                yield {"attack": name, "size": size, "statistics": mode}, correct

"""Experiments on the weights of one run: which statistics an attack is crafted through and tested with.

Each is a function of a run, its model and test images that yields (cell, outcome): what is done, as a
dictionary, and what computes for each image, in their order, whether it is classified correctly;
:mod:`study.experiments.diagnostics` keeps it, and after an interruption computes only the cells it lacks. Where
more is measured the outcome is a pair, a dictionary of these values and the images: a cell must be the same
when it is met again, and measured values may differ in the last digit.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from rnlib.attacks import PGD, Attack, paper_eps, paper_suite
from rnlib.data import Dataset, batches, test_order
from rnlib.detached import Detached
from rnlib.evaluate import measure
from rnlib.modes import statistics_modes, use_statistics
from study.runs import Run
from study.work import BATCH_SIZE, trained_model, training_set
from rnlib.tracking import recalibrate

Measured = Tensor | tuple[dict[str, float], Tensor]
Outcome = tuple[dict[str, Any], Measured | Callable[[], Measured]]
Suite = dict[str, Attack | None]


def generator(index: int, device: str) -> torch.Generator:
    """The chance of the attack on a batch."""
    return torch.Generator(device).manual_seed(index)


def measured(
    model: nn.Module, dataset: Dataset, attack: Attack | None, statistics: str, device: str,
    batch_size: int = BATCH_SIZE,
) -> Tensor:  # fmt: skip
    """Which images are classified correctly in a statistics mode, each batch attacked as it is; bool (n,)."""
    correct, _, _ = measure(
        model, dataset, attack, statistics=statistics, batch_size=batch_size, device=device
    )
    return correct


def classified(model: nn.Module, x: Tensor, y: Tensor, statistics: str) -> Tensor:
    """Which images of a batch are classified correctly in a statistics mode, bool (n,)."""
    with use_statistics(model, statistics), torch.no_grad():
        return (model(x).argmax(1) == y).cpu()


def _crafted(model: nn.Module, dataset: Dataset, attack: Attack, statistics: str, device: str) -> Tensor:
    """The whole set attacked in batches, float (N, C, H, W)."""
    if statistics == "detached":
        model, statistics = Detached(model), "tracked"
    with use_statistics(model, statistics):
        stream = enumerate(batches(dataset, BATCH_SIZE, device=device))
        return torch.cat([attack(model, x, y, generator=generator(i, device)) for i, (x, y) in stream])


def _tested(model: nn.Module, images: Callable[[], Tensor], labels: Tensor, tested: str) -> Tensor:
    """Which images (N, C, H, W) are classified correctly, in their batches or (``reshuffled``) in others."""
    order = test_order(len(labels), 1) if tested == "reshuffled" else torch.arange(len(labels))
    adv, there = images(), order.to(labels.device)
    parts = zip(adv[there].split(BATCH_SIZE), labels[there].split(BATCH_SIZE), strict=True)
    mode = "tracked" if tested == "tracked" else "batch"
    correct = torch.cat([classified(model, x, y, mode) for x, y in parts])
    return torch.empty_like(correct).index_copy_(0, order, correct)


def transfer(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E2: images crafted in one statistics mode, classified in another, and among other images.

    ``detached`` crafts with batch statistics through which no gradient flows (:class:`rnlib.Detached`).
    """
    suite = paper_suite(run.dataset)
    return _transferred(model, dataset, {name: suite[name] for name in ("grad_sign", "pgd_linf")}, device)


def transfer_8px(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E2 under PGD at 8/255 in pixels, the eps of later work, five times the paper's."""
    return _transferred(model, dataset, {"pgd_linf_8px": PGD(8 / 255)}, device)


def _transferred(
    model: nn.Module, dataset: Dataset, attacks: dict[str, Attack], device: str
) -> Iterator[Outcome]:
    labels = dataset.labels.to(device)
    for name, attack in attacks.items():
        for crafted in (*statistics_modes(model), "detached"):
            adv = cache(partial(_crafted, model, dataset, attack, crafted, device))
            for tested in ("tracked", "batch", "reshuffled"):
                cell = {"attack": name, "crafted": crafted, "tested": tested}
                yield cell, partial(_tested, model, adv, labels, tested)


def other_seed(run: Run) -> Run:
    """The run whose weights are independent of a run's: its next seed."""
    return replace(run, seed=run.seed + 1)


def independent(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E7: PGD crafted on the weights of the next seed, in either mode, and classified by these weights.

    Gradients of other weights cannot be masked by these: where such images harm more than PGD on the weights
    ``itself``, that PGD is too weak.
    """
    other, labels = trained_model(other_seed(run)).to(device), dataset.labels.to(device)
    for size in (0.03, 0.1):
        attack = PGD(paper_eps(run.dataset, size))
        for mode in statistics_modes(model):
            cell = {"eps": size, "crafted": "itself", "statistics": mode}
            yield cell, partial(measured, model, dataset, attack, mode, device)
        for crafted in statistics_modes(other):
            adv = cache(partial(_crafted, other, dataset, attack, crafted, device))
            for mode in statistics_modes(model):
                cell = {"eps": size, "crafted": crafted, "statistics": mode}
                yield cell, partial(_tested, model, adv, labels, mode)


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
        attacked = [pgd(model, x, y, generator=generator(i, device)) for i, (x, y) in enumerate(augmented)]
    networks = {
        "ema": model,
        "augmented": recalibrate(copy.deepcopy(model), (x for x, _ in augmented)),
        "plain": recalibrate(copy.deepcopy(model), plain),
        "adversarial": recalibrate(copy.deepcopy(model), attacked),
    }
    for name, attack in _suite(run).items():
        for source, network in networks.items():
            cell = {"attack": name, "source": source}
            yield cell, partial(measured, network, dataset, attack, "tracked", device)
        yield {"attack": name, "source": "twin"}, partial(_by_twins, model, dataset, attack, device)
        cell = {"attack": name, "source": "batch"}
        yield cell, partial(measured, model, dataset, attack, "batch", device)


def _by_twins(model: nn.Module, dataset: Dataset, attack: Attack | None, device: str) -> Tensor:
    """Each batch is attacked and classified with statistics frozen at those of its clean images."""
    parts = []
    for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
        twin = recalibrate(copy.deepcopy(model), [x])
        adv = x if attack is None else attack(twin, x, y, generator=generator(index, device))
        parts.append(classified(twin, adv, y, "tracked"))
    return torch.cat(parts)

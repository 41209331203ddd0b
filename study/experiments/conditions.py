"""Experiments on the conditions of a test: what is in the batch, random statistics, the length of training,
and the released code's own protocol. Functions like those of :mod:`study.experiments.experiments`.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.attacks import PGD, Attack, paper_eps, paper_suite
from rnlib.data import Dataset, batches, test_order
from rnlib.evaluate import measure
from rnlib.jitter import jittered, sampling_noise
from rnlib.modes import statistics_modes, use_statistics
from rnlib.released import HABITS
from study.experiments.experiments import BATCH_SIZE, Outcome, generator, measured
from study.runs import Run
from study.work import trained_model, training_set

SCATTER_BATCHES = 50  # of training images, to measure how batches scatter
TRAINING_IMAGES = 1000  # on which loss, confidence and vanished gradients are measured
DOUBLE_IMAGES = 100  # attacked in double precision, which takes six times as long
JITTER = ("tracked", "held", "held, 3 x", "redrawn", "redrawn, 3 x", "batch")
COMPOSITIONS = ("mixed", "skewed", "sorted", "single")


def jitter(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E11: tracked statistics with noise of the size of batch sampling, and of three times that.

    Drawn once for a batch (``held`` while it is attacked and classified) or ``redrawn`` at every forward
    pass, attacked as they are; beside them tracked and batch statistics.
    """
    train = training_set(run)
    train = train.subset(test_order(len(train), 3)[: SCATTER_BATCHES * BATCH_SIZE])
    scatter = sampling_noise(model, (x for x, _ in batches(train, BATCH_SIZE, device=device)))
    suite = paper_suite(run.dataset)

    def switched(mode: str, index: int) -> AbstractContextManager[nn.Module]:
        if mode in statistics_modes(model):
            return use_statistics(model, mode)
        size = 3 if mode.endswith("3 x") else 1
        noise = {name: (size * first, size * second) for name, (first, second) in scatter.items()}
        chance = torch.Generator(device).manual_seed(10**6 + index)
        return jittered(model, noise, chance, redraw=mode.startswith("redrawn"))

    def classified(attack: Attack | None, mode: str) -> Tensor:
        parts = []
        for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
            with switched(mode, index):
                if attack is not None:
                    x = attack(model, x, y, generator=generator(index, device))
                with torch.no_grad():
                    parts.append((model(x).argmax(1) == y).cpu())
        return torch.cat(parts)

    for name in ("clean", "noise", "grad_sign", "pgd_linf"):
        for mode in JITTER:
            yield {"attack": name, "statistics": mode}, partial(classified, suite.get(name), mode)


def compose(labels: Tensor, composition: str) -> list[Tensor]:
    """Put images into batches of about 100, each image into one.

    Args:
        labels: int64 (n,), in class-mixed order.
        composition: ``"mixed"``, in the given order; ``"sorted"``, ordered by class and cut every 100 images,
            as a data loader does that reads a folder of each class; ``"single"``, of one class each;
            ``"skewed"``, half of one class, the other half of all.

    Returns:
        Indices of each batch.

    Raises:
        ValueError: another composition.
    """
    if composition not in COMPOSITIONS:
        raise ValueError(f"composition is {composition!r}, it must be one of {COMPOSITIONS}")
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


def composition(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E13: the same images in batches of other compositions, each attacked as it is."""
    suite = paper_suite(run.dataset)

    def classified(name: str, attack: Attack | None, mode: str) -> Tensor:
        correct = torch.zeros(len(dataset), dtype=torch.bool)
        for index, members in enumerate(compose(dataset.labels, name)):
            correct[members], _, _ = measure(
                model, dataset.subset(members), attack, statistics=mode, batch_size=len(members),
                seed=index, device=device,
            )  # fmt: skip
        return correct

    for mode in statistics_modes(model):
        for name in COMPOSITIONS:
            for attack in ("clean", "grad_sign", "pgd_linf"):
                cell = {"composition": name, "attack": attack, "statistics": mode}
                yield cell, partial(classified, name, suite.get(attack), mode)


class _Double(nn.Module):
    """A network in double precision for images in single precision: only its arithmetic changes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.double())
        return logits


def snapshots(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E14: the weights of a run after some of its epochs (the last one if it keeps no snapshots).

    PGD climbs the cross-entropy, the margin loss, or the cross-entropy in double precision. A row of
    training images has their mean ``loss``, the mean ``confidence`` (largest probability), and in percent
    those whose gradient is exactly 0 (``vanished``), so that an attack cannot move them.
    """
    radius = paper_eps(run.dataset)
    attacks = {"clean": None, "PGD": PGD(radius), "PGD, margin loss": PGD(radius, loss="margin")}
    fewer = dataset.subset(torch.arange(min(DOUBLE_IMAGES, len(dataset))))

    train = training_set(run)
    train = train.subset(test_order(len(train), 2)[:TRAINING_IMAGES])
    for epoch in run.snapshots or (run.epochs,):
        network = trained_model(run, epoch if run.snapshots else None).to(device)
        for mode in statistics_modes(network):
            cell = {"epoch": epoch, "statistics": mode}
            state = partial(training_state, network, train, mode, device)
            yield cell | {"attack": "training images"}, state
            for name, attack in attacks.items():
                yield cell | {"attack": name}, partial(measured, network, dataset, attack, mode, device)
            double = partial(measured, _Double(network), fewer, attacks["PGD"], mode, device)
            yield cell | {"attack": "PGD, double precision"}, double


def training_state(
    model: nn.Module, dataset: Dataset, statistics: str, device: str
) -> tuple[dict[str, float], Tensor]:
    """How sure a network is of images: ``loss``, ``confidence`` and ``vanished`` of :func:`snapshots`; and
    which images are classified correctly, bool (n,).
    """
    losses, confidences, vanished, correct = [], [], [], []
    with use_statistics(model, statistics):
        for x, y in batches(dataset, BATCH_SIZE, device=device):
            x.requires_grad_()
            logits = model(x)
            loss = F.cross_entropy(logits, y, reduction="none")
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            losses.append(loss.detach())
            confidences.append(logits.detach().softmax(1).amax(1))
            vanished.append((gradient == 0).flatten(1).all(1))
            correct.append((logits.argmax(1) == y).cpu())
    state = {
        "loss": torch.cat(losses).mean().item(),
        "confidence": torch.cat(confidences).mean().item(),
        "vanished": 100 * torch.cat(vanished).float().mean().item(),
    }
    return {key: round(value, 6) for key, value in state.items()}, torch.cat(correct)


def code_path(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """The protocol of the released code, habit by habit: what a habit leaves as it is is not repeated."""
    usual = HABITS["this book"]
    for habit, protocol in HABITS.items():
        attacks = protocol.attacks(run.dataset)
        inference = (protocol.divisor, protocol.batch_size) != (usual.divisor, usual.batch_size)
        for mode in statistics_modes(model):
            for name, attack in attacks.items():
                if habit == "this book" or inference or attack != usual.attacks(run.dataset)[name]:
                    classified = partial(
                        protocol.classify, model, dataset, name, statistics=mode, device=device
                    )
                    yield {"habit": habit, "attack": name, "statistics": mode}, classified

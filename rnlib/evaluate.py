"""Accuracy of one set of weights, clean and under attack, in each statistics mode, outcome by image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.attacks import Attack
from rnlib.data import Dataset, batches
from rnlib.statistics import check_kind, evaluation_mode, logits_of, statistics_modes, use_statistics


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outcome of one attack, by its name, in one mode of :func:`rnlib.statistics_modes`.

    ``correct``: bool (n,), in the order of the data set. ``loss``: mean cross-entropy of the attacked images.
    ``distance``: float32 (n,), ||x_adv - x||_2 with pixels in [0, 1]. ``seconds``: wall time.
    """

    statistics: str
    attack: str
    correct: Tensor
    loss: float
    distance: Tensor
    seconds: float


def measure(
    model: nn.Module,
    dataset: Dataset,
    attack: Attack | None = None,
    *,
    statistics: str = "tracked",
    batch_size: int = 100,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, float, Tensor]:
    """Classify a data set in evaluation mode, in fixed batches of its own order, clean or attacked.

    The batch that is attacked is the batch that is classified: with batch statistics an image's prediction
    depends on its neighbours. A class-ordered set must therefore be permuted first
    (:func:`rnlib.data.test_order`).

    Args:
        model: put back on its device and into its mode (layer by layer) afterwards.
        dataset: at least one image.
        attack: untargeted, or None for clean images.
        statistics: ``"tracked"``, ``"batch"``, or ``"none"``, which leaves the model as it is.
        batch_size: 100 in the paper. A last, smaller batch has other statistics: make the set a multiple.
        seed: batch i is attacked with the generator seeded by (seed, i), whatever was attacked before.

    Returns:
        correct, bool (n,), the mean cross-entropy, and the l2 distances that the images were moved, (n,); on
        the CPU.

    Raises:
        ValueError: no image, a targeted attack (the data set has no target classes), unknown statistics, or
            statistics other than ``"none"`` for native PyTorch batch norms.
    """
    check_kind("model", model, nn.Module)
    check_kind("dataset", dataset, Dataset)
    check_kind("attack", attack, Callable | None)
    if not len(dataset):
        raise ValueError(f"the data set {dataset.name!r} is empty: there is nothing to measure")
    if getattr(attack, "targeted", False):
        raise ValueError(f"{attack} would be given the true labels as targets; use targeted=False")
    correct, losses, distances = [], [], []
    with evaluation_mode(model), use_statistics(model, statistics), _on(model, device):
        for index, (x, y) in enumerate(batches(dataset, batch_size, device=device)):
            original = x
            if attack is not None:
                x = attack(model, x, y, generator=torch.Generator(device).manual_seed(100_003 * seed + index))
            with torch.no_grad():
                logits = logits_of(model(x))
            correct.append(logits.argmax(1) == y)
            losses.append(F.cross_entropy(logits, y, reduction="sum"))
            distances.append(torch.linalg.vector_norm((x - original).flatten(1), dim=1))
        loss = torch.stack(losses).sum().item() / len(dataset)
        return torch.cat(correct).cpu(), loss, torch.cat(distances).cpu()


@contextmanager
def _on(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    tensors = chain(model.parameters(), model.buffers())
    home = next((tensor.device for tensor in tensors), torch.device(device))
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    attacks: Mapping[str, Attack | None],
    *,
    statistics: Sequence[str] | None = None,
    batch_size: int = 100,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[Evaluation]:
    """Measure a model under every attack, in every statistics mode, one :class:`Evaluation` at a time.

    Args:
        attacks: by name; None stands for clean images.
        statistics: modes, by default both, or ``"none"`` for a model without batch statistics.
        others: see :func:`measure`.
    """
    for mode in statistics_modes(model) if statistics is None else statistics:
        for name, attack in attacks.items():
            start = perf_counter()
            correct, loss, distance = measure(
                model, dataset, attack, statistics=mode, batch_size=batch_size, seed=seed, device=device
            )
            yield Evaluation(mode, name, correct, loss, distance, perf_counter() - start)

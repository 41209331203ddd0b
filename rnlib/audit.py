"""How much a model's answers for an image depend on the other images of its batch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.attacks import Attack
from rnlib.convert import convert_norms
from rnlib.data import Dataset, batches, test_order
from rnlib.evaluate import measure
from rnlib.statistics import evaluation_mode, statistics_modes, use_statistics

COMPOSITIONS = ("mixed", "reshuffled", "sorted")


@dataclass(frozen=True)
class BatchDependence:
    """What one way of making batches does to the answers.

    Attributes:
        statistics: ``"tracked"``, ``"batch"``, or ``"none"`` for a model without batch statistics.
        composition: ``"mixed"`` (a random order), ``"reshuffled"`` (another one: the same images with other
            neighbours) or ``"sorted"`` (by class, so that most batches hold one class).
        batch_size: images a batch.
        accuracy: in percent.
        changed: percent of images with another predicted class than in mixed batches of the largest size
            under the same statistics. 0 for a model that looks at each image by itself.
        moved: mean total variation distance between the class probabilities there and here, 0 to 1.
        robust_accuracy: in percent under the attack, None without one.
    """

    statistics: str
    composition: str
    batch_size: int
    accuracy: float
    changed: float
    moved: float
    robust_accuracy: float | None


def audit_batch_dependence(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_sizes: Sequence[int] = (2, 10, 100),
    attack: Attack | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[BatchDependence]:
    """Report how predictions and robustness move with batch size, batch composition and statistics mode.

    Args:
        model: any image classifier that takes images in [0, 1]; it is not changed. Native batch norms are
            audited in a copy whose norms can be switched (:func:`rnlib.convert_norms`).
        dataset: images with labels; one that is a multiple of all batch sizes leaves no smaller last batch.
        batch_sizes: at least one, each >= 1. With batch statistics a batch norm after a 1 x 1 map needs 2.
        attack: untargeted, crafted on each batch as it is; None skips ``robust_accuracy``.
        seed: of the two random orders and of the attack.
        device: where to compute.

    Returns:
        One record for each statistics mode, composition and batch size; ``pandas.DataFrame(records)`` is a
        table.

    Raises:
        ValueError: no image, no batch size or one below 1.
    """
    if not len(dataset):
        raise ValueError(f"the data set {dataset.name!r} is empty: there is nothing to audit")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes is {tuple(batch_sizes)}, it must name sizes of at least 1")
    model = copy.deepcopy(model).to(device)
    if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        model = convert_norms(model, "batch_norm", native_only=True)
    orders = {"mixed": test_order(len(dataset), seed), "reshuffled": test_order(len(dataset), seed + 1)}
    orders["sorted"] = dataset.labels.argsort(stable=True)
    records = []
    for mode in statistics_modes(model):
        reference = _probabilities(model, dataset, orders["mixed"], mode, max(batch_sizes), device)
        for composition in COMPOSITIONS:
            for size in batch_sizes:
                here = _probabilities(model, dataset, orders[composition], mode, size, device)
                accuracy = _percent(here.argmax(1) == dataset.labels)
                changed = _percent(here.argmax(1) != reference.argmax(1))
                moved, robust = (here - reference).abs().sum(1).mean().item() / 2, None
                if attack is not None:
                    arranged = dataset.subset(orders[composition])
                    correct, _, _ = measure(
                        model, arranged, attack, statistics=mode, batch_size=size, seed=seed, device=device
                    )
                    robust = _percent(correct)
                records.append(BatchDependence(mode, composition, size, accuracy, changed, moved, robust))
    return records


@torch.no_grad()
def _probabilities(
    model: nn.Module, dataset: Dataset, order: Tensor, mode: str, batch_size: int, device: str | torch.device
) -> Tensor:
    """Softmax (N, classes) in the order of the data set, from batches taken in the given order."""
    stream = batches(dataset.subset(order), batch_size, device=device)
    with evaluation_mode(model), use_statistics(model, mode):
        found = torch.cat([model(x) for x, _ in stream]).cpu()
    return torch.empty_like(found).index_copy_(0, order, found).softmax(1)


def _percent(outcome: Tensor) -> float:
    return 100 * outcome.float().mean().item()

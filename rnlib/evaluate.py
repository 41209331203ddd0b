"""Accuracy of one set of weights, clean and under attack, in each statistics mode, outcome by image."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import length_hint
from time import perf_counter
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from rnlib.attacks import Attack
from rnlib.data import Dataset, batches
from rnlib.statistics import STATISTICS_MODES, check_kind, class_logits, evaluating, statistics_modes

# Images with labels: a set of rnlib or PyTorch; two tensors or arrays; or batches of these, as a DataLoader.
Images: TypeAlias = Dataset | TorchDataset[Any] | tuple[Any, Any] | Iterable[Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outcome of one attack, by its name, in one mode of :func:`rnlib.statistics_modes`.

    ``correct``: bool (n,), in the order of the images. ``loss``: mean cross-entropy of the attacked images.
    ``distance``: float32 (n,), ||x_adv - x||_2 with pixels in [0, 1]. ``seconds``: wall time. ``batches``:
    how they were made, on which outcomes with batch statistics depend.
    """

    statistics: str
    attack: str
    correct: Tensor
    loss: float
    distance: Tensor
    seconds: float
    batches: str


def stream(
    images: Images, batch_size: int | None = None, device: str | torch.device = "cpu"
) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """Batches of images and labels as :func:`rnlib.data.batches` gives them, and how many (0: not known).

    A loader has its own. TypeError or ValueError for what is not images in [0, 1] and labels.
    """
    size = 100 if batch_size is None else batch_size
    if _is_pair(images):
        images = Dataset("images", images[0], images[1], ())
    if isinstance(images, Dataset):
        if not len(images):
            raise ValueError(f"the data set {images.name!r} is empty: there is nothing to measure")
        return batches(images, size, device=device), -(-len(images) // size)
    if isinstance(images, str) or not isinstance(images, TorchDataset | Iterable):
        need = "a Dataset of rnlib or PyTorch, a DataLoader, or a tuple (images, labels) of tensors or arrays"
        fix = "a name or path is loaded by rnlib.load(name, 'test')"
        raise TypeError(f"dataset is a {type(images).__name__}, it must be {need}; {fix}")
    if isinstance(images, TorchDataset):
        images, batch_size = DataLoader(images, size), None
    if batch_size is not None:
        fix = "leave batch_size out, or give the loader's data set instead"
        raise ValueError(f"batch_size is {batch_size}, but a {type(images).__name__} has its own: {fix}")

    def checked() -> Iterator[tuple[Tensor, Tensor]]:
        index = -1
        for index, batch in enumerate(images):
            if not _is_pair(batch):
                parts = batch if isinstance(batch, tuple | list) else [batch]
                got = ", ".join(type(part).__name__ for part in parts)
                fix = "give ((x, y) for x, y, *_ in loader)" if len(parts) > 2 else "labels are missing"
                if isinstance(batch, Mapping):
                    got += f" of {[*batch]}"
                    fix = "give ((batch['image'], batch['label']) for batch in loader), or the like"
                raise TypeError(f"batch {index} holds {got}; it must be images and labels: {fix}")
            part = Dataset(f"batch {index}", batch[0], batch[1], ())
            yield from batches(part, max(1, len(part)), device=device)
        if index < 0:
            raise ValueError("there is no batch to measure: an iterator that was read to its end is empty")

    return checked(), length_hint(images)


def _is_pair(given: Any) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(given, tuple | list) and [hasattr(part, "shape") for part in given] == [True, True]


def measure(
    model: nn.Module,
    dataset: Images,
    attack: Attack | None = None,
    *,
    statistics: str = "tracked",
    batch_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> tuple[Tensor, float, Tensor]:
    """Classify images in evaluation mode, in fixed batches of their own order, clean or attacked.

    The batch that is attacked is the batch that is classified: with batch statistics an image's prediction
    depends on its neighbours. A class-ordered set must therefore be permuted first
    (:func:`rnlib.data.test_order`). Adversarial images of any other library are judged in their batches by
    ``measure(model, (x_adv, y), statistics="batch", batch_size=...)``: what that library counted image by
    image, from several attacks or restarts, was never one batch.

    Args:
        model: put back on its device and into its mode (layer by layer) afterwards.
        dataset: images in [0, 1] or uint8, at least one, with labels: a set of rnlib or PyTorch, or a tuple
            of tensors or arrays (N, C, H, W), (N,); or a ``DataLoader``, whose batches are used as they come.
        attack: untargeted, or None for clean images.
        statistics: ``"tracked"``, ``"batch"`` (of a model that is deployed with norms in training mode), or
            ``"none"`` for a model with nothing to switch.
        batch_size: None is the paper's 100; not for a loader. A last, smaller batch has other statistics.
        seed: batch i is attacked with the generator seeded by (seed, i), whatever was attacked before.
        progress: show the accuracy so far.

    Returns:
        correct, bool (n,), the mean cross-entropy, and the l2 distances that the images were moved, (n,); on
        the CPU.

    Raises:
        TypeError, ValueError: no image, or what is none; labels that the answers have no class for; a
            targeted attack; statistics that the model has not; ``"none"`` for norms in training mode. Warns
            where the model changes its weights, as at test-time training: measure a copy.
    """
    check_kind("model", model, nn.Module)
    check_attack(attack)
    if statistics in STATISTICS_MODES and not any(isinstance(m, _BatchNorm) for m in model.modules()):
        what = f"statistics is {statistics!r}, but {type(model).__name__} has no norm to switch"
        raise ValueError(f"{what}: 'none' measures it as it is; a norm of your own can subclass rnlib.Norm")
    correct, losses, distances = [], [], []
    given, count = stream(dataset, batch_size, device)
    with evaluating(model, statistics), _on(model, device):
        for index, (x, y) in enumerate(bar := tqdm(given, statistics, count or None, disable=not progress)):
            original = x
            if attack is not None:
                x = attack(model, x, y, generator=torch.Generator(device).manual_seed(100_003 * seed + index))
            with torch.no_grad():
                logits = class_logits(model, x, len(y), int(y.max()) + 1)
            correct.append(logits.argmax(1) == y)
            losses.append(F.cross_entropy(logits, y, reduction="sum"))
            distances.append(torch.linalg.vector_norm((x - original).flatten(1), dim=1))
            if progress:
                bar.set_postfix_str(f"{100 * torch.cat(correct).float().mean():.1f}% correct")
        outcome = torch.cat(correct).cpu()
        return outcome, torch.stack(losses).sum().item() / len(outcome), torch.cat(distances).cpu()


def check_attack(attack: object) -> None:
    """Raise unless it is an untargeted attack or None."""
    check_kind("attack", attack, Callable | None)
    if getattr(attack, "targeted", False):
        raise ValueError(f"{attack} would be given the true labels as targets; use targeted=False")


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
    dataset: Images,
    attacks: Mapping[str, Attack | None],
    *,
    statistics: Sequence[str] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Iterator[Evaluation]:
    """Measure a model under every attack, in every statistics mode, one :class:`Evaluation` at a time.

    A loader is read once and kept in memory, so that all attacks meet the same batches, even if it shuffles.
    ``attacks`` are by name, None for clean images; ``statistics`` by default all of
    :func:`rnlib.statistics_modes`; other arguments as for :func:`measure`.
    """
    made = f"{100 if batch_size is None else batch_size} images in their order"
    if not (isinstance(dataset, Dataset | TorchDataset) or _is_pair(dataset)):
        stream(dataset, batch_size)  # says what cannot be read
        made, dataset = "as the loader made them", list(dataset)
    how = dict[str, Any](batch_size=batch_size, seed=seed, device=device, progress=progress)
    for mode in statistics_modes(model) if statistics is None else statistics:
        for name, attack in attacks.items():
            start = perf_counter()
            correct, loss, distance = measure(model, dataset, attack, statistics=mode, **how)
            yield Evaluation(mode, name, correct, loss, distance, perf_counter() - start, made)

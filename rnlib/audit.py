"""How much a model's answers for an image depend on the other images of its batch."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rnlib.attacks import PGD, Attack, Pixels, success
from rnlib.convert import convert_norms
from rnlib.data import Dataset, test_order
from rnlib.evaluate import Images, measure, stream
from rnlib.norms import is_native
from rnlib.statistics import check_kind, evaluation_mode, frozen, logits_of, statistics_modes, use_statistics
from rnlib.strongest import Budget, percent, strongest

COMPOSITIONS = ("mixed", "reshuffled", "sorted")


@dataclass(frozen=True)
class BatchDependence:
    """What one way of making batches does to the answers; accuracies in percent.

    Attributes:
        statistics: ``"tracked"``, ``"batch"``, or ``"none"`` for a model without batch statistics.
        composition: ``"mixed"`` (a random order), ``"reshuffled"`` (another one: other neighbours) or
            ``"sorted"`` (by class, so that most batches hold one class).
        changed: percent of images with another predicted class than in mixed batches of the largest size
            under the same statistics. 0 for a model that looks at each image by itself.
        moved: mean total variation distance between the class probabilities there and here, 0 to 1.
        robust_accuracy: under the attack, None without one.
    """

    statistics: str
    composition: str
    batch_size: int
    accuracy: float
    changed: float
    moved: float
    robust_accuracy: float | None


Interval = tuple[float, float, float]  # a difference in points, and the ends of its 95% interval


@dataclass(frozen=True)
class Robustness:
    """Accuracies in percent under PGD of 20 steps, and under :func:`rnlib.strongest`, by kind of statistics.

    These are ``"batch"``, ``"tracked"``, ``"plain"`` (averages over given images), ``"clean twin"`` (of the
    batch before the attack); or ``"none"``. ``image_wise``: what AutoAttack would count, an image being lost
    that any of the attacks fools in its own batch; ``assembled``: the worst versions of all images, judged
    again in one batch. They are equal if no answer depends on the batch. Gains are those of ``"batch"`` over
    the others, from a bootstrap over images that leaves the batches as they are.
    """

    statistics: str
    usual: float
    strongest: float
    image_wise: float
    assembled: float
    usual_gain: Interval
    gain: Interval


@dataclass(frozen=True)
class Audit:
    """``table`` for each statistics mode, composition and size; ``robustness`` where eps is given.

    The usual attack ``flatters`` if it gives batch statistics more over tracked ones than the strongest does.
    """

    table: list[BatchDependence]
    robustness: list[Robustness]
    sentence: str
    flatters: bool


def audit_batch_dependence(
    model: nn.Module,
    dataset: Images,
    *,
    batch_sizes: Sequence[int] = (2, 10, 100),
    attack: Attack | None = None,
    eps: Pixels | None = None,
    budget: str | Budget = "book",
    plain: Iterable[Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Audit:
    """Report how answers and robustness move with batch size, batch composition and statistics.

    Args:
        model: any classifier of images in [0, 1]; not changed, native batch norms are converted in a copy.
        dataset: as for :func:`rnlib.measure`; a loader is read once, into memory, and its images are put into
            other batches. A multiple of all batch sizes leaves no smaller last batch.
        batch_sizes: at least one, each >= 1. With batch statistics a batch norm after a 1 x 1 map needs 2.
        attack: untargeted, crafted on each batch as it is; None skips ``robust_accuracy``.
        eps: radius of the attacks of ``robustness``, in batches of the largest size; None skips them.
        budget: of :func:`rnlib.strongest`, which takes most of the time by far.
        plain: batches of training images without augmentation, for the statistics of that name.
        seed: of the two random orders and of the attacks.
        device, progress: where to compute; show where it is, and accuracies so far.

    Raises:
        TypeError, ValueError: as :func:`rnlib.measure`; no batch size or one below 1.
    """
    check_kind("model", model, nn.Module)
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes is {tuple(batch_sizes)}, it must name sizes of at least 1")
    dataset = _gathered(dataset)
    model = copy.deepcopy(model).to(device)
    if any(map(is_native, model.modules())):
        model = convert_norms(model, "batch_norm", native_only=True)
    orders = {"mixed": test_order(len(dataset), seed), "reshuffled": test_order(len(dataset), seed + 1)}
    orders["sorted"] = dataset.labels.argsort(stable=True)
    probabilities, records = partial(_probabilities, model, dataset, device=device), []
    modes, largest = statistics_modes(model), max(batch_sizes)
    references = {mode: probabilities(orders["mixed"], mode, largest) for mode in modes}
    cells = tqdm([*product(modes, COMPOSITIONS, batch_sizes)], "batches", disable=not progress)
    for mode, composition, size in cells:
        here, there = probabilities(orders[composition], mode, size), references[mode]
        accuracy = percent(here.argmax(1) == dataset.labels)
        changed = percent(here.argmax(1) != there.argmax(1))
        moved, robust = (here - there).abs().sum(1).mean().item() / 2, None
        if attack is not None:
            arranged = dataset.subset(orders[composition])
            how = dict[str, Any](statistics=mode, batch_size=size, seed=seed, device=device)
            robust = percent(measure(model, arranged, attack, **how)[0])
        records.append(BatchDependence(mode, composition, size, accuracy, changed, moved, robust))
        cells.set_postfix_str(f"{mode}, {composition}: {accuracy:.1f}% correct")
    most = max(records, key=lambda record: record.changed)
    where = f"{most.composition} batches of {most.batch_size}, statistics {most.statistics}"
    sentence = f"Up to {most.changed:.1f}% of {len(dataset)} answers change ({where})."
    if eps is None:
        return Audit(records, [], sentence, False)
    *_, mode = modes
    static = {} if mode == "none" else {"tracked": frozen(model)}
    if static and plain is not None:
        static["plain"] = frozen(model, (x.to(device) for x in plain))
    hits: dict[str, list[Tensor]] = {}  # what PGD, the strongest, ... leave correct, (4, n)
    given, count = stream(dataset.subset(orders["mixed"]), largest, device)
    with evaluation_mode(model), use_statistics(model, mode):
        bar = tqdm(given, "attacks", count, disable=not progress)
        for index, (x, y) in enumerate(bar):
            twin = {"clean twin": frozen(model, [x])} if static else {}
            for name, kind in {mode: model, **static, **twin}.items():
                chance = torch.Generator(device).manual_seed(100_003 * seed + index)
                fooled = success(kind, PGD(eps)(kind, x, y, generator=chance), y)
                found = strongest(kind, x, y, eps, budget=budget, sources=static, generator=chance)
                kept = (~fooled, found.correct, found.image_wise, found.assembled)
                hits.setdefault(name, []).append(torch.stack(kept).float().cpu())
            usual, worst, *_ = 100 * torch.cat(hits[mode], 1).mean(1)
            bar.set_postfix_str(f"PGD {usual:.1f}%, strongest {worst:.1f}%")
    left = {name: torch.cat(parts, 1) for name, parts in hits.items()}
    robustness = [
        Robustness(name, *map(percent, one), *map(_interval, (left[mode] - one)[:2]))  # type: ignore[arg-type]
        for name, one in left.items()
    ]
    first = robustness[0]
    sentence += f" PGD leaves {first.usual:.1f}% correct, the strongest attack {first.strongest:.1f}%."
    if first.image_wise != first.assembled:
        sentence += f" Counted image by image it leaves {first.image_wise:.1f}%, but of these very images, "
        sentence += f"judged again in their batches, {first.assembled:.1f}% are correct."
    if not static:
        return Audit(records, robustness, sentence, False)
    best = max(robustness[1:], key=lambda record: record.strongest)
    gains = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*gain) for gain in (best.usual_gain, best.gain)]
    usual, worst = (left[mode] - left["tracked"])[:2]
    flatters = _interval(usual - worst)[1] > 0
    sentence += f" Over {best.statistics} statistics these are {gains[0]} and {gains[1]} points."
    sentence += f" The usual attack {'flatters' if flatters else 'is not seen to flatter'} batch statistics."
    return Audit(records, robustness, sentence, flatters)


def _interval(values: Tensor) -> Interval:
    """The mean of values (n,) in percent, and its 95% interval by bootstrap."""
    chosen = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = 100 * values[chosen].mean(1).quantile(torch.tensor([0.025, 0.975]))
    return percent(values), low.item(), high.item()


def _gathered(images: Images) -> Dataset:
    """All images and labels in memory, as one data set of rnlib."""
    if isinstance(images, Dataset) and len(images):
        return images
    x, y = zip(*stream(images, 100)[0], strict=True)
    return Dataset("images", torch.cat(x), torch.cat(y), ())


@torch.no_grad()
def _probabilities(
    model: nn.Module, dataset: Dataset, order: Tensor, mode: str, batch_size: int, device: str | torch.device
) -> Tensor:
    """Softmax (N, classes) in the order of the data set, from batches taken in the given order."""
    given, _ = stream(dataset.subset(order), batch_size, device)
    with evaluation_mode(model), use_statistics(model, mode):
        found = torch.cat([logits_of(model(x)) for x, _ in given]).cpu()
    return torch.empty_like(found).index_copy_(0, order, found).softmax(1)

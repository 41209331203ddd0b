"""How much answers depend on the other images of a batch, and the strongest attack known here on a batch."""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from rnlib.attacks import PGD, Attack, Generator, Pixels, Task, column, success
from rnlib.convert import convert_norms
from rnlib.data import Dataset, test_order
from rnlib.evaluate import Images, check_attack, measure, stream
from rnlib.files import read_tensors, write_tensors
from rnlib.norms import is_native
from rnlib.statistics import (
    Detached,
    borrowed,
    check_batch,
    check_count,
    check_kind,
    class_logits,
    evaluating,
    frozen,
    logits_of,
    statistics_modes,
    warn_if_unfilled,
)
from rnlib.strong_attacks import APGD, FPA, GMSA, Square, rank


def percent(right: Tensor) -> float:
    return 100 * int(right.sum()) / len(right)


@dataclass(frozen=True)
class Budget:
    """Steps and restarts of APGD, a fifth of these steps in each round of FPA and GMSA, queries of Square."""

    steps: int = 40
    rounds: int = 4
    queries: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_count(name, value)


BUDGETS = {"quick": Budget(10, 2, 20), "book": Budget(), "five times": Budget(200, 4, 500)}


@dataclass(frozen=True, eq=False)
class Strongest:
    """The adversarial images (N, C, H, W), which are still correct (N,), and the attack that they are from.

    ``image_wise``, ``assembled``: (N,), which are correct as :class:`Robustness` counts. ``accuracies``: of
    the whole batch under each attack, in percent. ``cost``: their forward and backward passes at most.
    """

    images: Tensor
    correct: Tensor
    image_wise: Tensor
    assembled: Tensor
    winner: str
    accuracies: dict[str, float]
    cost: tuple[int, int]


@torch.inference_mode(False)
def strongest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Pixels,
    *,
    budget: str | Budget = "book",
    sources: Mapping[str, nn.Module] | None = None,
    generator: Generator = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Strongest:
    """Attack a batch in the l-inf ball in every way known here; keep the batch that is classified worst.

    Where an image's answer depends on the others (Chen et al., 2022; Croce et al., 2022): four losses through
    the statistics; statistics taken as given at each step; FPA; GMSA; transfer from statistics frozen at the
    tracked ones, the clean batch, and other ``sources``; Square. Else APGD on cross-entropy and targeted DLR,
    and Square. Batches are judged as wholes by the model as it is, of equal ones that of larger mean margin
    wins; last, images of several attacks are put together, and kept if that batch, judged again, is lower.

    Args:
        model, x, y, eps, generator: as for :class:`APGD`; x is (N, C, H, W).
        budget: one of ``BUDGETS``, or of your own.
        sources: more models, by name, from which images are transferred.
        progress: say what it will cost before it starts, and where it is.
        checkpoint: file that keeps what is done for this batch, to go on after an interruption.

    Raises TypeError or ValueError as attacks do; for native batch norms that answer by the batch
    (:func:`rnlib.convert_norms` helps), and a checkpoint of another batch, model or budget.
    """
    classes = check_batch(model, x, y)
    plan = _plan(model, x, eps, _budget(budget), sources or {})
    cost = sum(entry[2] for entry in plan.values()), sum(entry[3] for entry in plan.values())
    seed = torch.randint(2**40, (1,), generator=generator, device=generator.device if generator else None)
    done: dict[str, Any] = {"seed": int(seed), "images": {}}
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        what = hashlib.sha256(repr([(name, attack) for name, (_, attack, *_) in plan.items()]).encode())
        for tensor in (x, y, *model.state_dict().values()):
            what.update(tensor.cpu().double().numpy().tobytes())
        done["of"] = what.hexdigest()
    if path is not None and path.exists():
        there = read_tensors(path, x.device)
        if not isinstance(there, dict) or there.get("of") != done["of"]:
            raise ValueError(f"{path} is of another batch, model or budget: remove it, or name another file")
        done = there
    images: dict[str, Tensor] = done["images"]
    title = f"at most {cost[0]:,} forward and {cost[1]:,} backward passes of {len(x)} images"
    task, judged = Task(model, y, classes, "margin", False), dict[str, tuple[Tensor, Tensor]]()
    with borrowed(model), tqdm(plan.items(), title, disable=not progress) as bar:
        for index, (name, (source, attack, *_)) in enumerate(bar):
            if name not in images:
                chance = torch.Generator(x.device).manual_seed(done["seed"] + index)
                images[name] = attack(source, x, y, generator=chance, checked=True)
                if path is not None:
                    write_tensors(path, done)
            judged[name] = task.score(images[name])
            least = min(percent(~fooled) for fooled, _ in judged.values()) if progress else 0
            bar.set_postfix_str(f"{least:.1f}% correct")
        winner = max(judged, key=lambda name: rank(*judged[name]).item())
        best, (fooled, _) = images[winner], judged[winner]
        most = torch.stack([margin for _, margin in judged.values()]).argmax(0)
        worst = torch.stack([*images.values()])[most, torch.arange(len(x), device=x.device)]
        lost = torch.stack([fooled for fooled, _ in judged.values()]).any(0)
        together = [worst, torch.where(column(fooled, x), best, worst)]
        again = [task.score(assembled) for assembled in together]
        for assembled, found in zip(together, again, strict=True):
            if found[0].sum() > fooled.sum():
                winner, best, fooled, judged["assembled"] = "assembled", assembled, found[0], found
    accuracies = {name: percent(~found[0]) for name, found in judged.items()}
    return Strongest(best, ~fooled, ~lost, ~again[0][0], winner, accuracies, cost)


def _budget(budget: str | Budget) -> Budget:
    found = BUDGETS.get(budget) if isinstance(budget, str) else budget
    if not isinstance(found, Budget):
        raise ValueError(f"budget is {budget!r}, it must be a Budget or one of: {', '.join(BUDGETS)}")
    return found


Plan = dict[str, tuple[nn.Module, Attack, int, int]]


def _plan(model: nn.Module, x: Tensor, eps: Pixels, budget: Budget, sources: Mapping[str, nn.Module]) -> Plan:
    """By name: what is differentiated, the attack, and its forward and backward passes at most."""
    half = (len(x) + 1) // 2
    with torch.no_grad(), borrowed(model):
        whole, alone = logits_of(model(x)), logits_of(model(x[:half]))
    classes = whole.shape[1]
    ratio = "dlr" if classes > 2 else "margin"
    run = budget.restarts * (budget.steps + 1)
    more: dict[str, Any] = {"steps": budget.steps, "restarts": budget.restarts}
    last: Plan = {"Square": (model, Square(eps, queries=budget.queries), budget.queries + 1, 0)}
    if (whole[:half] - alone).abs().amax() <= 0.01 * whole.abs().amax():  # floating point errs by less
        first: Plan = {"cross_entropy": (model, APGD(eps, **more), run, run)}
        targeted, runs = ("dlr_targeted", run * min(9, classes - 1)) if classes > 3 else (ratio, run)
        return first | {targeted: (model, APGD(eps, loss=targeted, **more), runs + 1, runs)} | last
    losses = ("cross_entropy", "equal_weight", "margin", ratio)
    joint = {loss: APGD(eps, loss=loss, joint=True, **more) for loss in losses}
    plan: Plan = {f"through, {loss}": (model, attack, run, run) for loss, attack in joint.items()}
    if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        given, short = Detached(model), APGD(eps, steps=max(1, budget.steps // 5), loss="equal_weight")
        for loss in ("equal_weight", "margin"):
            plan[f"as given, {loss}"] = given, joint[loss], 2 * run, run
        passes = budget.rounds * (short.steps + 1)
        plan["FPA"] = model, FPA(short, rounds=budget.rounds), passes + 2 * budget.rounds, passes
        passes = passes * (budget.rounds + 1) // 2
        for mode in ("average", "minimum"):
            gmsa = GMSA(short, rounds=budget.rounds, mode=mode)
            plan[f"GMSA, {mode}"] = model, gmsa, passes + 2 * budget.rounds, passes
        own = APGD(eps, loss="equal_weight", **more)
        others = {"tracked": frozen(model), "clean batch": frozen(model, [x]), **sources}
        plan |= {f"transfer, {name}": (source, own, run, run) for name, source in others.items()}
    return plan | last


Interval = tuple[float, float, float]  # a difference in points, and the ends of its 95% interval
COMPOSITIONS = ("mixed", "reshuffled", "sorted")


@dataclass(frozen=True)
class BatchDependence:
    """What one way of making batches does to the answers; accuracies in percent.

    ``statistics``: ``"tracked"``, ``"batch"``, or ``"none"`` for a model without batch statistics.
    ``composition``: ``"mixed"`` (a random order), ``"reshuffled"`` (another one: other neighbours) or
    ``"sorted"`` (by class, so that most batches hold one class). ``changed``: percent of images with another
    predicted class than in mixed batches of the largest size under the same statistics. ``moved``: mean total
    variation distance between the class probabilities there and here, 0 to 1.
    """

    statistics: str
    composition: str
    batch_size: int
    accuracy: float
    changed: float
    moved: float
    robust_accuracy: float | None


@dataclass(frozen=True)
class Robustness:
    """Accuracies in percent, clean, under PGD of 20 steps, and under :func:`rnlib.strongest`, by statistics.

    These are ``"batch"``, ``"tracked"``, ``"plain"`` (averages over given images), ``"clean twin"`` (of the
    batch before the attack); or ``"none"``. ``image_wise``: what AutoAttack would count, an image being lost
    that any of the attacks fools in its own batch; ``assembled``: the worst versions of all images, judged
    again in one batch. Gains are those of ``"batch"`` over the others. Their intervals take images as
    independent, which those of one batch are not: of few batches they are too narrow.
    """

    statistics: str
    clean: float
    usual: float
    strongest: float
    image_wise: float
    assembled: float
    usual_gain: Interval
    gain: Interval


@dataclass(frozen=True)
class Audit:
    """``table`` for each statistics mode, composition and size; ``robustness`` where eps is given.

    ``flattery``: how much more batch statistics gain under the usual attack than under the strongest, over
    the most robust fixed statistics; None where there are none. The usual attack ``flatters`` if its low end
    is > 0.
    """

    table: list[BatchDependence]
    robustness: list[Robustness]
    sentence: str
    flattery: Interval | None = None

    @property
    def flatters(self) -> bool:
        return self.flattery is not None and self.flattery[1] > 0


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
        model: any classifier of images in [0, 1] that answers the same batch alike each time; not changed,
            native batch norms are converted in a copy.
        dataset: as for :func:`rnlib.measure`; a loader is read once, its images are put into other batches.
        batch_sizes: each >= 1; the largest, mixed, is what others are compared with.
        attack: untargeted, crafted on each batch as it is; None skips ``robust_accuracy``.
        eps: radius of the attacks of ``robustness``, in batches of the largest size; None skips them.
        budget: of :func:`rnlib.strongest`, which takes most of the time by far.
        plain: batches of training images without augmentation, for the statistics of that name.
        seed, device, progress: of random orders and attacks; where to compute; show where it is.

    Raises TypeError or ValueError as :func:`rnlib.measure`; for sizes that compare nothing, or leave alone an
    image that has no statistics; and for a model with a state, as one that adapts its weights.
    """
    check_kind("model", model, nn.Module)
    check_attack(attack)
    if not isinstance(batch_sizes, Sequence) or not batch_sizes:
        raise TypeError(f"batch_sizes is {batch_sizes!r}, it must be whole numbers of at least 1, as (2, 10)")
    usual, budget = None if eps is None else PGD(eps), _budget(budget)
    dataset = _gathered(dataset)
    n, largest = len(dataset), _largest(batch_sizes, len(dataset))
    model = copy.deepcopy(model).to(device)
    if any(map(is_native, model.modules())):
        model = convert_norms(model, "batch_norm", native_only=True)
    modes, how = statistics_modes(model), {"seed": seed, "device": device}
    alone = [size for size in batch_sizes if size == 1 or n % size == 1]
    try:
        if alone and "batch" in modes:
            with torch.no_grad(), evaluating(model, "batch"):
                model(dataset[0][0][None].to(device))
    except ValueError as error:
        what = f"batch_sizes {alone} leave one of {n} images alone, which has no statistics at 1 x 1 pixels"
        raise ValueError(f"{what}: leave them out, or give another number of images") from error
    orders = {"mixed": test_order(n, seed), "reshuffled": test_order(n, seed + 1)}
    orders["sorted"] = dataset.labels.argsort(stable=True)
    probabilities, records = partial(_probabilities, model, dataset, device=device), list[BatchDependence]()
    references = {mode: probabilities(orders["mixed"], mode, largest) for mode in modes}
    cells = tqdm([*product(modes, COMPOSITIONS, batch_sizes)], "batches", disable=not progress)
    for mode, composition, size in cells:
        here, there = probabilities(orders[composition], mode, size), references[mode]
        accuracy = percent(here.argmax(1) == dataset.labels)
        changed = percent(here.argmax(1) != there.argmax(1))
        moved, robust = (here - there).abs().sum(1).mean().item() / 2, None
        if (composition, size) == ("mixed", largest) and moved > 1e-4:
            what = f"the model answers the same batches otherwise the second time ({changed:.1f}% of answers)"
            fix = "audit it with its weights fixed and without chance: batches cannot be compared before"
            raise ValueError(f"{what}, so it draws at random or keeps a state, as adapted weights: {fix}")
        if attack is not None:
            arranged = dataset.subset(orders[composition])
            correct, *_ = measure(model, arranged, attack, statistics=mode, batch_size=size, **how)  # type: ignore[arg-type]
            robust = percent(correct)
        records.append(BatchDependence(mode, composition, size, accuracy, changed, moved, robust))
        cells.set_postfix_str(f"{mode}, {composition}: {accuracy:.1f}% correct")
    sentence = _said_of_answers(model, records, largest, n)
    if usual is None:
        return Audit(records, [], sentence)
    *_, mode = modes
    static = {} if mode == "none" else {"tracked": frozen(model)}
    if static and plain is not None:
        static["plain"] = frozen(model, (x.to(device) for x in plain))
    hits: dict[str, list[Tensor]] = {}  # what nothing, PGD, the strongest, ... leave correct, (5, n)
    given, count = stream(dataset.subset(orders["mixed"]), largest, device)
    with evaluating(model, mode):
        bar = tqdm(given, f"attacks, in {count} batches", count, disable=not progress)
        for index, (x, y) in enumerate(bar):
            twin = {"clean twin": frozen(model, [x])} if static else {}
            for name, kind in {mode: model, **static, **twin}.items():
                chance = torch.Generator(device).manual_seed(100_003 * seed + index)
                fooled = success(kind, usual(kind, x, y, generator=chance), y)
                found = strongest(kind, x, y, usual.eps, budget=budget, sources=static, generator=chance)
                kept = (~success(kind, x, y), ~fooled, found.correct, found.image_wise, found.assembled)
                hits.setdefault(name, []).append(torch.stack(kept).float().cpu())
            _, first, worst, *_ = 100 * torch.cat(hits[mode], 1).mean(1)
            bar.set_postfix_str(f"PGD {first:.1f}%, strongest {worst:.1f}%")
    left = {name: torch.cat(parts, 1) for name, parts in hits.items()}
    robustness = [
        Robustness(name, *map(percent, one), *map(_interval, (left[mode] - one)[1:3]))  # type: ignore[arg-type]
        for name, one in left.items()
    ]
    ours = robustness[0]
    sentence += f" PGD leaves {ours.usual:.1f}% correct, the strongest attack {ours.strongest:.1f}%."
    if ours.image_wise != ours.assembled:
        sentence += f" Counted image by image, {ours.image_wise:.1f}% survive; with the worst version of each"
        sentence += f" image put together in its batch, {ours.assembled:.1f}% of all are correct."
    if not static:
        return Audit(records, robustness, sentence)
    best = max(robustness[1:], key=lambda record: record.strongest)
    flattery = _interval((left[mode] - left[best.statistics])[1:3].diff(dim=0)[0].neg())
    gains = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*gain) for gain in (best.usual_gain, best.gain, flattery)]
    sentence += f" Batch statistics lead {best.statistics} ones by {gains[0]} and {gains[1]} points."
    sentence += f" The usual attack {'flatters' if flattery[1] > 0 else 'is not seen to flatter'} batch"
    sentence += f" statistics: the difference is {gains[2]} points."
    return Audit(records, robustness, sentence, flattery)


def _largest(batch_sizes: Sequence[int], n: int) -> int:
    """The largest of the sizes; an error unless batches of n images differ."""
    for size in batch_sizes:
        check_count("each of batch_sizes", size)
    if {min(size, n) for size in batch_sizes} in ({1}, {n}):
        fix = f"add one from 2 to {n - 1}" if n > 2 else "give more images"
        what = f"batch_sizes is {tuple(batch_sizes)}: {n} images then have the same neighbours in any order"
        raise ValueError(f"{what}, so that nothing would be compared; {fix}")
    return max(batch_sizes)


def _said_of_answers(model: nn.Module, records: list[BatchDependence], largest: int, n: int) -> str:
    most = max(records, key=lambda record: record.changed)
    where = f"{most.composition} batches of {most.batch_size}, statistics {most.statistics}"
    said = f"Up to {most.changed:.1f}% of {n} answers change ({where})."
    said = said if most.changed else f"None of {n} answers changes with the batch."
    whole = [record for record in records if (record.composition, record.batch_size) == ("mixed", largest)]
    if len(whole) == 1:
        return said
    tracked, batch = (record.accuracy for record in whole)
    with evaluating(model, "tracked"):
        names = warn_if_unfilled(model)
    misfit = f"Tracked statistics of {names} were never filled, so rows of them tell nothing" if names else ""
    if not names and batch - tracked > 10:
        misfit = f"Clean accuracy is {tracked:.1f}% with tracked statistics, {batch:.1f}% with the batch's"
    return f"{said} {misfit}: renew them by rnlib.recalibrate(model, images)." if misfit else said


def _interval(values: Tensor) -> Interval:
    """The mean of values (n,) in percent, and its 95% interval by bootstrap."""
    chosen = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))
    ends = 100 * values.double()[chosen].mean(1).quantile(torch.tensor([0.025, 0.975]).double())
    low, high = (round(end, 4) for end in ends.tolist())
    return percent(values), low, high


def _gathered(images: Images) -> Dataset:
    """All images and labels in memory, as one data set of rnlib."""
    if isinstance(images, Dataset) and len(images):
        return images
    x, y = map(torch.cat, zip(*stream(images)[0], strict=True))
    return Dataset("images", x, y, ())


@torch.no_grad()
def _probabilities(
    model: nn.Module, dataset: Dataset, order: Tensor, mode: str, batch_size: int, device: str | torch.device
) -> Tensor:
    """Softmax (N, classes) in the order of the data set, from batches taken in the given order."""
    (given, _), least = stream(dataset.subset(order), batch_size, device), int(dataset.labels.max()) + 1
    with evaluating(model, mode):
        found = torch.cat([class_logits(model, x, len(x), least) for x, _ in given]).cpu()
    return torch.empty_like(found).index_copy_(0, order, found).softmax(1)

"""The strongest attack that is known here, on batches and on single images.

On one core (750 gradients of an image a second, ResNet-20) a network takes about half an hour.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import rnlib
from rnlib import APGD, Among, Strongest, frozen, use_statistics
from study import store
from study.experiments.subject import Outcome, Subject, classified
from study.experiments.transfer import tested
from study.runs import BATCH_SIZE

IMAGES, FEWER_IMAGES = 500, 200
SINGLE_IMAGES = 50


def strongest(subject: Subject) -> Iterator[Outcome]:
    """Accuracies under :func:`rnlib.strongest`, by what the attacker controls and knows.

    ``all attacked``: every image of a batch, whose composition is known; ``reshuffled``: the same images in
    other batches, as if it was not; ``one attacked``: a single image, among clean ones that are known. With
    statistics of the batch; tracked ones; ``plain`` ones, averages over ten batches of training images as
    they are; those of the clean batch (``twin``). A row says how many batches which attack won, and the mean
    accuracy of each.
    """
    yield from _whole_batches(subject.first(IMAGES), ("batch", "tracked", "plain", "twin"), "book")
    cell = {"threat": "one attacked", "budget": "20 steps", "statistics": "batch"}
    yield cell, partial(_one_by_one, subject, SINGLE_IMAGES)
    _forget(subject)


def strongest_five_times(subject: Subject) -> Iterator[Outcome]:
    """:func:`strongest` with five times the budget and another seed, on fewer images: was it enough?"""
    yield from _whole_batches(subject.first(FEWER_IMAGES), ("batch", "tracked"), "five times")
    _forget(subject)


def _whole_batches(subject: Subject, modes: tuple[str, ...], budget: str) -> Iterator[Outcome]:
    plain = frozen(subject.model, subject.training(10 * BATCH_SIZE).inputs())
    for mode in modes:
        found = cache(partial(_attacked, subject, plain, mode, budget))
        cell = {"threat": "all attacked", "budget": budget, "statistics": mode}
        yield cell, partial(_judged, found)
        if mode == "batch":
            adv = partial(_images, found)
            yield cell | {"threat": "reshuffled"}, partial(tested, subject, adv, "reshuffled")


def _forget(subject: Subject) -> None:
    for path in subject.run.directory.glob(store.unfinished("strongest-*")):
        path.unlink()


def _attacked(subject: Subject, plain: nn.Module, mode: str, budget: str) -> list[Strongest]:
    """What was found for each batch; an interruption loses one attack on one of them."""
    found = []
    for index, (x, y, _) in enumerate(subject.batches()):
        model = {"plain": plain, "twin": frozen(subject.model, [x])}.get(mode, subject.model)
        path = subject.run.directory / store.unfinished(f"strongest-{mode}-{budget}-{index}")
        seed = index if budget == "book" else 1000 + index
        how: dict[str, Any] = {"budget": budget, "generator": subject.chance(seed), "checkpoint": path}
        with use_statistics(model, "batch" if mode == "batch" else "tracked"):
            found.append(rnlib.strongest(model, x, y, subject.radius(), sources={"plain": plain}, **how))
    return found


def _judged(found: Callable[[], list[Strongest]]) -> tuple[dict[str, Any], Tensor]:
    winners = Counter(one.winner for one in found())
    names = [name for name in found()[0].accuracies if name != "assembled"]
    means = {name: sum(one.accuracies[name] for one in found()) / len(found()) for name in names}
    values = {
        "winners": "; ".join(f"{name}: {times}" for name, times in winners.most_common()),
        "attacks": "; ".join(f"{name}: {mean:.2f}" for name, mean in means.items()),
    }
    return values, torch.cat([one.correct for one in found()]).cpu()


def _images(found: Callable[[], list[Strongest]]) -> Tensor:
    return torch.cat([one.images for one in found()])


def _one_by_one(subject: Subject, images: int) -> Tensor:
    """Which of the first images are classified correctly, each attacked alone in its batch of clean ones."""
    attack, parts = APGD(subject.radius(), steps=20, loss="equal_weight"), []
    for x, y, chance in subject.first(BATCH_SIZE).batches():
        for i in range(min(images, len(x))):
            among = Among(subject.model, torch.cat((x[:i], x[i + 1 :])))
            with use_statistics(subject.model, "batch"):
                adv = attack(among, x[i : i + 1], y[i : i + 1], generator=chance)
            parts.append(classified(among, adv, y[i : i + 1], "batch"))
    return torch.cat(parts)

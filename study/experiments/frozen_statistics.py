"""The same weights with statistics that do not move with the images: frozen at several sources, or random."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rnlib import Attack, Norm, batch_statistics, frozen, use_statistics
from rnlib.data import batches
from rnlib.statistics import Statistics, norm_layers
from study.experiments.subject import Outcome, Subject, classified
from study.runs import BATCH_SIZE

SCATTER_BATCHES = 50  # of training images, to measure how batches scatter
JITTER = ("tracked", "held", "held, 3 x", "redrawn", "redrawn, 3 x", "batch")


def _attacks(subject: Subject) -> dict[str, Attack | None]:
    return {name: subject.suite.get(name) for name in ("clean", "noise", "grad_sign", "pgd_linf")}


def frozen_statistics(subject: Subject) -> Iterator[Outcome]:
    """Statistics frozen at several sources, each attacked as it is.

    Sources are the running averages of training (``ema``); averages over ten batches of training images as
    they are, augmented as in training, and augmented and attacked; and the clean version of the batch at hand
    (``twin``). Last comes the batch itself, whose statistics move with the attack.
    """
    model, pgd = subject.model, subject.suite["pgd_linf"]
    train, chance = subject.training(10 * BATCH_SIZE), torch.Generator().manual_seed(2)
    stream = batches(train.images, BATCH_SIZE, generator=chance, augmented=True, device=subject.device)
    augmented = list(stream)
    with use_statistics(model, "batch"):
        attacked = [pgd(model, x, y, generator=subject.chance(i)) for i, (x, y) in enumerate(augmented)]
    sources = {"augmented": [x for x, _ in augmented], "plain": train.inputs(), "adversarial": attacked}
    subjects = {"ema": subject}
    subjects |= {key: replace(subject, model=frozen(model, images)) for key, images in sources.items()}
    for name, attack in _attacks(subject).items():
        for source, one in subjects.items():
            yield {"attack": name, "source": source}, partial(one.correct, attack, "tracked")
        yield {"attack": name, "source": "twin"}, partial(_by_twins, subject, attack)
        yield {"attack": name, "source": "batch"}, partial(subject.correct, attack, "batch")


def _by_twins(subject: Subject, attack: Attack | None) -> Tensor:
    """Each batch is attacked and classified with statistics frozen at those of its clean images."""
    parts = []
    for x, y, chance in subject.batches():
        twin = frozen(subject.model, [x])
        adv = x if attack is None else attack(twin, x, y, generator=chance)
        parts.append(classified(twin, adv, y, "tracked"))
    return torch.cat(parts)


def jitter(subject: Subject) -> Iterator[Outcome]:
    """Tracked statistics with noise of the size of batch sampling, and of three times that.

    Drawn once for a batch (``held`` while it is attacked and classified) or ``redrawn`` at every forward
    pass, attacked as they are; beside them tracked and batch statistics.
    """
    noise = scatter(subject.model, subject.training(SCATTER_BATCHES * BATCH_SIZE, 3).inputs())
    for name, attack in _attacks(subject).items():
        for mode in JITTER:
            how = partial(subject.correct, attack, mode)
            if mode not in subject.modes:
                how = partial(_with_jitter, subject, attack, noise, mode)
            yield {"attack": name, "statistics": mode}, how


def scatter(model: nn.Module, images: Iterable[Tensor]) -> Statistics:
    """How much statistics scatter over batches (N, C, H, W) of images in [0, 1], under batch statistics.

    By layer the standard deviation of the first statistic, and of the log of the second, each (C,).
    """
    found, noise = [batch_statistics(model, x) for x in images], {}
    for name in found[0]:
        first, second = (torch.stack([one[name][i] for one in found]) for i in (0, 1))
        # A dead channel has variance 0 in every batch: it does not scatter.
        noise[name] = (first.std(0), second.clamp_min(torch.finfo(second.dtype).tiny).log().std(0))
    return noise


def jittered(
    model: nn.Module, noise: Statistics, chance: torch.Generator, *, size: float = 1, redraw: bool = False
) -> nn.Module:
    """A copy that normalises with tracked statistics, perturbed once or, with ``redraw``, at every forward.

    A layer's first statistic becomes m + s n and its second v exp(t k), with (s, t) ``size`` times the
    ``noise`` and (n, k) standard normal, independent from channel to channel. Batches scatter by as much, but
    their channels together: independent noise is the cruder disturbance.
    """
    twin = frozen(model)

    def draw(layer: Norm, first: Tensor, second: Tensor, shift: Tensor, log_scale: Tensor) -> None:
        n, k = (torch.randn(len(shift), generator=chance, device=chance.device).to(shift) for _ in range(2))
        # New tensors: a backward pass may still need the old ones.
        setattr(layer, f"running_{layer.names[0]}", first + n * (size * shift))
        setattr(layer, f"running_{layer.names[1]}", second * (k * (size * log_scale)).exp())

    for name, layer in norm_layers(twin).items():
        values = (*layer.running_statistics, *noise[name])
        draw(layer, *values)
        if redraw:
            layer.register_forward_pre_hook(lambda layer, inputs, values=values: draw(layer, *values))
    return twin


def _with_jitter(subject: Subject, attack: Attack | None, noise: Statistics, mode: str) -> Tensor:
    parts: list[Tensor] = []
    how: dict[str, Any] = {"size": 3 if mode.endswith("3 x") else 1, "redraw": mode.startswith("redrawn")}
    for index, (x, y, chance) in enumerate(subject.batches()):
        model = jittered(subject.model, noise, subject.chance(10**6 + index), **how)
        adv = x if attack is None else attack(model, x, y, generator=chance)
        parts.append(classified(model, adv, y, "tracked"))
    return torch.cat(parts)

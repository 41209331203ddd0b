"""What the norm layers of a run see: against what they have tracked (Fig 1), and what is made of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rnlib import Norm, batch_statistics, distance, tracked_statistics, use_statistics
from rnlib.data import batches
from rnlib.statistics import Statistics
from study.experiments.subject import Outcome, Subject
from study.networks import new_model, test_set, training_set
from study.runs import BATCH_SIZE, read_profile

# What x - mean is divided by, given sigma and the range of each channel.
NORMALISERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch_norm": lambda sigma, span: sigma,
    "two_sigma": lambda sigma, span: 2 * sigma,
    "mean_range_norm": lambda sigma, span: span,
    "robust_norm": lambda sigma, span: span**0.2,
}


def channel_statistics(subject: Subject) -> Iterator[Outcome]:
    """How far batches lie from the tracked statistics, for every channel of every norm layer.

    Conditions: ``start`` (training images through the untrained weights, as in the paper's Fig 1, hence
    other weights as well), and through the trained weights ``train``, ``clean``, ``noise``, ``adversarial``
    (the latter three the same test images, attacked by PGD-linf under batch statistics). A row has layer,
    channel, the mean over batches of the shift of the centre and of log2 of the ratio of spreads (see
    :func:`rnlib.distance`), and the means of their absolute values.
    """
    images = test_set(subject.run, read_profile(subject.run.profile)["statistics"]["images"])
    subject, attacks = replace(subject, images=images), {"noise": "noise", "adversarial": "pgd_linf"}
    for condition in ("start", "train"):
        yield {"condition": condition}, partial(_on_training_images, subject, condition == "start")
    for condition in ("clean", "noise", "adversarial"):
        yield {"condition": condition}, partial(_on_test_images, subject, attacks.get(condition))


def _on_training_images(subject: Subject, untrained: bool) -> list[dict[str, Any]]:
    train, chance = training_set(subject.run), torch.Generator().manual_seed(subject.run.seed)
    some = train.subset(torch.randperm(len(train), generator=chance)[: len(subject.images)])
    model = new_model(subject.run).to(subject.device).eval() if untrained else subject.model
    stream = batches(some, BATCH_SIZE, generator=chance, augmented=True, device=subject.device)
    return _rows(subject, [batch_statistics(model, x) for x, _ in stream], train.fingerprint)


def _on_test_images(subject: Subject, attack: str | None) -> list[dict[str, Any]]:
    found = []
    for x, y, chance in subject.batches():
        with use_statistics(subject.model, "batch"):
            adv = subject.suite[attack](subject.model, x, y, generator=chance) if attack else x
        found.append(batch_statistics(subject.model, adv))
    return _rows(subject, found, subject.images.fingerprint)


def _rows(subject: Subject, found: list[Statistics], fingerprint: str) -> list[dict[str, Any]]:
    tracked, rows = tracked_statistics(subject.model), []
    apart = [distance(subject.model, one, tracked) for one in found]
    names = ("shift", "shift_abs", "log_ratio", "log_ratio_abs")
    for layer in tracked:
        shift, ratio = (torch.stack([one[layer][i] for one in apart]).cpu() for i in (0, 1))
        means = torch.stack([shift, shift.abs(), ratio, ratio.abs()], 2).mean(0)
        for channel, values in enumerate(means.tolist()):
            row = {"layer": layer, "channel": channel}
            row |= {name: round(mean, 5) for name, mean in zip(names, values, strict=True)}
            rows.append(row | {"fingerprint": fingerprint})
    return rows


def activation_spreads(subject: Subject) -> Iterator[Outcome]:
    """Section 4's argument: how wide a channel is after each normaliser, under batch statistics.

    Measured at the input of each norm layer is the standard deviation after it (without eps, scale, shift):
    ``std``, the median over channels of the mean over batches, and ``largest`` of all channels and batches.
    The outcome is by channel: narrower than after BatchNorm, which leaves 1.
    """
    for layer, (sigma, span) in _spreads(subject).items():
        for name, divisor in NORMALISERS.items():
            yield {"layer": layer, "normaliser": name}, partial(_widths, sigma, divisor(sigma, span))


def _widths(sigma: Tensor, divisor: Tensor) -> tuple[dict[str, float], Tensor]:
    std = sigma / divisor.clamp_min(torch.finfo(sigma.dtype).tiny)
    mean = std.mean(0)
    return {"std": mean.median().item(), "largest": std.max().item()}, mean < 1


@torch.no_grad()
def _spreads(subject: Subject) -> dict[str, tuple[Tensor, Tensor]]:
    """Standard deviation and range at the input of each norm layer, each (batches, C)."""
    layers = {name: layer for name, layer in subject.model.named_modules() if isinstance(layer, Norm)}
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def see(values: list[Tensor], layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1).double()
        values.append(torch.stack([x.std(1, correction=0), x.amax(1) - x.amin(1)]).cpu())

    with ExitStack() as hooks, use_statistics(subject.model, "batch"):
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(see, found[name])))
        for x, _, _ in subject.batches():
            subject.model(x)
    seen = {name: torch.stack(values) for name, values in found.items()}
    return {name: (values[:, 0], values[:, 1]) for name, values in seen.items()}

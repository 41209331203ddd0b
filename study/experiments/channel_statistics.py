"""Fig 1: what the norm layers of a run see in a batch, against what they have tracked.

``papermill notebooks/workers/probe.ipynb out.ipynb``
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rnlib import batch_statistics, distance, tracked_statistics, use_statistics
from rnlib.data import batches
from study.experiments.subject import Outcome, Subject
from study.networks import new_model, training_set
from study.runs import BATCH_SIZE


def channel_statistics(subject: Subject) -> Iterator[Outcome]:
    """How far batches lie from the tracked statistics, for every channel of every norm layer.

    Conditions: ``start`` (training images through the untrained weights, as in the paper's Fig 1, hence
    other weights as well), and through the trained weights ``train``, ``clean``, ``noise``, ``adversarial``
    (the latter three the same test images, attacked by PGD-linf under batch statistics). A row has layer,
    channel, the mean over batches of the shift of the centre and of log2 of the ratio of spreads (see
    :func:`rnlib.distance`), and the means of their absolute values.
    """
    attacks = {"noise": "noise", "adversarial": "pgd_linf"}
    for condition in ("start", "train"):
        yield {"condition": condition}, partial(_on_training_images, subject, condition == "start")
    for condition in ("clean", "noise", "adversarial"):
        yield {"condition": condition}, partial(_on_test_images, subject, attacks.get(condition))


def _on_training_images(subject: Subject, untrained: bool) -> list[dict[str, Any]]:
    train, chance = training_set(subject.run), torch.Generator().manual_seed(subject.run.seed)
    some = train.subset(torch.randperm(len(train), generator=chance)[: len(subject.images)])
    model = new_model(subject.run).to(subject.device).eval() if untrained else subject.model
    stream = batches(some, BATCH_SIZE, generator=chance, augmented=True, device=subject.device)
    rows = _rows(subject, [batch_statistics(model, x) for x, _ in stream])
    return [row | {"fingerprint": train.fingerprint} for row in rows]


def _on_test_images(subject: Subject, attack: str | None) -> list[dict[str, Any]]:
    found = []
    for x, y, chance in subject.batches():
        with use_statistics(subject.model, "batch"):
            adv = subject.suite[attack](subject.model, x, y, generator=chance) if attack else x
        found.append(batch_statistics(subject.model, adv))
    return _rows(subject, found)


def _rows(subject: Subject, found: list[dict[str, tuple[Tensor, Tensor]]]) -> list[dict[str, Any]]:
    tracked, rows = tracked_statistics(subject.model), []
    apart = [distance(subject.model, one, tracked) for one in found]
    for layer in tracked:
        shift, ratio = (torch.stack([one[layer][i] for one in apart]).cpu() for i in (0, 1))
        columns = {"shift": shift, "shift_abs": shift.abs(), "log_ratio": ratio, "log_ratio_abs": ratio.abs()}
        means = {
            name: [round(mean, 5) for mean in values.mean(0).tolist()] for name, values in columns.items()
        }
        for channel, values in enumerate(zip(*means.values(), strict=True)):
            rows.append({"layer": layer, "channel": channel} | dict(zip(means, values, strict=True)))
    return rows

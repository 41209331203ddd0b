"""The same weights with statistics that do not move with the images: frozen at several sources, or random.

``papermill notebooks/workers/measure.ipynb out.ipynb -p measurement frozen_statistics``
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rnlib import Attack, recalibrate, use_statistics
from rnlib.data import batches
from rnlib.statistics import Statistics
from study.experiments.subject import Outcome, Subject, classified
from study.jitter import jittered, sampling_noise
from study.networks import mixed, training_set
from study.runs import BATCH_SIZE

SCATTER_BATCHES = 50  # of training images, to measure how batches scatter
JITTER = ("tracked", "held", "held, 3 x", "redrawn", "redrawn, 3 x", "batch")


def _attacks(subject: Subject) -> dict[str, Attack | None]:
    return {"clean": None, **{name: subject.suite[name] for name in ("noise", "grad_sign", "pgd_linf")}}


def frozen_statistics(subject: Subject) -> Iterator[Outcome]:
    """Statistics frozen at several sources, each attacked as it is.

    Sources are the running averages of training (``ema``); averages over ten batches of training images as
    they are, augmented as in training, and augmented and attacked; and the clean version of the batch at hand
    (``twin``). Last comes the batch itself, whose statistics move with the attack.
    """
    model, pgd = subject.model, subject.suite["pgd_linf"]
    train = mixed(training_set(subject.run), 10 * BATCH_SIZE, 2)
    chance = torch.Generator().manual_seed(2)
    augmented = list(batches(train, BATCH_SIZE, generator=chance, augmented=True, device=subject.device))
    with use_statistics(model, "batch"):
        attacked = [pgd(model, x, y, generator=subject.chance(i)) for i, (x, y) in enumerate(augmented)]
    plain = [x for x, _, _ in replace(subject, images=train).batches()]
    sources = {"augmented": [x for x, _ in augmented], "plain": plain, "adversarial": attacked}
    frozen = {"ema": subject}
    for source, images in sources.items():
        frozen[source] = replace(subject, model=recalibrate(copy.deepcopy(model), images))
    for name, attack in _attacks(subject).items():
        for source, one in frozen.items():
            yield {"attack": name, "source": source}, partial(one.correct, attack, "tracked")
        yield {"attack": name, "source": "twin"}, partial(_by_twins, subject, attack)
        yield {"attack": name, "source": "batch"}, partial(subject.correct, attack, "batch")


def _by_twins(subject: Subject, attack: Attack | None) -> Tensor:
    """Each batch is attacked and classified with statistics frozen at those of its clean images."""
    parts = []
    for x, y, chance in subject.batches():
        twin = recalibrate(copy.deepcopy(subject.model), [x])
        adv = x if attack is None else attack(twin, x, y, generator=chance)
        parts.append(classified(twin, adv, y, "tracked"))
    return torch.cat(parts)


def jitter(subject: Subject) -> Iterator[Outcome]:
    """Tracked statistics with noise of the size of batch sampling, and of three times that.

    Drawn once for a batch (``held`` while it is attacked and classified) or ``redrawn`` at every forward
    pass, attacked as they are; beside them tracked and batch statistics.
    """
    train = mixed(training_set(subject.run), SCATTER_BATCHES * BATCH_SIZE, 3)
    scatter = sampling_noise(subject.model, (x for x, _, _ in replace(subject, images=train).batches()))

    for name, attack in _attacks(subject).items():
        for mode in JITTER:
            how = partial(subject.correct, attack, mode)
            if mode not in subject.modes:
                size = 3 if mode.endswith("3 x") else 1
                noise = {layer: (size * first, size * second) for layer, (first, second) in scatter.items()}
                how = partial(_jittered, subject, attack, noise, redraw=mode.startswith("redrawn"))
            yield {"attack": name, "statistics": mode}, how


def _jittered(subject: Subject, attack: Attack | None, noise: Statistics, *, redraw: bool) -> Tensor:
    parts = []
    for index, (x, y, chance) in enumerate(subject.batches()):
        with jittered(subject.model, noise, subject.chance(10**6 + index), redraw=redraw):
            adv = x if attack is None else attack(subject.model, x, y, generator=chance)
            parts.append(classified(subject.model, adv, y, "tracked"))
    return torch.cat(parts)

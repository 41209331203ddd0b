"""Training of ResNet-20 at batch 128: RobustNorm against BatchNorm, fit against bare steps, PGD-10.

The baseline of the adversarial step is the loop as one would first write it: RobustNorm from its formula,
contiguous memory, and gradients of the parameters computed at every step of the attack.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Line, compare, interleaved
from benchmarks.subjects import BATCH, FormulaRobustNorm, random_images
from rnlib.attacks import PGD, Attack
from rnlib.data import Dataset, to_float
from rnlib.models import resnet
from rnlib.train import Training, fit

EPS = 8 / 255
STEP_SIZE = EPS / 4
LR = 1e-3  # small: what diverges on noise would be timed as NaNs


def batch(n: int, *, channels_last: bool = True) -> tuple[Tensor, Tensor]:
    """Images float32 (n, 3, 32, 32) in [0, 1] and labels (n,)."""
    data = random_images(n)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return to_float(data.images).contiguous(memory_format=memory_format), data.labels


def bare_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 1,
    perturb: Callable[[Tensor], Tensor] = lambda x: x,
) -> Callable[[], Any]:
    """A function that makes optimiser steps on the same images, or on what ``perturb`` makes of them."""
    if x.is_contiguous(memory_format=torch.channels_last):
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=1e-4)
    model.train()

    def run() -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(perturb(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def plain_pgd(model: nn.Module, y: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """PGD as a plain loop of backward calls."""

    def perturb(x: Tensor) -> Tensor:
        adv = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            adv = adv.detach().requires_grad_()
            F.cross_entropy(model(adv), y, reduction="sum").backward()
            assert adv.grad is not None
            adv = adv + STEP_SIZE * adv.grad.sign()
            adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
        return adv.detach()

    return perturb


def fitting(
    model: nn.Module, dataset: Dataset, attack: Attack | None = None, **options: Any
) -> Callable[[], Any]:
    """A function that trains for one epoch by the public API, with loading and augmentation."""
    training = Training(epochs=1, lr=LR, attack=attack, **options)
    return lambda: fit(model, dataset, training)


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the three comparisons."""
    torch.manual_seed(0)
    n, depth, width, steps = (4, 8, 4, 2) if smoke else (BATCH, 20, 16, 4)

    def network(norm: Any) -> nn.Module:
        return resnet(depth, norm, width=width)

    x, y = batch(n)
    norms = {"ours": "robust_norm", "baseline": nn.BatchNorm2d}
    times = interleaved(
        {name: bare_steps(network(norm), x, y) for name, norm in norms.items()}, seconds=0 if smoke else 20
    )
    case = "step with RobustNorm / step with nn.BatchNorm2d"
    yield from compare(case, times["ours"], times["baseline"], ">= 1.0", images=n)

    times = interleaved(
        {
            "ours": fitting(network("batch_norm"), random_images(steps * n), batch_size=n),
            "baseline": bare_steps(network("batch_norm"), x, y, steps=steps),
        },
        seconds=0 if smoke else 25,
    )
    case = "fit with BatchNorm / bare steps on a fixed tensor"
    yield from compare(case, times["ours"], times["baseline"], ">= 0.97", images=steps * n)

    steps = 2 if smoke else 10
    ours, plain = network("robust_norm"), network(FormulaRobustNorm)
    pgd = PGD(EPS, steps=steps, step_size=STEP_SIZE)
    x_plain, _ = batch(n, channels_last=False)
    perturb = partial(pgd, ours, y=y, update_buffers=True, checked=True)
    times = interleaved(
        {
            "ours": bare_steps(ours, x, y, perturb=perturb),
            "baseline": bare_steps(plain, x_plain, y, perturb=plain_pgd(plain, y, steps)),
        },
        seconds=0 if smoke else 30,
        least=2,
        warm_up=False,
    )
    case = f"PGD-{steps} adversarial step with RobustNorm / plain loop"
    yield from compare(case, times["ours"], times["baseline"], ">= 2", images=n)

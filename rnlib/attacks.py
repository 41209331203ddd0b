"""Attacks on image classifiers, each a frozen dataclass that is called as ``x_adv = attack(model, x, y)``.

- Images x are floating point (N, C, ...) in [0, 1], labels y int64 (N,): the true ones, or the wanted ones
  where ``targeted``. The answer is detached, in [0, 1], and has the dtype, device and memory format of x.
- ``eps``, ``std`` and ``step_size`` are in pixel units: one float, or a tuple with one float per channel.
- Any PyTorch model that answers logits will do. It is attacked in the mode it is in and nothing of it
  changes: not its parameters, their requires_grad and .grad, its train and eval flags, its buffers. Only
  ``update_buffers=True`` lets a model in training mode update its running statistics, as the paper's
  released code does when it crafts images to train on.
- The loss is summed over the batch and fooled images stay in it: under batch statistics the images attack
  together. Where each image keeps its best version (restarts, :class:`CarliniWagner`), these form a batch
  with statistics other than those they were chosen under: judge the returned batch as a whole, as
  :func:`success` does.
- The attack draws from ``generator`` (``None``: torch's global one); dropout in a model draws from the
  global one.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rnlib.balls import L2, Linf
from rnlib.carlini_wagner import CarliniWagner
from rnlib.checks import Pixels, check_batch, check_count, check_pixels
from rnlib.crafting import LOSSES, Attack, Task, borrowed, column, draw, per_channel
from rnlib.data import STATISTICS

__all__ = [
    "BIM", "PGD", "PGDL2", "Attack", "CarliniWagner", "GaussianNoise", "Grad", "GradSign", "paper_eps",
    "paper_suite", "success",
]  # fmt: skip


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """x + N(0, std^2), clipped to [0, 1]; it looks at neither model nor labels.

    The paper's text has a variance of 0.25, its released code 0.1 * randn, both on normalised images.
    """

    std: Pixels

    def __post_init__(self) -> None:
        check_pixels("std", self.std)

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.add_(per_channel("std", self.std, x) * draw(torch.randn, x.shape, x, generator)).clamp_(0, 1)


@dataclass(frozen=True)
class _GradientAttack(Attack):
    """One step of length eps in the ball of the subclass."""

    eps: Pixels
    _: KW_ONLY
    targeted: bool = False
    loss: str = "cross_entropy"
    ball: ClassVar[type[Linf]]

    def __post_init__(self) -> None:
        check_pixels("eps", self.eps)
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}, it must be one of: {', '.join(LOSSES)}")

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        ball = self.ball(x, per_channel("eps", self.eps, x))
        return _climb(task, ball, x, step=ball.eps, steps=1)


def _climb(task: Task, ball: Linf, start: Tensor, *, step: Tensor, steps: int) -> Tensor:
    """The one loop of all gradient attacks."""
    adv = start
    for _ in range(steps):
        adv = ball.project(adv + step * ball.direction(task.gradient(adv)))
    return adv


@dataclass(frozen=True)
class Grad(_GradientAttack):
    """x + eps * g / ||g||_2 with g the gradient at the image, clipped to [0, 1]; l2 as in :class:`PGDL2`."""

    ball = L2


@dataclass(frozen=True)
class GradSign(_GradientAttack):
    """x + eps * sign(g), clipped to [0, 1]: FGSM (Eq 1)."""

    ball = Linf


@dataclass(frozen=True)
class BIM(_GradientAttack):
    """Steps of step_size * sign(g) from x, each projected to the l-inf ball of eps (Eq 2).

    Args:
        eps: radius of the ball.
        steps: their number.
        step_size: their size; ``None`` is eps / 10.
        loss: ``"cross_entropy"``, or ``"margin"`` (largest other logit minus the true one), whose gradient
            does not vanish where the model is confident, or ``"masked_margin"``, the same of images that
            have not reached their aim yet.
        targeted: go down towards the classes y.
    """

    _: KW_ONLY
    steps: int = 20
    step_size: Pixels | None = None
    ball = Linf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        if self.step_size is not None:
            check_pixels("step_size", self.step_size)

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._run(task, self.ball(x, per_channel("eps", self.eps, x)), x)

    def _run(self, task: Task, ball: Linf, start: Tensor) -> Tensor:
        step = ball.eps / 10 if self.step_size is None else per_channel("step_size", self.step_size, start)
        return _climb(task, ball, start, step=step, steps=self.steps)


@dataclass(frozen=True)
class PGD(BIM):
    """:class:`BIM` from a uniformly random point of the ball (Eq 5).

    Args:
        random_start: ``False`` makes it :class:`BIM`.
        restarts: runs from different points. Each image keeps its best: one that fools before one that does
            not, then the one of higher loss.
    """

    _: KW_ONLY
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("restarts", self.restarts)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts is {self.restarts}, but without random_start every run is the same: "
                "set random_start=True or restarts=1"
            )

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        ball = self.ball(x, per_channel("eps", self.eps, x))
        best = self._run(task, ball, ball.random(generator) if self.random_start else x)
        if self.restarts == 1:
            return best
        best_fooled, best_loss = task.score(best)
        for _ in range(self.restarts - 1):
            adv = self._run(task, ball, ball.random(generator))
            fooled, loss = task.score(adv)
            better = (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss > best_loss))
            best = torch.where(column(better, x), adv, best)
            best_fooled, best_loss = best_fooled | fooled, torch.where(better, loss, best_loss)
        return best


@dataclass(frozen=True)
class PGDL2(PGD):
    """:class:`PGD` in the l2 ball: steps along g / ||g||_2, no image further than eps from x in l2.

    With one eps per channel, lengths and gradients are those of images divided by eps: ||(x_adv - x) /
    eps||_2 <= 1. So ``PGDL2(paper_eps(dataset))`` is the l2 attack of the released code, eps = 0.03 on
    normalised images.
    """

    ball = L2


def success(model: nn.Module, x_adv: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Whether each image reaches the aim, bool (N,): the model does not answer y, or does where ``targeted``.

    The model answers in the mode it is in, and its buffers stay as they are.
    """
    check_batch(model, x_adv, y)
    with torch.no_grad(), borrowed(model, update_buffers=False):
        predicted = model(x_adv).argmax(1)
    return predicted.eq(y) if targeted else predicted.ne(y)


def paper_eps(dataset: str, normalised: float = 0.03) -> tuple[float, ...]:
    """The paper's eps in pixels, per channel: its code adds 0.03 after Normalize, so it is 0.03 * std."""
    if dataset not in STATISTICS:
        raise ValueError(f"dataset is {dataset!r}, it must be one of: {', '.join(STATISTICS)}")
    return tuple(normalised * std for std in STATISTICS[dataset][1])


def paper_suite(dataset: str, normalised_eps: float = 0.03, *, noise_std: float = 0.5) -> dict[str, Attack]:
    """The paper's attacks by name: 20 steps of eps / 10 as in its test code, random start for PGD only.

    ``normalised_eps`` and ``noise_std`` are on normalised images; 0.5 is the text's variance of 0.25, the
    released code has 0.1.
    """
    eps, std = paper_eps(dataset, normalised_eps), paper_eps(dataset, noise_std)
    return {
        "noise": GaussianNoise(std), "grad": Grad(eps), "grad_sign": GradSign(eps), "bim_linf": BIM(eps),
        "pgd_linf": PGD(eps), "pgd_l2": PGDL2(eps), "cw_l2": CarliniWagner(),
    }  # fmt: skip

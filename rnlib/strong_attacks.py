"""Attacks beyond the paper's: steps that adapt, no gradients, batches whose statistics answer, neighbours."""

import copy
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.attacks import BIM, LOSSES, Attack, Ball, Pixels, Task, _GradientAttack, column, draw, gaps
from rnlib.statistics import check_batch, check_count, check_pixels, frozen, logits_of, wide


def dlr(logits: Tensor, y: Tensor, sign: int = 1, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (N,), whatever the logits' scale and shift (Croce & Hein, 2020, Eq 6 and 7).

    sign times (largest other logit - z_y) / (z_1 - z_3), z_k the k-th largest; for a target (N,) times
    (z_target - z_y) / (z_1 - (z_3 + z_4) / 2). Raises ValueError for fewer than 3 or 4 classes.
    """
    need = 3 if target is None else 4
    if logits.shape[1] < need:
        raise ValueError(f"dlr compares {need} logits and the model has {logits.shape[1]}: use 'margin'")
    gap, top = gaps(logits, y), logits.topk(need).values
    rise = gap.amax(1) if target is None else gap.gather(1, target[:, None])[:, 0]
    return sign * rise / (top[:, 0] - top[:, 2:].mean(1)).clamp_min(1e-12)


# For every attack that follows a gradient; without targets of its own, "dlr_targeted" aims at the runner-up.
LOSSES["dlr"] = dlr
LOSSES["dlr_targeted"] = lambda logits, y, sign: dlr(logits, y, sign, gaps(logits, y).argmax(1))


def rank(fooled: Tensor, loss: Tensor) -> Tensor:
    """Orders whole batches: by the number of images fooled, bool (N,), then by the mean of a loss (N,)."""
    return fooled.sum() + F.softsign(wide(loss).mean()) / 2


@dataclass(frozen=True, kw_only=True)
class APGD(_GradientAttack):
    """Auto-PGD in the l-inf ball (Croce & Hein, 2020): the size of its steps follows from how the loss goes.

    It begins at 2 eps. At checkpoints, ever closer, it is halved and the search goes back to its best point,
    if the loss rose in no more than 3 of 4 steps, or neither the best loss nor the size has changed since the
    last one. An image keeps the point of largest margin; fooled ones are spared further runs.

    Args:
        eps, loss, targeted: as for :class:`BIM`; further losses are ``"dlr"`` and ``"dlr_targeted"``, which
            takes a run for each of the ``target_classes`` likeliest at x beside y (one if ``targeted``).
        steps, restarts: a run takes ``steps`` + 1 gradients; runs for each target, from random points.
        joint: False gives each image its own step size and best point, which is sound where a model looks at
            each by itself: under batch statistics that point was best among other neighbours than it is
            returned with. True makes the batch one unit: its loss is the sum, and its best point that with
            most images fooled, then of largest mean margin.
    """

    steps: int = 100
    restarts: int = 1
    target_classes: int = 9
    joint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts", "target_classes"):
            check_count(name, getattr(self, name))

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        best, top = x.clone(), wide(torch.full(task.y.shape, -math.inf, device=x.device))
        targets: list[Tensor | None] = [None]
        if self.loss == "dlr_targeted" and not self.targeted:
            with torch.no_grad():
                gap = gaps(task.logits(x), task.y)
            targets = list(gap.topk(min(self.target_classes, gap.shape[1] - 1)).indices.T)
        for target in targets * self.restarts:
            left = torch.arange(len(x), device=x.device) if self.joint else (top <= 0).nonzero()[:, 0]
            if not len(left):
                break
            part = copy.copy(task)
            part.y = task.y[left]
            if target is not None:
                part.per_image = partial(dlr, target=target[left])
            ball = Ball(x[left], self.eps)
            for adv, found in self._run(part, ball, ball.random(generator)):
                best[left] = torch.where(column(found > top[left], x), adv, best[left])
                top[left] = torch.maximum(found, top[left])
        return best

    def _run(self, task: Task, ball: Ball, adv: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The points of one run, and how far each image, or the batch, has got there: (N,)."""

        def look(adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            leaf = adv.detach().requires_grad_()
            logits = task.logits(leaf)
            loss, margin = task.per_image(logits, task.y, task.sign), wide(task.margin(logits.detach()))
            gradient, loss = torch.autograd.grad(loss.sum(), leaf)[0], loss.detach()
            if self.joint:
                loss, margin = loss.sum().expand_as(loss), rank(margin > 0, margin).expand_as(margin)
            return gradient, loss, margin

        period, least, sooner = (max(1, int(share * self.steps)) for share in (0.22, 0.06, 0.03))
        best = old = adv
        gradient, loss, reached = look(adv)
        yield adv, reached
        best_gradient, best_loss, before = gradient, loss, loss
        step = 2 * ball.eps * torch.ones_like(column(loss, adv), dtype=adv.dtype)
        rises, since, halved = torch.zeros_like(loss), 0, torch.ones_like(loss, dtype=torch.bool)
        for i in range(self.steps):
            ahead, pace = ball.project(adv + step * gradient.sign()), 0.75 if i else 1.0
            old, adv = adv, ball.project(adv + pace * (ahead - adv) + (1 - pace) * (adv - old))
            last, (gradient, loss, reached) = loss, look(adv)
            yield adv, reached
            better = column(loss > best_loss, adv)
            best, best_gradient = torch.where(better, adv, best), torch.where(better, gradient, best_gradient)
            best_loss, rises, since = torch.maximum(loss, best_loss), rises + (loss > last), since + 1
            if since == period:
                halved = (rises <= 0.75 * period) | (~halved & (before >= best_loss))
                again = column(halved, adv)
                step = torch.where(again, step / 2, step)
                adv, gradient = torch.where(again, best, adv), torch.where(again, best_gradient, gradient)
                rises, since, before = torch.zeros_like(loss), 0, best_loss
                period = max(period - sooner, least)


@dataclass(frozen=True)
class GMSA(Attack):
    """Greedy model space attack where answers depend on the batch (Chen et al., 2022, arXiv 2110.14735).

    Each round freezes the statistics that the batch has by now, at first the clean one's, and attacks x with
    those of all rounds so far: the loss is the ``"average"`` over them, or the ``"minimum"``, image by image.
    Round r takes r times the attack's time and memory. Returned is the batch that does most harm to the model
    itself, with the batch's own statistics (:func:`rank`). ValueError if the model has no norm of rnlib.
    """

    attack: Attack
    _: KW_ONLY
    rounds: int = 10
    mode: str = "average"
    cumulative = True

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds)
        if self.mode not in (modes := ("average", "minimum")) or self.attack.loss == "dlr_targeted":
            need = f"mode must be one of {modes}, and the attack's loss not be dlr_targeted"
            raise ValueError(f"mode is {self.mode!r} and loss is {self.attack.loss!r}: {need}")
        for name in ("targeted", "loss"):  # as the base class reads them
            object.__setattr__(self, name, getattr(self.attack, name))

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        states, best, adv, top = list[nn.Module](), x, x, -math.inf
        for _ in range(self.rounds):
            states = [*states, frozen(task.model, [adv])] if self.cumulative else [frozen(task.model, [adv])]
            adv = self.attack._perturb(_States(task, states, self.mode), x.clone(), generator)
            if (harm := rank(*task.score(adv)).item()) > top:
                best, top = adv, harm
        return best


class FPA(GMSA):
    """Fixed point attack (Chen et al., 2022): :class:`GMSA` against the last round's statistics alone."""

    cumulative = False


class _States(Task):
    """A task of several models: logits are (models, N, classes), of losses and margins one for each image."""

    def __init__(self, task: Task, states: list[nn.Module], mode: str):
        self.__dict__ |= task.__dict__
        self.states, self.over = states, partial(torch.mean if mode == "average" else torch.amin, dim=0)
        self.per_image = lambda logits, *to: self.over(torch.stack([task.per_image(z, *to) for z in logits]))

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([logits_of(model(x)) for model in self.states])

    def margin(self, logits: Tensor) -> Tensor:
        return self.over(torch.stack([super(_States, self).margin(each) for each in logits]))


@dataclass(frozen=True)
class Square(Attack):
    """Random search over squares at the surface of the l-inf ball (Andriushchenko et al., 2020), a black box.

    It starts from vertical stripes of +-eps. Each of the ``queries`` sets one random square of each image to
    +-eps per channel, and keeps it where the margin of the true class falls; squares shrink from a share
    ``p`` of the pixels, in (0, 1], along the original's schedule. A proposal is judged in the batch of all
    proposals.
    """

    eps: Pixels
    _: KW_ONLY
    queries: int = 500
    p: float = 0.8
    targeted: bool = False

    def __post_init__(self) -> None:
        check_pixels("eps", self.eps, 1)
        check_count("queries", self.queries)
        if not 0 < self.p <= 1:
            raise ValueError(f"p is {self.p}, it must lie in (0, 1]: a share of the pixels")

    @torch.no_grad()
    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        n, c, h, w = x.shape
        eps = Ball(x, self.eps).eps

        def signs(*shape: int) -> Tensor:
            return draw(torch.rand, torch.Size(shape), x, generator).sub_(0.5).sign_()

        best = (x + eps * signs(n, c, 1, w)).clamp_(0, 1)
        gain = task.margin(task.logits(best))
        for query in range(self.queries):
            side = min(h, w, max(1, round(math.sqrt(self._share(query) * h * w))))
            corner = draw(torch.rand, torch.Size((2, n)), x, generator)
            top, left = (corner[0] * (h - side + 1)).long(), (corner[1] * (w - side + 1)).long()
            rows = torch.arange(h, device=x.device) - top[:, None]
            columns = torch.arange(w, device=x.device) - left[:, None]
            inside = ((rows >= 0) & (rows < side))[:, None, :, None]
            inside = inside & ((columns >= 0) & (columns < side))[:, None, None, :]
            square = (x + eps * signs(n, c, 1, 1)).clamp_(0, 1)
            proposal = torch.where(inside, square, best)
            found = task.margin(task.logits(proposal))
            better = found > gain
            best, gain = torch.where(column(better, x), proposal, best), torch.where(better, found, gain)
        return best

    def _share(self, query: int) -> float:
        """Share of the pixels in a square: halved at fixed fractions of the queries, as in the original."""
        progress = query / self.queries * 10_000
        halvings = sum(progress > at for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        return self.p / 2**halvings


class Among(nn.Module):
    """A model that sees its images in a batch with fixed neighbours, and answers for the images alone.

    ``attack(Among(model, neighbours), x, y)`` is what an attacker can do who controls a part of the batch.
    The neighbours (M, C, H, W), M >= 1, are copied, move with the module and are not in its ``state_dict``.
    """

    neighbours: Tensor

    def __init__(self, model: nn.Module, neighbours: Tensor):
        super().__init__()
        if not len(neighbours):
            raise ValueError("neighbours holds no image: call the model itself")
        self.model, self.training = model, model.training
        with torch.inference_mode(False):  # attacks write to buffers, which tensors of that mode refuse
            self.register_buffer("neighbours", neighbours.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return logits_of(self.model(torch.cat((x, self.neighbours))))[: len(x)]


class _Neighbours(Among):
    """The same batch, and the answers for the neighbours."""

    def forward(self, x: Tensor) -> Any:
        return logits_of(self.model(torch.cat((x, self.neighbours))))[len(x) :]


def attack_neighbours(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacked: int,
    eps: Pixels,
    *,
    steps: int = 20,
    step_size: Pixels | None = None,
) -> Tensor:
    """Change the first images of a batch, by :class:`BIM`, so that the *other* ones are misclassified.

    Without batch statistics there is nothing to gain: the gradient of the others' summed cross-entropy is 0
    (cf. Wu et al., 2023, who attack test-time adaptation this way).

    Returned is the batch (N, C, H, W), of which only the first ``attacked``, 1 to N - 1, differ from x.
    """
    check_batch(model, x, y)
    check_count("attacked", attacked)
    if attacked >= len(x):
        raise ValueError(f"attacked is {attacked}, it must leave at least one of {len(x)} images untouched")
    mine, others = x[:attacked], x[attacked:].detach()
    attack = BIM(eps, steps=steps, step_size=step_size)
    return torch.cat((attack(_Neighbours(model, others), mine, y[attacked:], checked=True), others))

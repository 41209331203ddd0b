"""Attacks on image classifiers, each a frozen dataclass that is called as ``x_adv = attack(model, x, y)``.

The loss is summed over the batch: under batch statistics the images attack together, and best versions of
images (restarts, Carlini-Wagner) form another batch: judge it as a whole, as :func:`success` does.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from rnlib.data import STATISTICS
from rnlib.statistics import (
    borrowed,
    check_batch,
    check_count,
    check_pixels,
    check_size,
    class_logits,
    logits_of,
    wide,
)

Pixels = float | tuple[float, ...]  # in pixel units: one for all channels, or one per channel
Generator = torch.Generator | None
_constant = lru_cache(torch.tensor)  # is brought to the device once, and not at every step of a training


def gaps(logits: Tensor, y: Tensor) -> Tensor:
    """Each other logit minus that of y, (N, classes): one above 0 fools; -inf, not 0, for y itself.

    Their largest is the margin, their log-sum-exp u the log-odds against y, the cross-entropy softplus(u).
    """
    y = y[:, None]
    return (logits - logits.gather(1, y)).scatter(1, y, -math.inf)


def equal_weight(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds against y, (N,), with the gradient of the cross-entropy divided by its length.

    That gradient is (1 - p) (q - e_y), p the probability of y, q the softmax of the others: a sum over images
    does not hear those with p near 1. Here it is (q - e_y) / ||q - e_y||_2, the length a constant, for any p.
    """
    others = gaps(wide(logits), y)
    odds, q = others.logsumexp(1), others.detach().softmax(1)
    return torch.lerp(odds.detach(), odds, (1 + q.square().sum(1)).rsqrt())  # value of odds, a scaled slope


# By name a loss (N,) of logits, labels and a sign, -1 where the labels are the wanted ones.
LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "cross_entropy": lambda logits, y, sign: sign * nn.functional.cross_entropy(logits, y, reduction="none"),
    "margin": lambda logits, y, sign: sign * gaps(logits, y).amax(1),
    # An image that has reached its aim asks for nothing: under batch statistics it is there for the others.
    "masked_margin": lambda logits, y, sign: (sign * gaps(logits, y).amax(1)).clamp(max=0),
    "equal_weight": lambda logits, y, sign: sign * equal_weight(logits, y),
}


class Task:
    """What an attack asks of the model about one batch. Larger is better for the attacker, targeted too."""

    def __init__(self, model: nn.Module, y: Tensor, classes: int, loss: str, targeted: bool):
        self.model, self.y, self.classes = model, y.long(), classes
        self.per_image, self.sign = LOSSES[loss], -1 if targeted else 1

    def logits(self, x: Tensor) -> Tensor:
        """The model's answer (N, classes), checked without waiting for the device."""
        logits = class_logits(self.model, x, len(self.y), self.classes)
        if x.requires_grad and not logits.requires_grad:
            fix = "look for detach, no_grad or argmax in its forward"
            raise ValueError(f"the model's answer is no differentiable function of the images: {fix}")
        return logits

    def margin(self, logits: Tensor) -> Tensor:
        """(N,), positive where the attack has reached its aim."""
        return self.sign * gaps(logits, self.y).amax(1)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient at x, shaped like x, of the loss summed over the batch: its images attack together."""
        x = x.detach().requires_grad_()
        loss = self.per_image(self.logits(x), self.y, self.sign)
        return torch.autograd.grad(loss.sum(), x)[0]

    @torch.no_grad()
    def score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image has reached the aim, and its loss; both (N,)."""
        logits = self.logits(x)
        return self.margin(logits) > 0, self.per_image(logits, self.y, self.sign)


class Attack:
    """Base of all attacks. A subclass is a frozen dataclass that defines ``_perturb``."""

    targeted: bool = False
    loss: str = "cross_entropy"

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: Generator = None,
        update_buffers: bool = False,
        checked: bool = False,
    ) -> Tensor:
        """Craft adversarial versions of a batch: like x in all but values, which are in [0, 1]; detached.

        Args:
            model: answers logits (N, classes), or has them as ``.logits``. It is attacked in the mode it is
                in, with a warning in training mode; its parameters, .grad, modes and buffers stay.
            x: floating-point images (N, C, ...) in [0, 1]; rounding errors of up to 1e-6 are clipped.
            y: integer labels (N,): the true ones, or the wanted ones where ``targeted``.
            generator: source of the attack's randomness; ``None`` is torch's global one, as for dropout.
            update_buffers: a model in training mode tracks statistics after all, as in the released code.
            checked: do not look for unusable images and labels, as looking at values waits for the device.

        Raises TypeError or ValueError where it finds the model, images or labels unusable.
        """
        classes = 0 if checked else check_batch(model, x, y)
        # Gradients are needed inside torch.no_grad() and torch.inference_mode() too.
        with torch.inference_mode(False), torch.enable_grad(), borrowed(model, update_buffers):
            task = Task(model, y.to(x.device, copy=True), classes, self.loss, self.targeted)
            return self._perturb(task, x.detach().clamp(0, 1), generator).detach()

    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _perturb")


def success(model: nn.Module, x_adv: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Whether the model, left as it is, does not answer y, or does where ``targeted``: bool (N,)."""
    check_batch(model, x_adv, y)
    with torch.no_grad(), borrowed(model):
        return logits_of(model(x_adv)).argmax(1).eq(y) == targeted


class Ball:
    """The images in [0, 1] with abs(x_adv - x) <= eps, or with ||(x_adv - x) / eps||_2 <= 1 if ``l2``."""

    def __init__(self, x: Tensor, eps: Pixels, *, l2: bool = False):
        self.x, self.eps, self.l2 = x, per_channel("eps", eps, x), l2

    def random(self, generator: Generator) -> Tensor:
        """A uniformly random point of the ball, clipped to [0, 1]."""
        if not self.l2:
            inside = draw(torch.rand, self.x.shape, self.x, generator).mul_(2).sub_(1)
            return self.project(self.x + self.eps * inside)
        direction = unit(draw(torch.randn, self.x.shape, self.x, generator))
        radius = draw(torch.rand, self.x.shape[:1], self.x, generator) ** (1 / self.x[0].numel())
        return self.project(self.x + self.eps * direction * column(radius, self.x))

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest step of length 1, for a gradient (N, C, ...); 0 where the gradient is 0."""
        return unit(grad * self.eps) if self.l2 else grad.sign()

    def project(self, adv: Tensor) -> Tensor:
        """Move ``adv`` into the ball and into [0, 1], in place."""
        if not self.l2:
            return adv.clamp_(self.x - self.eps, self.x + self.eps).clamp_(0, 1)
        delta = adv.clamp_(0, 1).sub_(self.x)
        # In a channel with eps = 0 delta is 0: any divisor will do.
        scaled = delta / self.eps.clamp_min(torch.finfo(adv.dtype).tiny)
        norm = torch.linalg.vector_norm(scaled, dim=tuple(range(1, adv.ndim)), keepdim=True)
        # Shrinking towards x keeps an image in [0, 1]; the last clamp only undoes rounding.
        return delta.div_(norm.clamp_min_(1)).add_(self.x).clamp_(0, 1)


def unit(v: Tensor) -> Tensor:
    """v / ||v||_2 per image; 0 where v is 0."""
    tiny, dims = torch.finfo(v.dtype).tiny, tuple(range(1, v.ndim))
    # Gradients of a confident model are so small that their squares underflow: divide by the largest first.
    v = v / v.abs().amax(dims, keepdim=True).clamp_min_(tiny)
    return v.div_(torch.linalg.vector_norm(v, dim=dims, keepdim=True).clamp_min_(tiny))


def column(v: Tensor, x: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, ...), to go with x."""
    return v.view(-1, *[1] * (x.ndim - 1))


def per_channel(name: str, value: Pixels, x: Tensor) -> Tensor:
    """A float as (1, 1, ...), a tuple as (C, 1, ...), of the dtype and device of x: to go with x."""
    if isinstance(value, tuple) and len(value) != x.shape[1]:
        fix = f"give one for each of {x.shape[1]} channels, or a single float"
        raise ValueError(f"{name} has {len(value)} values for images of shape {tuple(x.shape)}: {fix}")
    return _constant(value, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 2))


def draw(sampler: Callable[..., Tensor], shape: torch.Size, like: Tensor, generator: Generator) -> Tensor:
    """Random numbers for ``like``, drawn where the generator is: a CPU one gives all devices the same."""
    device = like.device if generator is None else generator.device
    return sampler(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """x + N(0, std^2), clipped to [0, 1]; the paper: std 0.5 (text) or 0.1 (code) on normalised images."""

    std: Pixels

    def __post_init__(self) -> None:
        check_pixels("std", self.std)

    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        return x.add_(per_channel("std", self.std, x) * draw(torch.randn, x.shape, x, generator)).clamp_(0, 1)


@dataclass(frozen=True)
class _GradientAttack(Attack):
    """One step of length eps along the gradient."""

    eps: Pixels
    _: KW_ONLY
    targeted: bool = False
    loss: str = "cross_entropy"
    l2 = False

    def __post_init__(self) -> None:
        check_pixels("eps", self.eps, math.inf if self.l2 else 1)
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}, it must be one of: {', '.join(LOSSES)}")

    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        ball = Ball(x, self.eps, l2=self.l2)
        return ball.project(x + ball.eps * ball.direction(task.gradient(x)))


@dataclass(frozen=True)
class Grad(_GradientAttack):
    """x + eps * g / ||g||_2 with g the gradient at the image, clipped to [0, 1]; l2 as in :class:`PGDL2`."""

    l2 = True


@dataclass(frozen=True)
class GradSign(_GradientAttack):
    """x + eps * sign(g), clipped to [0, 1]: FGSM (Eq 1)."""


@dataclass(frozen=True, kw_only=True)
class BIM(_GradientAttack):
    """Steps of step_size * sign(g) from x, each projected to the l-inf ball of radius eps (Eq 2).

    Args:
        eps, step_size: in pixel units, one float or one per channel; ``None`` is eps / 10.
        loss: ``"cross_entropy"``; ``"equal_weight"``, the same times a constant of each image that makes its
            gradient at the logits one of length 1; ``"margin"`` (largest other logit minus the true one);
            ``"masked_margin"``, the same of images that have not reached their aim yet.
    """

    steps: int = 20
    step_size: Pixels | None = None
    random_start, restarts = False, 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        step = 0.0 if self.step_size is None else self.step_size
        check_pixels("step_size", step, math.inf if self.l2 else 1)
        if self.restarts > 1 and not self.random_start:
            fix = "set random_start=True or restarts=1"
            raise ValueError(f"restarts is {self.restarts}, but without random_start all runs are one: {fix}")

    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        ball = Ball(x, self.eps, l2=self.l2)
        step = ball.eps / 10 if self.step_size is None else per_channel("step_size", self.step_size, x)
        best, best_loss = x, x.new_full(task.y.shape, -math.inf)
        best_fooled = torch.zeros_like(best_loss, dtype=torch.bool)
        for _ in range(self.restarts):
            adv = ball.random(generator) if self.random_start else x
            for _ in range(self.steps):
                adv = ball.project(adv + step * ball.direction(task.gradient(adv)))
            if self.restarts == 1:
                return adv
            fooled, loss = task.score(adv)
            better = torch.where(fooled == best_fooled, loss > best_loss, fooled)
            best = torch.where(column(better, x), adv, best)
            best_fooled, best_loss = best_fooled | fooled, torch.where(better, loss, best_loss)
        return best


@dataclass(frozen=True, kw_only=True)
class PGD(BIM):
    """:class:`BIM` from a uniformly random point of the ball (Eq 5).

    Of several ``restarts`` an image keeps the best: one that fools before others, then that of higher loss.
    """

    random_start: bool = True
    restarts: int = 1


@dataclass(frozen=True)
class PGDL2(PGD):
    """:class:`PGD` in the l2 ball, with steps along g / ||g||_2; an eps per channel divides the images first.

    So ``PGDL2(paper_eps(dataset))`` is the l2 attack of the released code, eps = 0.03 on normalised images.
    """

    l2 = True


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """The smallest l2 perturbation that fools, by Adam on H in x_adv = (tanh(H) + 1) / 2 (Eq 3, 4).

    Minimises ||x_adv - x||_2^2 + c * max(Z_y - max_{k != y} Z_k, -confidence), Z the logits of an image. Each
    of ``binary_search_steps`` searches takes ``steps`` of Adam from x (``lr`` in units of H), the first with
    c = ``initial_c``; c grows tenfold for an image that was never fooled and is bisected for the others. An
    image keeps its nearest version that fools by ``confidence`` >= 0 (kappa), or stays as it was.

    The distance has no bound: report it beside the accuracy. Pixels of exactly 0 or 1 hardly move in a few
    steps, tanh being flat. The released code: lr = eps / 10, 10 steps, normalised images; 20 are the text's.
    """

    confidence: float = 0.0
    lr: float = 0.01
    steps: int = 20
    binary_search_steps: int = 3
    initial_c: float = 0.1
    targeted: bool = False

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("binary_search_steps", self.binary_search_steps)
        check_size("confidence", self.confidence, zero=True)
        check_size("lr", self.lr)
        check_size("initial_c", self.initial_c)

    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        # atanh is infinite where a pixel is exactly 0 or 1: shrink a little.
        start = (2 * x - 1).mul_(1 - max(1e-6, torch.finfo(x.dtype).eps)).atanh_()
        # Distances count from here, or Adam would follow the rounding error of tanh(atanh(x)) at full speed.
        origin = (start.tanh() + 1) / 2
        best, c = x, x.new_full((len(x),), self.initial_c)
        low, high, nearest = torch.zeros_like(c), torch.full_like(c, math.inf), torch.full_like(c, math.inf)
        for _ in range(self.binary_search_steps):
            fooled_once = torch.zeros_like(c, dtype=torch.bool)
            h = start.clone().requires_grad_()
            adam = torch.optim.Adam([h], lr=self.lr)
            for step in range(self.steps + 1):  # the last pass only looks at where the last step led
                adv = (h.tanh() + 1) / 2
                distance = (adv - origin).square().flatten(1).sum(1)
                margin = task.margin(task.logits(adv))
                fooled = (margin > 0) & (margin >= self.confidence)
                nearer = fooled & (distance < nearest)
                best = torch.where(column(nearer, x), adv.detach(), best)
                nearest = torch.where(nearer, distance.detach(), nearest)
                fooled_once |= fooled
                if step < self.steps:
                    objective = distance + c * (-margin).clamp_min(-self.confidence)
                    h.grad = torch.autograd.grad(objective.sum(), h)[0]
                    adam.step()
            low, high = torch.where(fooled_once, low, c), torch.where(fooled_once, c, high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return best


def paper_eps(dataset: str, normalised: float = 0.03) -> tuple[float, ...]:
    """The paper's eps in pixels, per channel: its code adds 0.03 after Normalize, so it is 0.03 * std."""
    if dataset not in STATISTICS:
        raise ValueError(f"dataset is {dataset!r}, it must be one of: {', '.join(STATISTICS)}")
    return tuple(normalised * std for std in STATISTICS[dataset][1])


def paper_suite(dataset: str, normalised_eps: float = 0.03, *, noise_std: float = 0.5) -> dict[str, Attack]:
    """The paper's attacks by name, 20 steps of eps / 10 as its test code has; sizes on normalised images."""
    eps = paper_eps(dataset, normalised_eps)
    return {
        "noise": GaussianNoise(paper_eps(dataset, noise_std)),
        "grad": Grad(eps),
        "grad_sign": GradSign(eps),
        "bim_linf": BIM(eps),
        "pgd_linf": PGD(eps),
        "pgd_l2": PGDL2(eps),
        "cw_l2": CarliniWagner(),
    }

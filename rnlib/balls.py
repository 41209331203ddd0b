"""The sets that bounded attacks stay in: the l-inf and the l2 ball around each image, within [0, 1]."""

import torch
from torch import Tensor

from rnlib.crafting import column, draw


class Linf:
    """The images with abs(x_adv - x) <= eps in every pixel.

    Args:
        x: images (N, C, ...) in [0, 1].
        eps: 0-d, or (1, C, 1, ...), in pixel units.
    """

    def __init__(self, x: Tensor, eps: Tensor):
        self.x, self.eps = x, eps

    def random(self, generator: torch.Generator | None) -> Tensor:
        """A uniformly random point of the ball, clipped to [0, 1]."""
        uniform = draw(torch.rand, self.x.shape, self.x, generator).mul_(2).sub_(1)
        return self.project(self.x + self.eps * uniform)

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest step of length 1, for a gradient (N, C, ...); 0 where the gradient is 0."""
        return grad.sign()

    def project(self, adv: Tensor) -> Tensor:
        """Move ``adv`` into the ball and into [0, 1], in place."""
        return adv.clamp_(self.x - self.eps, self.x + self.eps).clamp_(0, 1)


class L2(Linf):
    """The images with ||(x_adv - x) / eps||_2 <= 1.

    With a single eps this is the usual ball of radius eps, and steps follow g / ||g||_2. With eps = r * std
    per channel it is the ball of radius r among images normalised by std, and steps follow the gradient
    there.
    """

    def random(self, generator: torch.Generator | None) -> Tensor:
        direction = unit(draw(torch.randn, self.x.shape, self.x, generator))
        radius = draw(torch.rand, self.x.shape[:1], self.x, generator) ** (1 / self.x[0].numel())
        return self.project(self.x + self.eps * direction * column(radius, self.x))

    def direction(self, grad: Tensor) -> Tensor:
        return unit(grad * self.eps)

    def project(self, adv: Tensor) -> Tensor:
        delta = adv.clamp_(0, 1).sub_(self.x)
        # In a channel with eps = 0 delta is 0: any divisor will do.
        norm = length(delta / self.eps.clamp_min(torch.finfo(adv.dtype).tiny))
        # Shrinking towards x keeps an image in [0, 1]; the last clamp only undoes rounding.
        return delta.div_(norm.clamp_min_(1)).add_(self.x).clamp_(0, 1)


def length(v: Tensor) -> Tensor:
    """||v||_2 per image, (N, 1, 1, ...)."""
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)


def unit(v: Tensor) -> Tensor:
    """v / ||v||_2 per image; 0 where v is 0."""
    tiny = torch.finfo(v.dtype).tiny
    # Gradients of a confident model are so small that their squares underflow: divide by the largest first.
    v = v / v.abs().amax(tuple(range(1, v.ndim)), keepdim=True).clamp_min_(tiny)
    return v.div_(length(v).clamp_min_(tiny))

"""Attacks beyond the paper's: without gradients, and by or among the other images of a batch."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnlib.attacks import (
    BIM,
    Attack,
    Generator,
    Pixels,
    Task,
    check_batch,
    check_count,
    check_pixels,
    column,
    draw,
    per_channel,
)


@dataclass(frozen=True)
class Square(Attack):
    """Random search over squares at the surface of the l-inf ball (Andriushchenko et al., 2020).

    A black box: it looks at no gradient, and so at no masked one. It starts from vertical stripes of +-eps.
    Each query sets one random square of each image to +-eps per channel, and keeps it where the margin of the
    true class falls; squares shrink along the original's schedule. All images of the batch propose at once,
    and an image's proposal is judged in the batch of all proposals: under batch statistics the images couple,
    as in every other attack here.

    Args:
        eps: radius in pixel units.
        queries: forward passes after the first.
        p: share of the pixels in the first squares, in (0, 1].
        targeted: go towards the classes y.
    """

    eps: Pixels
    _: KW_ONLY
    queries: int = 500
    p: float = 0.8
    targeted: bool = False

    def __post_init__(self) -> None:
        check_pixels("eps", self.eps)
        check_count("queries", self.queries)
        if not 0 < self.p <= 1:
            raise ValueError(f"p is {self.p}, it must lie in (0, 1]: a share of the pixels")

    @torch.no_grad()
    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        n, c, h, w = x.shape
        eps = per_channel("eps", self.eps, x)

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

    ``attack(Among(model, neighbours), x, y)`` attacks x while the neighbours stay as they are: what an
    attacker can do who controls a part of the batch.

    Args:
        model: any classifier.
        neighbours: images (M, C, H, W), M >= 1; copied. They move with the module and are no part of its
            ``state_dict``.
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
        return self.model(torch.cat((x, self.neighbours)))[: len(x)]


class _Neighbours(Among):
    """The same batch, and the answers for the neighbours."""

    def forward(self, x: Tensor) -> Any:
        return self.model(torch.cat((x, self.neighbours)))[len(x) :]


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
    """Change the first images of a batch so that the *other* ones are misclassified.

    Steps of step_size * sign(gradient of the summed cross-entropy of the untouched images), each projected to
    the l-inf ball (Eq 2) of the attacked images. Without batch statistics there is nothing to gain: the
    gradient is 0 (cf. Wu et al., 2023, who attack test-time adaptation this way).

    Args:
        model: attacked in the mode it is in and left as it was.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        attacked: how many, 1 to N - 1.
        eps: radius in pixel units, one or one per channel.
        steps: their number.
        step_size: their size; None is eps / 10.

    Returns:
        The batch (N, C, H, W), of which only the first ``attacked`` images differ from x.

    Raises:
        TypeError, ValueError: unusable model, images, labels or options.
    """
    check_batch(model, x, y)
    check_count("attacked", attacked)
    if attacked >= len(x):
        raise ValueError(f"attacked is {attacked}, it must leave at least one of {len(x)} images untouched")
    mine, others = x[:attacked], x[attacked:].detach()
    attack = BIM(eps, steps=steps, step_size=step_size)
    return torch.cat((attack(_Neighbours(model, others), mine, y[attacked:], checked=True), others))

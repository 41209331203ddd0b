"""The Square attack: a black box that looks at no gradient, and so at no masked one."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from rnlib.checks import Pixels, check_count, check_pixels
from rnlib.crafting import Attack, Task, column, draw, per_channel


@dataclass(frozen=True)
class Square(Attack):
    """Random search over squares at the surface of the l-inf ball (Andriushchenko et al., 2020).

    Starts from vertical stripes of +-eps. Each query sets one random square of each image to +-eps per
    channel, and keeps it where the margin of the true class falls; squares shrink along the original's
    schedule. All images of the batch propose at once, and an image's proposal is judged in the batch of all
    proposals: under batch statistics the images couple, as in every other attack here.

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

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        n, c, h, w = x.shape
        eps = per_channel("eps", self.eps, x)

        def signs(*shape: int) -> Tensor:
            return draw(torch.rand, torch.Size(shape), x, generator).sub_(0.5).sign_()

        with torch.no_grad():
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
                best = torch.where(column(better, x), proposal, best)
                gain = torch.where(better, found, gain)
        return best

    def _share(self, query: int) -> float:
        """Share of the pixels in a square: halved at fixed fractions of the queries, as in the original."""
        progress = query / self.queries * 10_000
        halvings = sum(progress > at for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        return self.p / 2**halvings

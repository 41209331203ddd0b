"""The Carlini-Wagner l2 attack (Eq 3, 4)."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from rnlib.checks import check_count
from rnlib.crafting import Attack, Task, column


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """The smallest l2 perturbation that fools, by Adam on H in x_adv = (tanh(H) + 1) / 2 (Eq 3, 4).

    Minimises ||x_adv - x||_2^2 + c * max(Z_y - max_{k != y} Z_k, -confidence) for every image of the batch,
    where Z are its logits and c is a constant of its own. Each of the ``binary_search_steps`` searches
    starts at x; after it, c grows tenfold for an image that was never fooled, and is bisected for the
    others. Each image keeps its nearest version that fools by at least ``confidence``. An image that is
    never fooled comes back unchanged.

    The distance has no bound, so accuracy under this attack tells how often a search of this budget
    succeeds: report the distances beside it. Pixels of exactly 0 or 1 hardly move within a few steps, as
    tanh is flat there. Under batch statistics the returned images come from different steps, so that their
    batch has statistics of its own.

    The paper's released code differs: lr = eps / 10, 10 steps, on normalised images. The 20 steps here are
    the number that the text gives for its iterative attacks.

    Args:
        confidence: the margin of logits to reach, >= 0 (kappa).
        lr: learning rate of Adam, in units of H.
        steps: Adam steps of one search.
        binary_search_steps: searches, each with other constants c.
        initial_c: the first c.
        targeted: ``y`` names the wanted classes; the margin is then that of Z_y above the others.
    """

    _: KW_ONLY
    confidence: float = 0.0
    lr: float = 0.01
    steps: int = 20
    binary_search_steps: int = 3
    initial_c: float = 0.1
    targeted: bool = False

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("binary_search_steps", self.binary_search_steps)
        if not 0 <= self.confidence < math.inf:
            raise ValueError(f"confidence is {self.confidence}, it must be finite and at least 0")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}, it must be finite and above 0")
        if not 0 < self.initial_c < math.inf:
            raise ValueError(f"initial_c is {self.initial_c}, it must be finite and above 0")

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        # atanh is infinite where a pixel is exactly 0 or 1: shrink a little.
        start = (2 * x - 1).mul_(1 - max(1e-6, torch.finfo(x.dtype).eps)).atanh_()
        # Distances count from here, or Adam would follow the rounding error of tanh(atanh(x)) at full speed.
        origin = (start.tanh() + 1) / 2
        c = x.new_full((len(x),), self.initial_c)
        low, high, nearest = torch.zeros_like(c), torch.full_like(c, math.inf), torch.full_like(c, math.inf)
        best = x
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

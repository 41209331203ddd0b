"""Attacks that use, or are defended by, the other images of a batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.balls import Linf
from rnlib.checks import Pixels, check_batch, check_count, check_pixels
from rnlib.crafting import borrowed, per_channel


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


def attack_neighbours(
    model: nn.Module, x: Tensor, y: Tensor, attacked: int, eps: Pixels, *, steps: int = 20,
    step_size: Pixels | None = None,
) -> Tensor:  # fmt: skip
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
    check_pixels("eps", eps)
    if step_size is not None:
        check_pixels("step_size", step_size)
    check_count("attacked", attacked)
    check_count("steps", steps)
    if attacked >= len(x):
        raise ValueError(f"attacked is {attacked}, it must leave at least one of {len(x)} images untouched")
    # Gradients are needed inside torch.inference_mode() too, whose tensors cannot be saved for backward.
    with torch.inference_mode(False), torch.enable_grad(), borrowed(model, update_buffers=False):
        mine, others, labels = x[:attacked].detach().clone(), x[attacked:].detach(), y[attacked:].clone()
        radius = per_channel("eps", eps, mine)
        step = radius / 10 if step_size is None else per_channel("step_size", step_size, mine)
        ball, adv = Linf(mine, radius), mine
        for _ in range(steps):
            leaf = adv.detach().requires_grad_()
            loss = F.cross_entropy(model(torch.cat((leaf, others)))[attacked:], labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
            adv = ball.project(adv + step * ball.direction(gradient))
        return torch.cat((adv.detach(), others))

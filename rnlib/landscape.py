"""Loss planes around trained weights, sampled exactly (the paper's Fig 9), and numbers for their sharpness.

Every point is base + a d1 + b d2, computed anew from a copy of the weights. The package ``loss-landscapes``
cannot take this place: the directions of its planes are uniform on [0, 1), not Gaussian, and their points lie
elsewhere than a grid says, every second column by a step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rnlib.statistics import check_batch, check_count, check_size, evaluating, logits_of

BATCH_SIZE = 128  # of the images of a landscape; in batch mode their statistics count


def random_direction(weights: Iterable[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A filter-normalised Gaussian direction (Li et al., 2018), a tensor for each of the weights of a model.

    Every filter (an output channel of a convolution, a row of a linear layer) has the length of that filter
    in the model. Parameters with one dimension, scale and shift of norms and biases, stay where they are.
    """
    direction = []
    for weight in weights:
        step, dims = torch.zeros_like(weight), tuple(range(1, weight.dim()))
        if dims:
            step = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device=generator.device)
            step = step.to(weight.device)
            own, drawn = (torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (weight, step))
            step = step * own / drawn
        direction.append(step.detach())
    return direction


@contextmanager
def _landscape(
    model: nn.Module, x: Tensor, y: Tensor, statistics: str, batch_size: int
) -> Iterator[tuple[Callable[..., Tensor], list[Tensor]]]:
    """The loss as a function of steps (length, direction) from the weights, and these weights.

    The model is in evaluation mode meanwhile; its own weights stay where they are.
    """
    check_batch(model, x, y, attacked=False)
    check_count("batch_size", batch_size)
    batches = list(zip(x.split(batch_size), y.long().split(batch_size), strict=True))
    base = {name: weight.detach().requires_grad_() for name, weight in model.named_parameters()}

    def loss(*steps: tuple[float, list[Tensor]]) -> Tensor:
        there = base
        for step, direction in steps:
            moves = zip(there.items(), direction, strict=True)
            there = {name: torch.add(weight, move, alpha=step) for (name, weight), move in moves}
        answers = ((logits_of(functional_call(model, there, x)), y) for x, y in batches)
        return torch.stack([F.cross_entropy(*each, reduction="sum") for each in answers]).sum() / len(y)

    with evaluating(model, statistics):
        yield loss, [*base.values()]


@torch.no_grad()
def loss_plane(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    statistics: str = "tracked",
    radius: float = 1.0,
    points: int = 25,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """Sample the loss on a plane through the weights of a model, which is left bit for bit as it was.

    Args:
        model, x, y: images (N, C, H, W) in [0, 1] and labels (N,), in evaluation mode.
        statistics: as for :func:`rnlib.use_statistics`: the same weights have another landscape in each.
        radius: half the side of the square; at 1 a step is as long as the filters are.
        points: samples on a side, odd so that the weights themselves are one.
        seed, batch_size: of the two directions; of the batches in which the images are classified.

    Returns coordinates (points,), from -radius to radius in units of the directions, and losses (points,
    points): ``losses[i, j]`` is at base + coordinates[i] d1 + coordinates[j] d2.
    """
    check_count("points", points)
    check_size("radius", radius)
    if points % 2 == 0:
        raise ValueError(f"points is {points}, it must be odd: the weights themselves are one of them")
    generator, coordinates = torch.Generator().manual_seed(seed), torch.linspace(-radius, radius, points)
    grid = coordinates.tolist()
    with _landscape(model, x, y, statistics, batch_size) as (loss, base):
        d1, d2 = (random_direction(base, generator) for _ in range(2))
        losses = [loss((a, d1), (b, d2)) for a in grid for b in grid]
    return coordinates, torch.stack(losses).view(points, points).cpu()


@torch.no_grad()
def loss_rise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    statistics: str = "tracked",
    radius: float = 0.5,
    directions: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """How much the loss rises at a distance from the weights, along random filter-normalised directions.

    Returned is for each direction d the mean of the losses at +radius d and -radius d minus that at the
    weights, (directions,): a sharpness that an interval over directions can be given for. Arguments and
    errors are as for :func:`loss_plane`.
    """
    check_count("directions", directions)
    check_size("radius", radius)
    generator, rises = torch.Generator().manual_seed(seed), []
    with _landscape(model, x, y, statistics, batch_size) as (loss, base):
        here = loss()
        for _ in range(directions):
            direction = random_direction(base, generator)
            rises.append((loss((radius, direction)) + loss((-radius, direction))) / 2 - here)
    return torch.stack(rises).cpu()


def top_curvature(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    statistics: str = "tracked",
    steps: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    size: float = 1e-2,
) -> float:
    """The eigenvalue of largest size of the loss's Hessian, by power iteration.

    Products with the Hessian are central differences of gradients at ``size`` times a unit vector, which
    keep no graph of a backward pass. ``steps`` is the number of iterations; the others and errors are as for
    :func:`loss_plane`.
    """
    check_count("steps", steps)
    check_size("size", size)
    generator, value = torch.Generator().manual_seed(seed), 0.0
    with _landscape(model, x, y, statistics, batch_size) as (loss, base), torch.enable_grad():
        vector = [torch.randn(b.shape, generator=generator, dtype=b.dtype).to(b.device) for b in base]
        for _ in range(steps):
            length = torch.sqrt(sum((v.square().sum() for v in vector), torch.zeros(())))
            unit = [v / length for v in vector]
            ends = (loss((step, unit)) for step in (size, -size))
            gradients = [torch.autograd.grad(end, base) for end in ends]
            vector = [(plus - minus) / (2 * size) for plus, minus in zip(*gradients, strict=True)]
            value = sum(float((v * u).sum()) for v, u in zip(vector, unit, strict=True))
    return value

"""Loss planes around trained weights, sampled exactly (the paper's Fig 9), and numbers for their sharpness.

Built on the interfaces of the ``loss-landscapes`` package (model wrapper, parameter vectors, metrics). Its
own planes are not used: their directions are uniform on [0, 1), not Gaussian, and their points lie elsewhere
than a grid says, every second column by a step. Here every point is base + a d1 + b d2, computed anew.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from loss_landscapes.metrics.metric import Metric
from loss_landscapes.model_interface.model_parameters import ModelParameters
from loss_landscapes.model_interface.model_wrapper import ModelWrapper, SimpleModelWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.checks import check_batch, check_count, check_length
from rnlib.crafting import borrowed
from rnlib.modes import evaluation_mode, use_statistics

BATCH_SIZE = 128  # of the images of a landscape; in batch mode their statistics count


class MeanLoss(Metric):
    """Mean cross-entropy over images in fixed batches, a 0-d tensor.

    Args:
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        batch_size: of the batches, whose statistics count in mode ``"batch"``.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int = BATCH_SIZE):
        super().__init__()
        check_count("batch_size", batch_size)
        self.batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        self.count = len(y)

    def __call__(self, model_wrapper: ModelWrapper) -> Tensor:
        losses = [F.cross_entropy(model_wrapper.forward(x), y, reduction="sum") for x, y in self.batches]
        return torch.stack(losses).sum() / self.count


@dataclass(frozen=True, eq=False)
class Plane:
    """Losses on a square around the weights.

    Attributes:
        coordinates: (points,), from -radius to radius, in units of the directions.
        losses: (points, points); ``losses[i, j]`` is at base + coordinates[i] d1 + coordinates[j] d2.
    """

    coordinates: Tensor
    losses: Tensor


def random_direction(model: nn.Module, generator: torch.Generator) -> ModelParameters:
    """A filter-normalised Gaussian direction (Li et al., 2018).

    Every filter (an output channel of a convolution, a row of a linear layer) has the length of that filter
    in the model. Parameters with one dimension, scale and shift of norms and biases, stay where they are;
    so do running statistics, which are no parameters.
    """
    direction = []
    for parameter in model.parameters():
        weight = parameter.detach()
        if weight.dim() < 2:
            direction.append(torch.zeros_like(weight))
            continue
        step = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device=generator.device)
        step, dims = step.to(weight.device), tuple(range(1, weight.dim()))
        lengths = (torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (weight, step))
        own, drawn = lengths
        direction.append(step * own / drawn)
    return ModelParameters(direction)


@contextmanager
def _prepared(
    model: nn.Module, statistics: str
) -> Iterator[tuple[ModelWrapper, ModelParameters, list[Tensor]]]:
    """The model in evaluation mode under a wrapper, its parameters, and a copy that is put back."""
    wrapper = SimpleModelWrapper(model)
    parameters = wrapper.get_module_parameters()
    trainable = [parameter.requires_grad for parameter in parameters.parameters]
    base = [parameter.detach().clone() for parameter in parameters.parameters]
    try:
        with evaluation_mode(model), use_statistics(model, statistics), borrowed(model, update_buffers=False):
            yield wrapper, parameters, base
    finally:
        _place(parameters, base, [], [])
        for parameter, flag in zip(parameters.parameters, trainable, strict=True):
            parameter.requires_grad_(flag)


@torch.no_grad()
def _place(
    parameters: ModelParameters,
    base: Sequence[Tensor],
    steps: Sequence[float],
    along: Sequence[ModelParameters],
) -> None:
    """Write base + sum of steps times directions into the parameters, in place."""
    for index, (parameter, start) in enumerate(zip(parameters.parameters, base, strict=True)):
        parameter.copy_(start)
        for step, direction in zip(steps, along, strict=True):
            parameter.add_(direction[index], alpha=step)


@torch.no_grad()
def loss_plane(
    model: nn.Module, x: Tensor, y: Tensor, *, statistics: str = "tracked", radius: float = 1.0,
    points: int = 25, seed: int = 0, batch_size: int = BATCH_SIZE,
) -> Plane:  # fmt: skip
    """Sample the loss on a plane through the weights of a model.

    Args:
        model: with norms of rnlib, or none; evaluated in evaluation mode and left bit for bit as it was.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        statistics: ``"tracked"`` or ``"batch"``: the same weights have another landscape in each.
        radius: half the side of the square; at 1 a step is as long as the filters are.
        points: samples on a side, odd so that the weights themselves are one.
        seed: of the two directions.
        batch_size: of the batches in which the images are classified.

    Raises:
        TypeError, ValueError: unusable model, images, labels or options.
    """
    check_batch(model, x, y)
    check_count("points", points)
    check_length("radius", radius)
    if points % 2 == 0:
        raise ValueError(f"points is {points}, it must be odd: the weights themselves are one of them")
    generator = torch.Generator().manual_seed(seed)
    along = [random_direction(model, generator) for _ in range(2)]
    coordinates, metric = torch.linspace(-radius, radius, points), MeanLoss(x, y, batch_size)
    losses = []
    with _prepared(model, statistics) as (wrapper, parameters, base):
        for a in coordinates.tolist():
            for b in coordinates.tolist():
                _place(parameters, base, (a, b), along)
                losses.append(metric(wrapper))
    return Plane(coordinates, torch.stack(losses).view(points, points).cpu())


@torch.no_grad()
def loss_rise(
    model: nn.Module, x: Tensor, y: Tensor, *, statistics: str = "tracked", radius: float = 0.5,
    directions: int = 20, seed: int = 0, batch_size: int = BATCH_SIZE,
) -> Tensor:  # fmt: skip
    """How much the loss rises at a distance from the weights, along random filter-normalised directions.

    Returns:
        For each direction d the mean of the losses at +radius d and -radius d minus that at the weights,
        (directions,): a sharpness that an interval over directions can be given for.

    Args and errors: as :func:`loss_plane`.
    """
    check_batch(model, x, y)
    check_count("directions", directions)
    check_length("radius", radius)
    generator, metric, rises = torch.Generator().manual_seed(seed), MeanLoss(x, y, batch_size), []
    with _prepared(model, statistics) as (wrapper, parameters, base):
        here = metric(wrapper)
        for _ in range(directions):
            _place(parameters, base, (), ())
            direction, ends = random_direction(model, generator), []
            for step in (radius, -radius):
                _place(parameters, base, (step,), (direction,))
                ends.append(metric(wrapper))
            rises.append(sum(ends) / 2 - here)
    return torch.stack(rises).cpu()


def top_curvature(
    model: nn.Module, x: Tensor, y: Tensor, *, statistics: str = "tracked", steps: int = 20, seed: int = 0,
    batch_size: int = BATCH_SIZE, size: float = 1e-2,
) -> float:  # fmt: skip
    """The eigenvalue of largest size of the loss's Hessian, by power iteration.

    Products with the Hessian are central differences of gradients at ``size`` times a unit vector, as
    RobustNorm is differentiable once only. ``steps`` is the number of iterations.

    Args and errors: as :func:`loss_plane`.
    """
    check_batch(model, x, y)
    check_count("steps", steps)
    check_length("size", size)
    metric, value = MeanLoss(x, y, batch_size), 0.0
    generator = torch.Generator().manual_seed(seed)
    with _prepared(model, statistics) as (wrapper, parameters, base):
        vector = [torch.randn(b.shape, generator=generator, dtype=b.dtype).to(b.device) for b in base]
        for parameter in parameters.parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            length = torch.sqrt(sum((v.square().sum() for v in vector), torch.zeros(())))
            unit = ModelParameters([v / length for v in vector])
            gradients = []
            for step in (size, -size):
                _place(parameters, base, (step,), (unit,))
                with torch.enable_grad():
                    gradients.append(torch.autograd.grad(metric(wrapper), parameters.parameters))
            vector = [(plus - minus) / (2 * size) for plus, minus in zip(*gradients, strict=True)]
            value = sum(float((v * u).sum()) for v, u in zip(vector, unit.parameters, strict=True))
    return value

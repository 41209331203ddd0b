"""A plane of the loss against as many bare forward passes of the same images.

The plane has 5 x 5 points instead of the figure's 25 x 25: the time grows with the points, and what a plane
costs once weighs more in a small one. 512 images of the test set.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Line, compare, interleaved, missing
from benchmarks.subjects import trained
from rnlib.data import batches

POINTS = 5  # along each of the two directions
CASE, TARGET = "loss plane / bare forward passes", "<= 1.05"


def bare_forwards(model: nn.Module, x: Tensor, y: Tensor, points: int) -> None:
    """So many forward passes, each with its loss."""
    with torch.no_grad():
        for _ in range(points):
            F.cross_entropy(model(x), y).item()


def plane(model: nn.Module, x: Tensor, y: Tensor, points: int) -> Callable[[], Any] | None:
    """A function that computes a plane of points x points, or None while rnlib has none."""
    try:
        from rnlib.landscape import loss_plane
    except ImportError:
        return None
    return lambda: loss_plane(model, x, y, points=points)


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the ratio."""
    images, points = (4, 2) if smoke else (512, POINTS)
    model, dataset = trained(images, smoke=smoke)
    ((x, y),) = batches(dataset, images)
    ours = plane(model, x, y, points)
    if ours is None:
        yield missing(CASE, TARGET, "rnlib.landscape is not there")
        return
    bare = {"ours": ours, "baseline": lambda: bare_forwards(model, x, y, points**2)}
    times = interleaved(bare, seconds=0 if smoke else 20, least=3)
    yield from compare(CASE, times["ours"], times["baseline"], TARGET)

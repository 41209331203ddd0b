"""A plane of the loss against as many bare forward passes of the same images, in the same batches.

The plane has 5 x 5 points instead of the figure's 25 x 25: the time grows with the points, and what a plane
costs once weighs more in a small one. 512 images of the test set.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.measure import Line, compare, interleaved
from benchmarks.subjects import BATCH, trained
from rnlib.data import batches
from rnlib.landscape import loss_plane


def bare_forwards(model: nn.Module, pieces: Sequence[Tensor], points: int) -> None:
    """So many forward passes of all images."""
    with torch.no_grad():
        for _ in range(points):
            for x in pieces:
                model(x)


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the ratio."""
    images, points = (4, 3) if smoke else (512, 5)
    model, dataset = trained(images, smoke=smoke)
    ((x, y),) = batches(dataset, images)
    pieces = x.split(BATCH)
    times = interleaved(
        {
            "ours": lambda: loss_plane(model, x, y, points=points, batch_size=BATCH),
            "baseline": lambda: bare_forwards(model, pieces, points**2),
        },
        seconds=0 if smoke else 20,
        least=3,
        warm_up=smoke,
    )
    case = f"loss plane of {points}x{points} points / bare forward passes"
    yield from compare(case, times["ours"], times["baseline"], "<= 1.05")

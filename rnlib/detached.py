"""Batch statistics that count as constants of the gradient."""

import copy
from typing import Any

from torch import Tensor, nn

from rnlib.modes import evaluation_mode, use_statistics
from rnlib.tracking import norm_layers, recalibrate


class Detached(nn.Module):
    """A model that normalises with the statistics of the batch, but through them passes no gradient.

    An attack on it sees each image by itself: it takes account of the statistics as they are at each of its
    steps, and not of how its own images move them. What attacks in batch mode gain beyond that is what images
    do to each other.

    Answers are those of batch statistics, but for the variance, which is the unbiased one of running
    averages, a factor n / (n - 1) for the n values of a channel.

    Args:
        model: with norms of rnlib; copied, and used in evaluation mode.

    Raises:
        ValueError: the model has no norm with running statistics.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        norm_layers(model)
        self.model = copy.deepcopy(model)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        recalibrate(self.model, [x.detach()])  # anew for every batch, so at every step of an attack
        with evaluation_mode(self.model), use_statistics(self.model, "tracked"):
            return self.model(x)

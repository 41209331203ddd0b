"""The base of all layers with statistics of the batch, and batch norm, with both as explicit switches.

Every layer here normalises with the statistics of the batch while training. What it does in evaluation mode
is said by its ``statistics`` attribute, and whether a training forward updates the running statistics by
``tracking``; :func:`rnlib.use_statistics` and :func:`rnlib.track` set either for a whole model. The paper's
"BatchNorm" and "BatchNorm w/o tracking" are therefore one set of weights under ``statistics="tracked"`` and
``statistics="batch"``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STATISTICS_MODES = ("tracked", "batch")


class Norm(nn.Module):
    """Base of the layers that normalise with statistics of the batch, or with running averages of them.

    A subclass names its two statistics in ``names``, computes them in :meth:`batch_statistics`, and
    normalises with those of the batch (:meth:`normalize_batch`) or with given ones (:meth:`normalize_with`).

    Args:
        num_features: channels C of the (N, C, ...) input.
        eps: added to the spread, >= 0.
        momentum: weight of the newest batch in the running statistics (the paper's tau, Eq 9), in [0, 1];
            ``None`` averages all batches equally.
        affine: learn a scale and a shift per channel (Eq 8).
    """

    names: tuple[str, str]
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, *, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features is {num_features}, it must be at least 1")
        if eps < 0:
            raise ValueError(f"eps is {eps}, it must be at least 0")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}, it must lie in [0, 1], or be None for a plain average")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.statistics, self.tracking = "tracked", True
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        for name, value in zip(self.names, (0.0, 1.0), strict=True):
            self.register_buffer(f"running_{name}", torch.full((num_features,), value))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @property
    def running_statistics(self) -> tuple[Tensor, Tensor]:
        """The two running statistics, each (C,), in the order of ``names``."""
        first, second = (getattr(self, f"running_{name}") for name in self.names)
        return first, second

    def reset_running_statistics(self) -> None:
        """Forget what was tracked: the state of a new layer."""
        first, second = self.running_statistics
        first.zero_()
        second.fill_(1)
        self.num_batches_tracked.zero_()

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two statistics of a batch (N, C, ...), each (C,), as they enter the running averages."""
        raise NotImplementedError

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Normalise x with its own statistics; returns the output and :meth:`batch_statistics`."""
        raise NotImplementedError

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Normalise x with given statistics (C,): an affine map per channel (Eq 10)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        by_batch = self.training or self.statistics == "batch"
        self._check(x, by_batch)
        if not by_batch:
            return self.normalize_with(x, *self.running_statistics)
        y, batch = self.normalize_batch(x)
        if self.training and self.tracking:
            self._update(batch)
        return y

    def _check(self, x: Tensor, by_batch: bool) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"input has shape {tuple(x.shape)}, expected (N, {self.num_features}, ...)")
        if by_batch and x.numel() == 0:
            raise ValueError(f"input has shape {tuple(x.shape)}: an empty batch has no statistics")

    @torch.no_grad()
    def _update(self, batch: tuple[Tensor, Tensor]) -> None:
        self.num_batches_tracked += 1
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, value in zip(self.running_statistics, batch, strict=True):
            running.lerp_(value.to(running.dtype), weight)

    def extra_repr(self) -> str:
        options = f"eps={self.eps}, momentum={self.momentum}, statistics={self.statistics!r}"
        return f"{self.num_features}, {options}"


class BatchNorm(Norm):
    """Batch normalisation (Eq 6-10), numerically ``torch.nn.BatchNorm*d`` for any number of dimensions.

    The batch is normalised with its biased variance; the running average takes the unbiased one, as PyTorch
    does. Raises ``ValueError`` when a batch has one value per channel and batch statistics are asked for.
    """

    names = ("mean", "var")
    running_mean: Tensor
    running_var: Tensor

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())])
        return mean, var

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._kernel(x, self.weight, self.bias)

    def _kernel(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # With momentum 1 the kernel hands back the statistics that it computed anyway.
        mean, var = (torch.zeros_like(running) for running in self.running_statistics)
        return F.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps), (mean, var)

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return F.batch_norm(x, first, second, self.weight, self.bias, False, 0.0, self.eps)

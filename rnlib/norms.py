"""The normalisation layers of the paper.

Every :class:`Norm` normalises with the statistics of the batch while training. In evaluation mode its
``statistics`` attribute decides, and ``tracking`` whether a training forward updates running statistics. So
the paper's "BatchNorm" and "BatchNorm w/o tracking" are one set of weights under ``"tracked"`` and
``"batch"`` (:func:`rnlib.use_statistics`). A new norm also gets a name in ``NORMS`` of ``rnlib.other_norms``.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.kernels import NO_EPS, range_norm

MakeNorm = Callable[[int], nn.Module]


def leaf(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Any], Any]:
    """A forward that torch.fx records as a call of the layer, which thereby keeps its modes."""

    def recorded(self: nn.Module, x: Any) -> Any:
        if not isinstance(x, Proxy):
            return forward(self, x)
        trace: Any = x.tracer
        return trace.create_proxy("call_module", trace.path_of_module(self), (x,), {})

    return wraps(forward)(recorded)


class Norm(_BatchNorm):
    """Base of the layers that normalise with statistics of the batch, or with running averages of them.

    A subclass names its two statistics in ``names``, and normalises with those of the batch
    (:meth:`normalize_batch`) or with given ones (:meth:`normalize_with`). ``torch.optim.swa_utils.update_bn``
    fills it. Tools that look for ``nn.BatchNorm2d``, fuse layers, or rebuild them (``SyncBatchNorm``, by
    ``track_running_stats``) want native ones: ``rnlib.convert_norms(model, "torch_batch_norm")``.

    Args:
        num_features: channels C of the (N, C, ...) input.
        eps: added to the spread, >= 0.
        momentum: weight of the newest batch in the running statistics (the paper's tau, Eq 9), in [0, 1];
            ``None`` averages all batches equally.
        affine: learn a scale and a shift per channel (Eq 8).
    """

    names: tuple[str, str]
    shown: tuple[str, ...] = ("eps", "momentum", "statistics")  # in its repr
    num_batches_tracked: Tensor
    native_class: type[_BatchNorm] | None = None  # that the layer was converted from, whose inputs it takes
    _load_from_state_dict = nn.Module._load_from_state_dict  # that of native layers knows other buffers

    def __init__(
        self, num_features: int, *, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True
    ) -> None:
        nn.Module.__init__(self)
        if num_features < 1 or eps < 0 or not 0 <= (momentum or 0) <= 1:
            given = f"num_features is {num_features}, eps is {eps} and momentum is {momentum}"
            raise ValueError(f"{given}: they must be at least 1, at least 0, and in [0, 1] or None")
        if not hasattr(self, "names"):
            fix = 'of what it tracks, as names = ("mean", "var")'
            raise ValueError(f"{type(self).__name__} has no names: give the class those {fix}")
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.statistics, self.tracking = "tracked", True
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None  # type: ignore[assignment]
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None  # type: ignore[assignment]
        for name, value in zip(self.names, (0.0, 1.0), strict=True):
            self.register_buffer(f"running_{name}", torch.full((num_features,), value))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @property
    def running_statistics(self) -> tuple[Tensor, Tensor]:
        """The two running statistics, each (C,), in the order of ``names``."""
        first, second = (getattr(self, f"running_{name}") for name in self.names)
        return first, second

    def reset_running_stats(self) -> None:
        """Forget what was tracked: the state of a new layer."""
        first, second = self.running_statistics
        first.zero_()
        second.fill_(1)
        self.num_batches_tracked.zero_()

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two statistics of a batch (N, C, ...), each (C,), as they enter the running averages."""
        return self.normalize_batch(x)[1]

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Normalise x with its own statistics; returns the output and :meth:`batch_statistics`."""
        raise NotImplementedError

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Normalise x with given statistics (C,): an affine map per channel (Eq 10)."""
        raise NotImplementedError

    @leaf
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
        if self.native_class is not None:
            self.native_class._check_input_dim(self, x)
        if by_batch and x.numel() <= self.num_features:
            fix = "leave a last batch of one image out (drop_last=True), or use tracked statistics"
            raise ValueError(f"input has shape {tuple(x.shape)}, too few values for statistics: {fix}")

    @torch.no_grad()
    def _update(self, batch: tuple[Tensor, Tensor]) -> None:
        self.num_batches_tracked += 1
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, value in zip(self.running_statistics, batch, strict=True):
            running.lerp_(value.to(running.dtype), weight)

    def extra_repr(self) -> str:
        return ", ".join([str(self.num_features), *(f"{key}={getattr(self, key)!r}" for key in self.shown)])


class BatchNorm(Norm):
    """Batch normalisation (Eq 6-10), numerically ``torch.nn.BatchNorm*d`` for any number of dimensions.

    The batch is normalised with its biased variance; the running average takes the unbiased one, as PyTorch.
    """

    names = ("mean", "var")
    running_mean: Tensor
    running_var: Tensor

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


class RobustNorm(Norm):
    """RobustNorm (Eq 14): (x - mean) / (max - min)^p with a learned scale and shift, p in [0, 1].

    The paper's p is 0.2. Tracked are the mean and the range; the power is taken of the average range plus
    ``eps``, as in the released code. Other arguments are those of :class:`Norm`.
    """

    names, shown = ("mean", "range"), (*Norm.shown, "p")
    centre = "mean"

    def __init__(self, num_features: int, *, p: float = 0.2, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.p = check_power(p)

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, *batch = range_norm(x, self.weight, self.bias, p=self.p, eps=self.eps, centre=self.centre)
        return y, (batch[0], batch[1])

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        variance = (second + self.eps) ** (2 * self.p)
        return F.batch_norm(x, first, variance, self.weight, self.bias, False, 0.0, NO_EPS)


class MeanRangeNorm(RobustNorm):
    """Eq 12: (x - mean) / (max - min), RobustNorm with p = 1."""

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(num_features, p=1.0, **options)


class MinMaxNorm(MeanRangeNorm):
    """Min-max normalisation (Eq 11): (x - min) / (max - min), which maps a batch onto [0, 1]."""

    names = ("min", "range")
    centre = "min"


class NoNorm(nn.Module):
    """The identity where a norm would stand, with an optional learned shift.

    The paper's networks without normalisation lose the shift too, since their convolutions have no bias:
    ``bias=False`` is that handicapped version, ``bias=True`` the fair one.
    """

    def __init__(self, num_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_features)) if bias else None

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.view(1, -1, *[1] * (x.dim() - 2))


def is_native(layer: nn.Module) -> bool:
    """Whether a layer is a batch norm of PyTorch, or a subclass of one, and not of rnlib."""
    return isinstance(layer, _BatchNorm) and not isinstance(layer, Norm)


def check_power(p: float) -> float:
    """p, or a ValueError unless it lies in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, it must lie in [0, 1]; the paper uses 0.2")
    return p

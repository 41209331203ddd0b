"""The normalisation layers of the paper, and all layers by name.

The base of those with statistics of the batch, and batch norm, are in :mod:`rnlib.batchnorm`; layers without
a gap between training and inference in :mod:`rnlib.remedies`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.batchnorm import BatchNorm, Norm
from rnlib.functional import NO_EPS, range_norm
from rnlib.remedies import BatchRenorm, FrozenNorm, NoNorm, NormProp, TrackedNorm, WeightNorm


def _power(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, it must lie in [0, 1]; the paper uses 0.2")
    return p


class RobustNorm(Norm):
    """RobustNorm (Eq 14): (x - mean) / (max - min)^p with a learned scale and shift.

    Tracked are the mean and the range; the power is taken of the average range, as in the released code.

    Args:
        p: power of the range, 0.2 in the paper, in [0, 1].
        eps: added to the range, inside the power.
        num_features, momentum, affine: see :class:`Norm`.
    """

    names = ("mean", "range")
    centre = "mean"

    def __init__(self, num_features: int, *, p: float = 0.2, **options: Any):
        super().__init__(num_features, **options)
        self.p = _power(p)

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        low, high = x.amin(dims), x.amax(dims)
        return (x.mean(dims) if self.centre == "mean" else low), high - low

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, *batch = range_norm(x, self.weight, self.bias, p=self.p, eps=self.eps, centre=self.centre)
        return y, (batch[0], batch[1])

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        variance = (second + self.eps) ** (2 * self.p)
        return F.batch_norm(x, first, variance, self.weight, self.bias, False, 0.0, NO_EPS)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class MeanRangeNorm(RobustNorm):
    """Eq 12: (x - mean) / (max - min), RobustNorm with p = 1."""

    def __init__(self, num_features: int, **options: Any):
        super().__init__(num_features, p=1.0, **options)


class MinMaxNorm(MeanRangeNorm):
    """Min-max normalisation (Eq 11): (x - min) / (max - min), which maps a batch onto [0, 1]."""

    names = ("min", "range")
    centre = "min"


class _Divided(BatchNorm):
    """(x - mean) / divisor with a learned scale and shift, for a divisor that is a function of the variance.

    Tracked are the mean and the unbiased variance, as by :class:`BatchNorm`.
    """

    unbiased = False  # which variance of a batch the divisor is of

    def divisor(self, var: Tensor) -> Tensor:
        """What x - mean is divided by, (C,)."""
        raise NotImplementedError

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var = wide.var([0, *range(2, x.dim())], correction=0)
        # The kernel divides by this root; a scale that undoes it leaves the divisor alone.
        root = (var + self.eps).sqrt()
        n = x.numel() // self.num_features
        scale = root / self.divisor(var * (n / max(n - 1, 1)) if self.unbiased else var)
        return self._kernel(x, scale if self.weight is None else self.weight * scale, self.bias)

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        variance = self.divisor(second) ** 2
        return F.batch_norm(x, first, variance, self.weight, self.bias, False, 0.0, NO_EPS)


class SigmaNorm(_Divided):
    """(x - mean) / (2 sigma)^p with sigma = sqrt(var + eps): RobustNorm with 2 sigma for the range.

    2 sigma is at most the range (Popoviciu's inequality, Eq 13), and reached by two equal clusters. p = 1
    is BatchNorm divided by 2.

    Args:
        p: power, in [0, 1].
        num_features, eps, momentum, affine: see :class:`rnlib.Norm`.
    """

    def __init__(self, num_features: int, *, p: float = 0.2, **options: Any):
        super().__init__(num_features, **options)
        self.p = _power(p)

    def divisor(self, var: Tensor) -> Tensor:
        return (2 * (var + self.eps).sqrt()) ** self.p

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class ReleasedBatchNorm(_Divided):
    """The batch norm of the paper's released code: (x - mean) / (sigma + eps), with the unbiased sigma."""

    unbiased = True

    def divisor(self, var: Tensor) -> Tensor:
        return var.clamp_min(torch.finfo(var.dtype).tiny).sqrt() + self.eps  # the root of 0 has no slope


def _group_norm(num_features: int, *, groups: int = 8, **options: Any) -> nn.GroupNorm:
    if groups < 1 or num_features % groups:
        raise ValueError(f"groups is {groups}, it must be at least 1 and divide the {num_features} channels")
    return nn.GroupNorm(groups, num_features, **options)


def _no_norm_bias(num_features: int) -> NoNorm:
    return NoNorm(num_features, bias=True)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch_norm": BatchNorm,
    "robust_norm": RobustNorm,
    "min_max_norm": MinMaxNorm,
    "mean_range_norm": MeanRangeNorm,
    "batch_norm_released": ReleasedBatchNorm,
    "sigma_norm": SigmaNorm,
    "batch_renorm": BatchRenorm,
    "tracked_norm": TrackedNorm,
    "frozen_norm": FrozenNorm,
    "no_norm": NoNorm,
    "no_norm_bias": _no_norm_bias,
    "weight_norm": WeightNorm,
    "norm_prop": NormProp,
    "group_norm": _group_norm,
}


def make_norm(name: str, **options: Any) -> Callable[[int], nn.Module]:
    """A function from a number of channels to a new layer of the named norm.

    Args:
        name: one of ``NORMS``. With statistics of the batch: batch_norm (Eq 6 to 10), batch_norm_released
            (divides by sigma + eps), robust_norm (Eq 14), min_max_norm (Eq 11), mean_range_norm (Eq 12),
            sigma_norm ((2 sigma)^p), batch_renorm (Ioffe, 2017), tracked_norm (tracked values in training
            too). Without: frozen_norm (statistics of the first batch), no_norm, no_norm_bias, group_norm (Wu
            & He, 2018), and, in the networks of :mod:`rnlib.models` only, weight_norm (Salimans & Kingma,
            2016) and norm_prop (Arpit et al., 2016), which change the convolutions as well.
        options: keyword arguments of the layer, e.g. ``p=0.2``, ``bias=True``, ``groups=8``.

    Raises:
        ValueError: unknown name, or an option or value that the norm does not take (found out at once).
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}, known are: {', '.join(NORMS)}")
    try:
        NORMS[name](options.get("groups", 8), **options)  # a number of channels that suits every norm
    except TypeError as error:
        raise ValueError(f"{name} does not take these options: {options} ({error})") from error
    return lambda num_features: NORMS[name](num_features, **options)

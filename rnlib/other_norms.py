"""Norms beside the paper's own, and :func:`make_norm`, which knows every norm by its name.

The first close the gap between training and inference, each its own way: train with the tracked statistics,
move towards them, fix them once and for all, or normalise the weights (the remedies of Section 5).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from rnlib.kernels import NO_EPS
from rnlib.norms import BatchNorm, MakeNorm, MeanRangeNorm, MinMaxNorm, NoNorm, RobustNorm, check_power, leaf


class BatchRenorm(BatchNorm):
    """Batch Renormalization (Ioffe, 2017): BatchNorm, corrected towards the tracked statistics.

    y = weight (r (x - mean) / std + d) + bias, with r = std / running std clipped to [1 / r_max, r_max] and
    d = (mean - running mean) / running std clipped to [-d_max, d_max]; no gradient passes through r and d.
    With r_max = 1 and d_max = 0 this is BatchNorm. Both limits grow linearly from there to their values while
    the first ``warmup`` batches are tracked (Ioffe has a schedule for each), and so they do anew after
    :func:`rnlib.recalibrate`. Batch statistics in evaluation mode are corrected as in training.

    Args:
        r_max, d_max, warmup: at least 1 (Ioffe's is 3), 0 (his is 5), and 1 batch.
        num_features, eps, momentum, affine: see :class:`rnlib.Norm`.
    """

    shown = (*BatchNorm.shown, "r_max", "d_max", "warmup")

    def __init__(
        self, num_features: int, *, r_max: float = 3.0, d_max: float = 5.0, warmup: int = 500, **options: Any
    ) -> None:
        super().__init__(num_features, **options)
        if r_max < 1 or d_max < 0 or warmup < 1:
            limits = f"r_max ({r_max}), d_max ({d_max}) and warmup ({warmup})"
            raise ValueError(f"{limits} must be at least 1, 0 and 1")
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def limits(self) -> tuple[Tensor, Tensor]:
        """The largest r and d at this point of training, scalars."""
        share = (self.num_batches_tracked / self.warmup).clamp(max=1)
        return 1 + share * (self.r_max - 1), share * self.d_max

    @torch.no_grad()
    def correction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r and d of a batch (N, C, ...), each (C,)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
        (r_max, d_max), running = self.limits(), (self.running_var + self.eps).sqrt()
        r = ((var + self.eps).sqrt() / running).clamp(1 / r_max, r_max)
        return r, ((mean - self.running_mean) / running).clamp(-d_max, d_max)

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        r, d = self.correction(x)
        if self.weight is not None:
            r, d = self.weight * r, self.weight * d
        if self.bias is not None:
            d = d + self.bias
        return self._kernel(x, r, d)


class TrackedNorm(BatchNorm):
    """BatchNorm that uses its tracked values in training too (Section 5, after Ioffe & Szegedy, 2015).

    A training forward moves the running statistics towards those of the batch (Eq 9), then normalises with
    them (Eq 10); no gradient passes through them. In evaluation mode it is BatchNorm, in both modes.
    """

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check(x, True)
        if self.tracking:
            with torch.no_grad():
                self._update(self.normalize_batch(x)[1])
        # Copies: the next update must not change what this pass keeps for its gradient.
        first, second = (running.clone() for running in self.running_statistics)
        return self.normalize_with(x, first, second)


class SigmaNorm(BatchNorm):
    """(x - mean) / (2 sigma)^p with sigma = sqrt(var + eps): RobustNorm with 2 sigma for the range.

    2 sigma is at most the range (Popoviciu's inequality, Eq 13), and reached by two equal clusters. p = 1
    is BatchNorm divided by 2. Tracked are the mean and the unbiased variance, as by BatchNorm.

    Arguments are those of :class:`rnlib.RobustNorm`.
    """

    shown = (*BatchNorm.shown, "p")

    def __init__(self, num_features: int, *, p: float = 0.2, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.p = check_power(p)

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var = wide.var([0, *range(2, x.dim())], correction=0)
        # The kernel divides by the first root; a scale that undoes it leaves the divisor alone.
        scale = (var + self.eps).sqrt() / (2 * (var + self.eps).sqrt()) ** self.p
        return self._kernel(x, scale if self.weight is None else self.weight * scale, self.bias)

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        variance = ((2 * (second + self.eps).sqrt()) ** self.p) ** 2
        return F.batch_norm(x, first, variance, self.weight, self.bias, False, 0.0, NO_EPS)


class FrozenNorm(_NormBase):
    """BatchNorm with the statistics of the first training batch that passes, for ever: an affine map.

    In evaluation mode before that batch, mean 0 and variance 1. There is no second mode, hence no mismatch.
    Arguments are as for :class:`rnlib.Norm`.
    """

    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, eps, None, affine)

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training and not self.num_batches_tracked:
            with torch.no_grad():  # momentum 1: the batch's own
                F.batch_norm(x, mean, var, None, None, True, 1.0, self.eps)
            self.num_batches_tracked += 1
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class WeightNorm(NoNorm):
    """Weight normalisation (Salimans & Kingma, 2016): filters g v / ||v||, and a learned shift here.

    The layer itself is the shift; the networks of :mod:`rnlib.models` give the convolution before it
    PyTorch's ``weight_norm``, with one g for each filter.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, bias=True)


def make_norm(norm: str | MakeNorm, **options: Any) -> MakeNorm:
    """A function from a number of channels to a new layer of the named norm.

    Args:
        norm: one of ``NORMS``, or such a function, which is returned. With statistics of the batch:
            batch_norm, robust_norm, min_max_norm, mean_range_norm, sigma_norm, batch_renorm, tracked_norm.
            Without: frozen_norm, no_norm, no_norm_bias, group_norm (Wu & He, 2018), and weight_norm, which is
            for the networks of :mod:`rnlib.models` only, as it changes the convolutions as well.
        options: keyword arguments of a named layer, e.g. ``p=0.2``, ``bias=True``, ``groups=8``.

    ValueError for an unknown name, or an option or value that the norm does not take (found out at once).
    """
    if not isinstance(norm, str):
        if options:
            raise ValueError(f"options {options} are for a norm given by name, not for {norm}")
        return norm
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}, known are: {', '.join(NORMS)}")
    make = partial(NORMS[norm], **options)
    try:
        make(options.get("groups", 8))  # a number of channels that suits every norm
    except TypeError as error:
        raise ValueError(f"{norm} does not take these options: {options}, remove them ({error})") from error
    return make


def _group_norm(num_features: int, *, groups: int = 8, **options: Any) -> nn.GroupNorm:
    if groups < 1 or num_features % groups:
        raise ValueError(f"groups is {groups}, it must be at least 1 and divide the {num_features} channels")
    return nn.GroupNorm(groups, num_features, **options)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch_norm": BatchNorm,
    "robust_norm": RobustNorm,
    "min_max_norm": MinMaxNorm,
    "mean_range_norm": MeanRangeNorm,
    "sigma_norm": SigmaNorm,
    "batch_renorm": BatchRenorm,
    "tracked_norm": TrackedNorm,
    "frozen_norm": FrozenNorm,
    "no_norm": NoNorm,
    "no_norm_bias": lambda num_features: NoNorm(num_features, bias=True),
    "weight_norm": WeightNorm,
    "group_norm": _group_norm,
}

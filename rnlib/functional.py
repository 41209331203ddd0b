"""Normalisation by the range of a batch: one forward, one hand-written backward.

Written with plain tensor operations the paper's Eq 14 costs five to ten times a native batch norm and keeps
several copies of the input for the backward pass. Here the extremes are taken per image first, only the
input and per-channel vectors are kept, and the dense arithmetic is done by PyTorch's own batch-norm kernels
in their evaluation form, which is exactly an affine map per channel.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROW = 512  # floats in a row of the channels-last reduction: wide enough for vectors, small enough for cache


def image_extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each image and channel.

    Args:
        x: (N, C, H, W), N, H, W >= 1, contiguous or channels_last.

    Returns:
        Two tensors (N, C).
    """
    n, c, h, w = x.shape
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.amin((2, 3)), x.amax((2, 3))
    # Reducing the innermost-but-one axis is slow when C is narrow: lay neighbouring pixels side by side.
    fold = 1
    while fold * 2 * c <= ROW and (h * w) % (fold * 2) == 0:
        fold *= 2
    rows = x.permute(0, 2, 3, 1).reshape(n, h * w // fold, fold * c)
    low, high = rows.amin(1), rows.amax(1)
    return low.view(n, fold, c).amin(1), high.view(n, fold, c).amax(1)


def _locate(x: Tensor, per_image: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Extreme of each channel over the batch, and its place as an index into the (N, H, W) of the channel."""
    value, image = per_image.max(0) if largest else per_image.min(0)
    planes = x[image, torch.arange(x.shape[1], device=x.device)].flatten(1)
    pixel = planes.argmax(1) if largest else planes.argmin(1)
    return value, image * planes.shape[1] + pixel


class _RangeNorm(Function):
    """y = weight (x - centre) / (max - min + eps)^p + bias; see :func:`range_norm`."""

    @staticmethod
    def forward(ctx, x, weight, bias, p, eps, centre_at_min):  # type: ignore[no-untyped-def]
        low, high = image_extremes(x)
        low, low_at = _locate(x, low, largest=False)
        high, high_at = _locate(x, high, largest=True)
        dtype = x.dtype if weight is None else weight.dtype  # under autocast the parameters are more precise
        low, high = low.to(dtype), high.to(dtype)
        spread = high - low
        centre = low if centre_at_min else x.mean((0, 2, 3), dtype=dtype)
        variance = (spread + eps) ** (2 * p)  # the batch-norm kernel takes a square root
        y = F.batch_norm(x, centre, variance, weight, bias, training=False, eps=0.0)
        gain = torch.ones_like(centre) if weight is None else weight
        ctx.save_for_backward(x, gain, centre, spread, low_at, high_at)
        ctx.p, ctx.eps, ctx.centre_at_min = p, eps, centre_at_min
        ctx.mark_non_differentiable(centre, spread)
        return y, centre, spread

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _centre, _spread):  # type: ignore[no-untyped-def]
        x, gain, centre, spread, low_at, high_at = ctx.saved_tensors
        n, c, h, w = x.shape
        scale = (spread + ctx.eps) ** ctx.p
        # Evaluation form: grad_x = grad weight / scale, grad_weight = sum grad xhat, grad_bias = sum grad.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, gain, centre, scale * scale, None, None, False, 0.0, [True, True, True]
        )
        grad_spread = -ctx.p * gain * grad_weight / (spread + ctx.eps)
        grad_centre = -gain * grad_bias / scale
        if ctx.centre_at_min:
            grad_low = grad_centre - grad_spread
        else:
            grad_x += (grad_centre / (n * h * w)).view(1, c, 1, 1)
            grad_low = -grad_spread
        channel = torch.arange(c, device=x.device)
        for at, value in ((low_at, grad_low), (high_at, grad_spread)):
            pixel = at % (h * w)
            place = (at // (h * w), channel, pixel // w, pixel % w)
            grad_x.index_put_(place, value.to(grad_x.dtype), accumulate=True)
        # None in the forward wants None here.
        grad_weight, grad_bias = (
            value if wanted else None
            for value, wanted in zip((grad_weight, grad_bias), ctx.needs_input_grad[1:3], strict=True)
        )
        return grad_x, grad_weight, grad_bias, None, None, None


def range_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    p: float = 0.2,
    eps: float = 1e-5,
    centre: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by a power of its range over the batch (Eq 11, 12 and 14).

    ``y = weight (x - centre) / (max - min + eps)^p + bias``. ``eps`` stands inside the power, so that the
    slope at range 0 is finite (the authors' code adds it outside, where the slope is infinite). Where several
    elements tie for the extreme, the gradient of the range goes to the first of them. Differentiable once.

    Args:
        x: (N, C, ...), at least one element per channel.
        weight: (C,) or None for 1.
        bias: (C,) or None for 0.
        p: power of the range, in [0, 1]; 0.2 in the paper, 1 gives Eq 12.
        eps: added to the range, >= 0; with 0 a constant channel becomes NaN.
        centre: ``"mean"`` (Eq 12, 14) or ``"min"`` (Eq 11).

    Returns:
        y with the shape and memory format of x, and the batch's centre (C,) and range (C,), both detached.

    Raises:
        ValueError: no element, fewer than two dimensions, or another centre.
    """
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"input has shape {tuple(x.shape)}, expected (N, C, ...) with at least one element")
    if centre not in ("mean", "min"):
        raise ValueError(f"centre is {centre!r}, it must be 'mean' or 'min'")
    image = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
    y, middle, spread = _RangeNorm.apply(image, weight, bias, p, eps, centre == "min")
    return (y if x.dim() == 4 else y.view_as(x)), middle, spread

"""Batch norm and norms of the range, composed from the fastest of PyTorch's own operators.

On a CPU most of a norm's time goes into its statistics, and the dense arithmetic is limited by memory. So the
statistics are reduced image by image, a cache-sized piece of the batch at a time, and all of them while the
piece is in cache; what is kept for the backward pass is the input and vectors; and each dense pass is one
affine map per channel. The book's performance page has the measured times.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CACHE = 1 << 20  # bytes of a piece: fits the second-level cache of every current CPU
WIDTH = 32  # floats in a row of channels that PyTorch's reductions need to be vectorised


def channels_innermost(x: Tensor) -> bool:
    """Whether x (N, C, H, W) is laid out as channels_last and not also as contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def per_image(x: Tensor, *reductions: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """Reduce each image and channel, with all reductions in one sweep through memory.

    Args:
        x: (N, C, H, W), N, H, W >= 1, contiguous or channels_last.
        reductions: amin, amax or mean, as functions of a tensor and a dimension.

    Returns:
        For each reduction a tensor (N F, C) of F parts for each image, at least in float32: the same
        reduction over the first dimension finishes it.
    """
    n, c, h, w = x.shape
    if channels_innermost(x):
        fold = 1  # neighbouring pixels side by side, until a row is wide enough
        while fold * c < WIDTH and h * w % (2 * fold) == 0:
            fold *= 2
        rows, dim = x.permute(0, 2, 3, 1).view(n, h * w // fold, fold * c), 1
    else:
        rows, dim = x.view(n, c, h * w), 2
    images = n if x.device.type != "cpu" else max(1, CACHE // (4 * c * h * w))
    parts = []
    for piece in rows.split(images):
        piece = piece.to(torch.promote_types(x.dtype, torch.float32))
        parts.append([reduction(piece, dim) for reduction in reductions])
    return [torch.cat(part).view(-1, c) for part in zip(*parts, strict=True)]


def _locate(x: Tensor, images: Tensor) -> Tensor:
    """Where the extremes of each channel lie in the memory of x, given their images (2, C): (2, C).

    The first row is for the smallest values, the second for the largest.
    """
    c, pixels = x.shape[1], x.shape[2] * x.shape[3]
    channel = torch.arange(c, device=x.device)
    low, high = x.flatten(2)[images, channel]
    pixel = torch.stack((low.argmin(1), high.argmax(1)))
    if channels_innermost(x):
        return (images * pixels + pixel) * c + channel
    return (images * c + channel) * pixels + pixel


class _RangeNorm(Function):
    """y = weight (x - centre) / (max - min + eps)^p + bias; see :func:`range_norm`."""

    @staticmethod
    def forward(ctx, x, weight, bias, p, eps, centre_at_min):  # type: ignore[no-untyped-def]
        mean = () if centre_at_min else (torch.mean,)
        lows, highs, *means = per_image(x, torch.amin, torch.amax, *mean)
        (low, first), (high, last) = lows.min(0), highs.max(0)
        spread = high - low
        centre = means[0].mean(0) if means else low
        span = spread + eps
        variance = span ** (2 * p)  # PyTorch's kernel takes a square root
        y = F.batch_norm(x, centre, variance, weight, bias, eps=0.0)
        images = torch.stack((first, last)).div_(len(lows) // len(x), rounding_mode="floor")
        ctx.save_for_backward(x, weight, centre, span, variance, images)
        ctx.p, ctx.centre_at_min = p, centre_at_min
        ctx.mark_non_differentiable(centre, spread)
        return y, centre, spread

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _centre, _spread):  # type: ignore[no-untyped-def]
        x, weight, centre, span, variance, images = ctx.saved_tensors
        last = channels_innermost(x)
        grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        # The evaluation form of the kernel sums grad (x - centre) / span^p and grad over each channel.
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, None, centre, variance, None, None, False, 0.0, [False, True, True]
        )
        grad_spread = grad_weight * (-ctx.p / span)
        grad_centre = -grad_bias * variance.rsqrt()
        if weight is not None:
            grad_spread, grad_centre = grad_spread * weight, grad_centre * weight
        if ctx.centre_at_min:
            shift, grad_low = None, grad_centre - grad_spread
        else:
            shift, grad_low = grad_centre / (x.numel() // len(centre)), -grad_spread
        grad_x = F.batch_norm(grad, torch.zeros_like(centre), variance, weight, shift, eps=0.0)
        flat = (grad_x.permute(0, 2, 3, 1) if last else grad_x).view(-1)
        extremes = torch.cat((grad_low, grad_spread)).to(flat.dtype)
        flat.index_add_(0, _locate(x, images).view(-1), extremes)
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
    elements tie for the extreme, the gradient of the range goes to the first of them. Differentiable once,
    and not by the transforms of torch.func.

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
    if not channels_innermost(image):
        image = image.contiguous()
    y, middle, spread = _RangeNorm.apply(image, weight, bias, p, eps, centre == "min")
    return (y if x.dim() == 4 else y.view_as(x)), middle, spread

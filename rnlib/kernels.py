"""Batch norm and norms of the range, composed from the fastest of PyTorch's own operators.

On a CPU most of a norm's time goes into its statistics, memory limits the dense arithmetic, and on a small
tensor the calls take longest. So statistics are reduced in one sweep, a cache-sized piece of the batch at a
time; the backward pass keeps the input and vectors; a dense pass is one affine map per channel.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

CACHE = 1 << 22  # bytes of a piece: fits the last-level cache of every current CPU
BLOCK = 256  # pixels of a block, where channels are innermost: the pixels of a channel lie far apart there
NO_EPS = 1e-30  # lost in rounding beside any variance here; PyTorch 2.10 and 2.11 refuse 0
WIDTH = 32  # floats in a row of channels that PyTorch's reductions need to be vectorised


def channels_innermost(x: Tensor) -> bool:
    """Whether x (N, C, H, W) is laid out as channels_last and not also as contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def blocks(x: Tensor) -> Tensor:
    """The memory of x as (B, C, P): P pixels of an image are a block, in the order of image, row, column.

    x: (N, C, H, W), contiguous or channels_last.
    """
    n, c, h, w = x.shape
    if channels_innermost(x):
        pixels = BLOCK if h * w % BLOCK == 0 else h * w
        return x.as_strided((n * h * w // pixels, c, pixels), (pixels * c, 1, c))
    return x.view(n, c, h * w)


def per_block(x: Tensor, *reductions: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """Reduce each block and channel, with all reductions in one sweep through memory.

    x is as for :func:`blocks`, not empty; reductions are amin, amax, sum or mean, functions of a tensor and a
    dimension. Returned is for each a tensor (B, C), a row for each of the blocks, at least in float32: the
    same reduction over the first dimension finishes it.
    """
    rows, dim, fold = blocks(x), 2, 1
    _, c, pixels = rows.shape
    if channels_innermost(x):
        while fold * c < WIDTH and pixels % (2 * fold) == 0:
            fold *= 2  # neighbouring pixels side by side, until a row is wide enough
        rows, dim = x.as_strided((len(rows), pixels // fold, fold * c), (pixels * c, fold * c, 1)), 1
    wide = torch.promote_types(x.dtype, torch.float32)
    size = max(1, CACHE // (4 * c * pixels))
    parts = []
    for piece in (rows,) if len(rows) <= size or x.device.type != "cpu" else rows.split(size):
        piece = piece.to(wide)
        parts.append([reduction(piece, dim) for reduction in reductions])
    whole = parts[0] if len(parts) == 1 else [torch.cat(part) for part in zip(*parts, strict=True)]
    if fold == 1:
        return whole
    return [reduction(part.view(-1, fold, c), 1) for reduction, part in zip(reductions, whole, strict=True)]


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale x + shift for x (N, C, H, W), scale and shift (C,), with the memory format and type of x."""
    if channels_innermost(x) and x.dtype == scale.dtype:
        return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))
    # The kernel for batch norm takes half the time of addcmul on contiguous channels, and mixes types.
    return F.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, eps=NO_EPS)


def _composed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, p: float, eps: float, centre_at_min: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as :class:`_RangeNorm` of operators that PyTorch differentiates again, or by torch.func."""
    rows = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)  # (C, values)
    low, high = (rows.gather(1, at) for at in (rows.argmin(1, True), rows.argmax(1, True)))
    centre = low if centre_at_min else rows.mean(1, True)
    y = (rows - centre) * (high - low + eps) ** -p
    y = (y if weight is None else y * weight[:, None]) + (0 if bias is None else bias[:, None])
    y = y.view_as(x.transpose(0, 1)).transpose(0, 1).to(x.dtype)
    return y, centre[:, 0].detach(), (high - low)[:, 0].detach()


class _RangeNorm(Function):
    """y = weight (x - centre) / (max - min + eps)^p + bias; see :func:`range_norm`."""

    @staticmethod
    def forward(ctx, x, weight, bias, p, eps, centre_at_min):  # type: ignore[no-untyped-def]
        lows, highs, *sums = per_block(x, torch.amin, torch.amax, *() if centre_at_min else (torch.sum,))
        (low, first), (high, last) = lows.min(0), highs.max(0)
        extremes = torch.stack((first, last))  # their blocks
        spread = high - low
        centre = sums[0].sum(0).mul_(x.shape[1] / x.numel()) if sums else low
        span = spread + eps
        inverse = span.pow(-p)
        scale = inverse if weight is None else inverse * weight
        shift = -centre * scale if bias is None else torch.addcmul(bias, centre, scale, value=-1)
        ctx.save_for_backward(x, weight, bias, centre, span, inverse, scale, extremes)
        ctx.p, ctx.eps, ctx.centre_at_min = p, eps, centre_at_min
        ctx.mark_non_differentiable(centre, spread)
        return _affine(x, scale, shift), centre, spread

    @staticmethod
    def backward(ctx, grad, _centre, _spread):  # type: ignore[no-untyped-def]
        x, weight, bias, centre, span, inverse, scale, extremes = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what follows would hide from autograd how it depends on x
            y, *_ = _composed(x, weight, bias, ctx.p, ctx.eps, ctx.centre_at_min)
            needed = ctx.needs_input_grad
            inputs = [tensor for tensor, need in zip((x, weight, bias), needed[:3], strict=True) if need]
            found = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
            return tuple(next(found) if need else None for need in needed)
        memory_format = torch.channels_last if channels_innermost(x) else torch.contiguous_format
        grad = grad.contiguous(memory_format=memory_format)
        # The evaluation form of the kernel sums grad (x - centre) and grad over each channel. A GPU's wants a
        # weight, and the statistics that it does not use as tensors, if empty ones.
        ones, unused = torch.ones_like(span), span.new_empty(0)
        _, product, total = torch.ops.aten.native_batch_norm_backward(
            grad, x, ones, centre, ones, unused, unused, False, 0.0, [False, True, True]
        )
        pull = (product * scale / span).mul_(ctx.p)  # of the low on the range, and less that of the high
        push = total * scale  # less the gradient of the centre
        if ctx.centre_at_min:
            shift, at_extremes = torch.zeros_like(push), (pull - push, -pull)
        else:
            shift, at_extremes = push * (-x.shape[1] / x.numel()), (pull, -pull)
        grad_x = _affine(grad, scale, shift)
        # Of the extremes' blocks, kept from the forward pass, the first pixel that has the extreme value.
        channel = torch.arange(x.shape[1], device=x.device)
        low, high = blocks(x)[extremes, channel]
        pixel = torch.stack((low.argmin(1), high.argmax(1)))
        values = torch.stack(at_extremes).to(grad_x.dtype)
        blocks(grad_x).index_put_((extremes, channel, pixel), values, accumulate=True)
        # None in the forward wants None here.
        grad_weight = product * inverse if ctx.needs_input_grad[1] else None
        grad_bias = total if ctx.needs_input_grad[2] else None
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
    elements tie for the extreme, the gradient of the range goes to the first of them. Second derivatives and
    the transforms of torch.func take the slower way through PyTorch's operators.

    Args:
        x: (N, C, ...), at least one element per channel.
        weight, bias: (C,), or None for 1 and 0.
        p: power of the range, in [0, 1]; 0.2 in the paper, 1 gives Eq 12.
        eps: added to the range, >= 0; with 0 a constant channel becomes NaN.
        centre: ``"mean"`` (Eq 12, 14) or ``"min"`` (Eq 11).

    Returns y with the shape and memory format of x, and the batch's centre (C,) and range (C,), both
    detached.
    """
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"input has shape {tuple(x.shape)}, expected (N, C, ...) with at least one element")
    if centre not in ("mean", "min"):
        raise ValueError(f"centre is {centre!r}, it must be 'mean' or 'min'")
    if torch._C._are_functorch_transforms_active():
        return _composed(x, weight, bias, p, eps, centre == "min")
    image = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
    if not channels_innermost(image):
        image = image.contiguous()
    y, middle, spread = _RangeNorm.apply(image, weight, bias, p, eps, centre == "min")
    return (y if x.dim() == 4 else y.view_as(x)), middle, spread

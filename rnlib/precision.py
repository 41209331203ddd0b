"""A network that computes in bfloat16, on every machine at least as fast as in float32."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Bfloat16(nn.Module):
    """A network under autocast that answers float32, so that the loss is computed in float32.

    Weights and running statistics keep their type. Where PyTorch has no bfloat16 kernels for the CPU (x86
    before AVX-512, builds without oneDNN) it computes the products of :class:`WideProducts`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        onednn = torch.backends.mkldnn.is_available()  # without it the operator does not exist
        self.wide_on_cpu = not (onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide_on_cpu and x.device.type == "cpu"
        with torch.autocast(x.device.type, torch.bfloat16), WideProducts() if wide else nullcontext():
            return self.model(x).float()


class WideProducts(TorchFunctionMode):
    """Convolutions and linear layers of bfloat16 numbers, multiplied in float32 and rounded to bfloat16.

    Kernels for bfloat16 add up in float32 as well, so answers and gradients are theirs but for the order of
    the sum. Without such kernels PyTorch falls back on loops ten times slower than float32.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_rounded, args), **{k: _rounded(v) for k, v in kwargs.items()}).bfloat16()


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value

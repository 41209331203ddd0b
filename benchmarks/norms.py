"""Our norms against native BatchNorm2d and against the formulas, forward and backward.

Three shapes of ResNet-20 at batch 128, each contiguous and channels_last, float32, one thread, training mode
with running statistics. Gradients are asked for the input, the scale and the shift.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import Line, compare, interleaved
from benchmarks.subjects import FormulaBatchNorm, FormulaRobustNorm
from rnlib.norms import BatchNorm, RobustNorm

SHAPES = ((128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8))
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "native": nn.BatchNorm2d,
    "BatchNorm": BatchNorm,
    "RobustNorm": RobustNorm,
    "BatchNorm formula": FormulaBatchNorm,
    "RobustNorm formula": FormulaRobustNorm,
}


def forward_backward(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    """A function that passes x (N, C, H, W) forward and a fixed gradient backward.

    ``torch.autograd.grad`` hands the gradients out instead of keeping them in ``.grad``, so that every call
    frees what the call before it had.
    """
    x = x.detach().requires_grad_()
    grad = torch.randn_like(x)
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


class _Operators(TorchDispatchMode):
    """Notes whether the training form of the native kernel is called."""

    native = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm.default and args[5]:
            self.native = True
        return func(*args, **(kwargs or {}))


def uses_native_kernel(layer: nn.Module, x: Tensor) -> bool:
    """Whether a training forward of the layer is PyTorch's own kernel for batch norm."""
    with _Operators() as operators:
        layer.train()(x)
    return operators.native


def lines(smoke: bool) -> Iterator[Line]:
    """Yield times and ratios of every shape and memory format."""
    torch.manual_seed(0)
    for shape in [(4, *shape[1:]) for shape in SHAPES] if smoke else SHAPES:
        for name, memory_format in FORMATS.items():
            x = torch.randn(shape).contiguous(memory_format=memory_format)
            layers = {layer: make(shape[1]) for layer, make in LAYERS.items()}
            times = interleaved(
                {layer: forward_backward(module, x) for layer, module in layers.items()},
                seconds=0 if smoke else 2,
                least=10,
            )
            where = f"{'x'.join(map(str, shape))}, {name}"
            for layer in ("RobustNorm", "BatchNorm"):
                found = compare(f"{layer} / nn.BatchNorm2d, {where}", times[layer], times["native"], "<= 0.9")
                if uses_native_kernel(layers[layer], x):  # which also meets the target
                    found[-1] = replace(found[-1], note="is the native kernel")
                yield from found
            for layer, target in (("RobustNorm", ">= 5"), ("BatchNorm", "")):
                case = f"{layer} / formula, {where}"
                yield from compare(case, times[layer], times[f"{layer} formula"], target)

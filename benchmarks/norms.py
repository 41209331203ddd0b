"""Our norms against native BatchNorm2d and against the formulas, forward and backward.

Three shapes of ResNet-20 at batch 128, each contiguous and channels_last, float32, one thread, training mode
with running statistics. Gradients are asked for the input, the scale and the shift. A turn of a layer lasts
ten milliseconds, as the smallest shape is done in less than one.

Without a target come what a miss is explained with: the same for single calls, which find the caches as
another layer left them; layers on a tensor so small that only the calls cost; and the operators of both, as
torch.profiler sees them, in which a call of an operator weighs about a microsecond too much.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Line, compare, exact, interleaved
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
TINY = (1, 64, 2, 2)
# What the operators of a layer are for; whatever is not named here is a small call.
PURPOSES = {
    "statistics": ("amin", "amax", "sum"),
    "affine maps": ("addcmul", "native_batch_norm"),
    "sums of the gradient": ("native_batch_norm_backward",),
    "finding the extremes": ("min", "max", "index", "argmin", "argmax", "index_put_", "_index_put_impl_"),
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


def operator_times(layer: nn.Module, x: Tensor, calls: int) -> dict[str, float]:
    """Milliseconds of a forward and backward pass by :data:`PURPOSES`, and ``small calls`` for the others.

    Of the native layer the one kernel of each pass is all there is, statistics included.
    """
    run = forward_backward(layer, x)
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            run()
    times = dict.fromkeys((*PURPOSES, "small calls"), 0.0)
    for event in profiled.key_averages():
        operator = event.key.removeprefix("aten::")
        purpose = next((key for key, names in PURPOSES.items() if operator in names), "small calls")
        times[purpose] += 1e-3 * event.self_cpu_time_total / calls
    return times


def explanation(x: Tensor, where: str, smoke: bool) -> Iterator[Line]:
    """Yield what a ratio of RobustNorm and the native layer is made of."""
    layers = {"ours": RobustNorm(x.shape[1]), "baseline": nn.BatchNorm2d(x.shape[1])}
    runs = {name: forward_backward(layer, x) for name, layer in layers.items()}
    times = interleaved(runs, seconds=0 if smoke else 1, least=10)
    yield from compare(f"single calls, {where}", times["ours"], times["baseline"])
    for name, layer in zip(("RobustNorm", "nn.BatchNorm2d"), layers.values(), strict=True):
        for purpose, milliseconds in operator_times(layer, x, 1 if smoke else 50).items():
            yield exact(f"operators, {where}, {name}, {purpose}", "time", milliseconds, "ms")


def lines(smoke: bool) -> Iterator[Line]:
    """Yield times and ratios of every shape and memory format."""
    torch.manual_seed(0)
    for shape in [(4, *shape[1:]) for shape in SHAPES] if smoke else SHAPES:
        for name, memory_format in FORMATS.items():
            x = torch.randn(shape).contiguous(memory_format=memory_format)
            layers = {layer: make(shape[1]) for layer, make in LAYERS.items()}
            times = interleaved(
                {layer: forward_backward(module, x) for layer, module in layers.items()},
                seconds=0 if smoke else 3,
                least=10,
                turn=0.01,
            )
            where = f"{'x'.join(map(str, shape))}, {name}"
            for layer, target in (("RobustNorm", "<= 0.9"), ("BatchNorm", "")):  # which calls the native one
                case = f"{layer} / nn.BatchNorm2d, {where}"
                yield from compare(case, times[layer], times["native"], target)
            for layer, target in (("RobustNorm", ">= 5"), ("BatchNorm", "")):
                case = f"{layer} / formula, {where}"
                yield from compare(case, times[layer], times[f"{layer} formula"], target)
            yield from explanation(x, where, smoke)
    tiny = {"ours": RobustNorm(TINY[1]), "baseline": nn.BatchNorm2d(TINY[1])}
    runs = {name: forward_backward(layer, torch.randn(TINY)) for name, layer in tiny.items()}
    times = interleaved(runs, seconds=0 if smoke else 1, turn=0.01)
    yield from compare(f"calls alone, {'x'.join(map(str, TINY))}", times["ours"], times["baseline"])

"""What an image costs: by norm, by kind of training, with batch size, width, depth and attack steps.

And where the time of a training step goes: its operators as torch.profiler sees them, and its speed beside
those of a large matrix product and a wide convolution, the faster of which is taken for the machine's peak.
The costs of the attacks come from :mod:`benchmarks.evaluation`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Line, exact, interleaved, summary
from benchmarks.norms import FORMATS, SHAPES, forward_backward
from benchmarks.subjects import BATCH, random_images
from benchmarks.training import EPS, STEP_SIZE, bare_steps, batch, fitting
from rnlib.attacks import PGD
from rnlib.models import resnet
from rnlib.other_norms import NORMS, make_norm

SIZES = {
    "batch size": [1, 4, 16, 64, 128, 256],
    "width": [4, 8, 16, 32],
    "depth": [8, 14, 20, 32, 44, 56],
    "attack steps": [1, 2, 5, 10, 20],
}
SMOKE_SIZES = {"batch size": [1, 2], "width": [2, 4], "depth": [8, 14], "attack steps": [1, 2]}
TRAININGS = [
    ("PGD-3", 3, "float32"),
    ("PGD-10", 10, "float32"),
    ("natural", 0, "bfloat16"),
    ("PGD-3", 3, "bfloat16"),
]


Cases = dict[str, tuple[Callable[[], Any], int]]  # what to run, and the number of images that it works on


def costs(cases: Cases, seconds: float) -> Iterator[Line]:
    """Yield the milliseconds an image of every case."""
    functions = {case: function for case, (function, _) in cases.items()}
    times = interleaved(functions, seconds=seconds, least=3, warm_up=False)
    for case, (_, images) in cases.items():
        yield summary(case, "cost", 1e3 * times[case] / images, "ms/image")


def norm_costs(smoke: bool) -> Iterator[Line]:
    """Yield the cost of every norm alone, forward and backward."""
    shape = (4, *SHAPES[0][1:]) if smoke else SHAPES[0]
    cases: Cases = {}
    for memory, memory_format in FORMATS.items():
        x = torch.randn(shape).contiguous(memory_format=memory_format)
        for name in NORMS:
            options = {"bias": True} if name == "no_norm" else {}
            layer = make_norm(name, **options)(shape[1])
            cases[f"norm, {name}, {memory}"] = forward_backward(layer, x), shape[0]
    yield from costs(cases, 0 if smoke else 4)


def training_costs(smoke: bool) -> Iterator[Line]:
    """Yield the cost of a training step with every norm, and of every kind of training with two of them."""
    n, depth, width = (4, 8, 8) if smoke else (BATCH, 20, 16)
    data = random_images(n)
    cases: Cases = {}
    for name in NORMS:
        function = fitting(resnet(depth, name, width=width), data, batch_size=n)
        cases[f"training, {name}, natural, float32"] = function, n
    for kind, steps, precision in TRAININGS:
        attack = PGD(EPS, steps=steps, step_size=STEP_SIZE) if steps else None
        for name in ("batch_norm", "robust_norm"):
            network = resnet(depth, name, width=width)
            function = fitting(network, data, attack, batch_size=n, precision=precision)
            cases[f"training, {name}, {kind}, {precision}"] = function, n
    yield from costs(cases, 0 if smoke else 1)


def size_costs(smoke: bool) -> Iterator[Line]:
    """Yield the cost of a training step, or of PGD, by size."""
    norm, sizes = "batch_norm", SMOKE_SIZES if smoke else SIZES
    n, depth, width = (4, 8, 4) if smoke else (64, 20, 16)
    x, y = batch(n)
    cases: Cases = {}
    for size in sizes["batch size"]:
        cases[f"batch size, {size}"] = bare_steps(resnet(depth, norm, width=width), *batch(size)), size
    for size in sizes["width"]:
        cases[f"width, {size}"] = bare_steps(resnet(depth, norm, width=size), x, y), n
    for size in sizes["depth"]:
        cases[f"depth, {size}"] = bare_steps(resnet(size, norm, width=width), x, y), n
    model = resnet(depth, norm, width=width).to(memory_format=torch.channels_last).eval()
    for size in sizes["attack steps"]:
        pgd = PGD(EPS, steps=size, step_size=STEP_SIZE)
        cases[f"attack steps, {size}"] = partial(pgd, model, x, y), n
    yield from costs(cases, 0 if smoke else 1)


def operator_shares(model: nn.Module, n: int, label: str) -> Iterator[Line]:
    """Yield the share of each operator in three training steps, those below 2% together."""
    step = bare_steps(model, *batch(n), steps=3)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(times.values())
    shares = {key.removeprefix("aten::"): 100 * time / total for key, time in times.items()}
    convolutions = {key: share for key, share in shares.items() if "conv" in key}
    yield exact(f"step, {label}, convolutions", "share", sum(convolutions.values()), "%")
    others = {key: share for key, share in shares.items() if key not in convolutions}
    large = {key: share for key, share in others.items() if share >= 2}
    for key, share in sorted(large.items(), key=lambda item: -item[1]):
        yield exact(f"step, {label}, {key}", "share", share, "%")
    yield exact(f"step, {label}, others", "share", sum(others.values()) - sum(large.values()), "%")


def speeds(smoke: bool) -> Iterator[Line]:
    """Yield the arithmetic speed of a matrix product, of a wide convolution and of a training step.

    The two libraries behind the first two differ in what they know of a processor.
    """
    n, depth, width, size, channels = (4, 8, 4, 64, 8) if smoke else (BATCH, 20, 16, 2048, 256)
    a, b = torch.randn(2, size, size)
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    convolution.to(memory_format=torch.channels_last)
    x = torch.randn(32, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    step = bare_steps(resnet(depth, "batch_norm", width=width), *batch(n))
    with FlopCounterMode(display=False) as counter:
        step()
    convolve = torch.no_grad()(partial(convolution, x))
    times = interleaved(
        {"product": lambda: a @ b, "convolution": convolve, "step": step}, seconds=0 if smoke else 3
    )
    work = {
        "product": 2 * size**3,
        "convolution": 2 * 9 * channels * x.numel(),
        "step": counter.get_total_flops(),
    }
    names = {
        "product": f"matrix product of {size}x{size}",
        "convolution": f"convolution of {channels} channels",
        "step": "training step of ResNet-20",
    }
    for key, name in names.items():
        yield summary(f"speed, {name}", "speed", 1e-9 * work[key] / times[key], "GFLOP/s")


def lines(smoke: bool) -> Iterator[Line]:
    """Yield all of it."""
    torch.manual_seed(0)
    yield from norm_costs(smoke)
    yield from training_costs(smoke)
    yield from size_costs(smoke)
    n, depth, width = (4, 8, 4) if smoke else (BATCH, 20, 16)
    for norm in ("batch_norm", "robust_norm"):
        yield from operator_shares(resnet(depth, norm, width=width), n, norm)
    yield from speeds(smoke)

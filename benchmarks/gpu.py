"""Training of ResNet-20 on a GPU: images/s of 1 to 16 models, and PGD-20 on 10,000 images.

``python -m benchmarks gpu`` writes ``benchmarks/results-gpu.csv``. Ours is :func:`rnlib.fit_many`, one model
after the other. Beside it stand a plain PyTorch loop on one fixed batch; a process for each model, side by
side, as in ``study.burst``; and the convolutions of the network alone, in batches so large that nothing but
their arithmetic and memory counts: what the card could do.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Line, exact
from benchmarks.subjects import BATCH, random_images
from benchmarks.training import EPS, LR, STEP_SIZE, bare_steps, batch, plain_pgd
from rnlib import statistics_modes
from rnlib.attacks import PGD
from rnlib.evaluate import measure
from rnlib.models import resnet
from rnlib.train import Training, fit, fit_many

MODELS = [1, 2, 4, 8, 16]
STEPS = 40  # of a model
WAYS: dict[str, PGD | None] = {"natural": None, "PGD-3": PGD(EPS, steps=3, step_size=STEP_SIZE)}
LARGE = 16  # batches at once, for the convolutions alone


def cuda(smoke: bool) -> str:
    """``"cuda"``, or the CPU for a smoke test; FileNotFoundError where there is no CUDA device."""
    if not smoke and not torch.cuda.is_available():
        raise FileNotFoundError("this row needs a CUDA device, and PyTorch sees none")
    return "cpu" if smoke else "cuda"


def synchronize(device: str | torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: str, function: Callable[[], Any]) -> float:
    """How long the second of two calls takes on a device."""
    function()
    synchronize(device)
    start = perf_counter()
    function()
    synchronize(device)
    return perf_counter() - start


def memory(case: str) -> Iterator[Line]:
    """Yield how much memory of the GPU all processes have taken, their own parts of CUDA included."""
    if torch.cuda.is_available():
        free, there = torch.cuda.mem_get_info()
        yield exact(f"memory, {case}", "memory", (there - free) / 2**20, "MiB")


def settings(kind: str, size: int) -> Training:
    """An epoch of natural or adversarial training."""
    return Training(epochs=1, batch_size=size, lr=LR, attack=WAYS[kind], precision="bfloat16")


def convolutions(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A function that computes every convolution of a network and its gradients, on inputs of its shape."""
    inputs: list[tuple[nn.Module, torch.Tensor]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [
        layer.register_forward_pre_hook(lambda m, given: inputs.append((m, given[0]))) for layer in layers
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    leaves = [(layer, torch.randn_like(given).requires_grad_()) for layer, given in inputs]

    def run() -> None:
        for layer, leaf in leaves:
            with torch.autocast(leaf.device.type, torch.bfloat16):
                y = layer(leaf)
            torch.autograd.grad(y, (leaf, *layer.parameters()), y.detach())

    return run


def start(device: str, steps: int, smoke: bool) -> "subprocess.Popen[str]":
    """A process that trains a model of its own as every line says that it is sent."""
    command = [sys.executable, "-m", "benchmarks.gpu", device, str(steps), "smoke" if smoke else "full"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def work(device: str, steps: int, smoke: bool) -> None:
    """What such a process does."""
    torch.set_num_threads(1)
    size, model = (4, resnet(8, width=4)) if smoke else (BATCH, resnet(20))
    dataset = random_images(steps * size)
    for kind in sys.stdin:
        fit(model, dataset, settings(kind.strip(), size), device=device)
        print("done", flush=True)


def side_by_side(processes: "Sequence[subprocess.Popen[str]]", kind: str) -> None:
    """Let every process train once, and wait for all."""
    for process in processes:
        print(kind, file=process.stdin, flush=True)
    for process in processes:
        if not process.stdout or not process.stdout.readline():
            raise RuntimeError(f"a training process ended with status {process.wait()}")


def lines(smoke: bool) -> Iterator[Line]:
    """Yield all of it.

    Raises:
        FileNotFoundError: there is no CUDA device.
    """
    device, counts = cuda(smoke), MODELS[:2] if smoke else MODELS
    size, steps, depth, width = (4, 2, 8, 4) if smoke else (BATCH, STEPS, 20, 16)
    torch.manual_seed(0)

    def network() -> nn.Module:
        return resnet(depth, width=width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    dataset, (x, y) = random_images(steps * size), (part.to(device) for part in batch(size))
    processes = [start(device, steps, smoke) for _ in range(counts[-1])]
    try:
        for kind in WAYS:
            model, perturb = network(), plain_pgd(network(), y, 3) if WAYS[kind] else lambda images: images
            took = seconds(device, bare_steps(model, x, y, steps=steps, perturb=perturb))
            yield exact(f"{kind}, plain loop", "speed", steps * size / took, "images/s")
            yield from memory(f"{kind}, 1 process")
            side_by_side(processes, kind)  # warm them up, all together
            yield from memory(f"{kind}, {1 + len(processes)} processes")
            for count in counts:
                models = [network() for _ in range(count)]
                hows: dict[str, Callable[[], Any]] = {
                    "fit_many": partial(fit_many, models, dataset, settings(kind, size), device=device),
                    "processes side by side": partial(side_by_side, processes[:count], kind),
                }
                for how, function in hows.items():
                    case = f"{kind}, {count} models, {how}"
                    yield exact(case, "speed", count * steps * size / seconds(device, function), "images/s")
    finally:
        for process in processes:
            process.communicate()  # closes its input, at which it ends
    images = LARGE * size
    took = seconds(device, convolutions(network(), x.repeat(LARGE, 1, 1, 1)))
    yield exact("natural, convolutions alone", "speed", images / took, "images/s")
    test, model = random_images(20 if smoke else 10_000), network()
    for mode in statistics_modes(model):
        run = partial(measure, model, test, PGD(EPS, steps=20), statistics=mode, device=device)
        yield exact(f"PGD-20 on {len(test)} images, {mode}", "seconds", seconds(device, run), "s")


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "smoke")

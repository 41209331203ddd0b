"""Bytes that RobustNorm and native BatchNorm2d keep for the backward pass, and a ResNet-20 of either.

Counted are the storages that autograd saves, each once, however many tensors look at it. The numbers follow
from the code, not from the machine.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Line, exact
from benchmarks.norms import FORMATS, SHAPES
from benchmarks.subjects import BATCH
from rnlib.models import resnet
from rnlib.norms import RobustNorm


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes of all storages that a training forward of x keeps for backward, x and parameters included."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module.train()(x)  # alive until all is counted, or an address might be used again
    del y
    return sum(storages.values())


def lines(smoke: bool) -> Iterator[Line]:
    """Yield bytes and ratios of every shape and memory format, and of a whole network."""
    batch = 4 if smoke else BATCH
    inputs: dict[str, tuple[tuple[nn.Module, nn.Module], Tensor]] = {
        f"layer, {batch}x{channels}x{size}x{size}, {name}": (
            (RobustNorm(channels), nn.BatchNorm2d(channels)),
            torch.randn(batch, channels, size, size).contiguous(memory_format=memory_format),
        )
        for _, channels, size, _ in SHAPES
        for name, memory_format in FORMATS.items()
    }
    networks = (resnet(20, "robust_norm"), resnet(20, nn.BatchNorm2d))
    inputs["ResNet-20"] = (networks, torch.rand(batch, 3, 32, 32))
    for case, (modules, x) in inputs.items():
        x.requires_grad_()
        ours, native = (saved_bytes(module, x) for module in modules)
        case = f"RobustNorm / nn.BatchNorm2d, {case}"
        yield exact(case, "ours", ours, "bytes")
        yield exact(case, "baseline", native, "bytes")
        yield exact(case, "ratio", ours / native, "x", "<= 1.05")

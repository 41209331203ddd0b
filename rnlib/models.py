"""ResNet and VGG for small images, with any norm and the input normalisation inside the model.

The layouts are those of the paper's released code: CIFAR ResNets of He et al. (2016), and VGG of Simonyan &
Zisserman (2014) with a dropout head of two hidden layers. :func:`pretrained` gives those that were trained.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from rnlib.data import STATISTICS
from rnlib.norms import MakeNorm, leaf
from rnlib.other_norms import WeightNorm, make_norm

# Convolutions of each stage, by depth.
VGG_LAYOUTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that a model takes images in [0, 1] and attacks work in pixels.

    Both have one value per channel, numbers or tensors, std > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        mean, std = (values.tolist() if hasattr(values, "tolist") else values for values in (mean, std))
        if not mean or len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must be of equal length, std positive")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.mean.shape[1]:  # grey images would pass as three equal channels
            raise ValueError(f"images have shape {tuple(x.shape)}, expected (N, {self.mean.shape[1]}, H, W)")
        return (x - self.mean) / self.std


class Block(nn.Module):
    """A chain of ``depth`` convolutions with norms beside a shortcut; a subclass says which convolutions.

    It has ``expansion`` output channels for each of ``planes``.
    """

    depth: int
    expansion: int

    def __init__(self, inputs: int, planes: int, stride: int, norm: MakeNorm, shortcut: str) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.residual = nn.Sequential(*self.layers(inputs, planes, stride, norm))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "conv":
                kind = nn.Conv2d if inputs >= 8 else NarrowPointwise
                self.shortcut = nn.Sequential(kind(inputs, outputs, 1, stride, bias=False), norm(outputs))
            else:
                self.shortcut = PadShortcut(stride, outputs - inputs)
        self.activation: Callable[[Tensor], Tensor] = F.relu

    def layers(self, inputs: int, planes: int, stride: int, norm: MakeNorm) -> list[nn.Module]:
        """The chain, from ``inputs`` to ``planes * expansion`` channels, its last layer a norm."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    depth, expansion = 2, 1

    def layers(self, inputs: int, planes: int, stride: int, norm: MakeNorm) -> list[nn.Module]:
        first = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        second = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        return [first, norm(planes), nn.ReLU(), second, norm(planes)]


class PadShortcut(nn.Module):
    """He et al.'s parameter-free shortcut: every second pixel, and new channels filled with zeros."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class NarrowPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride that takes the pixels first, for fewer than 8 channels.

    There the AVX2 kernel of oneDNN 3.12 for the gradient of the weights writes outside its memory if the
    images are channels_last: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight)


def resnet(
    depth: int,
    norm: str | MakeNorm = "batch_norm",
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    shortcut: str = "conv",
    block: type[Block] = BasicBlock,
    **norm_options: Any,
) -> nn.Module:
    """CIFAR ResNet of basic blocks (He et al., 2016): the paper's ResNet-20, 38, and the 50 of its text.

    Args:
        depth: 6n + 2 with n >= 1 blocks a stage; for a block of d convolutions 3dn + 2.
        norm: a name of :func:`rnlib.make_norm`, or a function from a number of channels to a layer.
        num_classes, in_channels: sizes of output and input.
        width: channels of the first of three stages, 16 in the paper; the next have 2 and 4 times as many.
        mean, std: of the images in [0, 1], per channel, for the :class:`Normalize` inside; default 0 and 1.
        shortcut: ``"conv"`` (1x1 convolution, as the released code) or ``"pad"`` (parameter-free).
        block: what each stage is made of.
        norm_options: for a norm given by name, e.g. ``p=0.2``.

    Returns a model from (N, in_channels, H, W) in [0, 1] to logits (N, num_classes), at depth 20 of 272,474
    parameters with BatchNorm. ValueError for another depth, an unknown norm, shortcut or option.
    """
    period = 3 * block.depth
    if depth < period + 2 or (depth - 2) % period:
        known = ", ".join(str(period * n + 2) for n in range(1, 10))
        raise ValueError(f"depth is {depth}, it must be {period}n + 2: {known}, ...")
    if shortcut not in ("conv", "pad"):
        raise ValueError(f"shortcut is {shortcut!r}, it must be 'conv' (1x1) or 'pad' (parameter-free)")
    make = make_norm(norm, **norm_options)
    layers = [_input(in_channels, mean, std, num_classes=num_classes, width=width)]
    layers += [nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), make(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        planes = width * 2**stage
        for index in range((depth - 2) // period):
            layers.append(block(inputs, planes, 2 if stage and index == 0 else 1, make, shortcut))
            inputs = planes * block.expansion
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return _initialised(layers)


def vgg(
    depth: int,
    norm: str | MakeNorm = "batch_norm",
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **norm_options: Any,
) -> nn.Module:
    """VGG for small images with a norm after every convolution and the released code's dropout head.

    Args:
        depth: 11, 13, 16 or 19 (the released code builds 16 when asked for 19; this is the real 19).
        width: channels of the first stage, 64 in the paper; the next have 2, 4, 8 and 8 times as many.
        others: see :func:`resnet`.

    Raises ValueError for another depth, an unknown norm or option.
    """
    if depth not in VGG_LAYOUTS:
        raise ValueError(f"depth is {depth}, it must be one of {', '.join(map(str, VGG_LAYOUTS))}")
    make = make_norm(norm, **norm_options)
    layers = [_input(in_channels, mean, std, num_classes=num_classes, width=width)]
    inputs, hidden = in_channels, 8 * width
    for stage, convolutions in enumerate(VGG_LAYOUTS[depth]):
        channels = min(2**stage, 8) * width
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), make(channels), nn.ReLU()]
            inputs = channels
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # 28-pixel images shrink 28, 14, 7, 4, 2, 1
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for size in (inputs, hidden):
        layers += [nn.Dropout(), nn.Linear(size, hidden), nn.ReLU()]
    return _initialised([*layers, nn.Linear(hidden, num_classes)])


def _input(
    in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None, **sizes: int
) -> nn.Module:
    for name, value in {"in_channels": in_channels, **sizes}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
    mean = (0.0,) * in_channels if mean is None else mean
    if len(mean) != in_channels:
        raise ValueError(f"mean has {len(mean)} values for {in_channels} input channels")
    return Normalize(mean, (1.0,) * in_channels if std is None else std)


def _initialised(layers: list[nn.Module]) -> nn.Module:
    model = nn.Sequential(*layers)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):  # as in the released code: fan-out, no correction for stride
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for chain in [layer for layer in model.modules() if isinstance(layer, nn.Sequential)]:
        for before, layer in pairwise(chain):
            if isinstance(layer, WeightNorm):
                weight_norm(before)
    return model


# Of each trained ResNet-20 the first half of the sha256 of its weights, and the percent right of 2,000 test
# images, clean and under the paper's PGD, with tracked and with batch statistics.
_TRAINED = {
    "batch_norm_natural_seed0": ("97118ff36e9601b0d5d20d95ed9fa090", 87.35, 28.65, 83.65, 49.25),
    "batch_norm_natural_seed1": ("09457d1494049a7aefc9f76371ab4a1b", 87.45, 29.70, 84.80, 48.05),
    "batch_norm_adversarial_seed0": ("eda2c860aed493cb5f7288cb8c3ce22f", 83.85, 70.85, 79.65, 63.45),
    "robust_norm_natural_seed0": ("3c9fb17a71f751c44228f2626dc1f269", 87.80, 33.80, 85.55, 56.60),
    "robust_norm_adversarial_seed0": ("ef1e554e487e85d0794a137dd09aaaa7", 83.70, 71.15, 82.15, 66.40),
}
_RESULTS = Path(__file__).resolve().parent.parent / "results" / "book"


def pretrained(
    architecture: str = "resnet20",
    norm: str = "batch_norm",
    *,
    training: str = "natural",
    dataset: str = "cifar10-jpeg",
    seed: int = 0,
    download: bool = False,
) -> nn.Module:
    """A trained headline network of the study, in evaluation mode, for images (N, 3, 32, 32) in [0, 1].

    Its attribute ``info`` is a dictionary: ``epochs``; ``attack_steps`` of PGD in training, 0 for natural
    training; ``correct``, the percent of 2,000 test images, ``test_order(10_000)[:2000]``, by (statistics,
    attack), clean and under ``PGD(paper_eps(dataset))``, which flatters batch statistics.
    ``results/README.md`` of the repository is its model card.

    Args:
        norm: ``"batch_norm"`` or ``"robust_norm"`` (p = 0.2).
        training, seed: ``"natural"`` or ``"adversarial"``, 0; also 1 for natural training with batch norm.
        download: fetch weights that are neither in the repository's ``results/book`` nor in the cache
            (RNLIB_CACHE or ~/.cache/rnlib) from the address in RNLIB_WEIGHTS, where a release has its files.

    Raises ValueError for another network, or weights that are not what was published; FileNotFoundError,
    which says where to get them, where there are none.
    """
    name = f"{norm}_{training}_seed{seed}"
    if name not in _TRAINED or (dataset, architecture) != ("cifar10-jpeg", "resnet20"):
        known = f"of cifar10-jpeg and resnet20 {', '.join(_TRAINED)}"
        raise ValueError(f"there is no trained {dataset} {architecture} {name}; there are: {known}")
    sha256, *percent = _TRAINED[name]
    run = f"{dataset}_{architecture}_{name.replace('robust_norm', 'robust_norm-p0.2')}"
    cache = Path(os.environ.get("RNLIB_CACHE") or Path.home() / ".cache" / "rnlib") / f"{run}.safetensors"
    address = os.environ.get("RNLIB_WEIGHTS")
    path = next((p for p in (_RESULTS / run / "weights.safetensors", cache) if p.is_file()), cache)
    if not path.is_file() and not (download and address):
        get = f"copy it there from the repository, results/book/{run}/weights.safetensors, or set"
        fix = "RNLIB_WEIGHTS to the address of a release's files and pass download=True"
        raise FileNotFoundError(f"{cache.name} is not in {cache.parent}: {get} {fix}")
    if not path.is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{address}/{cache.name}", str(cache), sha256, progress=False)
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        raise ValueError(f"{path} is damaged: its sha256 does not start with {sha256}; fetch it again")
    mean, std = STATISTICS[dataset]
    model: Any = resnet(20, norm, mean=mean, std=std)
    model.load_state_dict(load_file(path))
    cells = [(statistics, attack) for statistics in ("tracked", "batch") for attack in ("clean", "pgd_linf")]
    epochs, steps = (100, 0) if training == "natural" else (40, 3)
    model.info = {"epochs": epochs, "attack_steps": steps, "correct": dict(zip(cells, percent, strict=True))}
    return model.to(memory_format=torch.channels_last).eval()

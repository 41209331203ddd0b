"""ResNet and VGG for small images, with any norm and the input normalisation inside the model.

The layouts are those of the paper's released code: CIFAR ResNets of He et al. (2016) with three stages of
``width``, ``2 width`` and ``4 width`` channels, and VGG of Simonyan & Zisserman (2014) with a dropout head of
two hidden layers.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from rnlib.norms import MakeNorm, leaf
from rnlib.other_norms import WeightNorm, make_norm

# Convolutions of each stage, by depth.
VGG_LAYOUTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that a model takes images in [0, 1] and attacks work in pixels.

    Args:
        mean, std: one value per channel, numbers or tensors, std > 0.
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
    """A chain of convolutions and norms beside a shortcut; a subclass says which convolutions.

    Attributes:
        depth: convolutions in the chain.
        expansion: output channels for each of ``planes``.
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
        num_classes: size of the output.
        in_channels: of the images, 1 or 3.
        width: channels of the first stage, 16 in the paper.
        mean, std: of the images in [0, 1], per channel, for the :class:`Normalize` inside; default 0 and 1.
        shortcut: ``"conv"`` (1x1 convolution, as the released code) or ``"pad"`` (parameter-free).
        block: what each stage is made of.
        norm_options: for a norm given by name, e.g. ``p=0.2``.

    Returns:
        A model from (N, in_channels, H, W) in [0, 1] to logits (N, num_classes). It has 272,474 parameters at
        depth 20 with BatchNorm.

    Raises:
        ValueError: another depth, an unknown norm, shortcut or option.
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

    Raises:
        ValueError: another depth, an unknown norm or option.
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

"""ResNet and VGG for small images, with any norm and the input normalisation inside the model.

The layouts are those of the paper's released code: CIFAR ResNets of He et al. (2016) with three stages of
``width``, ``2 width`` and ``4 width`` channels, and VGG of Simonyan & Zisserman (2014) with a dropout head of
two hidden layers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rnlib.blocks import BasicBlock, Block, Bottleneck, MakeNorm
from rnlib.norms import make_norm
from rnlib.remedies import reparametrize

VGG_LAYOUTS: dict[int, tuple[tuple[int, int], ...]] = {  # (convolutions, channels) of each stage
    11: ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    13: ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512)),
    16: ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    19: ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that a model takes images in [0, 1] and attacks work in pixels.

    Args:
        mean, std: one value per channel, std > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must be of equal length, std positive")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.mean.shape[1]:  # grey images would pass as three equal channels
            raise ValueError(f"images have shape {tuple(x.shape)}, expected (N, {self.mean.shape[1]}, H, W)")
        return (x - self.mean) / self.std


def _norm_maker(norm: str | MakeNorm, options: dict[str, Any]) -> MakeNorm:
    if isinstance(norm, str):
        return make_norm(norm, **options)
    if options:
        raise ValueError(f"options {options} are for a norm given by name, not for {norm}")
    return norm


def _input(
    num_classes: int, in_channels: int, width: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> nn.Module:
    for name, value in {"num_classes": num_classes, "in_channels": in_channels, "width": width}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
    mean = (0.0,) * in_channels if mean is None else mean
    std = (1.0,) * in_channels if std is None else std
    if len(mean) != in_channels:
        raise ValueError(f"mean has {len(mean)} values for {in_channels} input channels")
    return Normalize(mean, std)


def _initialise(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):  # as in the released code: fan-out, no correction for stride
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return reparametrize(model)


def _resnet(
    block: type[Block], blocks: int, norm: str | MakeNorm, shortcut: str, num_classes: int, in_channels: int,
    width: int, mean: Sequence[float] | None, std: Sequence[float] | None, norm_options: dict[str, Any],
) -> nn.Module:  # fmt: skip
    if shortcut not in ("conv", "pad"):
        raise ValueError(f"shortcut is {shortcut!r}, it must be 'conv' (1x1) or 'pad' (parameter-free)")
    new_norm = _norm_maker(norm, norm_options)
    layers = [_input(num_classes, in_channels, width, mean, std)]
    layers += [nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), new_norm(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        planes = width * 2**stage
        for index in range(blocks):
            layers.append(block(inputs, planes, 2 if stage and index == 0 else 1, new_norm, shortcut))
            inputs = planes * block.expansion
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return _initialise(nn.Sequential(*layers))


def resnet(
    depth: int, norm: str | MakeNorm = "batch_norm", *, num_classes: int = 10, in_channels: int = 3,
    width: int = 16, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    shortcut: str = "conv", **norm_options: Any,
) -> nn.Module:  # fmt: skip
    """CIFAR ResNet of basic blocks (He et al., 2016): the paper's ResNet-20, 38, and the 50 of its text.

    Args:
        depth: 6n + 2 with n >= 1 blocks a stage.
        norm: a name of :func:`rnlib.make_norm`, or a function from a number of channels to a layer.
        num_classes: size of the output.
        in_channels: 1 or 3, channels of the images.
        width: channels of the first stage, 16 in the paper.
        mean, std: of the images in [0, 1], per channel, for the :class:`Normalize` inside; default 0 and 1.
        shortcut: ``"conv"`` (1x1 convolution and norm, as the released code) or ``"pad"`` (parameter-free).
        norm_options: of the norm when it is named, e.g. ``p=0.2``.

    Returns:
        A model from (N, in_channels, H, W) in [0, 1] to logits (N, num_classes). It has 272,474 parameters at
        depth 20 with BatchNorm.

    Raises:
        ValueError: a depth that is not 6n + 2, an unknown norm, shortcut or option.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth is {depth}, it must be 6n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, ...")
    return _resnet(
        BasicBlock, (depth - 2) // 6, norm, shortcut, num_classes, in_channels, width, mean, std, norm_options
    )


def resnet_released50(
    norm: str | MakeNorm = "batch_norm", *, num_classes: int = 10, in_channels: int = 3, width: int = 16,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **norm_options: Any,
) -> nn.Module:  # fmt: skip
    """What the released code builds when asked for depth 50: 74 layers, eight bottlenecks a stage.

    It has 776,794 parameters with BatchNorm and 10 classes. Arguments as for :func:`resnet`; the shortcuts
    are convolutions.
    """
    return _resnet(Bottleneck, 8, norm, "conv", num_classes, in_channels, width, mean, std, norm_options)


def vgg(
    depth: int, norm: str | MakeNorm = "batch_norm", *, num_classes: int = 10, in_channels: int = 3,
    width: int = 64, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    **norm_options: Any,
) -> nn.Module:  # fmt: skip
    """VGG for small images with a norm after every convolution and the released code's dropout head.

    Args:
        depth: 11, 13, 16 or 19 (the released code builds 16 when asked for 19; this is the real 19).
        width: channels of the first stage, 64 in the paper; the others scale with it.
        others: see :func:`resnet`.

    Raises:
        ValueError: another depth, an unknown norm or option.
    """
    if depth not in VGG_LAYOUTS:
        raise ValueError(f"depth is {depth}, it must be one of {', '.join(map(str, VGG_LAYOUTS))}")
    new_norm = _norm_maker(norm, norm_options)
    layers: list[nn.Module] = [_input(num_classes, in_channels, width, mean, std)]
    inputs = in_channels
    for convolutions, channels in VGG_LAYOUTS[depth]:
        channels = channels * width // 64
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), new_norm(channels), nn.ReLU()]
            inputs = channels
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # 28-pixel images shrink 28, 14, 7, 4, 2, 1
    head = [nn.Dropout(), nn.Linear(inputs, 512 * width // 64), nn.ReLU()]
    hidden = 512 * width // 64
    head += [nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return _initialise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head))

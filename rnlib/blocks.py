"""Residual blocks of :mod:`rnlib.models`, and their shortcuts."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

MakeNorm = Callable[[int], nn.Module]


class Block(nn.Module):
    """A chain of convolutions and norms beside a shortcut; the subclass says which convolutions."""

    expansion: int

    def __init__(self, inputs: int, planes: int, stride: int, norm: MakeNorm, shortcut: str):
        super().__init__()
        outputs = planes * self.expansion
        self.residual = nn.Sequential(*self.layers(inputs, planes, stride, norm))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "conv":
                kind = nn.Conv2d if inputs >= 8 else NarrowPointwise
                convolution = kind(inputs, outputs, 1, stride, bias=False)
                self.shortcut = nn.Sequential(convolution, norm(outputs))
            else:
                self.shortcut = PadShortcut(stride, outputs - inputs)
        self.activation: Callable[[Tensor], Tensor] = F.relu

    def layers(self, inputs: int, planes: int, stride: int, norm: MakeNorm) -> list[nn.Module]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


class PadShortcut(nn.Module):
    """He et al.'s parameter-free shortcut: every second pixel, and new channels filled with zeros."""

    def __init__(self, stride: int, new_channels: int):
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


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def layers(self, inputs: int, planes: int, stride: int, norm: MakeNorm) -> list[nn.Module]:
        first = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        second = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        return [first, norm(planes), nn.ReLU(), second, norm(planes)]


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels."""

    expansion = 4

    def layers(self, inputs: int, planes: int, stride: int, norm: MakeNorm) -> list[nn.Module]:
        reduce = nn.Conv2d(inputs, planes, 1, bias=False)
        middle = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        expand = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        return [reduce, norm(planes), nn.ReLU(), middle, norm(planes), nn.ReLU(), expand, norm(4 * planes)]

"""Checks of what people give to attacks."""

import math

import torch
from torch import Tensor, nn

Pixels = float | tuple[float, ...]  # in pixel units: one for all channels, or one per channel


def check_pixels(name: str, value: Pixels) -> None:
    """Raise unless value is a finite number >= 0 or a non-empty tuple of such."""
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise TypeError(f"{name} is {value!r}, it must be a float, or a tuple with one float per channel")
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{name} is {value!r}, it must be finite and at least 0, in pixel units")


def check_count(name: str, value: int) -> None:
    """Raise unless value is an int >= 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, it must be an int")
    if value < 1:
        raise ValueError(f"{name} is {value}, it must be at least 1")


def check_length(name: str, value: float) -> None:
    """Raise unless value is finite and above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, it must be finite and above 0")


def check_batch(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Raise on bad input; return how many classes y needs. The only place that waits for the device."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, it must be a torch.nn.Module")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, it must be a torch.Tensor")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}, it must be floating point: use rnlib.data.to_float on uint8")
    if y.dtype != torch.int64:
        raise TypeError(f"y is {y.dtype}, it must be torch.int64: y.long() converts it")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, it must be (N, C, ...) and not empty")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y has shape {tuple(y.shape)}, {len(x)} images need labels of shape ({len(x)},)")
    low, high = (v.item() for v in x.detach().aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(
            f"x has values in [{low:g}, {high:g}], images must be in [0, 1]: "
            "normalisation belongs inside the model"
        )
    smallest, largest = (int(v.item()) for v in y.aminmax())
    if smallest < 0:
        raise ValueError(f"y has the label {smallest}, labels count from 0")
    return largest + 1

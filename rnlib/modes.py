"""Switching a whole model between statistics, and tracking on and off."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.norms import STATISTICS_MODES, Norm


@contextmanager
def _switched(model: nn.Module, attribute: str, value: str | bool) -> Iterator[nn.Module]:
    layers = [layer for layer in model.modules() if isinstance(layer, Norm)]
    before = [getattr(layer, attribute) for layer in layers]
    for layer in layers:
        setattr(layer, attribute, value)
    try:
        yield model
    finally:
        for layer, old in zip(layers, before, strict=True):
            setattr(layer, attribute, old)


@contextmanager
def use_statistics(model: nn.Module, statistics: str) -> Iterator[nn.Module]:
    """Within the block, all norms of the model use these statistics in evaluation mode.

    Args:
        model: any module; layers that are not a :class:`Norm` are left alone (see :func:`rnlib.convert.convert_norms`).
        statistics: ``"tracked"`` (running averages) or ``"batch"`` (of the batch at hand).

    Raises:
        ValueError: other statistics, or a native PyTorch batch norm in the model, which cannot be switched.
    """
    if statistics not in STATISTICS_MODES:
        raise ValueError(f"statistics is {statistics!r}, it must be one of {STATISTICS_MODES}")
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            fix = "convert it first: rnlib.convert_norms(model, 'batch_norm')"
            raise ValueError(f"layer {name!r} is a native {type(layer).__name__} and cannot be switched; {fix}")
    with _switched(model, "statistics", statistics):
        yield model


@contextmanager
def track(model: nn.Module, tracking: bool) -> Iterator[nn.Module]:
    """Within the block, training-mode forwards update the running statistics of the model's norms, or do not."""
    with _switched(model, "tracking", tracking):
        yield model


def statistics_modes(model: nn.Module) -> tuple[str, ...]:
    """The statistics that a model can be evaluated with: ``("tracked", "batch")``, or ``("none",)`` if it has no batch norm."""
    return STATISTICS_MODES if any(isinstance(layer, Norm) for layer in model.modules()) else ("none",)

"""Switching a whole model between statistics, and tracking on and off."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.batchnorm import STATISTICS_MODES, Norm


def _check_switchable(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            fix = "convert it first: model = rnlib.convert_norms(model, 'batch_norm')"
            kind = type(layer).__name__
            raise ValueError(f"layer {name!r} is a native {kind} and cannot be switched; {fix}")


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
        model: any module; layers that are not a :class:`rnlib.Norm` are left alone.
        statistics: ``"tracked"`` (running averages) or ``"batch"`` (of the batch at hand).

    Raises:
        ValueError: other statistics, or a native PyTorch batch norm in the model, which cannot be switched.
    """
    if statistics not in STATISTICS_MODES:
        raise ValueError(f"statistics is {statistics!r}, it must be one of {STATISTICS_MODES}")
    _check_switchable(model)
    with _switched(model, "statistics", statistics):
        yield model


@contextmanager
def track(model: nn.Module, tracking: bool) -> Iterator[nn.Module]:
    """Within the block, training-mode forwards update the running statistics of the model's norms, or do not.

    Raises:
        ValueError: a native PyTorch batch norm in the model, which cannot be switched.
    """
    _check_switchable(model)
    with _switched(model, "tracking", tracking):
        yield model


def statistics_modes(model: nn.Module) -> tuple[str, ...]:
    """The statistics that a model can be evaluated with: ``("tracked", "batch")``, or ``("none",)``.

    ``"none"`` is for a model with nothing to switch; native PyTorch batch norms stay as they are under it.
    """
    return STATISTICS_MODES if any(isinstance(layer, Norm) for layer in model.modules()) else ("none",)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is in evaluation mode; afterwards every layer is in the mode it was in."""
    before = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for layer, training in before:
            layer.training = training

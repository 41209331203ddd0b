"""Probes of the statistics that norm layers see and track (the paper's Fig 1 and Section 3.3)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rnlib.modes import evaluation_mode, track, use_statistics
from rnlib.norms import BatchNorm, Norm

Statistics = dict[str, tuple[Tensor, Tensor]]
"""By layer name: the layer's two statistics (mean and variance, or mean and range), each (C,)."""


def norm_layers(model: nn.Module) -> dict[str, Norm]:
    """The layers of a model that have running statistics, by name, in the order of the model.

    Raises:
        ValueError: there is none; native PyTorch batch norms must be converted first.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Norm)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no norm of rnlib with running statistics; "
            "native batch norms become such by rnlib.convert_norms(model, 'batch_norm')"
        )
    return layers


def tracked_statistics(model: nn.Module) -> Statistics:
    """What every norm layer has tracked, copied."""
    return {
        name: (layer.running_statistics[0].clone(), layer.running_statistics[1].clone())
        for name, layer in norm_layers(model).items()
    }


@torch.no_grad()
def batch_statistics(model: nn.Module, x: Tensor, *, statistics: str = "batch") -> Statistics:
    """The statistics of one batch at the input of every norm layer, with the model in evaluation mode.

    Args:
        model: left in the mode it was in.
        x: images (N, C, H, W) in [0, 1].
        statistics: what the layers normalise with while x passes: ``"batch"`` as in training (deeper
            layers see what they see there), ``"tracked"`` as at the paper's inference.

    Returns:
        For every layer what it would have tracked; a layer used several times reports its last use.
    """
    found: Statistics = {}
    layers = norm_layers(model)
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, inputs, name=name: found.__setitem__(name, module.batch_statistics(inputs[0]))
        )
        for name, layer in layers.items()
    ]
    try:
        with evaluation_mode(model), use_statistics(model, statistics):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name in layers if name in found}


def distance(model: nn.Module, first: Statistics, second: Statistics) -> dict[str, tuple[Tensor, Tensor]]:
    """How far two sets of statistics lie apart, per channel, in units free of the scale of a layer.

    Args:
        model: the network that both belong to.
        first: the statistics in question.
        second: the reference.

    Returns:
        Two tensors (C,) for each layer, the shift of the centre in units of the reference's standard
        deviation (its range, where a layer tracks that), and log2 of the ratio of the two spreads.
    """
    layers, result = norm_layers(model), {}
    for name in second:
        (centre, spread), (reference, scale) = first[name], second[name]
        if isinstance(layers[name], BatchNorm):
            spread, scale = spread.sqrt(), scale.sqrt()
        tiny = torch.finfo(scale.dtype).tiny
        result[name] = (
            (centre - reference) / scale.clamp_min(tiny),
            torch.log2(spread.clamp_min(tiny) / scale.clamp_min(tiny)),
        )
    return result


@torch.no_grad()
def recalibrate(model: nn.Module, images: Iterable[Tensor]) -> nn.Module:
    """Replace running statistics by the plain average of batch statistics over given batches (PreciseBN).

    Weights do not change, and everything but the norms is in evaluation mode. What the images are decides
    what inference is tuned to: clean images repair an average that was taken over adversarial ones.

    Args:
        model: changed in place and returned, every layer in the mode it was in.
        images: batches (N, C, H, W) in [0, 1], at least one.

    Raises:
        ValueError, TypeError: no batch was given, or something that is no tensor. After every error the
            running statistics are as before.
    """
    layers = list(norm_layers(model).values())
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    momentum = [layer.momentum for layer in layers]
    given: Iterable[object] = images  # loaders of pairs are an easy mistake
    batches = 0
    try:
        with evaluation_mode(model), track(model, True):
            for layer in layers:
                layer.reset_running_statistics()
                layer.momentum = None  # the average of all batches alike
                layer.train()
            for x in given:
                if not isinstance(x, Tensor):
                    fix = "of pairs (images, labels) give the first: (x for x, _ in pairs)"
                    raise TypeError(f"images holds a {type(x).__name__}, it must hold tensors; {fix}")
                model(x)
                batches += 1
        if not batches:
            raise ValueError("images holds no batch; recalibration needs at least one")
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise
    finally:
        for layer, usual in zip(layers, momentum, strict=True):
            layer.momentum = usual
    return model

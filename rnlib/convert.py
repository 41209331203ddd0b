"""Exchanging the batch norms of any PyTorch model."""

from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.norms import MakeNorm, NoNorm, Norm
from rnlib.other_norms import NORMS, WeightNorm, make_norm

NATIVE = "torch_batch_norm"
_NATIVE_CLASS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convert_norms(
    model: nn.Module, norm: str | MakeNorm, *, dimensions: int = 2, native_only: bool = False, **options: Any
) -> nn.Module:
    """Replace every batch norm (native 1d, 2d, 3d, or a norm of rnlib) of a model by another norm.

    The model is changed in place and returned; a model that is itself a norm is returned as a new layer. On
    an error the model is as it was. A layer used in two places stays shared.

    Scale and shift, momentum, eps, device, dtype, training mode and ``requires_grad`` carry over wherever the
    new layer has them. Running statistics carry over when both layers track the same quantity (the mean
    between BatchNorm and RobustNorm, the variance between batch norms); the others start anew, and
    :func:`rnlib.recalibrate` fills them from data. A native layer without running statistics
    (``track_running_stats=False``) becomes one with ``statistics="batch"``, and the other way round.

    Args:
        model: any module.
        norm: a name of :func:`rnlib.make_norm`, ``"torch_batch_norm"`` for PyTorch's own layers, or a
            function from a number of channels to a layer, which decides momentum and eps by itself.
        dimensions: 1, 2 or 3, for ``"torch_batch_norm"``: which of ``nn.BatchNorm{1,2,3}d`` layers of rnlib
            become; a layer that was converted from a native one returns to its own class.
        native_only: leave the norms of rnlib as they are.
        options: of a norm given by name, e.g. ``p=0.2``.

    Raises:
        ValueError: unknown name or options, weight_norm, or no layer to convert.
    """
    if isinstance(norm, str) and norm not in (*NORMS, NATIVE):
        raise ValueError(f"unknown norm {norm!r}, known are: {', '.join([*NORMS, NATIVE])}")
    if dimensions not in _NATIVE_CLASS:
        raise ValueError(f"dimensions is {dimensions}, it must be 1, 2 or 3")
    kinds, described = (_BatchNorm, "native") if native_only else (_BatchNorm | Norm, "native or of rnlib")
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no batch norm ({described}) to convert")
    new = {id(layer): _converted(layer, norm, dimensions, options) for layer in layers}
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        # Not named_children, which lists a layer once that the parent has under two names.
        for name, child in parent._modules.items():
            if id(child) in new:
                setattr(parent, name, new[id(child)])
    return model


def _converted(old: Any, norm: str | MakeNorm, dimensions: int, options: dict[str, Any]) -> nn.Module:
    if old.num_features == 0:
        raise ValueError(f"a {type(old).__name__} has no size yet: pass a batch through the model first")
    native = isinstance(old, _BatchNorm)
    native_class: Any = type(old) if native else getattr(old, "native_class", _NATIVE_CLASS[dimensions])
    statistics = ("batch" if old.running_mean is None else "tracked") if native else old.statistics
    settings = {"track_running_stats": statistics == "tracked"} | options
    make: Any = partial(native_class, **settings) if norm == NATIVE else make_norm(norm, **options)
    try:
        new = make(old.num_features)
    except TypeError as error:
        raise ValueError(f"{norm} does not take these options: {options} ({error})") from error
    if isinstance(new, WeightNorm):
        fix = "build the network with it, for example rnlib.resnet(20, 'weight_norm')"
        raise ValueError(f"weight_norm changes the convolutions too and cannot be exchanged alone; {fix}")
    if isinstance(new, Norm):
        new.statistics, new.tracking = statistics, getattr(old, "tracking", True)
        new.native_class = native_class
    for key in ("eps", "momentum"):
        if isinstance(norm, str) and key not in options and hasattr(new, key):
            setattr(new, key, getattr(old, key))
    for key in ("weight", "bias"):
        source, target = getattr(old, key), getattr(new, key, None)
        if source is not None and target is not None:
            setattr(new, key, nn.Parameter(source.detach().clone(), source.requires_grad))
        elif target is not None and not isinstance(new, NoNorm) and not options.get("affine"):
            setattr(new, key, None)
    if hasattr(new, "affine"):
        new.affine = new.weight is not None
    running = {key: value for key, value in old.named_buffers() if key.startswith("running_")}
    carried = running.keys() & dict(new.named_buffers()).keys()
    for key in carried:
        setattr(new, key, running[key].clone())
    if carried and len(carried) == len(running):  # only then do the averages continue where they were
        new.num_batches_tracked = old.num_batches_tracked.clone()
    example = next((tensor for tensor in (old.weight, *running.values()) if tensor is not None), None)
    if example is not None:
        new.to(device=example.device, dtype=example.dtype)
    return new.train(old.training)

"""Exchanging the batch norms of any PyTorch model."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.norms import NORMS, NoNorm, Norm, make_norm

NATIVE = "torch_batch_norm"
WITH_CONVOLUTION = ("weight_norm", "norm_prop")
_NATIVE_CLASS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convert_norms(
    model: nn.Module, name: str, *, dimensions: int = 2, native_only: bool = False, **options: Any
) -> nn.Module:
    """Replace every batch norm (native 1d, 2d, 3d, or a norm of rnlib) of a model by the named norm.

    The model is changed in place and returned; a model that is itself a norm is returned as a new layer. On
    an error the model is as it was. A layer used in two places stays shared.

    Scale and shift, momentum, eps, device, dtype, training mode and ``requires_grad`` carry over wherever the
    new layer has them. Running statistics carry over when both layers track the same quantity (the mean
    between BatchNorm and RobustNorm, the variance between batch norms); the others start anew, and
    :func:`rnlib.recalibrate` fills them from data. A native layer without running statistics
    (``track_running_stats=False``) becomes one with ``statistics="batch"``, and the other way round.

    Args:
        model: any module.
        name: a name of :func:`rnlib.make_norm`, or ``"torch_batch_norm"`` for PyTorch's own layers.
        dimensions: 1, 2 or 3, for ``"torch_batch_norm"``: which of ``nn.BatchNorm{1,2,3}d`` layers of rnlib
            become; a layer that was converted from a native one returns to its own class.
        native_only: leave the norms of rnlib as they are.
        options: of the norm, e.g. ``p=0.2``.

    Returns:
        The converted model.

    Raises:
        ValueError: unknown name or options, weight_norm or norm_prop, or no layer to convert.
    """
    if name not in NORMS and name != NATIVE:
        raise ValueError(f"unknown norm {name!r}, known are: {', '.join([*NORMS, NATIVE])}")
    if name in WITH_CONVOLUTION:
        fix = f"build the network with it, for example rnlib.resnet(20, {name!r})"
        raise ValueError(f"{name} changes the convolutions too and cannot be exchanged alone; {fix}")
    if dimensions not in _NATIVE_CLASS:
        raise ValueError(f"dimensions is {dimensions}, it must be 1, 2 or 3")
    kinds, described = (_BatchNorm, "native") if native_only else (_BatchNorm | Norm, "native or of rnlib")
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no batch norm ({described}) to convert")
    new = {id(layer): _converted(layer, name, dimensions, options) for layer in layers}
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        # Not named_children, which lists a layer once that the parent has under two names.
        for child_name, child in parent._modules.items():
            if id(child) in new:
                setattr(parent, child_name, new[id(child)])
    return model


def _converted(old: Any, name: str, dimensions: int, options: dict[str, Any]) -> nn.Module:
    if old.num_features == 0:
        raise ValueError(f"a {type(old).__name__} has no size yet: pass a batch through the model first")
    native = isinstance(old, _BatchNorm)
    native_class = type(old) if native else getattr(old, "native_class", _NATIVE_CLASS[dimensions])
    statistics = ("batch" if old.running_mean is None else "tracked") if native else old.statistics
    new = _new_layer(old, name, native_class, statistics, options)
    for parameter in ("weight", "bias"):
        source, target = getattr(old, parameter), getattr(new, parameter, None)
        if source is not None and target is not None:
            setattr(new, parameter, nn.Parameter(source.detach().clone(), source.requires_grad))
        elif old.weight is not None and not isinstance(new, NoNorm):  # native, without shift
            setattr(new, parameter, None)
    running = {key: value for key, value in old.named_buffers() if key.startswith("running_")}
    carried = running.keys() & dict(new.named_buffers()).keys()
    for key in carried:
        setattr(new, key, running[key].clone())
    if carried and len(carried) == len(running):  # only then do the averages continue where they were
        new.num_batches_tracked = old.num_batches_tracked.clone()
    example = next((t for t in (old.weight, *running.values()) if t is not None), None)
    if example is not None:
        new.to(device=example.device, dtype=example.dtype)
    return new.train(old.training)


def _new_layer(old: Any, name: str, native_class: Any, statistics: str, options: dict[str, Any]) -> Any:
    shared: dict[str, Any] = {"eps": old.eps, "affine": old.weight is not None}
    if name == NATIVE:
        shared |= {"momentum": old.momentum, "track_running_stats": statistics == "tracked"}
        try:
            return native_class(old.num_features, **shared | options)
        except TypeError as error:
            raise ValueError(f"{name} does not take these options: {options} ({error})") from error
    make_norm(name, **options)  # says what is wrong with the options alone
    if name in ("no_norm", "no_norm_bias"):
        return make_norm(name, **options)(old.num_features)
    if name in ("group_norm", "frozen_norm"):
        return make_norm(name, **shared | options)(old.num_features)
    new: Any = make_norm(name, **shared | {"momentum": old.momentum} | options)(old.num_features)
    new.statistics, new.tracking = statistics, getattr(old, "tracking", True)
    new.native_class = native_class
    return new

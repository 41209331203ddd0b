"""Exchanging the batch norms of any PyTorch model."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.norms import MakeNorm, NoNorm, Norm, is_native
from rnlib.other_norms import NORMS, WeightNorm, make_norm

NATIVE = "torch_batch_norm"
_NATIVE_CLASS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_KNOWN = (*_NATIVE_CLASS.values(), nn.SyncBatchNorm)


def convert_norms(
    model: nn.Module, norm: str | MakeNorm, *, dimensions: int = 2, native_only: bool = False, **options: Any
) -> nn.Module:
    """Replace every batch norm (native 1d, 2d, 3d, or a norm of rnlib) of a model by another norm.

    The model is changed in place and returned; a model that is itself a norm is returned as a new layer. On
    an error the model is as it was. A layer used in two places stays shared. A subclass of a native norm with
    layers ``drop`` and ``act``, as timm has, becomes the norm followed by these.

    Scale and shift, momentum, eps, device, dtype and training mode carry over wherever the new layer has
    them, running statistics when both layers track the same quantity; the others start anew, and
    :func:`rnlib.recalibrate` fills them. Parameters and statistics are the old tensors themselves: an
    optimizer made before still holds them. A native layer without running statistics
    (``track_running_stats=False``) becomes one with ``statistics="batch"``, and the other way round;
    ``SyncBatchNorm`` one of its own process.

    Args:
        norm: a name of :func:`rnlib.make_norm`, ``"torch_batch_norm"`` for PyTorch's own layers, or a
            function from a number of channels to a layer, which decides momentum and eps by itself.
        dimensions: 1, 2 or 3, for ``"torch_batch_norm"``: which of ``nn.BatchNorm{1,2,3}d`` layers of rnlib
            become; a layer that was converted from a native one returns to its own class.
        native_only: leave the norms of rnlib as they are.
        options: of a norm given by name, e.g. ``p=0.2``.

    Raises ValueError for an unknown name or options, weight_norm, no layer to convert, or a subclass of a
    native norm whose answers to a probe are not those of batch norm, ``drop`` and ``act``.
    """
    if isinstance(norm, str) and norm not in (*NORMS, NATIVE):
        raise ValueError(f"unknown norm {norm!r}, known are: {', '.join([*NORMS, NATIVE])}")
    if dimensions not in _NATIVE_CLASS:
        raise ValueError(f"dimensions is {dimensions}, it must be 1, 2 or 3")
    norms = [item for item in model.named_modules() if isinstance(item[1], _BatchNorm)]
    layers = [item for item in norms if is_native(item[1]) or not native_only]
    if not layers:
        which = "(native)" if native_only else "(native or of rnlib)"
        raise ValueError(f"{type(model).__name__} has no batch norm {which} to convert")
    new: dict[int, nn.Module] = {}
    for name, layer in layers:
        following, exchanged = _following(layer, name), _converted(layer, norm, dimensions, options)
        new[id(layer)] = nn.Sequential(exchanged, *following) if following else exchanged
        new[id(layer)].training = layer.training
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        # Not named_children, which lists a layer once that the parent has under two names.
        for name, child in parent._modules.items():
            if id(child) in new:
                setattr(parent, name, new[id(child)])
    return model


def _following(old: Any, name: str) -> list[nn.Module]:
    """What a subclass of a native norm does after it; a ValueError unless that is all that it adds."""
    if old.num_features == 0:
        raise ValueError(f"a {type(old).__name__} has no size yet: pass a batch through the model first")
    if type(old) in _KNOWN or isinstance(old, Norm):
        return []
    following = [layer for key in ("drop", "act") if isinstance(layer := getattr(old, key, None), nn.Module)]
    try:
        twin = copy.deepcopy(nn.Sequential(_converted(old, "batch_norm", 2, {}), *following))
        rank = next((n for n, kind in _NATIVE_CLASS.items() if isinstance(old, kind)), 2)
        x = torch.linspace(-2, 3, 3 * old.num_features * 4**rank).sin().view(3, -1, *[4] * rank)
        for training in (False, True):
            answers = []
            for layer in (copy.deepcopy(old), twin):
                with torch.random.fork_rng():  # drop may be random
                    torch.manual_seed(0)
                    answers.append(layer.train(training)(x.to(_example(old), copy=True)))
            torch.testing.assert_close(*answers, equal_nan=True)
    except Exception as error:
        what = f"layer {name!r} is a {type(old).__name__} and answers not as batch norm, its .drop, its .act"
        fix = f"exchange it by hand: model.set_submodule({name!r}, ...), an rnlib.BatchNorm and what it adds"
        raise ValueError(f"{what}: {fix}") from error
    return following


def _example(layer: nn.Module) -> Tensor:
    """A tensor of the layer's device and floating-point type."""
    tensors = (*layer.parameters(), *layer.buffers(), torch.empty(0))
    return next(tensor for tensor in tensors if tensor.is_floating_point())


def _converted(old: Any, norm: str | MakeNorm, dimensions: int, options: dict[str, Any]) -> nn.Module:
    native, named = is_native(old), isinstance(norm, str)
    known = next((kind for kind in type(old).__mro__ if kind in _KNOWN), None)
    native_class: Any = known if native else old.native_class
    statistics = ("batch" if old.running_mean is None else "tracked") if native else old.statistics
    try:
        if norm == NATIVE:
            settings = {"track_running_stats": statistics == "tracked"} | options
            new = (native_class or _NATIVE_CLASS[dimensions])(old.num_features, **settings)
        else:
            new = make_norm(norm, **options)(old.num_features)
    except TypeError as error:
        raise ValueError(f"{norm} does not take these options: {options}, remove them ({error})") from error
    if not isinstance(new, nn.Module):
        fix = "it must give a new layer, as lambda channels: nn.Identity()"
        raise TypeError(f"{norm} gives {new!r} for {old.num_features} channels: {fix}")
    if isinstance(new, WeightNorm):
        fix = "build the network with it, for example rnlib.resnet(20, 'weight_norm')"
        raise ValueError(f"weight_norm changes the convolutions too and cannot be exchanged alone; {fix}")
    if isinstance(new, Norm):
        new.statistics, new.tracking = statistics, getattr(old, "tracking", True)
        new.native_class = native_class
    for key in ("eps", "momentum"):
        if named and key not in options and hasattr(new, key):
            setattr(new, key, getattr(old, key))
    example = _example(old)
    new.to(device=example.device, dtype=example.dtype)
    for key in ("weight", "bias"):
        source, target = getattr(old, key), getattr(new, key, None)
        if source is not None and target is not None:
            setattr(new, key, source)
        elif target is not None and named and not isinstance(new, NoNorm) and not options.get("affine"):
            setattr(new, key, None)
    if hasattr(new, "affine"):
        new.affine = getattr(new, "weight", None) is not None  # type: ignore[assignment]
    running = {key: value for key, value in old.named_buffers() if key.startswith("running_")}
    carried = running.keys() & dict(new.named_buffers()).keys()
    for key in carried:
        setattr(new, key, running[key])
    # Only if all were carried do the averages continue where they were; PyTorch may do without a count.
    if carried and len(carried) == len(running) and old.num_batches_tracked is not None:
        new.num_batches_tracked = old.num_batches_tracked
    return new.train(old.training)

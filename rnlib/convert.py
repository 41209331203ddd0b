"""Exchanging the batch norms of any PyTorch model."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.norms import NORMS, BatchNorm, Norm, make_norm

NATIVE = "torch_batch_norm"
_NATIVE_CLASS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convert_norms(model: nn.Module, name: str, *, dimensions: int = 2, **options: Any) -> nn.Module:
    """Replace every batch norm (native 1d, 2d, 3d, or a norm of rnlib) of a model by the named norm.

    The model is changed in place and returned; a model that is itself a norm is returned as a new layer. Scale and shift,
    momentum, eps, device, dtype, training mode and ``requires_grad`` carry over wherever the new layer has them.
    Running statistics carry over when both layers track the same quantity (the mean between BatchNorm and RobustNorm, the variance
    between batch norms); the others start anew, and :func:`rnlib.tracking.recalibrate` fills them from data. A layer without running
    statistics (``track_running_stats=False``) becomes one with ``statistics="batch"``. A layer used in two places stays shared.

    Args:
        model: any module.
        name: a name of :func:`rnlib.make_norm`, or ``"torch_batch_norm"`` for PyTorch's own layers.
        dimensions: 1, 2 or 3, for ``"torch_batch_norm"``: which of ``nn.BatchNorm{1,2,3}d`` layers of rnlib become; a layer
            that was converted from a native one returns to its own class.
        options: of the norm, e.g. ``p=0.2``.

    Returns:
        The converted model.

    Raises:
        ValueError: unknown name or options, or no layer to convert.
    """
    if name not in NORMS and name != NATIVE:
        raise ValueError(f"unknown norm {name!r}, known are: {', '.join([*NORMS, NATIVE])}")
    if dimensions not in _NATIVE_CLASS:
        raise ValueError(f"dimensions is {dimensions}, it must be 1, 2 or 3")
    if name != NATIVE:
        make_norm(name, **options)  # finds wrong options before anything is changed
    done: dict[int, nn.Module] = {}

    def converted(layer: nn.Module) -> nn.Module:
        if id(layer) not in done:
            done[id(layer)] = _converted(layer, name, dimensions, options)
        return done[id(layer)]

    if isinstance(model, (_BatchNorm, Norm)):
        return converted(model)
    for parent in list(model.modules()):
        for child_name, child in parent.named_children():
            if isinstance(child, (_BatchNorm, Norm)):
                setattr(parent, child_name, converted(child))
        # named_children lists a shared layer once; its other names in the same parent are met here
        for child_name, child in parent._modules.items():
            if child is not None and id(child) in done:
                setattr(parent, child_name, done[id(child)])
    if not done:
        raise ValueError(f"{type(model).__name__} has no batch norm (native or of rnlib) to convert")
    return model


def _converted(old: Any, name: str, dimensions: int, options: dict[str, Any]) -> nn.Module:
    native_class = type(old) if isinstance(old, _BatchNorm) else getattr(old, "native_class", _NATIVE_CLASS[dimensions])
    shared = {"momentum": old.momentum, "eps": old.eps, "affine": old.weight is not None}
    new: Any
    if name == NATIVE:
        new = native_class(old.num_features, **{**shared, **options})
    elif isinstance(NORMS[name], type) and issubclass(NORMS[name], Norm):  # type: ignore[arg-type]
        new = make_norm(name, **{**shared, **options})(old.num_features)
        new.statistics = getattr(old, "statistics", "batch" if old.running_mean is None else "tracked")
        new.tracking = getattr(old, "tracking", True)
        new.native_class = native_class
    else:
        new = make_norm(name, **options)(old.num_features)
    for parameter in ("weight", "bias"):
        source, target = getattr(old, parameter), getattr(new, parameter, None)
        if source is not None and target is not None:
            target.data = source.detach().clone()
            target.requires_grad_(source.requires_grad)
    statistics = {key: value for key, value in old.named_buffers() if key.startswith("running_")}
    carried = statistics.keys() & dict(new.named_buffers()).keys()
    for key in carried:
        setattr(new, key, statistics[key].clone())
    if carried and len(carried) == len(statistics):  # only then do the averages continue where they were
        new.num_batches_tracked = old.num_batches_tracked.clone()
    example = next((t for t in (old.weight, *statistics.values()) if t is not None), None)
    if example is not None:
        new.to(device=example.device, dtype=example.dtype)
    return new.train(old.training)

"""Switching, probing and replacing the statistics that a model normalises with.

Also checks of what is given, and what puts a model back as it was: :func:`evaluation_mode` its modes,
:func:`borrowed` what attacks touch.
"""

import copy
import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnlib.norms import BatchNorm, Norm, is_native

STATISTICS_MODES = ("tracked", "batch")
WITHOUT_FLOAT64 = ("mps",)  # kinds of devices
BY_BATCH = "rnlib.convert_norms(model, 'batch_norm') and statistics 'batch' for those of the batch"

Statistics = dict[str, tuple[Tensor, Tensor]]
"""By layer name: the layer's two statistics (mean and variance, or mean and range), each (C,)."""


def wide(v: Tensor) -> Tensor:
    """v in float64, or as it is where its device has none."""
    return v if v.device.type in WITHOUT_FLOAT64 else v.double()


@contextmanager
def _switched(model: nn.Module, attribute: str, value: object) -> Iterator[nn.Module]:
    for name, layer in model.named_modules():
        if is_native(layer):
            what = f"layer {name!r} is a native {type(layer).__name__} and cannot be switched"
            raise ValueError(f"{what}; convert it first: model = rnlib.convert_norms(model, 'batch_norm')")
    before = [(layer, getattr(layer, attribute)) for layer in model.modules() if isinstance(layer, Norm)]
    try:
        for layer, _ in before:
            setattr(layer, attribute, value)
        if attribute == "statistics":
            warn_if_unfilled(model)
        yield model
    finally:
        for layer, old in before:
            setattr(layer, attribute, old)


def use_statistics(model: nn.Module, statistics: str) -> AbstractContextManager[nn.Module]:
    """Within the block, all norms of the model use these statistics in evaluation mode.

    They are ``"tracked"`` (running averages), ``"batch"`` (of the batch at hand), or ``"none"``, which
    switches nothing. Layers that are no :class:`rnlib.Norm` are left alone; ValueError for native batch
    norms, or others.
    """
    if statistics not in (*STATISTICS_MODES, "none"):
        raise ValueError(f"statistics is {statistics!r}, it must be one of {STATISTICS_MODES}, or 'none'")
    return nullcontext(model) if statistics == "none" else _switched(model, "statistics", statistics)


def warn_if_unfilled(model: nn.Module) -> str:
    """Name the norms that use tracked statistics and have tracked nothing yet, in a warning and returned."""
    norms = [item for item in model.named_modules() if isinstance(item[1], Norm) and not item[1].training]
    used = [(name, norm.running_statistics[1]) for name, norm in norms if norm.statistics == "tracked"]
    if not (names := [name or "the model" for name, spread in used if (spread == 1).all()]):
        return ""
    which = names[0] + f" and {len(names) - 1} more layers" * (len(names) > 1)
    what = f"no batch has been averaged into tracked statistics of {which}"
    warnings.warn(f"{what}: train the model, or rnlib.recalibrate(model, images)", stacklevel=1)
    return which


def in_training_mode(model: nn.Module, kind: type[nn.Module] = nn.Module) -> tuple[str, nn.Module] | None:
    """The first layer of a kind in training mode that answers otherwise in evaluation mode, named."""
    for name, layer in model.named_modules():
        code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
        asks = "training" in getattr(code, "co_names", ()) and getattr(layer, "running_mean", 0) is not None
        if isinstance(layer, kind) and layer.training and asks:
            return f"layer {name!r} ({type(layer).__name__})", layer
    return None


@contextmanager
def evaluating(model: nn.Module, statistics: str) -> Iterator[None]:
    """Within the block the model is in evaluation mode, and its norms use these statistics.

    ValueError as :func:`use_statistics`, and for ``"none"`` with a batch norm in training mode. Warns where
    ``"tracked"`` is not what a model in evaluation mode answers with, and where it changes its weights.
    """
    found = in_training_mode(model, _BatchNorm)
    if found and statistics == "none":
        what = f"{found[0]} is in training mode and answers by the batch, which evaluation would switch off"
        raise ValueError(f"{what}: model.eval() for tracked statistics, {BY_BATCH}")
    if found and not model.training and statistics == "tracked":
        what = f"{found[0]} is in training mode and answers by the batch, and tracked statistics are measured"
        warnings.warn(f"{what}: statistics='batch' is what the model answers now", stacklevel=1)
    weights = [p for p in model.parameters() if not p.is_inference()]
    before = [p._version for p in weights]
    with evaluation_mode(model), use_statistics(model, statistics):
        yield
    if before != [p._version for p in weights]:
        what = "the model changed its weights while it was measured, so answers depend on what came before"
        warnings.warn(f"{what}, and it is another model now: measure a copy.deepcopy(model)", stacklevel=1)


def check_kind(name: str, value: object, kind: Any) -> None:
    """Raise TypeError unless value is an instance of kind; a class is never meant as one."""
    if isinstance(value, type) or not isinstance(value, kind):
        given = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} is a {given}, it must be an instance of {kind}")


def check_pixels(name: str, value: float | tuple[float, ...], most: float = math.inf) -> None:
    """Raise unless value is a finite number from 0 to ``most``, or a non-empty tuple of such."""
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise TypeError(f"{name} is {value!r}, it must be a float, or a tuple with one float per channel")
    if not all(0 <= v <= most and v < math.inf for v in values):
        limit = "at least 0" if most == math.inf else f"in [0, {most:g}]: divide steps of 8 bits by 255"
        raise ValueError(f"{name} is {value!r}, it must be finite, in pixel units, and {limit}")


def check_count(name: str, value: int) -> None:
    """Raise unless value is an int >= 1."""
    if type(value) is not int or value < 1:
        kind = ValueError if type(value) is int else TypeError
        raise kind(f"{name} is {value!r}, it must be an int of at least 1")


def check_size(name: str, value: float, *, zero: bool = False) -> None:
    """Raise unless value is finite and above 0, or 0 where ``zero`` allows it."""
    if not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{name} is {value}, it must be finite and {'at least' if zero else 'above'} 0")


def check_labels(name: str, labels: Tensor, n: int) -> None:
    """Raise unless labels are whole numbers (n,) from 0 up."""
    shape = tuple(labels.shape)
    if labels.is_floating_point() or labels.dtype == torch.bool or shape != (n,):
        rows = (
            f"of one-hot rows give {name}.argmax(1)" if shape[:1] == (n,) else "there is one for each image"
        )
        fix = {(n,): f"give {name}.long() if they are whole", (n, 1): f"give {name}[:, 0].long()"}
        raise ValueError(f"{name} must be int64 ({n},), got {labels.dtype} {shape}: {fix.get(shape, rows)}")
    if n and (least := labels.min()) < 0:
        raise ValueError(f"{name} has the label {least}, labels count from 0")


def check_batch(model: nn.Module, x: Tensor, y: Tensor, *, attacked: bool = True) -> int:
    """Raise on bad input; return how many classes y needs. The only place that waits for the device."""
    for name, value, kind in (("model", model, nn.Module), ("x", x, Tensor), ("y", y, Tensor)):
        check_kind(name, value, kind)
    given = f"x is {x.dtype} {tuple(x.shape)}, it must be"
    if not x.is_floating_point():
        raise TypeError(f"{given} floating point in [0, 1]: rnlib.data.to_float(x)")
    if x.ndim < 2 or x.numel() == 0 or y.ndim == 0:
        raise ValueError(f"{given} (N, C, ...) with y (N,), not empty: one image is x[None] with y[None]")
    check_labels("y", y, len(x))
    low, high = (v.item() for v in x.detach().aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails too
        raise ValueError(f"x has values in [{low:g}, {high:g}], images must be in [0, 1]: add a Normalize")
    if attacked:
        warn_if_unfilled(model)
    if attacked and (found := in_training_mode(model)):
        fix = f" for tracked statistics, {BY_BATCH}" if isinstance(found[1], _BatchNorm) else ""
        warnings.warn(f"{found[0]} is attacked in training mode: model.eval(){fix}", stacklevel=1)
    return int(y.max()) + 1


def logits_of(answer: Any) -> Tensor:
    """The logits in a model's answer: itself, its .logits, "logits" or "out"; TypeError without one."""
    named = answer if isinstance(answer, Mapping) else {"logits": getattr(answer, "logits", answer)}
    logits = named.get("logits", named.get("out"))
    if not isinstance(logits, Tensor):
        what = f"{type(answer).__name__}{f' of {[*answer]}' if isinstance(answer, Mapping) else ''}"
        fix = "wrap it in a module that answers logits (N, classes)"
        raise TypeError(f"the model answers a {what} without logits or 'out': {fix}")
    return logits


def class_logits(model: nn.Module, x: Tensor, n: int, classes: int) -> Tensor:
    """The model's logits for images; ValueError unless they are (n, at least 2 and ``classes``)."""
    logits, least = logits_of(model(x)), max(2, classes)
    if logits.ndim != 2 or len(logits) != n or logits.shape[1] < least:
        need = f"{n} images with labels up to {least - 1} need ({n}, >= {least}), as labels count from 0"
        raise ValueError(f"the model's answer has shape {tuple(logits.shape)}, but {need}")
    return logits


def track(model: nn.Module, tracking: bool) -> AbstractContextManager[nn.Module]:
    """Within the block, training-mode forwards update the running statistics of norms of rnlib, or do not."""
    return _switched(model, "tracking", tracking)


def statistics_modes(model: nn.Module) -> tuple[str, ...]:
    """The statistics that a model can be evaluated with: ``("tracked", "batch")``, or ``("none",)``."""
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


@contextmanager
def borrowed(model: nn.Module, update_buffers: bool = False) -> Iterator[None]:
    """Switch off gradients of parameters, a third of the cost; afterwards restore these flags and buffers.

    ``update_buffers`` leaves to the buffers, running statistics above all, what was written to them.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    keep = not update_buffers and any(m.training for m in model.modules())
    owners = [m._buffers for m in model.modules()] if keep else []
    saved = [(own, name, b, None if b is None else b.clone()) for own in owners for name, b in own.items()]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        with torch.no_grad():
            for own, name, buffer, value in saved:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
                own[name] = buffer  # some modules assign a new tensor instead of writing into the old one


def norm_layers(model: nn.Module) -> dict[str, Norm]:
    """The layers of a model that have running statistics, by name, in its order; ValueError without one."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Norm)}
    if not layers:
        fix = "a norm of your own becomes such as a subclass of rnlib.Norm"
        if any(map(is_native, model.modules())):
            fix = "native batch norms become such by rnlib.convert_norms(model, 'batch_norm')"
        raise ValueError(f"{type(model).__name__} has no norm of rnlib with running statistics; {fix}")
    return layers


def tracked_statistics(model: nn.Module) -> Statistics:
    """What every norm layer has tracked, copied."""
    pairs = {name: layer.running_statistics for name, layer in norm_layers(model).items()}
    return {name: (first.clone(), second.clone()) for name, (first, second) in pairs.items()}


@torch.no_grad()
def batch_statistics(model: nn.Module, x: Tensor, *, statistics: str = "batch") -> Statistics:
    """The statistics of a batch x (N, C, H, W) at the input of every norm, with the model in evaluation mode.

    Returned is for every layer what it would have tracked; a layer used several times reports its last use.
    While x passes, layers normalise with ``"batch"`` ``statistics``, as in training, or with ``"tracked"``
    ones.
    """
    layers, found = norm_layers(model), dict[Norm, tuple[Tensor, Tensor]]()

    def note(layer: Norm, inputs: tuple[Tensor, ...]) -> None:
        found[layer] = layer.batch_statistics(inputs[0])

    with ExitStack() as hooks, evaluating(model, statistics):
        for layer in layers.values():
            hooks.enter_context(layer.register_forward_pre_hook(note))
        model(x)
    return {name: found[layer] for name, layer in layers.items() if layer in found}


def distance(model: nn.Module, first: Statistics, second: Statistics) -> dict[str, tuple[Tensor, Tensor]]:
    """How far statistics of a model lie from others, the second, in units free of the scale of a layer.

    Returned are two tensors (C,) for each layer: the shift of the centre in units of the second's standard
    deviation (its range, where a layer tracks that), and log2 of the ratio of the two spreads.
    """
    layers, result = norm_layers(model), {}
    for name in second:
        (centre, spread), (reference, scale) = first[name], second[name]
        if isinstance(layers[name], BatchNorm):
            spread, scale = spread.sqrt(), scale.sqrt()
        tiny = torch.finfo(scale.dtype).tiny
        spread, scale = spread.clamp_min(tiny), scale.clamp_min(tiny)
        result[name] = ((centre - reference) / scale, torch.log2(spread / scale))
    return result


@torch.no_grad()
def recalibrate(model: nn.Module, images: Iterable[Tensor]) -> nn.Module:
    """Replace running statistics by the plain average of batch statistics over given batches (PreciseBN).

    Weights do not change, and everything but the norms is in evaluation mode. The model is changed in place
    and returned, every layer in the mode it was in. ``images`` are batches (N, C, H, W) in [0, 1]; what they
    are decides what inference is tuned to. ValueError or TypeError if there is none, or something that is no
    tensor; after every error the running statistics are as before.
    """
    layers = norm_layers(model).values()
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    given: Iterable[object] = images  # loaders of pairs are an easy mistake
    batches = 0
    try:
        # Momentum None averages all batches alike.
        with evaluation_mode(model), track(model, True), _switched(model, "momentum", None):
            for layer in layers:
                layer.reset_running_stats()
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
    return model


def frozen(model: nn.Module, images: Iterable[Tensor] | None = None) -> nn.Module:
    """A copy, in evaluation mode, whose norms keep to given statistics whatever batch they see.

    These are the tracked ones, or the average over batches of ``images`` (see :func:`recalibrate`).
    Parameters are shared with the model, which is left as it was.
    """
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()
    for layer in norm_layers(twin).values():
        layer.statistics = "tracked"
    return twin if images is None else recalibrate(twin, images)


class Detached(nn.Module):
    """A copy of a model that takes the statistics of the batch as given: no gradient passes through them.

    An attack on it takes account of the statistics as they are at each of its steps, not of how its own
    images move them. The variance is the unbiased one of running averages, a factor n / (n - 1) for n values.
    Parameters are shared; ValueError if there is no norm with running statistics.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = frozen(model)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        recalibrate(self.model, [x.detach()])  # anew for every batch, so at every step of an attack
        with evaluation_mode(self.model):
            return self.model(x)


@dataclass(frozen=True, eq=False)
class GradientShares:
    """Of each image of a batch the gradient at its pixels, by whose loss it comes from; float64 (N,) each.

    ``own``: l2 norm of the gradient of the image's own cross-entropy, per unit of pixel value. ``others``: of
    that of the sum of the other images', at the same pixels. ``ratio``: others / own; infinite, or NaN where
    others is 0 as well, if own is 0. ``cosine``: between the two; 0 where one of them is 0. ``agreement``:
    share of the image's pixels (of all channels) at which the sum of the two, which an attack on the batch
    follows, has the sign of the own one.
    """

    own: Tensor
    others: Tensor
    ratio: Tensor
    cosine: Tensor
    agreement: Tensor


def gradient_shares(model: nn.Module, x: Tensor, y: Tensor, statistics: str = "batch") -> GradientShares:
    """How much of the gradient at each image's pixels is its own loss's, and how much its neighbours'.

    Images (N, C, ...) in [0, 1] reach each other through the statistics of the batch alone: with tracked ones
    ``others`` is 0. Exact, at the cost of one forward and N backward passes. The gradient of a cross-entropy,
    which float32 loses where the model is sure, is taken as (1 - p) times that of log((1 - p) / p), with p
    the probability of the label, in float64 from the logits on. The model is in evaluation mode meanwhile,
    and left as it was. ValueError for labels that are none of these images, and as :func:`use_statistics`.
    """
    check_labels("y", y, len(x))
    # Gradients are needed inside torch.no_grad() and torch.inference_mode() too.
    with torch.inference_mode(False), torch.enable_grad(), borrowed(model), evaluating(model, statistics):
        leaf, label = x.detach().clone().requires_grad_(), y[:, None].long().clone()
        own, others = (torch.zeros_like(wide(leaf)) for _ in range(2))
        logits = wide(logits_of(model(leaf)))
        odds = logits.scatter(1, label, -torch.inf).logsumexp(1) - logits.gather(1, label)[:, 0]
        for i, slope in enumerate(odds.detach().sigmoid()):
            gradient = slope * wide(torch.autograd.grad(odds[i], leaf, retain_graph=True)[0])
            own[i] = gradient[i]
            gradient[i] = 0
            others += gradient
    own, others = own.flatten(1), others.flatten(1)
    a, b = own.norm(dim=1), others.norm(dim=1)
    cosine = torch.where((a > 0) & (b > 0), (own / a[:, None] * (others / b[:, None])).sum(1), 0)
    agreement = wide((own.sign() == (own + others).sign()).float()).mean(1)
    return GradientShares(a, b, b / a, cosine, agreement)

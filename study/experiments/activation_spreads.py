"""Section 4's argument on a trained network: what each normaliser makes of the same activations.

``papermill notebooks/workers/measure.ipynb out.ipynb -p measurement activation_spreads``
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from rnlib import Norm, use_statistics
from study.experiments.subject import Outcome, Subject

# What x - mean is divided by, given sigma and the range of each channel.
NORMALISERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch_norm": lambda sigma, span: sigma,
    "two_sigma": lambda sigma, span: 2 * sigma,
    "mean_range_norm": lambda sigma, span: span,
    "robust_norm": lambda sigma, span: span**0.2,
}


def activation_spreads(subject: Subject) -> Iterator[Outcome]:
    """How wide a channel is after each normaliser, at the input of each norm layer, under batch statistics.

    Measured is the standard deviation after it (without eps, scale and shift): ``std``, the median over
    channels of the mean over batches, and ``largest`` of all channels and batches. The outcome is by channel:
    narrower than after BatchNorm, which leaves 1.
    """
    for layer, (sigma, span) in _spreads(subject).items():
        for name, divisor in NORMALISERS.items():
            yield {"layer": layer, "normaliser": name}, partial(_widths, sigma, divisor(sigma, span))


def _widths(sigma: Tensor, divisor: Tensor) -> tuple[dict[str, float], Tensor]:
    std = sigma / divisor.clamp_min(torch.finfo(sigma.dtype).tiny)
    mean = std.mean(0)
    return {"std": mean.median().item(), "largest": std.max().item()}, mean < 1


@torch.no_grad()
def _spreads(subject: Subject) -> dict[str, tuple[Tensor, Tensor]]:
    """Standard deviation and range at the input of each norm layer, each (batches, C)."""
    layers = {name: layer for name, layer in subject.model.named_modules() if isinstance(layer, Norm)}
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def see(values: list[Tensor], layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1).double()
        values.append(torch.stack([x.std(1, correction=0), x.amax(1) - x.amin(1)]).cpu())

    hooks = [layer.register_forward_pre_hook(partial(see, found[name])) for name, layer in layers.items()]
    try:
        with use_statistics(subject.model, "batch"):
            for x, _, _ in subject.batches():
                subject.model(x)
    finally:
        for hook in hooks:
            hook.remove()
    seen = {name: torch.stack(values) for name, values in found.items()}
    return {name: (values[:, 0], values[:, 1]) for name, values in seen.items()}

"""Section 4's argument on activations of a trained network: what each normaliser makes of one and the same
input.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from rnlib.data import Dataset, batches
from rnlib.modes import use_statistics
from study.experiments.experiments import BATCH_SIZE, Outcome
from study.runs import Run
from rnlib.tracking import norm_layers

# What x - mean is divided by, given sigma and the range of each channel.
NORMALISERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch_norm": lambda sigma, span: sigma,
    "two_sigma": lambda sigma, span: 2 * sigma,
    "mean_range_norm": lambda sigma, span: span,
    "robust_norm": lambda sigma, span: span**0.2,
}


@torch.no_grad()
def spreads(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """How wide a channel is after each normaliser, at the inputs of the norm layers of a trained network.

    The test images pass in batches, clean, under batch statistics. A cell is a layer and a normaliser.
    Measured is the standard deviation after it (without eps, scale and shift): ``std``, the median over
    channels of the mean over batches, and ``largest`` of all channels and batches. The outcome is by channel:
    narrower than after BatchNorm, which leaves 1.
    """
    layers = norm_layers(model)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def see(values: list[Tensor], layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1).double()
        values.append(torch.stack([x.std(1, correction=0), x.amax(1) - x.amin(1)]))

    hooks = [layer.register_forward_pre_hook(partial(see, found[name])) for name, layer in layers.items()]
    try:
        with use_statistics(model, "batch"):
            for x, _ in batches(dataset, BATCH_SIZE, device=device):
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, values in found.items():
        sigma, span = torch.stack(values).cpu().unbind(1)  # each (batches, C)
        for name, divisor in NORMALISERS.items():
            std = sigma / divisor(sigma, span).clamp_min(torch.finfo(sigma.dtype).tiny)
            mean = std.mean(0)
            widths = {"std": mean.median().item(), "largest": std.max().item()}
            yield {"layer": layer, "normaliser": name}, (widths, mean < 1)

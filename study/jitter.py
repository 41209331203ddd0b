"""Tracked statistics with noise of the size of batch sampling: randomisation without the batch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rnlib.statistics import Statistics, batch_statistics, norm_layers, use_statistics


def sampling_noise(model: nn.Module, images: Iterable[Tensor]) -> Statistics:
    """How much the statistics of batches scatter from batch to batch, under batch statistics.

    Args:
        model: in any mode, and left in it.
        images: at least two batches (N, C, H, W) in [0, 1], all of the size in question.

    Returns:
        By layer the standard deviation over batches of its first statistic, and of the log of its second one
        (variance, or range), each (C,).

    Raises:
        ValueError: fewer than two batches.
    """
    found = [batch_statistics(model, x) for x in images]
    if len(found) < 2:
        raise ValueError(f"images holds {len(found)} batches; scatter needs at least two")
    noise = {}
    for name in found[0]:
        first = torch.stack([statistics[name][0] for statistics in found])
        second = torch.stack([statistics[name][1] for statistics in found])
        # A dead channel has variance 0 in every batch: it does not scatter.
        noise[name] = (first.std(0), second.clamp_min(torch.finfo(second.dtype).tiny).log().std(0))
    return noise


@contextmanager
def jittered(
    model: nn.Module, noise: Statistics, generator: torch.Generator, *, redraw: bool = False
) -> Iterator[nn.Module]:
    """Within the block the model normalises with tracked statistics that are perturbed at random.

    A layer's first statistic becomes m + s n and its second v exp(t k), with (s, t) from ``noise`` and (n, k)
    standard normal, independent from channel to channel. Batches scatter by as much, but their channels
    together: independent noise is the cruder disturbance.

    Args:
        model: in evaluation mode; its running statistics are put back afterwards.
        noise: as :func:`sampling_noise` returns it; every layer has to be in it.
        generator: source of the noise.
        redraw: new noise at every forward pass; else one draw for the whole block.

    Raises:
        ValueError: the noise is of another model.
    """
    layers = norm_layers(model)
    before = {name: layer.running_statistics for name, layer in layers.items()}
    for name, pair in before.items():
        if name not in noise or [size.shape for size in noise[name]] != [value.shape for value in pair]:
            fix = "take it from sampling_noise(model, images) of this model"
            raise ValueError(f"noise does not fit layer {name!r} of {len(pair[0])} channels: {fix}")
    handles: list[RemovableHandle] = []

    def draw(name: str) -> None:
        layer, (shift, log_scale) = layers[name], noise[name]
        n, k = (
            torch.randn(len(shift), generator=generator, device=generator.device).to(shift) for _ in range(2)
        )
        first, second = before[name]
        # New tensors: a backward pass may still need the old ones.
        setattr(layer, f"running_{layer.names[0]}", first + n * shift)
        setattr(layer, f"running_{layer.names[1]}", second * (k * log_scale).exp())

    try:
        for name, layer in layers.items():
            draw(name)
            if redraw:
                hook = layer.register_forward_pre_hook(lambda module, inputs, name=name: draw(name))
                handles.append(hook)
        with use_statistics(model, "tracked"):
            yield model
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            for key, value in zip(layer.names, before[name], strict=True):
                setattr(layer, f"running_{key}", value)

"""Jitter on tiny networks, against what it is made of."""

import numpy as np
import pytest
import torch

from rnlib import batch_statistics, resnet, tracked_statistics
from rnlib.statistics import norm_layers
from study.jitter import jittered, sampling_noise


def network(norm="batch_norm"):
    torch.manual_seed(0)
    model = resnet(8, norm, width=4, in_channels=1).eval()
    for layer in norm_layers(model).values():
        layer.running_statistics[0].normal_()
        layer.running_statistics[1].uniform_(0.5, 2)
    return model


def batches(n=3, size=10):
    return [torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def test_noise_is_the_scatter_of_batch_statistics():
    model = network()
    found = sampling_noise(model, batches())
    for name, (first, second) in found.items():
        kept = [batch_statistics(model, x)[name] for x in batches()]
        assert np.allclose(first, np.std([mean for mean, _ in kept], axis=0, ddof=1), atol=1e-6)
        assert np.allclose(second, np.std(np.log([var for _, var in kept]), axis=0, ddof=1), atol=1e-5)
    same = sampling_noise(model, [batches()[0]] * 3)
    assert all(torch.allclose(value, torch.zeros(())) for pair in same.values() for value in pair)
    with pytest.raises(ValueError, match="images holds 1 batches"):
        sampling_noise(model, batches(1))


@pytest.mark.parametrize("redraw", [False, True])
def test_without_noise_jitter_is_tracked_statistics(redraw):
    model, x = network(), batches()[0]
    noise = sampling_noise(model, [x, x])
    wanted = model(x)
    with jittered(model, noise, torch.Generator(), redraw=redraw):
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
@pytest.mark.parametrize("redraw", [False, True])
def test_jitter_has_the_size_of_the_noise_and_leaves_nothing(norm, redraw):
    model = network(norm)
    before, layers = tracked_statistics(model), norm_layers(model)
    sizes = {name: torch.ones(layer.num_features) for name, layer in layers.items()}
    noise = {name: (0.2 * ones, 0.1 * ones) for name, ones in sizes.items()}
    shifts, logs, answers = [], [], []
    for seed in range(60):
        with jittered(model, noise, torch.Generator().manual_seed(seed), redraw=redraw):
            answers += [model(batches()[0]), model(batches()[0])]
            for name, layer in layers.items():
                shifts.append(layer.running_statistics[0] - before[name][0])
                logs.append((layer.running_statistics[1] / before[name][1]).log())
    assert torch.cat(shifts).std().item() == pytest.approx(0.2, rel=0.1)
    assert torch.cat(logs).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(answers[0], answers[1]) is not redraw
    for name, pair in tracked_statistics(model).items():
        assert all(torch.equal(a, b) for a, b in zip(pair, before[name], strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers.values())


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("wrong", ["missing", "short", "elsewhere"])
def test_noise_that_does_not_fit_leaves_nothing(wrong, redraw):
    model = network()
    before, layers = tracked_statistics(model), norm_layers(model)
    noise, last = sampling_noise(model, batches()), list(layers)[-1]
    good, error, message = noise.pop(last), ValueError, f"does not fit layer '{last}' of 16 channels"
    if wrong == "short":
        noise[last] = (good[0][:-1], good[1])
    if wrong == "elsewhere":
        noise[last], error, message = (good[0], good[1].to("meta")), RuntimeError, "meta"
    with pytest.raises(error, match=message), jittered(model, noise, torch.Generator(), redraw=redraw):
        pass
    for name, pair in tracked_statistics(model).items():
        assert all(torch.equal(a, b) for a, b in zip(pair, before[name], strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers.values())

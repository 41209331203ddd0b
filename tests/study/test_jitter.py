"""Jitter on tiny networks, against what it is made of."""

import numpy as np
import pytest
import torch

from rnlib import batch_statistics, resnet, tracked_statistics
from rnlib.statistics import norm_layers
from study.experiments.frozen_statistics import jittered, scatter


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
    found = scatter(model, batches())
    for name, (first, second) in found.items():
        kept = [batch_statistics(model, x)[name] for x in batches()]
        assert np.allclose(first, np.std([mean for mean, _ in kept], axis=0, ddof=1), atol=1e-6)
        assert np.allclose(second, np.std(np.log([var for _, var in kept]), axis=0, ddof=1), atol=1e-5)
    same = scatter(model, [batches()[0]] * 3)
    assert all(torch.allclose(value, torch.zeros(())) for pair in same.values() for value in pair)


@pytest.mark.parametrize("redraw", [False, True])
def test_without_noise_jitter_is_tracked_statistics(redraw):
    model, x = network(), batches()[0]
    noise = scatter(model, [x, x])
    assert torch.equal(jittered(model, noise, torch.Generator(), redraw=redraw)(x), model(x))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
@pytest.mark.parametrize("redraw", [False, True])
def test_jitter_has_the_size_of_the_noise_and_leaves_the_model_alone(norm, redraw):
    model = network(norm)
    before, layers = tracked_statistics(model), norm_layers(model)
    sizes = {name: torch.ones(layer.num_features) for name, layer in layers.items()}
    noise = {name: (0.1 * ones, 0.05 * ones) for name, ones in sizes.items()}
    shifts, logs, answers = [], [], []
    for seed in range(60):
        twin = jittered(model, noise, torch.Generator().manual_seed(seed), size=2, redraw=redraw)
        answers += [twin(batches()[0]), twin(batches()[0])]
        for name, (first, second) in tracked_statistics(twin).items():
            shifts.append(first - before[name][0])
            logs.append((second / before[name][1]).log())
    assert torch.cat(shifts).std().item() == pytest.approx(0.2, rel=0.1)
    assert torch.cat(logs).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(answers[0], answers[1]) is not redraw
    for name, pair in tracked_statistics(model).items():
        assert all(torch.equal(a, b) for a, b in zip(pair, before[name], strict=True))

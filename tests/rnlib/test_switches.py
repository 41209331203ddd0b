"""Switching whole models between statistics, tracking on and off, evaluation mode and back."""

import copy

import pytest
import torch
from torch.nn import functional as F
from toys import draw, layer_for, seeded

from rnlib import resnet, statistics_modes, track, use_statistics

each_batch_norm = pytest.mark.parametrize(
    "name", ["batch_norm", "robust_norm", "mean_range_norm", "min_max_norm"]
)


# --- the switches -------------------------------------------------------------------------------------------


@each_batch_norm
def test_batch_statistics_in_evaluation_mode_are_those_of_training_and_nothing_is_tracked(name):
    layer, x = layer_for(name, 3), draw(4, 3, 5, 5)
    layer(draw(4, 3, 5, 5, seed=1))
    before = copy.deepcopy(layer.state_dict())
    tracked = layer.eval()(x)
    with use_statistics(layer, "batch"):
        y = layer(x)
        with torch.no_grad():  # grad mode says nothing about statistics
            torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), tracked, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), tracked, rtol=0, atol=0)
    assert not torch.allclose(y, tracked)
    torch.testing.assert_close(y, layer.train()(x), rtol=0, atol=0)
    if name == "batch_norm":
        torch.testing.assert_close(y, F.batch_norm(x, None, None, layer.weight, layer.bias, True))


@each_batch_norm
def test_training_uses_the_batch_whatever_the_switch_says(name):
    x = draw(4, 3, 5, 5)
    layer = layer_for(name, 3)
    wanted = copy.deepcopy(layer)(x)
    for statistics in ("tracked", "batch"):
        with use_statistics(layer, statistics):
            torch.testing.assert_close(layer(x), wanted, rtol=0, atol=0)


@each_batch_norm
def test_tracking_switch(name):
    layer, x = layer_for(name, 3), draw(4, 3, 5, 5)
    before = copy.deepcopy(layer.state_dict())
    with track(layer, False):
        y = layer(x)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
    assert layer.num_batches_tracked == 1


@each_batch_norm
def test_neighbours_matter_with_batch_statistics_only(name):
    model = resnet(8, name, width=4).double()
    x = torch.rand(8, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    model(x)
    model.eval()
    order = torch.randperm(8, generator=seeded(1))
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(model(x), alone)
        with use_statistics(model, "batch"):
            together = model(x)
            torch.testing.assert_close(model(x[order]), together[order])  # the order alone does not matter
            assert not torch.allclose(model(x[:4]), together[:4], atol=1e-3)
            assert not torch.allclose(together, alone, atol=1e-3)
    assert statistics_modes(model) == ("tracked", "batch")

"""Switching whole models between statistics, tracking on and off, evaluation mode and back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnlib import resnet, statistics_modes, track, use_statistics
from rnlib.norms import BatchNorm, MinMaxNorm, Norm, RobustNorm
from rnlib.other_norms import make_norm
from rnlib.statistics import evaluation_mode

each_batch_norm = pytest.mark.parametrize(
    "name", ["batch_norm", "robust_norm", "mean_range_norm", "min_max_norm"]
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def layer_for(name, channels, dtype=torch.float64, **options):
    """A layer whose scale and shift are not trivial."""
    layer = make_norm(name, **options)(channels).to(dtype)
    if layer.weight is not None:
        nn.init.uniform_(layer.weight, 0.5, 2, generator=seeded(3))
        nn.init.uniform_(layer.bias, -1, 1, generator=seeded(4))
    return layer


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


def switches(model):
    return [(m.statistics, m.tracking) for m in model.modules() if isinstance(m, Norm)]


def test_switches_nest_and_restore_every_layer_after_exceptions():
    model = nn.Sequential(BatchNorm(2), nn.Sequential(RobustNorm(2), nn.ReLU()), MinMaxNorm(2))
    model[0].statistics, model[1][0].tracking = "batch", False
    before = switches(model)
    with use_statistics(model, "batch") as same:
        assert same is model
        with use_statistics(model, "tracked"), track(model, False):
            assert switches(model) == [("tracked", False)] * 3
        assert switches(model) == [("batch", True), ("batch", False), ("batch", True)]
    assert switches(model) == before
    for switch, value in ((use_statistics, "batch"), (track, False)):
        with pytest.raises(KeyError), switch(model, value):
            raise KeyError
        assert switches(model) == before
    model.eval().train()
    assert switches(model) == before


def test_evaluation_mode_gives_every_layer_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(BatchNorm(2), nn.ReLU()))
    model[1].eval()
    before = [m.training for m in model.modules()]
    with evaluation_mode(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize("norm", ["no_norm", "group_norm"])
def test_switches_do_nothing_to_models_without_batch_statistics(norm):
    model, x = resnet(8, norm, width=8).eval(), torch.rand(2, 3, 8, 8, generator=seeded())
    with torch.no_grad(), use_statistics(model, "batch"), track(model, False):
        inside = model(x)
    torch.testing.assert_close(inside, model(x), rtol=0, atol=0)
    assert statistics_modes(model) == ("none",)


@pytest.mark.parametrize(("switch", "value"), [(use_statistics, "batch"), (track, False)])
@pytest.mark.parametrize("native", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_native_layers_cannot_be_switched_and_the_error_says_what_to_do(switch, value, native):
    model = nn.Sequential(BatchNorm(2), nn.Sequential(native(2)))
    message = r"layer '1\.0' is a native BatchNorm.*rnlib\.convert_norms"
    with pytest.raises(ValueError, match=message), switch(model, value):
        pass
    assert switches(model) == [("tracked", True)]


def test_unknown_statistics():
    message = "'bacth'.*'tracked', 'batch'"
    with pytest.raises(ValueError, match=message), use_statistics(BatchNorm(2), "bacth"):
        pass


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

"""Probes of statistics, against plain tensor operations."""

import pytest
import torch
from torch import nn

import rnlib
from rnlib.tracking import norm_layers


def images(n=12, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def small(norm="batch_norm", **options):
    torch.manual_seed(0)
    norm_layer = rnlib.make_norm(norm, **options)
    first = [nn.Conv2d(3, 4, 3), norm_layer(4), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*first, nn.Conv2d(4, 2, 3), norm_layer(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_batch_statistics_are_those_at_the_input_of_each_layer():
    model, x = small().train(), images()
    found = rnlib.batch_statistics(model, x)
    first = model[0](x)
    torch.testing.assert_close(found["1"], (first.mean((0, 2, 3)), first.var((0, 2, 3))))
    second = model[4](torch.relu(nn.functional.batch_norm(first, None, None, training=True)))
    torch.testing.assert_close(found["5"], (second.mean((0, 2, 3)), second.var((0, 2, 3))))
    assert all(layer.training for layer in model.modules())
    assert model[1].num_batches_tracked == 0


def test_statistics_mode_decides_what_deeper_layers_see():
    model, x = small().eval(), images()
    tracked = rnlib.batch_statistics(model, x, statistics="tracked")
    second = model[4](torch.relu(model[0](x) / (1 + 1e-5) ** 0.5))  # a new layer has mean 0, variance 1
    torch.testing.assert_close(tracked["5"], (second.mean((0, 2, 3)), second.var((0, 2, 3))))
    assert model[1].statistics == "tracked"


def test_tracked_statistics_are_a_copy():
    model = small("robust_norm")
    tracked = rnlib.tracked_statistics(model)
    model.train()(images())
    assert torch.equal(tracked["1"][1], torch.ones(4))
    assert not torch.equal(model[1].running_range, torch.ones(4))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "min_max_norm"])
def test_recalibration_averages_all_batches_alike(norm):
    model = small(norm)
    batches = [images(seed=seed) + seed for seed in range(5)]
    model.train()(images(seed=9))  # something to forget
    model.eval()
    expected = [rnlib.batch_statistics(model, x)["1"] for x in batches]
    rnlib.recalibrate(model, batches)
    for index, running in enumerate(model[1].running_statistics):
        torch.testing.assert_close(running, torch.stack([one[index] for one in expected]).mean(0))
    assert model[1].num_batches_tracked == 5
    assert model[1].momentum == 0.1
    assert not any(layer.training for layer in model.modules())


def test_recalibrated_on_one_batch_both_modes_agree():
    model, x = small("robust_norm").eval(), images()
    rnlib.recalibrate(model, [x])
    tracked = model(x)
    with rnlib.use_statistics(model, "batch"):
        torch.testing.assert_close(model(x), tracked)


def interrupted():
    yield images()
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (list, ValueError, "at least one"),
        (lambda: [images(), (images(), torch.arange(12))], TypeError, "holds a tuple, it must hold tensors"),
        (lambda: [images(), images()[:, :1]], RuntimeError, "3 channels"),
        (interrupted, KeyboardInterrupt, None),
    ],
    ids=["nothing", "pairs", "grey", "interrupted"],
)
def test_recalibration_that_fails_changes_nothing(given, error, message):
    model = small().train()
    model(images())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        rnlib.recalibrate(model, given())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    assert model[1].momentum == 0.1


def test_distance_is_in_units_of_the_reference_spread():
    model = small()
    reference = {"1": (torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([4.0, 4.0, 1.0, 1.0]))}
    other = {"1": (torch.tensor([2.0, 1.0, 2.0, 2.0]), torch.tensor([4.0, 16.0, 0.25, 1.0]))}
    shift, ratio = rnlib.distance(model, other, reference)["1"]
    torch.testing.assert_close(shift, torch.tensor([1.0, 0.0, 0.0, -1.0]))
    torch.testing.assert_close(ratio, torch.tensor([0.0, 1.0, -1.0, 0.0]))  # of standard deviations
    model = small("robust_norm")
    shift, ratio = rnlib.distance(model, other, reference)["1"]
    torch.testing.assert_close(shift, torch.tensor([0.5, 0.0, 0.0, -1.0]))
    torch.testing.assert_close(ratio, torch.tensor([0.0, 2.0, -2.0, 0.0]))  # of ranges


@pytest.mark.parametrize("model", [nn.Sequential(nn.BatchNorm2d(3)), rnlib.resnet(8, "no_norm", width=2)])
def test_a_model_without_norms_of_rnlib_is_refused_with_the_fix(model):
    with pytest.raises(ValueError, match="convert_norms"):
        norm_layers(model)

"""Tracked statistics of a model that tracked nothing, and a model left in training mode, are said once."""

import warnings

import pytest
import torch
from torch import nn

import rnlib
from rnlib import GradSign, convert_norms, make_norm, measure, recalibrate, resnet, success, use_statistics

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
IMAGES = rnlib.Dataset("noise", (X * 255).byte(), Y, tuple("abcd"))
FIX = r"no batch has been averaged into tracked statistics of .*rnlib\.recalibrate"


def fresh(**options):
    torch.manual_seed(0)
    return resnet(8, "batch_norm", width=4, **options)


def with_native_norms(**options):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.Flatten(), nn.Linear(144, 4))


def after_a_step(model):
    model.train()(X)
    return model


@pytest.mark.parametrize(
    "model",
    [
        fresh(),
        after_a_step(fresh(momentum=0)),
        convert_norms(after_a_step(with_native_norms(track_running_stats=False)), "batch_norm"),
        convert_norms(after_a_step(with_native_norms()), "robust_norm"),  # the mean is carried, no range
        nn.Sequential(make_norm("min_max_norm")(3), nn.Flatten(), nn.Linear(192, 4)),
    ],
    ids=["fresh", "momentum 0", "nothing tracked", "another norm", "min_max_norm"],
)
def test_the_layers_are_named(model):
    name = next(name for name, layer in model.named_modules() if isinstance(layer, rnlib.Norm))
    with pytest.warns(UserWarning, match=rf"{FIX}") as caught:
        measure(model, IMAGES, statistics="tracked")
    assert f"statistics of {name}" in str(caught[0].message)
    if model.get_submodule(name).statistics == "tracked":
        with pytest.warns(UserWarning, match=FIX):
            GradSign(0.1)(model.eval(), X, Y)


def test_filled_statistics_and_those_of_a_batch_say_nothing():
    model = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, IMAGES, statistics="batch")
        with use_statistics(model.eval(), "batch"):
            GradSign(0.1)(model, X, Y)
        recalibrate(model, [X])
        measure(model, IMAGES, GradSign(0.1), statistics="tracked")
        GradSign(0.1)(after_a_step(fresh()).eval(), X, Y)


def test_a_norm_by_itself_is_named_and_an_error_restores_the_mode():
    layer = make_norm("robust_norm")(3).eval()
    layer.statistics = "batch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            pytest.raises(UserWarning, match="tracked statistics of the model:"),
            use_statistics(layer, "tracked"),
        ):
            pass
    assert layer.statistics == "batch"


def test_it_is_said_once():
    model = fresh().eval()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            measure(model, IMAGES, GradSign(0.1), statistics="tracked")
    assert len([one for one in shown if "averaged" in str(one.message)]) == 1


def test_a_model_in_training_mode_is_attacked_in_it_and_that_is_said():
    model = after_a_step(fresh())
    with pytest.warns(
        UserWarning, match=r"layer '2' \(BatchNorm\) is attacked in training mode: model\.eval\(\)"
    ):
        found = GradSign(0.1)(model, X, Y)
    with use_statistics(after_a_step(model).eval(), "batch"):
        wanted = GradSign(0.1)(model, X, Y)
        fooled = success(model, wanted, Y)
    assert torch.equal(found, wanted)  # batch statistics, for there is no dropout
    with pytest.warns(UserWarning, match="training mode"):
        assert torch.equal(success(model.train(), found, Y), fooled)

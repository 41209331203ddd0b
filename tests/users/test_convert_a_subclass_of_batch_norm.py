"""A model whose batch norms are subclasses: timm's hold the activation, others change the scale."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import register_parametrization

from rnlib import BatchNorm, Dataset, RobustNorm, audit_batch_dependence, convert_norms, use_statistics


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def efficientnet():
    timm = pytest.importorskip("timm", reason="timm's models are what is converted")
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b0", pretrained=False, num_classes=5, drop_path_rate=0.2)
    return model.train(), draw(8, 3, 32, 32)


def test_a_model_of_timm_answers_as_before(efficientnet):
    model, x = efficientnet
    with torch.no_grad():
        model(x)
        ours = convert_norms(copy.deepcopy(model), "batch_norm")
        torch.testing.assert_close(ours.eval()(x), model.eval()(x), rtol=0, atol=0)
        for network in (model, ours):  # a training step draws the same paths
            torch.manual_seed(1)
            network.train()(x)
        torch.testing.assert_close(ours.eval()(x), model.eval()(x))
        with use_statistics(ours, "batch"):
            assert (ours(x) - model(x)).abs().max() > 0.1
        answers = ours(x)
    back = convert_norms(ours, "torch_batch_norm")
    assert not [layer for layer in back.modules() if isinstance(layer, BatchNorm)]
    torch.testing.assert_close(back(x), answers, rtol=0, atol=0)


def test_the_activations_stay_when_the_norm_is_another(efficientnet):
    model = convert_norms(copy.deepcopy(efficientnet[0]), "robust_norm")
    kinds = [type(layer).__name__ for layer in model.modules()]
    assert kinds.count("RobustNorm") == 49
    assert kinds.count("SiLU") == [type(layer).__name__ for layer in efficientnet[0].modules()].count("SiLU")
    assert model(efficientnet[1]).isfinite().all()


def test_an_audit_of_a_model_of_timm_sees_its_own_accuracy(efficientnet):
    model = efficientnet[0].eval()
    images = torch.randint(
        256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        labels = model(images / 255).argmax(1)
    found = audit_batch_dependence(model, Dataset("noise", images, labels, tuple("abcde")), batch_sizes=(4,))
    tracked = [row for row in found.table if row.statistics == "tracked"]
    assert {(row.accuracy, row.changed) for row in tracked} == {(100.0, 0.0)}


class OnePlusWeight(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, 1 + self.weight, self.bias, self.training, self.momentum
        )


class Noisy(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) + torch.randn_like(x) * self.training


class PlainSubclass(nn.BatchNorm3d):
    """Adds nothing."""


def positive(layer):
    register_parametrization(layer, "weight", nn.Softplus())
    return layer


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "torch_batch_norm", RobustNorm])
@pytest.mark.parametrize("layer", [OnePlusWeight(3), Noisy(3), positive(nn.BatchNorm2d(3))], ids=repr)
def test_what_cannot_be_kept_is_an_error_that_names_the_layer(layer, norm):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(layer))
    with pytest.raises(ValueError, match=rf"layer '1\.0' is a {type(layer).__name__} .*by hand: .*'1\.0'"):
        convert_norms(model, norm)
    assert [type(model[0]), model[1][0]] == [nn.BatchNorm2d, layer]


class AnyDimensions(_BatchNorm):
    def _check_input_dim(self, input):
        pass


def test_a_subclass_for_any_dimensions_stays_one():
    layer = AnyDimensions(3)
    ours = convert_norms(copy.deepcopy(layer), "batch_norm")
    for shape in ((4, 3), (4, 3, 5), (4, 3, 5, 5)):
        torch.testing.assert_close(ours(draw(*shape)), layer(draw(*shape)))


def test_a_subclass_that_adds_nothing_is_a_batch_norm():
    layer = PlainSubclass(3)
    x = draw(4, 3, 2, 2, 2)
    ours = convert_norms(copy.deepcopy(layer), "batch_norm")
    torch.testing.assert_close(ours(x), layer(x))
    assert type(convert_norms(ours, "torch_batch_norm")) is nn.BatchNorm3d

"""Exchanging norms: what carries over, what stays shared, and that the result trains."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from rnlib import BatchNorm, MinMaxNorm, NoNorm, RobustNorm, convert_norms, make_norm, use_statistics

NATIVE = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


SIZES = {1: (6,), 2: (6, 5), 3: (4, 3, 2)}


exact = {"rtol": 0, "atol": 0}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def used(layer, dimensions=2):
    """A native layer with nothing at its initial value."""
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(layer.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    layer.train()(2 * draw(4, layer.num_features, *SIZES[dimensions]) + 1)
    return layer.eval()


def norms(model):
    return [m for m in model.modules() if isinstance(m, (*NATIVE.values(), BatchNorm, RobustNorm))]


def test_resnet18_becomes_a_robust_norm_network_that_trains():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    assert convert_norms(model, "robust_norm", p=0.3) is model
    assert len(norms(model)) == 20
    assert all(type(m) is RobustNorm and m.p == 0.3 for m in norms(model))
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = draw(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert not any(torch.equal(value, before[name]) for name, value in model.named_parameters())
    for statistics in ("tracked", "batch"):
        with use_statistics(model.eval(), statistics):
            assert model(x).isfinite().all()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track_running_stats", [True, False])
def test_there_and_back_is_the_same_layer(dimensions, momentum, affine, track_running_stats):
    options = {"affine": affine, "track_running_stats": track_running_stats}
    native = used(NATIVE[dimensions](3, eps=1e-3, momentum=momentum, **options), dimensions)
    x = draw(5, 3, *SIZES[dimensions], seed=3)
    ours = convert_norms(native, "batch_norm")
    back = convert_norms(ours, "torch_batch_norm")
    assert (type(ours), type(back)) == (BatchNorm, NATIVE[dimensions])
    assert ours.statistics == ("tracked" if track_running_stats else "batch")
    for training in (False, True, False):
        wanted = native.train(training)(x)
        torch.testing.assert_close(ours.train(training)(x), wanted)
        torch.testing.assert_close(back.train(training)(x), wanted, **exact)
        torch.testing.assert_close(back.state_dict(), native.state_dict(), **exact)
    assert (back.momentum, back.eps, back.affine) == (momentum, 1e-3, affine)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_norms_of_rnlib_become_native_ones_of_the_wanted_dimensions(dimensions):
    assert type(convert_norms(BatchNorm(3), "torch_batch_norm", dimensions=dimensions)) is NATIVE[dimensions]
    assert type(convert_norms(BatchNorm(3), "torch_batch_norm")) is nn.BatchNorm2d


def test_robust_norm_takes_scale_shift_and_mean_and_starts_its_range_anew():
    native = used(nn.BatchNorm2d(3, momentum=0.3, eps=1e-3))
    layer = convert_norms(native, "robust_norm", p=0.4)
    assert (layer.p, layer.momentum, layer.eps) == (0.4, 0.3, 1e-3)
    for name in ("weight", "bias", "running_mean"):
        torch.testing.assert_close(getattr(layer, name), getattr(native, name), **exact)
        assert getattr(layer, name) is getattr(native, name)
    torch.testing.assert_close(layer.running_range, torch.ones(3))
    assert layer.num_batches_tracked == 0
    back = convert_norms(layer, "torch_batch_norm")
    torch.testing.assert_close(back.running_mean, native.running_mean, **exact)
    torch.testing.assert_close(back.running_var, torch.ones(3))


def test_range_carries_over_between_norms_of_the_range():
    layer = RobustNorm(3)
    layer(draw(4, 3, 5, 5))
    new = convert_norms(layer, "min_max_norm")
    assert type(new) is MinMaxNorm
    torch.testing.assert_close(new.running_range, layer.running_range, **exact)
    torch.testing.assert_close(new.running_min, torch.zeros(3))
    same = convert_norms(layer, "robust_norm", p=0.5)
    torch.testing.assert_close(same.state_dict(), layer.state_dict(), **exact)
    assert same.num_batches_tracked == 1


def test_options_win_over_what_carries_over():
    layer = convert_norms(nn.BatchNorm2d(3), "robust_norm", eps=0.5, momentum=0.7, affine=False)
    assert (layer.eps, layer.momentum, layer.weight, layer.bias) == (0.5, 0.7, None, None)
    assert convert_norms(BatchNorm(3), "torch_batch_norm", eps=0.5).eps == 0.5


def test_switches_carry_over():
    layer = BatchNorm(3)
    layer.statistics, layer.tracking = "batch", False
    new = convert_norms(layer, "robust_norm")
    assert (new.statistics, new.tracking) == ("batch", False)


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_takes_scale_shift_and_eps(affine):
    native = used(nn.BatchNorm2d(8, eps=1e-3, affine=affine))
    layer = convert_norms(native, "group_norm", groups=4)
    assert (type(layer), layer.num_groups, layer.eps, layer.affine) == (nn.GroupNorm, 4, 1e-3, affine)
    if affine:
        torch.testing.assert_close((layer.weight, layer.bias), (native.weight, native.bias), **exact)


def test_no_norm_takes_the_shift():
    native = used(nn.BatchNorm2d(3))
    fair = convert_norms(native, "no_norm", bias=True)
    torch.testing.assert_close(fair.bias, native.bias, **exact)
    handicapped = convert_norms(native, "no_norm")
    assert type(handicapped) is NoNorm
    assert not list(handicapped.parameters())


@pytest.mark.parametrize("name", ["batch_norm", "robust_norm", "group_norm", "torch_batch_norm"])
def test_frozen_parameters_dtype_and_mode_carry_over(name):
    native = used(nn.BatchNorm2d(8)).double()
    native.weight.requires_grad_(False)
    layer = convert_norms(native, name)
    assert (layer.weight.requires_grad, layer.bias.requires_grad, layer.training) == (False, True, False)
    assert {t.dtype for t in layer.state_dict().values()} <= {torch.float64, torch.int64}
    assert layer(draw(2, 8, 3, 3).double()).dtype == torch.float64
    assert convert_norms(native.train(), name).training


def test_dtype_and_device_carry_over_without_parameters_too():
    half = convert_norms(nn.BatchNorm2d(3, affine=False).bfloat16(), "robust_norm")
    assert half.running_range.dtype == torch.bfloat16
    elsewhere = convert_norms(nn.BatchNorm2d(3, device="meta"), "robust_norm")
    assert {t.device.type for t in elsewhere.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", ["batch_norm", "robust_norm", "group_norm", "torch_batch_norm"])
def test_a_scale_without_a_shift_gets_none(name):
    native = nn.BatchNorm2d(8)
    native.bias = None
    layer = convert_norms(native, name)
    assert [key for key, _ in layer.named_parameters()] == ["weight"]
    layer(draw(2, 8, 3, 3)).sum().backward()


class Sharing(nn.Module):
    """One norm under two names here and a third in a nested list."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.second = self.first
        layers = nn.ModuleList([nn.Sequential(nn.ReLU(), self.first), nn.BatchNorm2d(3)])
        self.nested = nn.ModuleDict({"list": layers})
        self.nothing = None
        self.register_module("empty", None)

    def forward(self, x):
        for layer in (self.first, self.second, *self.nested["list"]):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "steps", [["batch_norm"], ["batch_norm", "torch_batch_norm"], ["robust_norm", "batch_norm"]]
)
def test_shared_layers_stay_shared_in_nested_containers(steps):
    model = Sharing()
    for layer in norms(model):
        used(layer)
    wanted, x = copy.deepcopy(model).eval(), draw(4, 3, 5, 5, seed=3)
    for name in steps:
        convert_norms(model, name)
    nested = model.nested["list"]
    assert model.first is model.second is nested[0][1]
    assert nested[1] is not model.first
    assert len(norms(model)) == 2
    if "robust_norm" not in steps:
        torch.testing.assert_close(model.eval()(x), wanted(x))


def test_layers_of_all_kinds_in_one_model_return_to_their_own_class():
    kinds = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
    model = nn.Sequential(*(kind(3) for kind in kinds), nn.Sequential(RobustNorm(3)))
    kinds.append(nn.BatchNorm2d)
    convert_norms(convert_norms(model, "min_max_norm"), "batch_norm")
    assert all(type(m) is BatchNorm for m in norms(model))
    assert [type(m) for m in norms(convert_norms(copy.deepcopy(model), "torch_batch_norm"))] == kinds


def test_conversion_draws_nothing_from_the_random_state():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    before = torch.random.get_rng_state()
    for name in ("batch_norm", "robust_norm", "group_norm"):
        convert_norms(copy.deepcopy(model), name)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("robustnorm", {}, r"'robustnorm', known are: batch_norm, .*, torch_batch_norm"),
        ("robust_norm", {"q": 1}, "robust_norm does not take these options: {'q': 1}"),
        ("robust_norm", {"p": 2}, "p is 2"),
        ("torch_batch_norm", {"q": 1}, "torch_batch_norm does not take these options: {'q': 1}"),
        ("torch_batch_norm", {"dimensions": 4}, "dimensions is 4"),
        ("group_norm", {"groups": 4}, "groups is 4.*6 channels"),
    ],
)
def test_on_an_error_the_model_is_as_it_was(name, options, message):
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match=message):
        convert_norms(model, name, **options)
    assert [type(m) for m in model] == [nn.BatchNorm2d] * 2


def test_native_layers_alone_are_converted_where_that_is_wanted():
    model = nn.Sequential(nn.BatchNorm2d(3), RobustNorm(3), nn.Sequential(nn.BatchNorm1d(3)))
    ours = model[1]
    convert_norms(model, "min_max_norm", native_only=True)
    assert [type(model[0]), type(model[2][0])] == [MinMaxNorm] * 2
    assert model[1] is ours
    with pytest.raises(ValueError, match=r"no batch norm \(native\)"):
        convert_norms(model, "batch_norm", native_only=True)


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ValueError, match="Sequential has no batch norm"):
        convert_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), "robust_norm")
    with pytest.raises(ValueError, match="LazyBatchNorm2d has no size yet"):
        convert_norms(nn.Sequential(nn.LazyBatchNorm2d()), "robust_norm")


def test_norms_made_by_name_convert_too():
    model = nn.Sequential(*(make_norm(name)(4) for name in ("batch_norm", "mean_range_norm", "min_max_norm")))
    convert_norms(model, "robust_norm")
    assert [type(m) for m in model] == [RobustNorm] * 3


def test_a_function_makes_the_new_layers_with_settings_of_its_own():
    native = used(nn.BatchNorm2d(3, eps=1e-3, momentum=0.3))
    layer = convert_norms(native, partial(RobustNorm, p=0.4))
    assert (type(layer), layer.p, layer.eps, layer.momentum) == (RobustNorm, 0.4, 1e-5, 0.1)
    for name in ("weight", "bias", "running_mean"):
        torch.testing.assert_close(getattr(layer, name), getattr(native, name), **exact)
    assert convert_norms(BatchNorm(3), lambda channels: nn.Identity()).training
    with pytest.raises(ValueError, match=r"options {'p': 0.3} are for a norm given by name"):
        convert_norms(BatchNorm(3), RobustNorm, p=0.3)

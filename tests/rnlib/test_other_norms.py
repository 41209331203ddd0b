"""The norms of Section 5 and of the ablations, against closed forms and PyTorch's own layers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from rnlib import (
    convert_norms,
    distance,
    recalibrate,
    resnet,
    statistics_modes,
    track,
    tracked_statistics,
    use_statistics,
    vgg,
)
from rnlib.norms import BatchNorm
from rnlib.other_norms import BatchRenorm, FrozenNorm, WeightNorm, make_norm

BATCH_NORMS = ["batch_renorm", "tracked_norm", "sigma_norm"]


STATELESS = ["frozen_norm", "no_norm_bias", "weight_norm", "group_norm"]


each_batch_norm = pytest.mark.parametrize("name", BATCH_NORMS)


exact = {"rtol": 0, "atol": 0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def images(n=4, size=8, seed=0):
    return torch.rand(n, 3, size, size, generator=seeded(seed))


def layer_for(name, channels=3, dtype=torch.float64, **options):
    """A layer with nothing at its initial value, after five batches."""
    layer = make_norm(name, **options)(channels).to(dtype)
    nn.init.uniform_(layer.weight, 0.5, 2, generator=seeded(3))
    nn.init.uniform_(layer.bias, -1, 1, generator=seeded(4))
    for seed in range(5):
        layer(2 * draw(6, channels, 4, 4, seed=seed, dtype=dtype) + 1)
    return layer


def shaped(vector):
    return vector.view(1, -1, 1, 1)


def affine(layer, x):
    return x * shaped(layer.weight) + shaped(layer.bias)


def moments(x, correction):
    var, mean = torch.var_mean(x, (0, 2, 3), correction=correction)
    return shaped(mean), shaped(var)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    upstream = draw(*x.shape, seed=8, dtype=x.dtype)
    return torch.autograd.grad(layer(x), [x, *layer.parameters()], upstream)


# --- the formulas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.1, 0.2)])  # within the limits, and beyond them
def test_batch_renorm_follows_the_papers_algorithm_and_stops_gradients(r_max, d_max):
    layer = layer_for("batch_renorm", r_max=r_max, d_max=d_max, warmup=1)
    x = (3 * draw(5, 3, 4, 4, seed=7) - 2).requires_grad_()
    mean, var = moments(x, 0)
    std, running_std = (var + layer.eps).sqrt(), (shaped(layer.running_var) + layer.eps).sqrt()
    r = (std / running_std).clamp(1 / r_max, r_max).detach()
    d = ((mean - shaped(layer.running_mean)) / running_std).clamp(-d_max, d_max).detach()
    wanted = affine(layer, (x - mean) / std * r + d)
    upstream = draw(*x.shape, seed=8)
    parameters = (x, layer.weight, layer.bias)
    wanted_gradients = torch.autograd.grad(wanted, parameters, upstream)
    y = layer(x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(torch.autograd.grad(y, parameters, upstream), wanted_gradients)


def test_batch_renorm_without_room_is_batch_norm_in_everything():
    ours = layer_for("batch_renorm", r_max=1, d_max=0)
    native = layer_for("batch_norm")
    torch.testing.assert_close(ours.state_dict(), native.state_dict())
    x = draw(4, 3, 5, 5, seed=9)
    torch.testing.assert_close(gradients(ours, x), gradients(native, x))
    torch.testing.assert_close(ours(x), native(x))
    torch.testing.assert_close(ours.eval()(x), native.eval()(x))


def test_batch_renorm_within_its_limits_gives_what_the_tracked_statistics_give():
    """x enters as (x - running mean) / running std: training and inference agree, which is the point."""
    layer = layer_for("batch_renorm", warmup=1)
    x = 2 * draw(4, 3, 5, 5, seed=9) + 1
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer.eval()(x))


def test_the_limits_of_batch_renorm_grow_linearly_with_the_batches_tracked():
    layer = BatchRenorm(2, r_max=3, d_max=5, warmup=4)
    found = []
    for _ in range(6):
        found.append([limit.item() for limit in layer.limits()])
        layer(draw(3, 2, dtype=torch.float32))
    assert found == [[1, 0], [1.5, 1.25], [2, 2.5], [2.5, 3.75], [3, 5], [3, 5]]


def test_tracked_norm_in_training_is_pytorchs_inference_with_the_batch_tracked_before():
    layer = layer_for("tracked_norm")
    native = nn.BatchNorm2d(3).double()
    native.load_state_dict(layer.state_dict())
    x = 3 * draw(5, 3, 4, 4, seed=7) - 2
    native.train()(x)
    native.eval()
    found, wanted = gradients(copy.deepcopy(layer), x), gradients(native, x)
    torch.testing.assert_close(found, wanted)  # its inference has no gradient through statistics
    torch.testing.assert_close(layer(x), native(x))
    torch.testing.assert_close(layer.state_dict(), native.state_dict())
    with track(layer, False):
        torch.testing.assert_close(layer(x), native(x))
    torch.testing.assert_close(layer.eval()(x), native(x))
    with use_statistics(layer, "batch"):
        torch.testing.assert_close(layer(x), native.train()(x))


def test_tracked_norm_can_pass_twice_before_the_backward_pass():
    layer, x = layer_for("tracked_norm"), draw(4, 3, 2, 2).requires_grad_()
    first = layer(x)
    layer(x)
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_sigma_norm_follows_its_formula(p):
    layer = layer_for("sigma_norm", p=p)
    x = (3 * draw(5, 3, 4, 4, seed=7) - 2).requires_grad_()
    mean, var = moments(x, 0)
    wanted = affine(layer, (x - mean) / (2 * (var + layer.eps).sqrt()) ** p)
    parameters, upstream = (x, layer.weight, layer.bias), draw(*x.shape, seed=8)
    wanted_gradients = torch.autograd.grad(wanted, parameters, upstream)
    y = layer(x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(torch.autograd.grad(y, parameters, upstream), wanted_gradients)
    mean, var = shaped(layer.running_mean), shaped(layer.running_var)
    torch.testing.assert_close(
        layer.eval()(x), affine(layer, (x - mean) / (2 * (var + layer.eps).sqrt()) ** p)
    )


def test_sigma_norm_of_power_1_is_half_of_batch_norm():
    x = draw(5, 3, 4, 4)
    torch.testing.assert_close(2 * make_norm("sigma_norm", p=1)(3).double()(x), BatchNorm(3).double()(x))


@given(st.floats(0.05, 1), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_sigma_norm_leaves_activations_at_least_as_large_as_robust_norm(p, seed):
    """2 sigma is at most the range (Popoviciu, Eq 13)."""
    x = draw(4, 2, 3, 3, seed=seed)
    sigma, span = (make_norm(name, p=p, eps=1e-9)(2).double()(x) for name in ("sigma_norm", "robust_norm"))
    assert (sigma.abs() >= span.abs() - 1e-9).all()


@pytest.mark.parametrize("name", ["sigma_norm", "batch_renorm"])
def test_constant_channels_become_the_shift_and_have_a_finite_gradient(name):
    layer, x = make_norm(name)(3).double(), torch.full((4, 3, 2, 2), 0.75, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.zeros_like(x))
    assert gradients(layer, x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["sigma_norm", "batch_renorm"])
@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 3), (3, 2, 2, 2)])
def test_gradcheck(name, shape):
    layer = layer_for(name, 2)
    layer.tracking = False
    x = draw(*shape).requires_grad_()
    if name == "batch_renorm":
        layer.r_max, layer.d_max = 1, 0  # r and d are constants to autograd, not to finite differences
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.weight, layer.bias))


# --- all that have statistics of the batch ------------------------------------------------------------------


@each_batch_norm
def test_batch_mode_is_that_of_training_and_tracks_nothing(name):
    layer, x = layer_for(name), 3 * draw(4, 3, 5, 5) - 1
    before = copy.deepcopy(layer.state_dict())
    with use_statistics(layer.eval(), "batch"):
        y = layer(x)
    torch.testing.assert_close(layer.state_dict(), before, **exact)
    if name == "tracked_norm":  # what training does not do: the batch's own
        mean, var = moments(x, 0)
        torch.testing.assert_close(y, affine(layer, (x - mean) / (var + layer.eps).sqrt()))
    else:
        torch.testing.assert_close(y, layer.train()(x), **exact)
        assert layer.num_batches_tracked == 6


@each_batch_norm
@pytest.mark.parametrize("training", [True, False])
def test_without_affine_is_scale_one_and_shift_zero(name, training):
    x = draw(4, 3, 5, 5)
    with_it, without = make_norm(name)(3).double(), make_norm(name, affine=False)(3).double()
    for layer in (with_it, without):
        layer(3 * x)
        layer.train(training)
    torch.testing.assert_close(without(x), with_it(x))


@each_batch_norm
@pytest.mark.parametrize("training", [True, False])
def test_a_scale_without_a_shift_is_one_with_a_shift_of_zero(name, training):
    native, x = nn.BatchNorm2d(3).double(), draw(4, 3, 5, 5)
    nn.init.uniform_(native.weight, 0.5, 2, generator=seeded(3))
    with_it = convert_norms(copy.deepcopy(native), name)
    native.bias = None
    without = convert_norms(native, name)
    assert without.bias is None
    for layer in (with_it, without):
        layer(3 * x)
        layer.train(training)
    torch.testing.assert_close(without(x), with_it(x))


@each_batch_norm
@pytest.mark.parametrize("training", [True, False])
def test_low_precision_images_meet_float32_parameters(name, training):
    layer, x = layer_for(name, dtype=torch.float32).train(training), draw(4, 3, 6, 6).bfloat16()
    wanted, y = copy.deepcopy(layer)(x.float()), layer(x)
    assert y.dtype == torch.bfloat16
    assert {s.dtype for s in layer.running_statistics} == {torch.float32}
    torch.testing.assert_close(y.float(), wanted, rtol=0.03, atol=0.03)


@each_batch_norm
@pytest.mark.parametrize("shape", [(4, 5, 2, 2), (4,), (0, 3, 2, 2)])
def test_wrong_input_is_an_error(name, shape):
    with pytest.raises(ValueError, match=r"input has shape"):
        make_norm(name)(3)(draw(*shape, dtype=torch.float32))


@each_batch_norm
def test_probes_and_recalibration_work_on_a_network(name):
    torch.manual_seed(0)
    model, x = resnet(8, name, width=4), images(16)
    fresh = tracked_statistics(model)
    recalibrate(model, [x])
    tracked = tracked_statistics(model)
    first = next(iter(tracked))
    mean, var = moments(F.conv2d(x, model[1].weight, padding=1), 1)
    torch.testing.assert_close(tracked[first], (mean.flatten(), var.flatten()))
    shift, ratio = distance(model, fresh, tracked)[first]
    torch.testing.assert_close(shift, -mean.flatten() / var.flatten().sqrt())
    torch.testing.assert_close(ratio, -torch.log2(var.flatten().sqrt()))
    assert statistics_modes(model) == ("tracked", "batch")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("batch_renorm", {"r_max": 0.5}, r"r_max \(0.5\)"),
        ("batch_renorm", {"d_max": -1}, r"d_max \(-1\)"),
        ("batch_renorm", {"warmup": 0}, r"warmup \(0\)"),
        ("sigma_norm", {"p": 2}, "p is 2"),
        ("frozen_norm", {"momentum": 0.1}, "frozen_norm does not take"),
        ("no_norm_bias", {"bias": False}, "no_norm_bias does not take"),
        ("weight_norm", {"p": 0.2}, "weight_norm does not take"),
    ],
)
def test_wrong_options_are_found_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_norm(name, **options)


# --- those without ------------------------------------------------------------------------------------------


def test_frozen_norm_takes_the_first_training_batch_and_no_other():
    layer, x = FrozenNorm(3).double(), 3 * draw(5, 3, 4, 4) - 2
    torch.testing.assert_close(layer.eval()(x), x / math.sqrt(1 + 1e-5))
    native = nn.BatchNorm2d(3).double()
    torch.testing.assert_close(layer.train()(x), native(x), rtol=1e-2, atol=1e-2)  # biased against unbiased
    mean, var = moments(x, 1)
    other = draw(2, 3, 7, 7, seed=1)
    wanted = (other - mean) / (var + 1e-5).sqrt()
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(other), wanted)
    leaf = other.clone().requires_grad_()
    gradient = torch.autograd.grad(layer(leaf).sum(), leaf)[0]
    torch.testing.assert_close(gradient, (1 / (var + 1e-5).sqrt()).expand_as(other))


def test_fair_no_norm_has_a_shift():
    layer = make_norm("no_norm_bias")(3)
    nn.init.constant_(layer.bias, 2)
    assert layer(torch.zeros(1, 3, 2, 2)).eq(2).all()


def seeded_network(norm, shortcut):
    torch.manual_seed(0)
    return resnet(8, norm, width=4, shortcut=shortcut)


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_weight_norm_starts_as_the_network_without_norm_and_is_pytorchs(shortcut):
    model, without = seeded_network("weight_norm", shortcut), seeded_network("no_norm", shortcut)
    torch.testing.assert_close(model(images()), without(images()))
    for ours, theirs in zip(convolutions(model), convolutions(without), strict=True):
        parametrizations.weight_norm(theirs)
        parameters = ours.parametrizations.weight
        torch.testing.assert_close(parameters.state_dict(), theirs.parametrizations.weight.state_dict())
        nn.init.uniform_(parameters.original0, 1, 2, generator=seeded(1))
        v = parameters.original1
        wanted = parameters.original0 * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(ours.weight, wanted)
    shifts = [m for m in model.modules() if isinstance(m, WeightNorm)]
    assert len(shifts) == len(convolutions(model))


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize(("network", "depth"), [(resnet, 8), (vgg, 11)])
def test_networks_have_one_mode_survive_a_file_and_take_any_layout(name, network, depth, tmp_path):
    def build(name):
        return network(depth, name, width=8)

    torch.manual_seed(0)
    model, x = build(name), images(4, 32)
    model(x)
    model.to(memory_format=torch.channels_last).eval()
    assert statistics_modes(model) == ("none",)
    wanted = model(x)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "weights")
    loaded = build(name).eval()
    assert not torch.allclose(loaded(x), wanted)
    loaded.load_state_dict(load_file(tmp_path / "weights"))
    torch.testing.assert_close(loaded(x), wanted)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), wanted)
    torch.testing.assert_close(copy.deepcopy(model)(x), wanted, **exact)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    torch.testing.assert_close(low.float(), wanted, rtol=0.1, atol=0.1 * wanted.abs().max().item())
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), wanted)  # no neighbours


@pytest.mark.parametrize("name", [*BATCH_NORMS, *STATELESS])
def test_every_parameter_learns_and_the_loss_falls(name):
    torch.manual_seed(0)
    model, x, y = resnet(8, name, width=8), images(16, seed=1), torch.arange(16) % 10
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if name != "tracked_norm":  # its statistics move under the weights' feet
        assert losses[-1] < losses[0]
    assert not any(torch.equal(value, before[key]) for key, value in model.named_parameters())


# --- exchanging them ----------------------------------------------------------------------------------------


@each_batch_norm
def test_weights_and_statistics_of_batch_norm_carry_over(name):
    model = resnet(8, width=4)
    model(images())
    state = copy.deepcopy(model.state_dict())
    convert_norms(model, name)
    torch.testing.assert_close(model.state_dict(), state, **exact)


def test_a_trained_batch_norm_network_becomes_a_frozen_one():
    model = resnet(8, width=4)
    model(images())
    wanted = model.eval()(images(seed=1))
    convert_norms(model, "frozen_norm").train()
    torch.testing.assert_close(model(images(seed=1)), wanted)


def test_norms_of_the_weights_cannot_be_exchanged_alone():
    for norm in ("weight_norm", WeightNorm):
        with pytest.raises(ValueError, match="weight_norm changes the convolutions too"):
            convert_norms(resnet(8, width=4), norm)

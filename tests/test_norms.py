"""The norm layers against PyTorch's, against the paper's formulas in tensor operations; the switches."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rnlib.functional import blocks, per_block, range_norm
from rnlib.models import resnet
from rnlib.modes import evaluation_mode, statistics_modes, track, use_statistics
from rnlib.norms import NORMS, BatchNorm, MeanRangeNorm, MinMaxNorm, NoNorm, Norm, RobustNorm, make_norm

RANGE_NORMS = {"robust_norm": (0.2, "mean"), "mean_range_norm": (1.0, "mean"), "min_max_norm": (1.0, "min")}
BATCH_NORMS = ["batch_norm", *RANGE_NORMS]  # the norms with statistics of the batch
each_range_norm = pytest.mark.parametrize("name", RANGE_NORMS)
each_batch_norm = pytest.mark.parametrize("name", BATCH_NORMS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


LAYOUTS = {
    "contiguous": draw(4, 3, 6, 5),
    "channels_last": channels_last(draw(4, 3, 6, 5)),
    "odd": channels_last(draw(3, 5, 7, 9)),
    "one_pixel": channels_last(draw(5, 3, 1, 1)),
    "one_channel": channels_last(draw(3, 1, 4, 4)),
    "wide": channels_last(draw(2, 600, 2, 2)),  # more channels than a row of the channels-last reduction has
    "one_image": draw(1, 3, 4, 4),
    "offset": channels_last(draw(5, 3, 4, 4))[2:],
    "2d": draw(6, 3),
    "3d": draw(4, 3, 7),
    "5d": draw(3, 3, 2, 3, 4),
    "5d_channels_last": channels_last(draw(3, 3, 2, 3, 4)),
    "transposed": draw(4, 6, 3).transpose(1, 2),
    "permuted": draw(3, 5, 4, 6).permute(2, 0, 3, 1),
    "strided": draw(4, 6, 6, 10)[:, ::2, :, ::2],
    "expanded": draw(4, 3, 1, 5).expand(4, 3, 6, 5) + draw(6, 1, seed=1),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def shaped(vector, x):
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def formula(x, weight, bias, p, eps, centre):
    """Eq 11, 12 and 14 as written; autograd's derivative of it is right where no two elements tie."""
    dims = [0, *range(2, x.dim())]
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    middle = low if centre == "min" else x.mean(dims, keepdim=True)
    return shaped(weight, x) * (x - middle) / (high - low + eps) ** p + shaped(bias, x)


def layer_for(name, channels, dtype=torch.float64, **options):
    """A layer whose scale and shift are not trivial."""
    layer = make_norm(name, **options)(channels).to(dtype)
    if layer.weight is not None:
        nn.init.uniform_(layer.weight, 0.5, 2, generator=seeded(3))
        nn.init.uniform_(layer.bias, -1, 1, generator=seeded(4))
    return layer


def gradients(y, upstream, *inputs):
    return torch.autograd.grad(y, inputs, upstream)


# --- the norms of the range ---------------------------------------------------------------------------------


@each_range_norm
@each_layout
def test_range_norm_and_its_gradient_follow_the_formula(name, layout):
    x = LAYOUTS[layout].clone(memory_format=torch.preserve_format).requires_grad_()
    layer = layer_for(name, x.shape[1])
    p, centre = RANGE_NORMS[name]
    y, expected = layer(x), formula(x, layer.weight, layer.bias, p, layer.eps, centre)
    torch.testing.assert_close(y, expected)
    upstream = draw(*x.shape, seed=5)
    found, wanted = (gradients(out, upstream, x, layer.weight, layer.bias) for out in (y, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "5d_channels_last"])
def test_range_norm_keeps_the_memory_format(layout):
    x = LAYOUTS[layout].clone().requires_grad_()
    y = RobustNorm(x.shape[1]).double()(x)
    assert y.stride() == x.stride()
    assert gradients(y, torch.ones_like(y), x)[0].stride() == x.stride()


@pytest.mark.parametrize("upstream", ["expanded", "other_format"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_the_output_may_have_any_layout(layout, upstream):
    x = LAYOUTS[layout].clone().requires_grad_()
    layer = layer_for("robust_norm", x.shape[1])
    grad = draw(*x.shape, seed=5)
    if upstream == "expanded":
        grad = draw(1, 1, 1, 1, seed=5).expand_as(x)
    elif layout == "contiguous":
        grad = channels_last(grad)
    found = gradients(layer(x), grad, x, layer.weight)
    wanted = gradients(formula(x, layer.weight, layer.bias, 0.2, layer.eps, "mean"), grad, x, layer.weight)
    torch.testing.assert_close(found, wanted)


@each_batch_norm
@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (4, 2), (2, 2, 3), (2, 2, 2, 1, 2)])
def test_gradcheck(name, shape):
    layer = layer_for(name, shape[1]).train()
    layer.tracking = False
    x = draw(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.weight, layer.bias))


@each_batch_norm
def test_gradcheck_with_tracked_statistics(name):
    layer = layer_for(name, 2)
    layer(draw(8, 2, 3, 3, seed=1))
    x = draw(2, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer.eval()(x), (x, layer.weight, layer.bias))


@each_batch_norm
@pytest.mark.parametrize("training", [True, False])
def test_without_affine_is_scale_one_and_shift_zero(name, training):
    x = draw(4, 3, 5, 5)
    with_it, without = make_norm(name)(3).double(), make_norm(name, affine=False)(3).double()
    assert not list(without.parameters())
    found, wanted = (
        (y, *gradients(y, draw(4, 3, 5, 5, seed=1), leaf))
        for layer in (without, with_it)
        for leaf in [x.clone().requires_grad_()]
        for y in [layer.train(training)(leaf)]
    )
    torch.testing.assert_close(found, wanted)


def test_scale_and_shift_may_be_given_alone():
    x, vector = draw(4, 3, 5).requires_grad_(), draw(3, seed=1).requires_grad_()
    ones, zeros = torch.ones(3, dtype=x.dtype), torch.zeros(3, dtype=x.dtype)
    upstream = draw(4, 3, 5, seed=2)
    for alone, both in (((vector, None), (vector, zeros)), ((None, vector), (ones, vector))):
        y, expected = range_norm(x, *alone)[0], formula(x, *both, 0.2, 1e-5, "mean")
        found, wanted = (gradients(out, upstream, x, vector) for out in (y, expected))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("centre", ["mean", "min"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("block", [2, 256])
def test_of_tied_extremes_the_first_has_the_gradient(centre, memory_format, block, monkeypatch):
    monkeypatch.setattr("rnlib.functional.BLOCK", block)
    x = torch.randint(-2, 3, (3, 2, 4, 4), generator=seeded()).double()
    x = x.contiguous(memory_format=memory_format)
    flat = x.transpose(0, 1).reshape(2, -1)  # first in the order of image, row, column
    extremes = [flat == flat.amin(1, keepdim=True), flat == flat.amax(1, keepdim=True)]
    assert all((places.sum(1) > 1).all() for places in extremes)
    first = [places.int().argmax(1) for places in extremes]

    leaf = x.clone().requires_grad_()
    flat = leaf.transpose(0, 1).reshape(2, -1)
    low, high = (flat.gather(1, at[:, None])[:, 0] for at in first)
    middle = low if centre == "min" else flat.mean(1)
    wanted = (leaf - shaped(middle, leaf)) / shaped(high - low + 1e-5, leaf) ** 0.2
    upstream = draw(3, 2, 4, 4)
    wanted_gradient = gradients(wanted, upstream, leaf)[0]
    y = range_norm(leaf, centre=centre)[0]
    torch.testing.assert_close(gradients(y, upstream, leaf)[0], wanted_gradient)


@each_range_norm
def test_tied_extremes_have_a_subgradient_in_total(name):
    """Shifting a channel changes nothing, so its gradient sums to 0, however the ties are broken."""
    x = torch.randint(-2, 3, (3, 2, 4, 4), generator=seeded()).double().requires_grad_()
    gradient = gradients(layer_for(name, 2)(x), draw(3, 2, 4, 4, seed=1), x)[0]
    torch.testing.assert_close(gradient.sum((0, 2, 3)), torch.zeros(2, dtype=x.dtype))


@each_range_norm
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3), (4, 3, 5, 5)])
def test_constant_channels_become_the_shift_and_have_a_finite_gradient(name, shape):
    x = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)
    layer = layer_for(name, 3)
    y = layer(x)
    torch.testing.assert_close(y, shaped(layer.bias, x).expand_as(x))
    assert gradients(y, torch.ones_like(y), x)[0].isfinite().all()
    with torch.no_grad():
        assert layer.float()(x.float()).isfinite().all()
        layer.running_statistics[1].zero_()
        assert layer.eval()(x.float()).isfinite().all()


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-8])
def test_slope_at_range_zero_is_that_of_the_limit(p, size):
    """eps stands inside the power: with it outside, the slope of the range grows like range^(p - 1)."""
    x = (size * draw(4, 2, 3, 3)).requires_grad_()
    upstream = draw(4, 2, 3, 3, seed=1)
    found = gradients(range_norm(x, p=p, eps=1e-4)[0], upstream, x)[0]
    limit = (upstream - upstream.mean((0, 2, 3), keepdim=True)) / 1e-4**p
    torch.testing.assert_close(found, limit, rtol=1e-2, atol=1e-2 / 1e-4**p)


@each_range_norm
def test_large_means_cost_no_more_than_the_rounding_of_the_input(name):
    x = (draw(8, 3, 6, 6) + 1000).float()
    p, centre = RANGE_NORMS[name]
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    wanted = formula(x.double(), one, zero, p, 1e-5, centre)
    torch.testing.assert_close(make_norm(name)(3)(x).double(), wanted, rtol=0, atol=1e-3)


@each_batch_norm
@pytest.mark.parametrize("training", [True, False])
def test_low_precision_images_meet_float32_parameters(name, training):
    """As under autocast: the answer is of the input's type, the statistics of the parameters'."""
    layer, x = layer_for(name, 3, torch.float32), draw(4, 3, 6, 6).bfloat16().requires_grad_()
    wanted = copy.deepcopy(layer).train(training)(x.float())
    y = layer.train(training)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.02, atol=0.02)
    gradient, weight_gradient = gradients(y, torch.ones_like(y), x, layer.weight)
    assert (gradient.dtype, weight_gradient.dtype) == (torch.bfloat16, torch.float32)
    assert {s.dtype for s in layer.running_statistics} == {torch.float32}


@pytest.mark.parametrize("cache", [1, 1000, 1 << 20])
@pytest.mark.parametrize("block", [2, 15, 256])
def test_reductions_block_by_block(cache, block, monkeypatch):
    monkeypatch.setattr("rnlib.functional.CACHE", cache)  # one block a piece, some, all
    monkeypatch.setattr("rnlib.functional.BLOCK", block)  # of two pixels, some, an image
    for x in (LAYOUTS[layout] for layout in LAYOUTS if LAYOUTS[layout].dim() == 4):
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        assert blocks(x).data_ptr() == x.data_ptr()
        images = blocks(x).unflatten(0, (len(x), -1)).transpose(1, 2)
        torch.testing.assert_close(images.flatten(2), x.flatten(2), rtol=0, atol=0)
        low, high, mean = per_block(x, torch.amin, torch.amax, torch.mean)
        assert low.shape == high.shape == mean.shape == blocks(x).shape[:2]
        dims = (0, 2, 3)
        torch.testing.assert_close((low.amin(0), high.amax(0)), (x.amin(dims), x.amax(dims)), rtol=0, atol=0)
        torch.testing.assert_close(mean.mean(0), x.mean(dims))


def test_range_norm_is_differentiable_once_and_says_so():
    x = draw(4, 3, 5).requires_grad_()
    gradient = torch.autograd.grad(range_norm(x)[0].pow(2).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@each_range_norm
@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_transforms_of_torch_func_work_or_say_that_they_do_not(name, statistics):
    """Gradients of each image by itself: tracked statistics have them, those of a batch do not."""
    layer, x = layer_for(name, 3).eval(), draw(4, 3, 5, 5)
    layer.statistics = statistics

    def loss(image):
        return layer(image[None]).square().sum()

    if statistics == "batch":
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.vmap(torch.func.grad(loss))(x)
        return
    leaf = x.clone().requires_grad_()
    wanted = gradients(layer(leaf).square().sum(), torch.tensor(1.0, dtype=x.dtype), leaf)[0]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), wanted)


@each_batch_norm
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_little_is_kept_for_the_backward_pass(name, memory_format):
    """The input and vectors: no more than 5% above native batch norm."""

    def kept(layer):
        x = draw(64, 16, 16, 16, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
            lambda t: t,
        ):
            layer(x)
        return sum(sizes.values())

    assert 0 < kept(layer_for(name, 16, torch.float32)) <= 1.05 * kept(nn.BatchNorm2d(16))


# --- what the formulas imply --------------------------------------------------------------------------------

batches = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)


@given(batches)
@settings(max_examples=50, deadline=None)
def test_popoviciu(batch):
    """Eq 13: 4 var <= range^2, with equality where half of the values sits at either end."""
    x = torch.tensor(batch, dtype=torch.float64)[:, None]
    spread = RobustNorm(1).batch_statistics(x)[1]
    assert 4 * x.var(unbiased=False) <= spread**2 * (1 + 1e-12)
    ends = torch.tensor([x.min(), x.max()])
    torch.testing.assert_close(4 * ends.var(unbiased=False), spread[0] ** 2)


@given(batches)
@settings(max_examples=25, deadline=None)
def test_mean_range_norm_suppresses_activations_more_than_batch_norm(batch):
    x = torch.tensor(batch, dtype=torch.float64)[:, None]
    if x.max() - x.min() < 1e-3:
        return
    narrow, wide = (norm(1, eps=1e-20).double()(x) for norm in (MeanRangeNorm, BatchNorm))
    assert (narrow.abs() <= wide.abs() / 2 + 1e-9).all()


def test_min_max_norm_maps_a_batch_onto_the_unit_interval():
    y = MinMaxNorm(3, eps=0).double()(7 * draw(4, 3, 5, 5) + 2)
    zero = torch.zeros(3, dtype=y.dtype)
    torch.testing.assert_close((y.amin((0, 2, 3)), y.amax((0, 2, 3))), (zero, zero + 1))


@given(st.floats(0.01, 100), st.floats(-10, 10), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_scaling_the_input_by_a_scales_the_output_by_a_to_the_1_minus_p(a, b, p):
    x = draw(4, 3, 5, 5)
    norm = RobustNorm(3, p=p, eps=0).double()
    torch.testing.assert_close(norm(a * x + b), a ** (1 - p) * norm(x), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["mean_range_norm", "min_max_norm"])
def test_eq_11_and_12_do_not_see_scale_and_shift_of_the_input(name):
    x, norm = draw(4, 3, 5, 5), make_norm(name, eps=0)(3).double()
    torch.testing.assert_close(norm(3 * x - 5), norm(x))


def test_p_spans_from_centring_to_mean_range_norm():
    x = draw(4, 3, 5, 5)
    end, start = RobustNorm(3, p=1).double()(x), RobustNorm(3, p=0).double()(x)
    torch.testing.assert_close(end, MeanRangeNorm(3).double()(x), rtol=0, atol=0)
    torch.testing.assert_close(start, x - x.mean((0, 2, 3), keepdim=True))


# --- tracking -----------------------------------------------------------------------------------------------


@each_range_norm
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics_average_centre_and_range_before_the_power(name, momentum):
    layer = layer_for(name, 2, momentum=momentum)
    p, centre = RANGE_NORMS[name]
    average = [[0.0, 0.0], [1.0, 1.0]]
    for step in range(4):
        x = (step + 1) * draw(5, 2, 3, 3, seed=step)
        layer(x)
        weight = 1 / (step + 1) if momentum is None else momentum
        for channel, values in enumerate(x.unbind(1)):
            middle = values.mean() if centre == "mean" else values.min()
            spread = values.max() - values.min()
            for row, value in zip(average, (middle.item(), spread.item()), strict=True):
                row[channel] = (1 - weight) * row[channel] + weight * value
    first, second = (torch.tensor(row, dtype=torch.float64) for row in average)
    torch.testing.assert_close(layer.running_statistics, (first, second))
    assert layer.num_batches_tracked == 4
    x = draw(3, 2, 4, seed=9)
    scale = shaped((second + layer.eps) ** p, x)
    wanted = shaped(layer.weight, x) * (x - shaped(first, x)) / scale + shaped(layer.bias, x)
    torch.testing.assert_close(layer.eval()(x), wanted)


@each_batch_norm
def test_batch_statistics_are_what_is_tracked(name):
    layer, x = layer_for(name, 3, momentum=1.0), draw(4, 3, 5, 5)
    layer(x)
    torch.testing.assert_close(layer.running_statistics, layer.batch_statistics(x))


@each_batch_norm
def test_reset_gives_the_state_of_a_new_layer(name):
    layer, new = layer_for(name, 3), layer_for(name, 3)
    layer(draw(4, 3, 5))
    layer.reset_running_statistics()
    torch.testing.assert_close(layer.state_dict(), new.state_dict(), rtol=0, atol=0)


# --- batch norm against PyTorch's ---------------------------------------------------------------------------

NATIVE = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "2d", "3d", "5d", "5d_channels_last", "strided"]
)
def test_batch_norm_is_pytorchs(layout, momentum, dtype, affine):
    shape, options = LAYOUTS[layout].shape, {"momentum": momentum, "affine": affine, "eps": 1e-3}
    native = NATIVE[len(shape)](shape[1], **options).to(dtype)
    ours = BatchNorm(shape[1], **options).to(dtype)
    if affine:
        native.load_state_dict(layer_for("batch_norm", shape[1]).state_dict())
    ours.load_state_dict(native.state_dict())  # the names are the same
    for step, training in enumerate((True, True, True, False, True, False)):
        x = ((step + 1) * LAYOUTS[layout].to(dtype) + step).requires_grad_()
        upstream = draw(*shape, seed=step, dtype=dtype)
        results = []
        for layer in (native, ours):
            y = layer.train(training)(x)
            results.append((y, *gradients(y, upstream, x, *layer.parameters())))
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(ours.state_dict(), native.state_dict())
    assert ours.num_batches_tracked == 4


def test_batch_norm_with_large_means_is_pytorchs():
    x = (draw(8, 3, 6, 6) + 1000).float()
    native, ours = nn.BatchNorm2d(3), BatchNorm(3)
    torch.testing.assert_close(ours(x), native(x))
    torch.testing.assert_close(ours.running_var, native.running_var)
    torch.testing.assert_close(ours.eval()(x), native.eval()(x))


def test_batch_norm_of_one_value_per_channel_is_an_error():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm(3)(draw(1, 3, 1, 1).float())
    assert BatchNorm(3).eval()(draw(1, 3, 1, 1).float()).shape == (1, 3, 1, 1)


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


# --- making norms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_made_by_name_and_survives_a_copy(name):
    layer = make_norm(name)(16)
    x = draw(4, 16, 3, 3, dtype=torch.float32)
    layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    assert layer(x).shape == x.shape


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 5)])
def test_no_norm_is_the_identity_with_an_optional_shift(shape):
    x = draw(*shape, dtype=torch.float32)
    assert make_norm("no_norm")(3)(x) is x
    assert not list(NoNorm(3).parameters())
    shifted = make_norm("no_norm", bias=True)(3)
    nn.init.constant_(shifted.bias, 2)
    torch.testing.assert_close(shifted(x), x + 2)


def test_group_norm_is_pytorchs():
    layer = make_norm("group_norm", groups=2)(6)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("robustnorm", {}, "'robustnorm', known are: batch_norm, robust_norm"),
        ("robust_norm", {"q": 1}, "robust_norm does not take these options: {'q': 1}"),
        ("robust_norm", {"p": 1.5}, "p is 1.5"),
        ("robust_norm", {"p": -0.1}, "p is -0.1"),
        ("mean_range_norm", {"p": 0.2}, "mean_range_norm does not take"),
        ("batch_norm", {"eps": -1}, "eps is -1"),
        ("batch_norm", {"momentum": 1.1}, "momentum is 1.1"),
        ("no_norm", {"p": 0.2}, "no_norm does not take"),
        ("group_norm", {"groups": 0}, "groups is 0"),
    ],
)
def test_wrong_options_are_found_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_norm(name, **options)


def test_group_norm_wants_a_divisor_of_the_channels():
    with pytest.raises(ValueError, match=r"groups is 8.*12 channels"):
        make_norm("group_norm")(12)


@each_batch_norm
@pytest.mark.parametrize("shape", [(4, 5, 2, 2), (4,), (4, 2)])
def test_input_of_another_shape_is_an_error(name, shape):
    for training in (True, False):
        with pytest.raises(ValueError, match=r"input has shape .*, expected \(N, 3, ...\)"):
            make_norm(name)(3).train(training)(draw(*shape).float())


@each_batch_norm
def test_an_empty_batch_has_no_statistics(name):
    layer, empty = make_norm(name)(3), torch.empty(0, 3, 4, 4)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="empty batch"):
        layer(empty)
    torch.testing.assert_close(layer.state_dict(), before)
    assert layer.eval()(empty).shape == empty.shape  # tracked statistics need no batch


def test_wrong_arguments_of_the_function():
    with pytest.raises(ValueError, match="at least one element"):
        range_norm(torch.empty(0, 3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        range_norm(torch.zeros(4))
    with pytest.raises(ValueError, match="centre is 'median'"):
        range_norm(torch.zeros(4, 3), centre="median")
    with pytest.raises(ValueError, match="num_features is 0"):
        BatchNorm(0)


def test_repr_shows_the_settings():
    assert "3, eps=1e-05, momentum=0.1, statistics='tracked', p=0.2" in repr(RobustNorm(3))

"""The norm layers against PyTorch's, and against what the paper's formulas imply."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import draw, layer_for

from rnlib.norms import BatchNorm, MeanRangeNorm, MinMaxNorm, NoNorm, RobustNorm
from rnlib.other_norms import NORMS, make_norm

RANGE_NORMS = {"robust_norm": (0.2, "mean"), "mean_range_norm": (1.0, "mean"), "min_max_norm": (1.0, "min")}


BATCH_NORMS = ["batch_norm", *RANGE_NORMS]  # the norms with statistics of the batch


each_range_norm = pytest.mark.parametrize("name", RANGE_NORMS)


each_batch_norm = pytest.mark.parametrize("name", BATCH_NORMS)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def shaped(vector, x):
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def gradients(y, upstream, *inputs):
    return torch.autograd.grad(y, inputs, upstream)


@each_batch_norm
def test_gradcheck(name):
    layer = layer_for(name, 2)
    layer.tracking = False
    x = draw(2, 2, 2, 3).requires_grad_()
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


@each_range_norm
@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (2, 3), (4, 3, 5, 5)])
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


@each_range_norm
@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_transforms_of_torch_func_are_the_gradients_of_each_image_by_itself(name, statistics):
    layer, x = layer_for(name, 3).eval(), draw(4, 3, 5, 5)
    layer.statistics = statistics

    def loss(image):
        return layer(image[None]).square().sum()

    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad(sum(loss(image) for image in leaf), leaf)[0]
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
    layer.reset_running_stats()
    torch.testing.assert_close(layer.state_dict(), new.state_dict(), rtol=0, atol=0)


# --- batch norm against PyTorch's ---------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": draw(4, 3, 6, 5),
    "channels_last": channels_last(draw(4, 3, 6, 5)),
    "2d": draw(6, 3),
    "3d": draw(4, 3, 7),
    "5d": draw(3, 3, 2, 3, 4),
    "5d_channels_last": channels_last(draw(3, 3, 2, 3, 4)),
    "strided": draw(4, 6, 6, 10)[:, ::2, :, ::2],
}


NATIVE = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
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
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 3, 1, 1), (1, 3)])
def test_a_batch_without_two_values_per_channel_has_no_statistics(name, shape):
    layer, empty = make_norm(name)(3), torch.zeros(shape)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"too few values for statistics.*drop_last"):
        layer(empty)
    torch.testing.assert_close(layer.state_dict(), before)
    assert layer.eval()(empty).shape == empty.shape  # tracked statistics need no batch


def test_a_function_that_makes_layers_is_returned_and_takes_no_options():
    assert make_norm(nn.BatchNorm2d) is nn.BatchNorm2d
    with pytest.raises(ValueError, match=r"options {'p': 0.3} are for a norm given by name"):
        make_norm(nn.BatchNorm2d, p=0.3)
    with pytest.raises(ValueError, match="num_features is 0"):
        make_norm("batch_norm")(0)


def test_repr_shows_the_settings():
    usual = "3, eps=1e-05, momentum=0.1, statistics='tracked'"
    assert repr(BatchNorm(3)) == f"BatchNorm({usual})"
    assert repr(RobustNorm(3)) == f"RobustNorm({usual}, p=0.2)"
    assert repr(make_norm("sigma_norm", p=0.5)(3)) == f"SigmaNorm({usual}, p=0.5)"
    renorm = make_norm("batch_renorm", warmup=9)(3)
    assert repr(renorm) == f"BatchRenorm({usual}, r_max=3.0, d_max=5.0, warmup=9)"

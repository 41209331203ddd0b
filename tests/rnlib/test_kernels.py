"""The hand-written kernels against the paper's formulas in tensor operations."""

import pytest
import torch
from toys import draw, seeded

from rnlib.kernels import blocks, per_block, range_norm

CASES = {"robust_norm": (0.2, "mean"), "mean_range_norm": (1.0, "mean"), "min_max_norm": (1.0, "min")}
each_case = pytest.mark.parametrize(("p", "centre"), CASES.values(), ids=CASES)


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


def shaped(vector, x):
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def formula(x, weight, bias, p, eps, centre):
    """Eq 11, 12 and 14 as written; autograd's derivative of it is right where no two elements tie."""
    dims = [0, *range(2, x.dim())]
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    middle = low if centre == "min" else x.mean(dims, keepdim=True)
    return shaped(weight, x) * (x - middle) / (high - low + eps) ** p + shaped(bias, x)


def gradients(y, upstream, *inputs):
    return torch.autograd.grad(y, inputs, upstream)


def vectors(x, seed=3):
    """A scale and a shift that are not trivial."""
    c = x.shape[1]
    return (draw(c, seed=seed).abs() + 0.5).requires_grad_(), draw(c, seed=seed + 1).requires_grad_()


@each_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_range_norm_and_its_gradient_follow_the_formula(p, centre, layout):
    x = LAYOUTS[layout].clone(memory_format=torch.preserve_format).requires_grad_()
    scale, shift = vectors(x)
    y, middle, spread = range_norm(x, scale, shift, p=p, eps=1e-3, centre=centre)
    expected = formula(x, scale, shift, p, 1e-3, centre)
    torch.testing.assert_close(y, expected)
    dims = [0, *range(2, x.dim())]
    torch.testing.assert_close(middle, x.mean(dims) if centre == "mean" else x.amin(dims))
    torch.testing.assert_close(spread, x.amax(dims) - x.amin(dims))
    assert not middle.requires_grad
    assert not spread.requires_grad
    upstream = draw(*x.shape, seed=5)
    found, wanted = (gradients(out, upstream, x, scale, shift) for out in (y, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "5d_channels_last"])
def test_range_norm_keeps_the_memory_format(layout):
    x = LAYOUTS[layout].clone().requires_grad_()
    y = range_norm(x)[0]
    assert y.stride() == x.stride()
    assert gradients(y, torch.ones_like(y), x)[0].stride() == x.stride()


@pytest.mark.parametrize("upstream", ["expanded", "other_format"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_the_output_may_have_any_layout(layout, upstream):
    x = LAYOUTS[layout].clone().requires_grad_()
    scale, shift = vectors(x)
    grad = draw(*x.shape, seed=5)
    if upstream == "expanded":
        grad = draw(1, 1, 1, 1, seed=5).expand_as(x)
    elif layout == "contiguous":
        grad = channels_last(grad)
    found = gradients(range_norm(x, scale, shift)[0], grad, x, scale)
    wanted = gradients(formula(x, scale, shift, 0.2, 1e-5, "mean"), grad, x, scale)
    torch.testing.assert_close(found, wanted)


@each_case
@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (4, 2), (2, 2, 3), (2, 2, 2, 1, 2)])
def test_gradcheck(p, centre, shape):
    x = draw(*shape).requires_grad_()
    given = (x, *vectors(x))
    assert torch.autograd.gradcheck(lambda *given: range_norm(*given, p=p, centre=centre)[0], given)


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
    monkeypatch.setattr("rnlib.kernels.BLOCK", block)
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


@each_case
def test_tied_extremes_have_a_subgradient_in_total(p, centre):
    """Shifting a channel changes nothing, so its gradient sums to 0, however the ties are broken."""
    x = torch.randint(-2, 3, (3, 2, 4, 4), generator=seeded()).double().requires_grad_()
    gradient = gradients(range_norm(x, p=p, centre=centre)[0], draw(3, 2, 4, 4, seed=1), x)[0]
    torch.testing.assert_close(gradient.sum((0, 2, 3)), torch.zeros(2, dtype=x.dtype))


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-8])
def test_slope_at_range_zero_is_that_of_the_limit(p, size):
    """eps stands inside the power: with it outside, the slope of the range grows like range^(p - 1)."""
    x = (size * draw(4, 2, 3, 3)).requires_grad_()
    upstream = draw(4, 2, 3, 3, seed=1)
    found = gradients(range_norm(x, p=p, eps=1e-4)[0], upstream, x)[0]
    limit = (upstream - upstream.mean((0, 2, 3), keepdim=True)) / 1e-4**p
    torch.testing.assert_close(found, limit, rtol=1e-2, atol=1e-2 / 1e-4**p)


@each_case
def test_large_means_cost_no_more_than_the_rounding_of_the_input(p, centre):
    x = (draw(8, 3, 6, 6) + 1000).float()
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    wanted = formula(x.double(), one, zero, p, 1e-5, centre)
    found = range_norm(x, p=p, centre=centre)[0].double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("cache", [1, 1000, 1 << 20])
@pytest.mark.parametrize("block", [2, 15, 256])
def test_reductions_block_by_block(cache, block, monkeypatch):
    monkeypatch.setattr("rnlib.kernels.CACHE", cache)  # one block a piece, some, all
    monkeypatch.setattr("rnlib.kernels.BLOCK", block)  # of two pixels, some, an image
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


def test_wrong_arguments_of_the_function():
    with pytest.raises(ValueError, match="at least one element"):
        range_norm(torch.empty(0, 3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        range_norm(torch.zeros(4))
    with pytest.raises(ValueError, match="centre is 'median'"):
        range_norm(torch.zeros(4, 3), centre="median")

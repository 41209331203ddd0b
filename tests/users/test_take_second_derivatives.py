"""Hessian-vector products, gradient penalties and torch.func through every norm."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hvp

from rnlib import make_norm
from rnlib.kernels import range_norm

NORMS = ["batch_norm", "robust_norm", "min_max_norm", "mean_range_norm", "sigma_norm", "tracked_norm"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_for(name, statistics):
    layer = make_norm(name)(2).double()
    layer(draw(4, 2, 3, seed=5))
    layer.statistics = statistics
    return layer.eval()


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
@pytest.mark.parametrize("name", NORMS)
def test_second_derivatives_are_those_of_finite_differences(name, statistics):
    layer, x = layer_for(name, statistics), draw(3, 2, 2, 2).requires_grad_()
    wanted = (x, layer.weight, layer.bias)
    assert gradgradcheck(lambda x, *_: layer(x), wanted, atol=1e-4)


@pytest.mark.parametrize("centre", ["mean", "min"])
@pytest.mark.parametrize("given", [(0,), (1,), (2,), (0, 1, 2)])
def test_of_images_or_parameters_alone(centre, given):
    tensors = [draw(3, 2, 2, 2), draw(2, seed=1), draw(2, seed=2)]
    for index in given:
        tensors[index].requires_grad_()
    assert gradcheck(lambda *t: range_norm(*t, centre=centre)[0], tensors)
    assert gradgradcheck(lambda *t: range_norm(*t, centre=centre)[0], tensors)


@pytest.mark.parametrize("tied", [True, False])
def test_with_and_without_a_graph_the_gradient_is_the_same(tied):
    x = draw(4, 2, 3, 3)
    x = (x.sign() if tied else x).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = draw(4, 2, 3, 3, seed=1)
    usual, again = (
        torch.autograd.grad(range_norm(x)[0], x, upstream, create_graph=graph)[0] for graph in (False, True)
    )
    torch.testing.assert_close(again, usual)


@pytest.mark.parametrize("name", ["robust_norm", "min_max_norm"])
def test_hessian_vector_products_agree_three_ways(name):
    layer, x, v = layer_for(name, "batch"), draw(4, 2, 3), draw(4, 2, 3, seed=1)

    def loss(z):
        return layer(z).pow(3).sum()

    through_func = torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]
    torch.testing.assert_close(hvp(loss, x, v)[1], through_func)
    step = 1e-5
    ends = [torch.autograd.grad(loss(z), z)[0] for s in (step, -step) for z in [(x + s * v).requires_grad_()]]
    torch.testing.assert_close(through_func, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_a_gradient_penalty_trains_with_the_right_gradient():
    layer, x = layer_for("robust_norm", "batch").train(), draw(4, 2, 3)

    def penalty():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(layer(leaf).pow(2).sum(), leaf, create_graph=True)[0].square().sum()

    found = torch.autograd.grad(penalty(), layer.weight)[0]
    for channel in range(2):
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                layer.weight[channel] += step
            ends.append(penalty().item())
        with torch.no_grad():
            layer.weight[channel] += 1e-6
        assert found[channel].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)

"""Batch statistics through which no gradient flows, against closed forms and the two real modes."""

import copy

import pytest
import torch
from torch import nn

from rnlib import PGD, BatchNorm, Detached, resnet, use_statistics


def network(norm="batch_norm"):
    torch.manual_seed(0)
    model = resnet(8, norm, width=4).eval()
    return model, torch.rand(20, 3, 16, 16), torch.randint(10, (20,))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_answers_are_those_of_batch_statistics(norm):
    model, x, _ = network(norm)
    with use_statistics(model, "batch"), torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(Detached(model)(x).detach(), wanted, rtol=0, atol=0.02)
    assert (Detached(model)(x).argmax(1) == wanted.argmax(1)).all()


def test_the_gradient_is_that_of_a_fixed_scale():
    """For one norm layer: y = w (x - mean) / sigma + b, so that dy / dx = w / sigma."""
    norm = BatchNorm(3)
    nn.init.uniform_(norm.weight)
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    Detached(norm.double())(x).sum().backward()
    wanted = norm.weight.detach() / (x.detach().var(0) + norm.eps).sqrt()
    torch.testing.assert_close(x.grad, wanted.expand(8, 3))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_images_do_not_reach_each_other_by_the_gradient(norm):
    model, x, _ = network(norm)

    def reached(classifier):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(leaf)[0].norm(), leaf)
        return (gradient[1:] != 0).any()

    with use_statistics(model, "batch"):
        assert reached(model)
        assert not reached(Detached(model))


def test_statistics_follow_the_batch_and_the_model_stays_as_it_was():
    model, x, y = network()
    before = copy.deepcopy(model.state_dict())
    detached = Detached(model)
    first, second = detached(x), detached(x / 2 + 0.3)
    torch.testing.assert_close(detached(x), first)
    assert not torch.allclose(first, second, atol=0.1)
    PGD(0.1, steps=3)(detached, x, y)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_without_norms_is_refused():
    with pytest.raises(ValueError, match="no norm of rnlib"):
        Detached(nn.Linear(2, 2))

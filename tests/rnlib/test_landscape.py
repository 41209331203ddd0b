"""Loss planes against losses computed point by point; sharpness against an exact Hessian."""

import copy

import loss_landscapes
import numpy as np
import pytest
import torch
from loss_landscapes.metrics import Loss
from loss_landscapes.model_interface.model_parameters import ModelParameters
from loss_landscapes.model_interface.model_wrapper import SimpleModelWrapper
from torch import nn
from torch.nn import functional as F

from rnlib import resnet, use_statistics
from rnlib.landscape import loss_plane, loss_rise, random_direction, top_curvature


@pytest.fixture
def setup():
    torch.manual_seed(0)
    model = resnet(8, "robust_norm", width=4, num_classes=3)
    model(torch.rand(32, 3, 8, 8))
    return model.double(), torch.rand(20, 3, 8, 8).double(), torch.randint(3, (20,))


class Linear(nn.Linear):
    """Its cross-entropy has a Hessian that can be written down."""

    def forward(self, x):
        return super().forward(x.flatten(1))


def linear():
    torch.manual_seed(1)
    model, x = Linear(2 * 3 * 3, 3, bias=False), torch.rand(16, 2, 3, 3)
    return model.double(), x.double(), torch.randint(3, (16,))


def hessian(model, x, y):
    def loss(weight):
        return F.cross_entropy(x.flatten(1) @ weight.view_as(model.weight).T, y)

    return torch.autograd.functional.hessian(loss, model.weight.detach().flatten())


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_a_point_is_the_loss_at_base_plus_a_d1_plus_b_d2(setup, statistics):
    """By the arithmetic and the metric of the package loss-landscapes."""
    model, x, y = setup
    options = {"statistics": statistics, "points": 3, "radius": 0.8, "seed": 3}
    coordinates, losses = loss_plane(model, x, y, batch_size=20, **options)
    _, apart = loss_plane(model, x, y, batch_size=5, **options)
    assert coordinates.tolist() == pytest.approx([-0.8, 0, 0.8])
    assert torch.allclose(losses, apart) is (statistics == "tracked")
    generator = torch.Generator().manual_seed(3)
    d1, d2 = (ModelParameters(random_direction(model.parameters(), generator)) for _ in range(2))
    metric = Loss(F.cross_entropy, x, y)
    for i, a in enumerate((-0.8, 0, 0.8)):
        for j, b in enumerate((-0.8, 0, 0.8)):
            moved = copy.deepcopy(model).eval()
            with torch.no_grad(), use_statistics(moved, statistics):
                wrapper = SimpleModelWrapper(moved)
                wrapper.get_module_parameters().add_(d1 * a)
                wrapper.get_module_parameters().add_(d2 * b)
                wanted = metric(wrapper)
            assert losses[i, j].item() == pytest.approx(wanted, rel=1e-6)


def test_the_packages_own_plane_is_no_plane():
    """A function linear in the weights is affine in the two indices of a plane; the package's is not, because
    every second column is a step off. Twice the distance must go twice as far; there it goes half as far.
    """
    weights = np.arange(1.0, 7)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))

    def metric(wrapper):
        return float((wrapper.modules[0].weight.detach().numpy().ravel() * weights).sum())

    def sample(distance):
        torch.manual_seed(0)
        options = {"distance": distance, "steps": 6, "normalization": "model"}
        return loss_landscapes.random_plane(Model(), metric, **options)

    found = sample(1)
    i, j = np.meshgrid(range(6), range(6), indexing="ij")
    design = np.stack([np.ones(36), i.ravel(), j.ravel()], 1)
    residual = found.ravel() - design @ np.linalg.lstsq(design, found.ravel(), rcond=None)[0]
    assert np.abs(residual).max() > 0.01 * np.ptp(found)
    assert np.ptp(sample(2)) == pytest.approx(np.ptp(found) / 2)


def test_directions_have_the_lengths_of_the_filters(setup):
    model, _, _ = setup
    direction = random_direction(model.parameters(), torch.Generator().manual_seed(0))
    for weight, step in zip(model.parameters(), direction, strict=True):
        if weight.dim() < 2:
            assert not step.any()
        else:
            torch.testing.assert_close(step.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    drawn = torch.cat([step.flatten() for step in direction])
    assert abs(drawn.mean()) < 0.1 * drawn.std()  # Gaussian, not uniform on [0, 1)


def test_the_rise_near_the_weights_is_half_the_curvature():
    model, x, y = linear()
    radius = 1e-3
    rise = loss_rise(model, x, y, statistics="tracked", radius=radius, directions=4, seed=5)
    generator, matrix = torch.Generator().manual_seed(5), hessian(model, x, y)
    for found in rise:
        d = random_direction(model.parameters(), generator)[0].flatten()
        assert found.item() == pytest.approx((radius**2 / 2 * d @ matrix @ d).item(), rel=1e-3)


def test_top_curvature_is_the_largest_eigenvalue():
    model, x, y = linear()
    wanted = torch.linalg.eigvalsh(hessian(model, x, y))[-1].item()
    assert top_curvature(model, x, y, steps=100, size=1e-4) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("measure", [loss_plane, loss_rise, top_curvature])
def test_the_model_is_left_bit_for_bit_as_it_was(setup, measure):
    model, x, y = setup
    model.train()
    first = next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    options = {loss_plane: {"points": 3}, loss_rise: {"directions": 2}, top_curvature: {"steps": 2}}[measure]
    measure(model, x, y, statistics="batch", **options)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(layer.training for layer in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [p is not first for p in model.parameters()]
    with pytest.raises(IndexError):  # a label that the model has no class for
        measure(model, x, y + 5, **options)
    assert [p.requires_grad for p in model.parameters()] == [p is not first for p in model.parameters()]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "points is 4"),
        ({"radius": 0.0}, r"radius is 0\.0"),
        ({"radius": float("inf")}, "radius is inf"),
        ({"statistics": "both"}, "statistics is 'both'"),
    ],
)
def test_wrong_options(setup, options, message):
    with pytest.raises(ValueError, match=message):
        loss_plane(*setup, **options)


@pytest.mark.parametrize("length", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize(("measure", "name"), [(loss_rise, "radius"), (top_curvature, "size")])
def test_wrong_lengths(setup, measure, name, length):
    with pytest.raises(ValueError, match=rf"{name} is {length}, it must be finite and above 0"):
        measure(*setup, **{name: length})

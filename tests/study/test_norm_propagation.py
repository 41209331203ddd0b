"""Normalisation propagation against integrals, and against a forward pass written out."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from rnlib import resnet, statistics_modes, vgg
from study.norm_propagation import NORMS, NormalizedReLU, NormProp, reparametrize


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, size=8):
    return torch.rand(n, 3, size, size, generator=seeded())


def network(build=resnet, depth=8, **options):
    torch.manual_seed(0)
    return reparametrize(build(depth, NORMS["norm_prop"], **{"width": 4, **options}))


@pytest.mark.parametrize("variance", [1.0, 2.0])
def test_the_constants_of_the_rectified_gaussian(variance):
    """Against the integrals of max(z, 0) and its square under the normal density."""
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64) * math.sqrt(variance)
    density = torch.exp(-(z**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    y = NormalizedReLU(variance)(z)
    assert torch.trapezoid(y * density, z).item() == pytest.approx(0, abs=1e-8)
    assert torch.trapezoid(y**2 * density, z).item() == pytest.approx(1)


def test_norm_prop_against_a_forward_pass_written_out():
    model, x = network(), images()

    def filtered(convolution, shift, h):
        w = convolution.parametrizations.weight.original1
        w = w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * math.sqrt(1 - 1 / math.pi)
        return F.conv2d(h, w, None, convolution.stride, convolution.padding) + shift.bias.view(1, -1, 1, 1)

    def rectified(h, variance=1):
        mean, var = math.sqrt(variance / (2 * math.pi)), variance * (1 - 1 / math.pi) / 2
        return (h.clamp_min(0) - mean) / math.sqrt(var)

    for shift in model.modules():
        if isinstance(shift, NormProp):
            nn.init.uniform_(shift.bias, -1, 1, generator=seeded(1))
    h = rectified(filtered(model[1], model[2], x))
    for block in model[4:7]:
        inner = rectified(filtered(*block.residual[:2], h))
        short = h if isinstance(block.shortcut, nn.Identity) else filtered(*block.shortcut, h)
        h = rectified(filtered(*block.residual[3:5], inner) + short, 2)
    torch.testing.assert_close(model(x), model[-1](h.mean((2, 3))))


def test_norm_prop_keeps_white_noise_near_unit_variance():
    """Filters of unit norm and constants alone do what other norms do with data."""
    x = torch.randn(8, 64, 8, 8, generator=seeded())
    model = network(vgg, 11, in_channels=64, width=64)
    y = model[1:4](x)  # convolution, shift, ReLU
    assert isinstance(model[3], NormalizedReLU)
    assert y.std().item() == pytest.approx(math.sqrt(1 - 1 / math.pi), abs=0.1)


@pytest.mark.parametrize(("build", "depth"), [(resnet, 8), (vgg, 11)])
def test_a_network_has_one_mode_survives_a_file_and_learns_in_every_parameter(build, depth, tmp_path):
    model, x = network(build, depth, width=8), images(4, 32)
    assert statistics_modes(model) == ("none",)
    F.cross_entropy(model(x), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    wanted = model.eval()(x)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), wanted)  # no neighbours
    save_file(model.state_dict(), tmp_path / "weights")
    loaded = reparametrize(build(depth, NormProp, width=8)).eval()
    assert not torch.allclose(loaded(x), wanted)
    loaded.load_state_dict(load_file(tmp_path / "weights"))
    torch.testing.assert_close(loaded(x), wanted)


def test_a_network_without_the_layer_stays_as_it_is():
    model = resnet(8, "weight_norm", width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert reparametrize(model) is model
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

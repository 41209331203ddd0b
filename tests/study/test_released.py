"""The released code's layer, network and habits against closed forms and against the book's own attacks."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rnlib import PGD, GaussianNoise, GradSign, convert_norms, measure, paper_eps, resnet, use_statistics
from rnlib.data import STATISTICS, Dataset
from rnlib.norms import BatchNorm
from study.released import (
    HABITS,
    NORMS,
    ClippedToBatch,
    InTrainingMode,
    Protocol,
    ReleasedBatchNorm,
    UnclippedNoise,
)

CIFAR = STATISTICS["cifar10"]


def network(norm="batch_norm"):
    torch.manual_seed(0)
    return resnet(8, norm, width=4, mean=CIFAR[0], std=CIFAR[1]).eval()


def images(n=6, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(1)
    x = low + (high - low) * torch.rand(n, 3, 8, 8, generator=generator)
    return x, torch.arange(n) % 10


def test_clipping_is_to_two_numbers_of_the_normalised_batch():
    """On a linear model GradSign is x + eps sign(w), clipped: the closed form in normalised space."""
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2, bias=False))
    y = y % 2
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in CIFAR)
    weight = model[1].weight.detach()
    away = torch.stack([weight[1 - label] - weight[label] for label in y]).view_as(x)
    z = (x - mean) / std
    wanted = (z + 0.5 * away.sign()).clamp(z.min(), z.max()) * std + mean
    found = ClippedToBatch(GradSign(0.5), *CIFAR)(model, x, y)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert found.min() < 0  # the smallest number is of another channel than the smallest pixel of this one


@pytest.mark.parametrize("attack", [GradSign(0.03), PGD(0.03), PGD(0.03, steps=5)])
def test_far_from_the_bounds_it_is_the_attack_in_pixels(attack):
    x, y = images(low=0.3, high=0.7)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.0, 1.0  # two pixels that open the range
    model = network()
    first = ClippedToBatch(attack, *CIFAR)(model, x, y, generator=torch.Generator().manual_seed(0))
    second = replace(attack, eps=paper_eps("cifar10"))(
        model, x, y, generator=torch.Generator().manual_seed(0)
    )
    inner = torch.ones_like(x, dtype=torch.bool)
    inner[0, :, 0, :2] = False
    # Rounding turns a sign now and then.
    assert ((first - second).abs() < 1e-5)[inner].float().mean() > 0.99


def test_a_batch_of_one_number_cannot_be_attacked():
    x, model = torch.full((2, 3, 8, 8), 0.5), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    attack = ClippedToBatch(PGD(0.5), (0.0,) * 3, (1.0,) * 3)
    assert torch.equal(attack(model, x, torch.tensor([0, 1])), x)


def test_unclipped_noise_is_gaussian_noise_that_leaves_the_pixels():
    x, y = images(20)
    noise = UnclippedNoise((0.1, 0.2, 0.3))(network(), x, y, generator=torch.Generator().manual_seed(0)) - x
    for channel, std in enumerate((0.1, 0.2, 0.3)):
        assert noise[:, channel].std().item() == pytest.approx(std, rel=0.1)
    clipped = GaussianNoise((0.1, 0.2, 0.3))(network(), x, y, generator=torch.Generator().manual_seed(0))
    assert torch.allclose((x + noise).clamp(0, 1), clipped, atol=1e-6)
    assert (x + noise).max() > 1


def test_the_model_drifts_by_every_forward_pass_of_an_attack():
    """eps 0: the first norm sees the same batch at each of k passes, m_k = b + (1 - tau)^k (m_0 - b)."""
    x, y = images()
    model = network()
    first = next(layer for layer in model.modules() if isinstance(layer, BatchNorm))
    seen = []
    handle = first.register_forward_pre_hook(
        lambda layer, inputs: seen.append(layer.batch_statistics(inputs[0]))
    )
    before = first.running_mean.clone()
    InTrainingMode(PGD(0.0, steps=7))(model, x, y)
    handle.remove()
    assert first.num_batches_tracked == len(seen) == 7
    assert torch.allclose(first.running_mean, seen[0][0] + 0.9**7 * (before - seen[0][0]), atol=1e-6)
    assert not any(layer.training for layer in model.modules())


@pytest.mark.parametrize("update_buffers", [False, True])
def test_a_model_in_training_mode_drifts_where_that_is_asked_for(update_buffers):
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    InTrainingMode(PGD(0.1, steps=2))(model, *images(), update_buffers=update_buffers)
    same = [torch.equal(value, before[key]) for key, value in model.state_dict().items() if "running" in key]
    assert set(same) == {not update_buffers}
    assert all(layer.training for layer in model.modules())


def test_crafting_in_training_mode_is_crafting_under_batch_statistics():
    x, y = images()
    model, other, attack = network(), network(), PGD(0.1)
    first = InTrainingMode(attack)(model, x, y, generator=torch.Generator().manual_seed(0))
    with use_statistics(other, "batch"):
        second = attack(other, x, y, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(first, second, atol=1e-5)


def dataset(n=40):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("cifar10", pixels, torch.arange(n) % 10, tuple("abcdefghij"))


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_the_default_protocol_is_the_usual_evaluation(statistics):
    model, data = network(), dataset()
    for name, attack in {"clean": None, "pgd_linf": PGD(paper_eps("cifar10"))}.items():
        wanted, _, _ = measure(model, data, attack, statistics=statistics)
        assert torch.equal(Protocol().classify(model, data, name, statistics=statistics), wanted)


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_std_plus_eps_is_the_converted_network(statistics):
    model, data = network(), dataset()
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            layer.eps = 1.0  # large, so that its place shows
    other = convert_norms(copy.deepcopy(model), lambda channels: ReleasedBatchNorm(channels, eps=1.0))
    wanted, _, _ = measure(other, data, statistics=statistics)
    released = Protocol(std_plus_eps=True)
    assert torch.equal(released.classify(model, data, "clean", statistics=statistics), wanted)
    unchanged, _, _ = measure(model, data, statistics=statistics)
    assert not torch.equal(wanted, unchanged)


def test_no_protocol_touches_the_model_that_it_is_given():
    model, data = network(), dataset()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for protocol in HABITS.values():
        protocol.classify(model, data, "grad_sign", statistics="batch")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(type(layer) is BatchNorm for layer in model.modules() if isinstance(layer, BatchNorm))


def test_each_habit_is_one_difference_and_the_released_tests_have_all_of_theirs():
    usual = HABITS["this book"]
    changed = {
        habit: {key for key in vars(usual) if getattr(protocol, key) != getattr(usual, key)}
        for habit, protocol in HABITS.items()
    }
    assert changed.pop("this book") == set()
    assert changed.pop("all of its test") == {"clip_to_batch", "noise_std", "std_plus_eps", "batch_size"}
    assert all(len(keys) == 1 for keys in changed.values())
    assert isinstance(HABITS["all of its test"].attacks("cifar10")["noise"], UnclippedNoise)


def test_a_norm_without_a_std_is_refused():
    with pytest.raises(ValueError, match="RobustNorm: only BatchNorm has a std"):
        Protocol(std_plus_eps=True).classify(network("robust_norm"), dataset(), "clean", statistics="batch")


def layer_for(**options):
    """A layer with nothing at its initial value, after five batches."""
    layer, chance = NORMS["batch_norm_released"](3, **options).double(), torch.Generator().manual_seed(3)
    nn.init.uniform_(layer.weight, 0.5, 2, generator=chance)
    nn.init.uniform_(layer.bias, -1, 1, generator=chance)
    for _ in range(5):
        layer(2 * torch.randn(6, 3, 4, 4, generator=chance, dtype=torch.float64) + 1)
    return layer


def test_the_layer_divides_by_the_unbiased_sigma_plus_eps():
    layer = layer_for(eps=0.1)  # large, so that its place shows
    chance = torch.Generator().manual_seed(7)
    x = (3 * torch.randn(5, 3, 4, 4, generator=chance, dtype=torch.float64) - 2).requires_grad_()
    upstream = torch.randn(x.shape, generator=chance, dtype=torch.float64)
    scale, shift = (v.view(1, -1, 1, 1) for v in (layer.weight, layer.bias))
    dims = (0, 2, 3)
    wanted = scale * (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 0.1) + shift
    y, parameters = layer(x), (x, layer.weight, layer.bias)
    torch.testing.assert_close(y, wanted)
    found, expected = (torch.autograd.grad(out, parameters, upstream) for out in (y, wanted))
    torch.testing.assert_close(found, expected)
    mean, var = (v.view(1, -1, 1, 1) for v in layer.running_statistics)
    torch.testing.assert_close(layer.eval()(x), scale * (x - mean) / (var.sqrt() + 0.1) + shift)


@pytest.mark.parametrize("affine", [True, False])
def test_the_layer_of_a_constant_channel_has_a_finite_gradient(affine):
    x = torch.full((4, 3, 2, 2), 0.75, requires_grad=True)
    y = ReleasedBatchNorm(3, affine=affine)(x)
    assert not y.any()
    assert torch.autograd.grad(y.square().sum() + y.sum(), x)[0].isfinite().all()


def test_the_layer_takes_low_precision_images():
    layer, x = layer_for().float(), torch.rand(4, 3, 6, 6).bfloat16()
    wanted, y = copy.deepcopy(layer)(x.float()), layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.03, atol=0.03)


def test_weights_and_statistics_of_batch_norm_carry_over_to_the_layer():
    model = resnet(8, width=4)
    model(torch.rand(4, 3, 8, 8))
    state = copy.deepcopy(model.state_dict())
    convert_norms(model, ReleasedBatchNorm)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)

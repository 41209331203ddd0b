"""Square where the best answer is known, and attacks among neighbours: who changes and who is hit."""

import math

import pytest
import torch
from torch import nn

from rnlib import PGD, Among, Square, attack_neighbours, resnet, success, use_statistics

EPS = 0.1


class Linear(nn.Module):
    """Two classes by the sign of w . x + b."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3 * 8 * 8, generator=generator))

    def forward(self, x):
        score = (x - 0.5).flatten(1) @ self.weight
        return torch.stack((-score, score), 1)


class Stairs(Linear):
    """The same classes, but logits in steps: gradients are zero."""

    def forward(self, x):
        return super().forward(x).div(0.5).round() + 0 * x.mean()


def images(n=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, 3, 8, 8, generator=generator)  # no pixel near the ends


def attack(model, x, y, seed=0, **options):
    return Square(EPS, **options)(model, x, y, generator=torch.Generator().manual_seed(seed))


def test_it_approaches_the_optimum_of_a_linear_model_and_stays_in_the_ball():
    model, x = Linear(), images()
    y = model(x).argmax(1)
    adv = attack(model, x, y, queries=1000)
    assert (adv - x).abs().max() <= EPS * (1 + 1e-5)
    assert adv.min() >= 0
    assert adv.max() <= 1
    # the margin falls by at most 2 eps ||w||_1
    optimum = 2 * EPS * model.weight.abs().sum()
    before, after = ((lo := model(z).gather(1, y[:, None])[:, 0]) + lo for z in (x, adv))
    assert ((before - after) <= optimum * (1 + 1e-5)).all()
    assert ((before - after) > 0.6 * optimum).all()


def test_more_queries_never_hurt():
    model, x = Linear(), images()
    y = model(x).argmax(1)
    few, many = (model(attack(model, x, y, queries=q)).gather(1, y[:, None]) for q in (1, 200))
    assert (many <= few).all()


def test_it_finds_what_a_masked_gradient_hides():
    model, x = Stairs(), images(32)
    y = model(x).argmax(1)
    blind = PGD(EPS, steps=10, random_start=False)(model, x, y)
    assert not success(model, blind, y).any()
    assert success(model, attack(model, x, y, queries=200), y).float().mean() > 0.9


def test_targeted_goes_the_other_way():
    model, x = Linear(), images()
    wanted = 1 - model(x).argmax(1)
    assert success(model, attack(model, x, wanted, queries=200, targeted=True), wanted, targeted=True).all()


def test_the_squares_shrink_as_in_the_original():
    """Andriushchenko et al., Section 4.1: p halves at these iterations of 10,000."""
    schedule = Square(EPS, queries=10_000, p=0.8)
    at = {0: 1, 10: 1, 11: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 6001: 256, 8001: 512}
    for query, divisor in at.items():
        assert schedule._share(query) == 0.8 / divisor


def test_seeded_and_zero():
    model, x = Linear(), images()
    y = model(x).argmax(1)
    assert torch.equal(attack(model, x, y, queries=20), attack(model, x, y, queries=20))
    assert not torch.equal(attack(model, x, y, queries=20), attack(model, x, y, seed=1, queries=20))
    assert torch.equal(Square(0.0, queries=5)(model, x, y), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"p": 0.0}, r"p is 0\.0.*\(0, 1\]"), ({"p": 1.5}, "p is 1.5"), ({"queries": 0}, "queries is 0")],
)
def test_wrong_options_of_square(options, message):
    with pytest.raises(ValueError, match=message):
        Square(EPS, **options)


# Neighbours ---------------------------------------------------------------------------------------


@pytest.fixture
def setup():
    torch.manual_seed(0)
    model = resnet(8, "batch_norm", width=4, num_classes=3)
    model(torch.rand(32, 3, 8, 8))
    return model.eval(), torch.rand(10, 3, 8, 8), torch.randint(3, (10,))


def test_among_answers_for_its_images_in_the_whole_batch(setup):
    model, x, _ = setup
    with use_statistics(model, "batch"), torch.no_grad():
        whole = model(x)
        torch.testing.assert_close(Among(model, x[4:])(x[:4]), whole[:4])
        assert not torch.allclose(whole[:4], model(x[:4]))


def test_among_leaves_the_model_in_its_modes(setup):
    model, x, _ = setup
    model.train()
    model[2].eval()  # a frozen norm
    before = [layer.training for layer in model.modules()]
    assert Among(model, x).training
    assert [layer.training for layer in model.modules()] == before


def test_neighbours_move_with_the_model_and_are_not_saved(setup):
    model, x, _ = setup
    among = Among(model, x[4:]).to("meta")
    assert among(x[:4].to("meta")).device.type == "meta"
    assert set(among.state_dict()) == {f"model.{key}" for key in model.state_dict()}


@pytest.mark.parametrize("training", [False, True])
def test_attacks_on_neighbours_and_among_them_work_in_inference_mode(setup, training):
    model, x, y = setup
    model.train(training)
    attack = PGD(EPS, steps=2, random_start=False)
    wanted = [attack(Among(model, x[4:]), x[:4], y[:4]), attack_neighbours(model, x, y, 5, EPS, steps=2)]
    with torch.inference_mode():
        x, y = x.clone(), y.clone()
        found = [attack(Among(model, x[4:]), x[:4], y[:4]), attack_neighbours(model, x, y, 5, EPS, steps=2)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_an_attack_among_neighbours_is_the_attack_with_their_share_of_the_gradient_left_out(setup):
    model, x, y = setup
    with use_statistics(model, "batch"):
        adv = PGD(EPS, steps=1, random_start=False)(Among(model, x[4:]), x[:4], y[:4])
        leaf = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(model(leaf)[:4], y[:4], reduction="sum").backward()
    wanted = (x[:4] + EPS / 10 * leaf.grad[:4].sign()).clamp(0, 1)
    torch.testing.assert_close(adv, wanted)


def test_only_the_attacked_images_change_and_the_others_are_hit(setup):
    model, x, y = setup
    with use_statistics(model, "batch"):
        adv = attack_neighbours(model, x, y, 5, EPS, steps=10)
        assert torch.equal(adv[5:], x[5:])
        assert 0 < (adv[:5] - x[:5]).abs().max() <= EPS * (1 + 1e-5)
        with torch.no_grad():
            before, after = (torch.nn.functional.cross_entropy(model(z)[5:], y[5:]) for z in (x, adv))
        assert after > before
    assert all(p.requires_grad for p in model.parameters())


def test_tracked_statistics_let_nothing_through(setup):
    model, x, y = setup
    with use_statistics(model, "tracked"):
        assert torch.equal(attack_neighbours(model, x, y, 5, EPS), x)


@pytest.mark.parametrize(("attacked", "message"), [(0, "attacked is 0"), (10, "leave at least one of 10")])
def test_wrong_numbers(setup, attacked, message):
    with pytest.raises(ValueError, match=message):
        attack_neighbours(*setup, attacked, EPS)


@pytest.mark.parametrize("step_size", [math.nan, -0.1, (0.1, math.inf, 0.1)])
def test_wrong_step_sizes(setup, step_size):
    with pytest.raises(ValueError, match="step_size is"):
        attack_neighbours(*setup, 5, EPS, step_size=step_size)


def test_no_neighbours(setup):
    with pytest.raises(ValueError, match="holds no image"):
        Among(setup[0], setup[1][:0])

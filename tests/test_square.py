"""The Square attack where the best answer is known, and where gradients tell nothing."""

import pytest
import torch
from torch import nn

from rnlib import PGD, Square, success

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
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Square(EPS, **options)

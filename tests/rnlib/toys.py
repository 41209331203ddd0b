"""Small models, images and attacks that the tests of attacks share."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnlib import APGD, BIM, PGD, PGDL2, CarliniWagner, GaussianNoise, Grad, GradSign
from rnlib.other_norms import make_norm

ALL = [
    GaussianNoise(0.1),
    Grad(0.1),
    GradSign(0.1),
    BIM(0.1, steps=3),
    PGD(0.1, steps=3),
    PGD(0.1, steps=2, restarts=3),
    PGDL2(0.1, steps=3),
    BIM(0.1, steps=3, loss="margin"),
    BIM(0.1, steps=3, loss="equal_weight"),
    APGD(0.1, steps=3),
    APGD(0.1, steps=2, restarts=2, loss="margin", joint=True),
    CarliniWagner(steps=3, initial_c=10, lr=0.1),
]
TARGETED = [replace(a, targeted=True) for a in ALL[1:]]
each_attack = pytest.mark.parametrize("attack", ALL, ids=repr)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def layer_for(name, channels, dtype=torch.float64, **options):
    """A layer whose scale and shift are not trivial."""
    layer = make_norm(name, **options)(channels).to(dtype)
    if layer.weight is not None:
        nn.init.uniform_(layer.weight, 0.5, 2, generator=seeded(3))
        nn.init.uniform_(layer.bias, -1, 1, generator=seeded(4))
    return layer


class Linear(nn.Module):
    """Logits x.flatten(1) @ weight.T + bias: every attack on it has a closed form."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight, self.bias)


def two_classes(shape=(2, 3, 3), dtype=torch.float64):
    """A two-class linear model, images in [0.4, 0.6] and the classes that it gives them."""
    weight = torch.randn(2, math.prod(shape), generator=seeded(1), dtype=dtype)
    x = 0.4 + 0.2 * torch.rand(5, *shape, generator=seeded(2), dtype=dtype)
    model = Linear(weight, torch.zeros(2, dtype=dtype)).eval()
    y = model(x).argmax(1)
    uphill = (weight[1 - y] - weight[y]).view_as(x)  # gradient of the margin, per image
    return model, x, y, uphill.detach()


def convnet(channels=3, dtype=torch.float32, classes=5):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, classes),
    ).to(dtype)
    with torch.no_grad():
        model(torch.rand(32, channels, 6, 6, dtype=dtype))  # running statistics other than 0 and 1
        model[-1].weight.mul_(5)
    return model.eval()


def images(n=4, channels=3, dtype=torch.float32, seed=4):
    return (
        torch.rand(n, channels, 6, 6, generator=seeded(seed), dtype=torch.float64).to(dtype),
        torch.randint(5, (n,), generator=seeded(seed)),
    )


def margins(model, x, y):
    logits = model(x).detach()
    others = logits.clone()
    others[torch.arange(len(y)), y] = -math.inf
    return others.max(1).values - logits[torch.arange(len(y)), y]

"""Models that answer an object, a dict or a tuple instead of logits."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rnlib
from rnlib import APGD, PGD, Budget, CarliniWagner, Dataset, Square
from rnlib.landscape import loss_plane

Outputs = namedtuple("Outputs", ["logits", "aux_logits"])
WRAPPERS = {
    "inception": lambda z: Outputs(z, 2 * z),
    "transformers": lambda z: SimpleNamespace(loss=None, logits=z),
    "segmentation": lambda z: OrderedDict(out=z, aux=2 * z),
    "dict": lambda z: {"hidden": 3 * z, "logits": z},
}


class Answering(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4))
        self.network(X)
        self.wrap = wrap
        self.eval()

    def forward(self, x):
        return self.wrap(self.network(x))


X, Y = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
IMAGES = Dataset("noise", (X * 255).byte(), Y, tuple("abcd"))
ATTACKS = [PGD(0.1, steps=2), APGD(0.1, steps=2), CarliniWagner(steps=2), Square(0.1, queries=3)]


def seeded():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_all_that_takes_a_model_takes_the_logits(wrap):
    plain, model = Answering(lambda z: z), Answering(wrap)
    for attack in ATTACKS:
        adversarial = attack(plain, X, Y, generator=seeded())
        assert torch.equal(attack(model, X, Y, generator=seeded()), adversarial)
        assert torch.equal(rnlib.success(model, adversarial, Y), rnlib.success(plain, adversarial, Y))
    both = plain, model
    torch.testing.assert_close(*(rnlib.measure(m, IMAGES, ATTACKS[0], statistics="none") for m in both))
    torch.testing.assert_close(*(loss_plane(m, X, Y, statistics="none", points=3) for m in both))
    found = [rnlib.gradient_shares(m, X, Y, "none").ratio for m in both]
    assert torch.equal(*found)
    budget = Budget(steps=2, restarts=1, rounds=1, queries=2)
    found = [rnlib.strongest(m, X, Y, 0.1, budget=budget, generator=seeded()).accuracies for m in both]
    assert found[0] == found[1]
    found = [rnlib.audit_batch_dependence(m, IMAGES, batch_sizes=(3,)).table for m in both]
    assert found[0] == found[1]


@pytest.mark.parametrize("wrap", [lambda z: (z, z), lambda z: {"features": z}, lambda z: None])
def test_another_answer_is_named(wrap):
    kind = type(wrap(X)).__name__
    with pytest.raises(
        TypeError, match=rf"the model answers a {kind}( of \['features'\])? without logits or 'out': wrap it"
    ):
        PGD(0.1)(Answering(wrap), X, Y)
    with pytest.raises(TypeError, match=rf"the model answers a {kind}"):
        rnlib.measure(Answering(wrap), IMAGES, statistics="none")


def test_a_segmentation_of_every_pixel_is_no_classification():
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(ValueError, match=r"answer has shape \(6, 4, 6, 6\)"):
        PGD(0.1)(model, X, Y)

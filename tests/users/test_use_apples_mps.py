"""Someone has Apple's mps, which has no float64. No test machine has one: the CPU stands in for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rnlib
from rnlib.landscape import loss_rise

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)
TINY = rnlib.Budget(steps=2, rounds=1, queries=2)
EPS = (0.02, 0.02, 0.03)
ATTACKS = [
    rnlib.GaussianNoise(EPS),
    rnlib.Grad(EPS),
    rnlib.GradSign(EPS),
    rnlib.PGD(EPS, steps=2, restarts=2, loss="equal_weight"),
    rnlib.PGDL2(EPS, steps=2, loss="masked_margin"),
    rnlib.CarliniWagner(steps=2, binary_search_steps=1),
    rnlib.APGD(EPS, steps=2, loss="dlr_targeted"),
    rnlib.Square(EPS, queries=2),
]


class WithoutFloat64(TorchDispatchMode):
    """Refuses what mps refuses."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        for one in tree_leaves(answer):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float64:
                raise TypeError(f"{function} makes float64, which this device has not")
        return answer


@pytest.fixture(params=["batch_norm", "robust_norm"])
def model(request, monkeypatch):
    monkeypatch.setattr("rnlib.statistics.WITHOUT_FLOAT64", ("mps", "cpu"))
    torch.manual_seed(0)
    model = rnlib.resnet(8, request.param, width=4, num_classes=4).eval()
    with WithoutFloat64():
        yield model


def test_the_stand_in_refuses_float64(model):
    with pytest.raises(TypeError, match="makes float64"):
        X.double()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_every_attack_runs(model, attack, statistics):
    correct, _, _ = rnlib.measure(model, (X, Y), attack, statistics=statistics, device="cpu")
    assert correct.shape == (4,)


def test_training_the_strongest_attack_and_probes_run(model):
    with rnlib.use_statistics(model, "batch"):
        found = rnlib.strongest(model, X, Y, EPS, budget=TINY, progress=True)
    assert 0 <= min(found.accuracies.values()) <= 100
    shares = rnlib.gradient_shares(model, X, Y)
    assert shares.own.dtype == torch.float32
    rnlib.recalibrate(model, [X])
    images = rnlib.Dataset("some", (255 * X).to(torch.uint8), Y, ())
    training = rnlib.Training(epochs=1, batch_size=2, attack=rnlib.PGD(EPS, steps=1), milestones=())
    rnlib.fit(model, images, training)
    loss_rise(model, X, Y, directions=1)


def test_float32_answers_as_float64_does(model, monkeypatch):
    attack, chance = rnlib.APGD(0.02, steps=3, loss="equal_weight", joint=True), torch.Generator()
    narrow = attack(model, X, Y, generator=chance.manual_seed(0))
    monkeypatch.setattr("rnlib.statistics.WITHOUT_FLOAT64", ())
    with torch.utils._python_dispatch._disable_current_modes():
        wide = attack(model, X, Y, generator=chance.manual_seed(0))
    torch.testing.assert_close(narrow, wide, rtol=0, atol=1e-3)

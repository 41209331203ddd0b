"""Auto-PGD and the DLR loss: by hand, where the optimum is known, and against the authors' implementation."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import convnet, images, margins, seeded, two_classes

from rnlib import APGD, PGD, resnet, success, use_statistics
from rnlib.attacks import LOSSES, Ball
from rnlib.strong_attacks import dlr, rank

EPS = 0.05


@pytest.fixture
def from_x(monkeypatch):
    """Runs start at x."""
    monkeypatch.setattr(Ball, "random", lambda ball, generator: ball.x.clone())


# The loss -------------------------------------------------------------------------------------------


def by_hand(row, label, target=None):
    ordered = sorted(row, reverse=True)
    if target is None:
        best = max(value for i, value in enumerate(row) if i != label)
        return (best - row[label]) / (ordered[0] - ordered[2])
    return (row[target] - row[label]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


def test_dlr_by_hand():
    logits = torch.randn(20, 6, generator=seeded(), dtype=torch.float64)
    y = torch.randint(6, (20,), generator=seeded(1))
    target = (y + torch.randint(1, 6, (20,), generator=seeded(2))) % 6
    rows = list(zip(logits.tolist(), y.tolist(), target.tolist(), strict=True))
    wanted = torch.tensor([by_hand(row, label) for row, label, _ in rows])
    torch.testing.assert_close(dlr(logits, y), wanted.double())
    wanted = torch.tensor([by_hand(row, label, t) for row, label, t in rows])
    torch.testing.assert_close(dlr(logits, y, target=target), wanted.double())
    torch.testing.assert_close(LOSSES["dlr"](logits, y, -1), -dlr(logits, y))


@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
def test_dlr_does_not_know_scale_and_shift(name):
    logits, y = torch.randn(8, 5, generator=seeded(), dtype=torch.float64), torch.arange(8) % 5
    torch.testing.assert_close(LOSSES[name](30 * logits - 7, y, 1), LOSSES[name](logits, y, 1))
    torch.testing.assert_close(LOSSES[name](logits, y, 1) > 0, logits.argmax(1) != y)


@pytest.mark.parametrize(("loss", "classes"), [("dlr", 2), ("dlr_targeted", 3)])
def test_dlr_needs_classes(loss, classes):
    with pytest.raises(ValueError, match=f"compares {classes + 1} logits and the model has {classes}"):
        LOSSES[loss](torch.zeros(1, classes), torch.tensor([0]), 1)


@pytest.mark.parametrize("targeted", [False, True])
def test_other_attacks_take_it(targeted):
    model, (x, y) = convnet(), images(20)
    adv = PGD(EPS, loss="dlr", targeted=targeted)(model, x, y, generator=seeded())
    change = dlr(model(adv), y) - dlr(model(x), y)
    assert (change.mean() < -0.1) if targeted else (change.mean() > 0.1)


# Where the answer is known ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "equal_weight"])
@pytest.mark.parametrize("joint", [False, True])
def test_the_optimum_of_a_linear_model(loss, joint):
    model, x, y, uphill = two_classes()
    adv = APGD(EPS, steps=20, loss=loss, joint=joint)(model, x, y, generator=seeded())
    torch.testing.assert_close(adv, x + EPS * uphill.sign())


@pytest.mark.parametrize("loss", ["dlr", "dlr_targeted"])
def test_more_classes_fall_with_dlr(loss):
    model, (x, y) = convnet(), images(40)
    kept = [
        (~success(model, attack(model, x, y, generator=seeded()), y)).sum()
        for attack in (PGD(0.02), APGD(0.02, steps=20, loss=loss))
    ]
    assert kept[1] <= kept[0]


def test_an_image_is_attacked_by_itself_and_jointly_it_is_not(from_x):
    model, (x, y) = convnet(), images(6)
    attack = APGD(0.2, steps=15, restarts=2)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(attack(model, x, y), alone)
    together = replace(attack, joint=True)
    torch.testing.assert_close(together(model, x[:1], y[:1]), alone[:1])
    assert not torch.allclose(together(model, x, y), alone)


class Recorder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.model(x)


def test_a_joint_batch_is_the_best_of_all_that_were_seen():
    torch.manual_seed(0)
    recorder, (x, y) = Recorder(resnet(8, width=4, num_classes=5).eval()), images(12)
    with use_statistics(recorder, "batch"):
        adv = APGD(0.02, steps=10, restarts=2, joint=True)(recorder, x, y, generator=seeded())
        found = [margins(recorder.model, z, y) for z in [adv, *recorder.seen]]
    ranks = [rank(margin > 0, margin).item() for margin in found]
    assert len(recorder.seen) == 22
    assert ranks[0] == pytest.approx(max(ranks[1:]), abs=1e-6)


def test_fooled_images_are_spared_further_runs():
    recorder, (x, y) = Recorder(convnet()), images(30)
    APGD(0.02, steps=4, loss="dlr_targeted", restarts=2)(recorder, x, y, generator=seeded())
    sizes = [len(z) for z in recorder.seen[1:]]
    assert len(sizes) <= 4 * 2 * 5
    assert sizes[:5] == [30] * 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[5] < 30


def test_ranks():
    def of(*margin):
        return rank(torch.tensor(margin) > 0, torch.tensor(margin)).item()

    assert of(1e9, 1e9, -1.0) < of(1e-9, 1e-9, 1e-9)
    assert of(1.0, -5.0) < of(1.0, -4.0)
    assert math.floor(of(0.0, 2.0) + 0.5) == 1


@pytest.mark.parametrize("option", ["steps", "restarts", "target_classes"])
def test_wrong_options(option):
    with pytest.raises(ValueError, match=f"{option} is 0"):
        APGD(EPS, **{option: 0})


# Against AutoAttack -----------------------------------------------------------------------------------


def conv(seed=3, classes=10):
    """A small network that answers many classes, images, and its answers."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(8 * 16, classes)).eval()
    x = torch.rand(64, 3, 8, 8)
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
    return model, x, model(x).argmax(1)


def evaluated(suite, x, y):
    """Its images. It looks into the model by a trace function, and forgets the one of coverage."""
    trace = sys.gettrace()
    try:
        return suite.run_standard_evaluation(x, y, batch_size=64)[0]
    finally:
        sys.settrace(trace)


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_the_same_points_as_the_authors(monkeypatch, loss):
    """From the same start 50 steps reach the same largest loss of each image."""
    theirs = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y = conv()
    start = Ball(x, 0.03).random(seeded())
    target = model(x).topk(2).indices[:, 1]
    kind = theirs.APGDAttack_targeted if loss == "dlr-targeted" else theirs.APGDAttack
    attack = kind(model, n_iter=50, eps=0.03, norm="Linf", device="cpu")
    attack.loss, attack.y_target = loss, target
    attack.init_hyperparam(x)
    wanted = attack.attack_single_run(x, y, x_init=start)[2]
    monkeypatch.setattr(Ball, "random", lambda ball, generator: start)
    name = {"ce": "cross_entropy", "dlr": "dlr", "dlr-targeted": "dlr_targeted"}[loss]
    recorder = Recorder(model)
    APGD(0.03, steps=50, loss=name, target_classes=1)(recorder, x, y)
    losses = {
        "ce": lambda z: F.cross_entropy(model(z), y, reduction="none"),
        "dlr": lambda z: dlr(model(z), y),
        "dlr-targeted": lambda z: dlr(model(z), y, target=target),
    }
    with torch.no_grad():
        found = torch.stack([losses[loss](z) for z in recorder.seen[-51:]]).amax(0)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr_targeted"])
def test_as_strong_as_the_authors(loss):
    """On 64 images no more than one apart, though from other random starts."""
    theirs = pytest.importorskip("pyautoattack")
    model, x, y = conv()
    name = {"cross_entropy": "apgd-ce", "dlr_targeted": "apgd-t"}[loss]
    suite = theirs.AutoAttack(model, attacks=[name], eps=0.01, version="custom")
    suite.apgd_targeted.n_target_classes = 9
    wanted = (~success(model, evaluated(suite, x, y), y)).sum().item()
    adv = APGD(0.01, loss=loss)(model, x, y, generator=seeded())
    found = (~success(model, adv, y)).sum().item()
    assert 5 < wanted < 60
    assert abs(found - wanted) <= 1

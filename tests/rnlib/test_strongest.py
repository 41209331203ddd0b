"""Attacks on a batch that brings its statistics along, and the ensemble that judges whole batches."""

import copy
from dataclasses import replace

import pytest
import torch
from test_apgd import conv, evaluated
from torch import nn
from torch.nn import functional as F
from toys import convnet, images, margins, seeded

from rnlib import (
    APGD,
    BIM,
    FPA,
    GMSA,
    PGD,
    Budget,
    Square,
    frozen,
    recalibrate,
    resnet,
    strongest,
    success,
    use_statistics,
)
from rnlib.strong_attacks import rank

EPS = 0.02
TINY = Budget(steps=5, rounds=2, queries=5)


@pytest.fixture
def batch():
    """A network with batch statistics, 12 images, and the labels that it answers."""
    torch.manual_seed(0)
    model = resnet(8, width=4, num_classes=5)
    model(torch.rand(64, 3, 6, 6))
    x = images(12)[0]
    with use_statistics(model.eval(), "batch"):
        yield model, x, model(x).argmax(1)


def harm(model, x, y):
    margin = margins(model, x, y)
    return rank(margin > 0, margin).item()


# Rounds against frozen statistics -------------------------------------------------------------------


@pytest.mark.parametrize("attack", [PGD(EPS, steps=3), APGD(EPS, steps=3, restarts=2)])
@pytest.mark.parametrize("method", [FPA, GMSA])
def test_one_round_is_the_attack_on_the_clean_batch_s_statistics(batch, method, attack):
    model, x, y = batch
    found = method(attack, rounds=1)(model, x, y, generator=seeded())
    assert torch.equal(found, attack(frozen(model, [x]), x, y, generator=seeded()))


@pytest.mark.parametrize("method", [FPA, GMSA])
@pytest.mark.parametrize("seed", range(3))
def test_more_rounds_never_do_less_harm_to_the_whole_batch(batch, method, seed):
    model, x, y = batch
    attack = PGD(EPS, steps=3, loss="margin")
    harms = [harm(model, method(attack, rounds=n)(model, x, y, generator=seeded(seed)), y) for n in (1, 2, 4)]
    assert harms == sorted(harms)
    assert harms[0] < harms[2]


@pytest.mark.parametrize("mode", ["average", "minimum"])
def test_the_second_round_climbs_the_average_or_the_minimum_of_both_states(batch, mode):
    model, x, y = batch
    attack = BIM(EPS, steps=1)
    first = recalibrate(copy.deepcopy(model), [x])
    with use_statistics(first, "tracked"):
        once = attack(first, x, y)
    second = recalibrate(copy.deepcopy(model), [once])
    leaf = x.clone().requires_grad_()
    with use_statistics(first, "tracked"), use_statistics(second, "tracked"):
        losses = torch.stack([F.cross_entropy(one(leaf), y, reduction="none") for one in (first, second)])
    together = losses.mean(0) if mode == "average" else losses.min(0).values
    (gradient,) = torch.autograd.grad(together.sum(), leaf)
    twice = (x + EPS / 10 * gradient.sign()).clamp(0, 1)
    wanted = max((once, twice), key=lambda adv: harm(model, adv, y))
    torch.testing.assert_close(GMSA(attack, rounds=2, mode=mode)(model, x, y), wanted)


def test_fpa_attacks_the_last_state_only(batch):
    model, x, y = batch
    attack = BIM(EPS, steps=1)
    rounds = [x]
    for _ in range(3):
        rounds.append(attack(frozen(model, [rounds[-1]]), x, y))
    wanted = max(rounds[1:], key=lambda adv: harm(model, adv, y))
    torch.testing.assert_close(FPA(attack, rounds=3)(model, x, y), wanted)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_as_it_was(batch, training):
    model, x, y = batch
    model.train(training)
    before, modes = copy.deepcopy(model.state_dict()), [layer.training for layer in model.modules()]
    GMSA(PGD(EPS, steps=2), rounds=2)(model, x, y)
    strongest(model, x, y, EPS, budget=TINY)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [layer.training for layer in model.modules()] == modes
    assert {getattr(layer, "statistics", "batch") for layer in model.modules()} == {"batch"}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_targeted_rounds_go_towards_their_class(batch):
    model, x, _ = batch
    wanted = torch.zeros(len(x), dtype=torch.int64)
    attack = FPA(PGD(0.3, steps=10, targeted=True), rounds=2)
    assert attack.targeted
    reached = success(model, attack(model, x, wanted, generator=seeded()), wanted, targeted=True)
    assert reached.sum() > success(model, x, wanted, targeted=True).sum()


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (PGD(EPS), {"rounds": 0}, "rounds is 0"),
        (PGD(EPS), {"mode": "median"}, "mode is 'median'"),
        (APGD(EPS, loss="dlr_targeted"), {}, "loss is 'dlr_targeted'"),
    ],
)
def test_wrong_options_of_gmsa(attack, options, message):
    with pytest.raises(ValueError, match=message):
        GMSA(attack, **options)


def test_there_must_be_statistics_to_freeze():
    with pytest.raises(ValueError, match=r"has no norm of rnlib"):
        FPA(PGD(EPS))(nn.Flatten(), torch.rand(2, 3), torch.tensor([0, 1]))


# The ensemble ---------------------------------------------------------------------------------------


def test_the_whole_batch_is_judged(batch):
    model, x, y = batch
    found = strongest(model, x, y, EPS, budget="quick", generator=seeded(), sources={"mine": frozen(model)})
    assert (found.images - x).abs().max() <= EPS * (1 + 1e-5)
    assert torch.equal(found.correct, ~success(model, found.images, y))
    left = 100 * found.correct.double().mean().item()
    assert left == pytest.approx(min(found.accuracies.values()))
    assert found.accuracies[found.winner] == pytest.approx(left)
    kinds = {name.partition(",")[0] for name in found.accuracies} - {"assembled"}
    assert kinds == {"through", "as given", "FPA", "GMSA", "transfer", "Square"}
    assert {"transfer, tracked", "transfer, clean batch", "transfer, mine"} < set(found.accuracies)
    usual = success(model, PGD(EPS, steps=10)(model, x, y, generator=seeded()), y)
    assert found.correct.sum() <= (~usual).sum()


def count_forwards(model):
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))  # copies have it too
    return calls


def test_it_says_what_it_costs_before_it_starts(batch, capsys):
    model, x, y = batch
    calls = count_forwards(model)
    found = strongest(model, x, y, EPS, budget=TINY, progress=True)
    forward, backward = found.cost
    assert (
        f"at most {forward:,} forward and {backward:,} backward passes of 12 images"
        in capsys.readouterr().err
    )
    around = 2 + 1 + len(found.accuracies) + 2  # looking, the clean batch's statistics, judging
    assert forward <= len(calls) <= forward + around
    assert backward < forward


def test_a_model_that_sees_each_image_by_itself_loses_the_union(batch):
    model, x, y = batch
    with use_statistics(model, "tracked"):
        y = model(x).argmax(1)
        calls = count_forwards(model)
        found = strongest(model, x, y, EPS, budget="quick", generator=seeded())
        assert len(calls) <= found.cost[0] + 8
        assert list(found.accuracies)[:3] == ["cross_entropy", "dlr_targeted", "Square"]
        assert torch.equal(found.correct, ~success(model, found.images, y))
        assert 100 * found.correct.double().mean() <= min(found.accuracies.values()) + 1e-6


def test_no_weaker_than_autoattack():
    """All four attacks of the standard version, on 64 images."""
    theirs = pytest.importorskip("pyautoattack")
    model, x, y = conv()
    suite = theirs.AutoAttack(model, eps=0.01)
    suite.square.n_queries, suite.fab.n_iter = 500, 20
    adv = evaluated(suite, x, y)
    found = strongest(model, x, y, 0.01, budget=Budget(steps=100, queries=100), generator=seeded())
    assert 5 < found.correct.sum() <= (~success(model, adv, y)).sum()


class Relative(nn.Module):
    """Two classes by brightness relative to the batch's mean: dependence without a norm."""

    def forward(self, x):
        bright = x.mean((1, 2, 3))
        bright = 50 * (bright - bright.mean())
        return torch.stack((-bright, bright), 1)


def test_dependence_without_norms_and_two_classes():
    x = images(12)[0]
    y = Relative()(x).argmax(1)
    found = strongest(Relative(), x, y, 0.05, budget=TINY)
    through = {f"through, {loss}" for loss in ("cross_entropy", "equal_weight", "margin")}
    assert set(found.accuracies) - {"assembled"} == through | {"Square"}
    assert found.correct.sum() < len(x)


def test_nothing_survives_a_huge_eps(batch):
    model, x, y = batch
    assert not strongest(model, x, y, 64 / 255, budget=TINY, generator=seeded()).correct.any()


def test_an_interrupted_one_goes_on_and_ends_the_same(batch, tmp_path, monkeypatch):
    model, x, y = batch
    wanted = strongest(model, x, y, EPS, budget=TINY, generator=seeded())
    file, calls = tmp_path / "batch.pt", count_forwards(model)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Square, "_perturb", stop)  # the last
        with pytest.raises(KeyboardInterrupt):
            strongest(model, x, y, EPS, budget=TINY, generator=seeded(), checkpoint=file)
    before = len(calls)
    found = strongest(model, x, y, EPS, budget=TINY, generator=seeded(7), checkpoint=file)
    assert len(calls) - before < before / 2
    assert torch.equal(found.images, wanted.images)
    assert found.accuracies == wanted.accuracies
    assert [path.name for path in tmp_path.iterdir()] == ["batch.pt"]
    for other in ((model, x.flip(0), y), (resnet(8, width=4, num_classes=5).eval(), x, y)):
        with pytest.raises(ValueError, match="is of another batch, model or budget"):
            strongest(*other, EPS, budget=TINY, checkpoint=file)
    with pytest.raises(ValueError, match="is of another batch, model or budget"):
        strongest(model, x, y, EPS, budget=replace(TINY, rounds=3), checkpoint=file)


def test_it_works_in_inference_mode(batch):
    model, x, y = batch
    wanted = strongest(model, x, y, EPS, budget=TINY, generator=seeded())
    with torch.inference_mode():
        found = strongest(model, x.clone(), y.clone(), EPS, budget=TINY, generator=seeded())
    assert torch.equal(found.images, wanted.images)


def test_refusals(batch):
    model, x, y = batch
    with pytest.raises(ValueError, match="budget is 'huge', it must be a Budget or one of: quick, book"):
        strongest(model, x, y, EPS, budget="huge")
    with pytest.raises(ValueError, match="native batch norms become such"):
        strongest(convnet().train(), *images(8), EPS, budget=TINY)

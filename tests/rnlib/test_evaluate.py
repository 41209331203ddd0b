"""Evaluation against a loop written by hand; nothing but the weights and the seed may matter."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnlib import evaluate as package_evaluate
from rnlib.attacks import BIM, PGD, Attack, GaussianNoise, GradSign
from rnlib.data import Dataset
from rnlib.evaluate import _on, evaluate, measure
from rnlib.models import resnet
from rnlib.norms import BatchNorm
from rnlib.statistics import use_statistics

exact = {"rtol": 0, "atol": 0}


def dataset(n=23, seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (n,), generator=generator)
    return Dataset("noise", images, labels, tuple("abcd"))


def network(norm="batch_norm"):
    """Its running statistics are not its initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet(8, norm, width=4, num_classes=4)
        with torch.no_grad():
            model(torch.rand(16, 3, 8, 8))
    return model.eval()


def by_hand(model, data, statistics, batch_size, attack=None, seed=0):
    correct, loss = [], 0.0
    for start in range(0, len(data), batch_size):
        x = data.images[start : start + batch_size].float() / 255
        y = data.labels[start : start + batch_size]
        with use_statistics(model, statistics):
            if attack is not None:
                generator = torch.Generator().manual_seed(100_003 * seed + start // batch_size)
                x = attack(model, x, y, generator=generator)
            with torch.no_grad():
                logits = model(x)
        for i in range(len(y)):
            correct.append(logits[i].argmax() == y[i])
            loss -= F.log_softmax(logits[i], 0)[y[i]].item()
    return torch.stack(correct), loss / len(data)


@pytest.mark.parametrize("attack", [None, PGD(0.1, steps=2)])
@pytest.mark.parametrize("batch_size", [10, 100])
@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_measure_is_a_loop_over_the_batches_as_they_are(statistics, batch_size, attack):
    model, data = network("robust_norm"), dataset()
    options = {"statistics": statistics, "batch_size": batch_size, "seed": 3}
    correct, loss, distance = measure(model, data, attack, **options)
    wanted, wanted_loss = by_hand(model, data, statistics, batch_size, attack, seed=3)
    assert torch.equal(correct, wanted)
    assert (correct.dtype, correct.shape) == (torch.bool, (23,))
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert distance.shape == (23,)
    if attack is None:
        assert not distance.any()
    else:  # no further than the corner of the ball
        assert (distance > 0).all()
        assert (distance <= 0.1 * data.images[0].numel() ** 0.5 * (1 + 1e-5)).all()


class Brightness(nn.Module):
    """Class 1 where the mean of the image is above one half."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([1 - mean, mean], 1)


def test_outcomes_are_in_the_order_of_the_data_set():
    bright = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1])
    images = (bright * 200).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0])
    data = Dataset("brightness", images, labels, ("dark", "bright"))
    for batch_size in (1, 4, 100):
        correct, _, _ = measure(Brightness(), data, statistics="none", batch_size=batch_size)
        assert torch.equal(correct, bright == labels)


@dataclass(frozen=True)
class Spy(Attack):
    """Answers grey images and notes what it is given."""

    seen: list

    def _perturb(self, task, x, generator):
        self.seen.append((x.shape, task.model.training, task.y.tolist()))
        return torch.full_like(x, 0.5)


def test_the_batch_that_is_attacked_is_the_batch_that_is_classified():
    model, data, spy, inputs = network(), dataset(), Spy([]), []
    model.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
    measure(model, data, spy, statistics="batch", batch_size=10)
    assert [len(x) for x in inputs] == [10, 10, 3]
    assert all((x == 0.5).all() for x in inputs)
    labels = data.labels.tolist()
    assert spy.seen == [((n, 3, 8, 8), False, labels[i : i + n]) for i, n in ((0, 10), (10, 10), (20, 3))]


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_nothing_of_the_model_and_of_the_random_state_changes(statistics):
    model = network("robust_norm").train()
    model[1].weight.requires_grad_(False)
    model[2].eval()  # a frozen norm in a model in training mode
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.random.get_rng_state()
    measure(model, dataset(), PGD(0.1, steps=1), statistics=statistics)
    torch.testing.assert_close(model.state_dict(), before, **exact)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not model[1].weight.requires_grad
    assert all(p.requires_grad for p in model[4].parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


@dataclass(frozen=True)
class Broken(Attack):
    def _perturb(self, task, x, generator):
        raise KeyError("broken")


def test_modes_and_statistics_are_restored_after_an_exception():
    model = network().train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(KeyError, match="broken"):
        measure(model, dataset(), Broken(), statistics="batch")
    assert [m.training for m in model.modules()] == modes
    assert {m.statistics for m in model.modules() if isinstance(m, BatchNorm)} == {"tracked"}


def test_the_model_returns_to_its_device():
    moves = []

    class Moved(nn.Linear):
        def to(self, device, **_):
            moves.append(torch.device(device).type)
            return self

    with pytest.raises(KeyError), _on(Moved(2, 2), "meta"):
        raise KeyError
    assert moves == ["meta", "cpu"]


def outcomes(evaluations):
    return {(e.statistics, e.attack): (e.correct.tolist(), e.loss) for e in evaluations}


def test_results_do_not_depend_on_what_else_is_measured():
    model, data = network(), dataset()
    attacks = {"clean": None, "noise": GaussianNoise(0.3), "pgd": PGD(0.1, steps=2), "fgsm": GradSign(0.1)}
    found = outcomes(evaluate(model, data, attacks, batch_size=10))
    assert list(found) == [(mode, name) for mode in ("tracked", "batch") for name in attacks]
    torch.manual_seed(5)
    backwards = dict(reversed(attacks.items()))
    assert outcomes(evaluate(model, data, backwards, statistics=["batch", "tracked"], batch_size=10)) == found
    for (mode, name), outcome in found.items():
        alone = evaluate(model, data, {name: attacks[name]}, statistics=[mode], batch_size=10)
        assert outcomes(alone) == {(mode, name): outcome}


def test_seed_and_batches_matter_where_they_should():
    model, data = network(), dataset()
    noise = GaussianNoise(0.5)

    def loss(attack=None, **options):
        return measure(model, data, attack, **options)[1]

    assert loss(noise, seed=0) == loss(noise, seed=0) != loss(noise, seed=1)
    assert loss(batch_size=5) == pytest.approx(loss(batch_size=23), rel=1e-5)
    assert loss(statistics="batch", batch_size=5) != pytest.approx(loss(statistics="batch"), rel=1e-3)
    assert loss(statistics="batch") != pytest.approx(loss(), rel=1e-3)


def test_a_model_without_batch_statistics_has_one_mode():
    model, data = network("no_norm"), dataset()
    (evaluation,) = package_evaluate(model, data, {"clean": None})
    assert (evaluation.statistics, evaluation.attack) == ("none", "clean")
    assert evaluation.seconds > 0
    native = resnet(8, nn.BatchNorm2d, width=4, num_classes=4)
    measure(native.eval(), data, statistics="none")
    with pytest.raises(ValueError, match="native BatchNorm2d"):
        measure(native, data)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (dataset(0), {}, "'noise' is empty"),
        (dataset(), {"statistics": "bacth"}, "statistics is 'bacth'"),
        (dataset(), {"attack": BIM(0.1, targeted=True)}, "true labels as targets"),
        (dataset(), {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_arguments(data, options, message):
    with pytest.raises(ValueError, match=message):
        measure(network(), data, **options)

"""Someone reports a number that AutoAttack, or another ensemble, counted image by image."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import rnlib

BRIGHT = torch.tensor([0.40, 0.40, 0.60, 0.60])
LABELS = torch.tensor([0, 0, 1, 1])
# Each dims a dark image, so that the mean falls below the other dark one, which it brightens and fools.
FIRST = torch.tensor([0.52, 0.25, 0.60, 0.60])  # mean 0.4925
SECOND = torch.tensor([0.25, 0.52, 0.60, 0.60])
# Together, the two fooled versions (0.52) have a mean of 0.56, and neither is fooled.


class Relative(nn.Module):
    """Class 1 where the first channel is brighter than the batch's mean."""

    def forward(self, x):
        bright = x[:, 0].mean((1, 2))
        bright = 50 * (bright - bright.mean())
        return torch.stack((-bright, bright), 1)


def images(bright):
    """Each knows its place in the second channel, whatever order it is in."""
    return torch.stack((bright, torch.arange(4) / 4), 1)[:, :, None, None].expand(-1, -1, 4, 4)


@dataclass(frozen=True)
class Given(rnlib.Attack):
    """Gives the images a brightness that is known beforehand."""

    bright: Tensor

    def _perturb(self, task, x, generator):
        return images(self.bright)[(4 * x[:, 1, 0, 0]).long()]


@pytest.fixture
def two_attacks(monkeypatch):
    def plan(model, *_):
        return {name: (model, Given(one), 1, 1) for name, one in (("first", FIRST), ("second", SECOND))}

    monkeypatch.setattr(rnlib.audit, "_plan", plan)


@pytest.mark.usefixtures("two_attacks")
def test_an_ensemble_counts_three_numbers_that_differ():
    found = rnlib.strongest(Relative(), images(BRIGHT), LABELS, 0.15)
    assert found.accuracies == {"first": 75, "second": 75}
    assert found.correct.float().mean() == 0.75
    assert found.image_wise.tolist() == [False, False, True, True]
    assert found.assembled.tolist() == [True] * 4


@pytest.mark.usefixtures("two_attacks")
def test_the_audit_says_how_far_they_are_apart():
    audit = rnlib.audit_batch_dependence(Relative(), (images(BRIGHT), LABELS), batch_sizes=[2, 4], eps=0.15)
    (record,) = audit.robustness
    assert (record.strongest, record.image_wise, record.assembled) == (75, 50, 100)
    assert "Counted image by image, 50.0% survive" in audit.sentence
    assert "put together in its batch, 100.0% of all are correct" in audit.sentence


def test_images_of_another_library_are_judged_in_their_batches():
    adversarial = torch.where(torch.tensor([True, False, True, True]), FIRST, SECOND)
    correct, _, _ = rnlib.measure(Relative(), (images(adversarial), LABELS), statistics="none", batch_size=4)
    assert correct.all()
    first, _, _ = rnlib.measure(Relative(), (images(FIRST), LABELS), statistics="none", batch_size=4)
    assert first.tolist() == [False, True, True, True]


def test_autoattack_counts_what_is_not_so_of_the_images_that_it_returns():
    """It attacks survivors in batches of their own; what it returns was never one batch."""
    theirs = pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8), rnlib.BatchNorm(8), nn.ReLU(), nn.Linear(8, 4)
    ).eval()
    x = torch.rand(40, 3, 4, 4)
    with rnlib.use_statistics(model, "batch"), torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(20)])
        suite = theirs.AutoAttack(model, eps=0.03, seed=0, version="custom", attacks=["apgd-ce", "square"])
        suite.apgd.n_iter, suite.apgd.n_restarts, suite.square.n_queries = 10, 1, 50
        x_adv, y_adv = suite.run_standard_evaluation(x, y, batch_size=20)
        again = torch.cat([model(part).argmax(1) for part in x_adv.split(20)])
    judged, _, _ = rnlib.measure(model, (x_adv, y), statistics="batch", batch_size=20)
    assert torch.equal(judged, again == y)
    assert not torch.equal(judged, y_adv == y)

"""The sentence of an audit says when statistics do not fit, and how sure it is."""

import pytest
import torch
from torch import nn

import rnlib
from rnlib import Budget, audit_batch_dependence, recalibrate

Y = torch.arange(40) % 4
X = (0.3 + 0.1 * Y.view(-1, 1, 1, 1) + 0.02 * torch.rand(40, 1, 4, 4)).expand(-1, 3, -1, -1)
TINY = Budget(steps=3, rounds=1, queries=2)


class Brightness(nn.Module):
    """Classes by brightness in units of the norm's statistics: right in mixed batches, if these fit."""

    def __init__(self, mean=0.0, var=1.0):
        super().__init__()
        self.norm = rnlib.BatchNorm(1, affine=False)
        self.norm.running_mean.fill_(mean)
        self.norm.running_var.fill_(var)

    def forward(self, x):
        bright = self.norm(x.mean((1, 2, 3))[:, None])
        return -10 * (bright - torch.tensor([-1.34, -0.45, 0.45, 1.34])).abs()


def test_statistics_that_were_never_filled():
    with pytest.warns(UserWarning, match="averaged into tracked statistics of norm"):
        audit = audit_batch_dependence(Brightness(), (X, Y), batch_sizes=[20])
    assert "Tracked statistics of norm were never filled" in audit.sentence
    assert "rnlib.recalibrate(model, images)." in audit.sentence


def test_tracked_statistics_that_do_not_fit_and_doing_what_it_says():
    model = Brightness(5.0, 2.0)
    audit = audit_batch_dependence(model, (X, Y), batch_sizes=[20], eps=0.01, budget=TINY)
    assert "Clean accuracy is 25.0% with tracked statistics, 100.0% with the batch's" in audit.sentence
    assert "rnlib.recalibrate(model, images)." in audit.sentence
    clean = {record.statistics: record.clean for record in audit.robustness}
    assert clean == {"batch": 100, "tracked": 25, "clean twin": 100}
    again = audit_batch_dependence(recalibrate(model, [X]), (X, Y), batch_sizes=[20], eps=0.01, budget=TINY)
    assert "recalibrate" not in again.sentence
    assert again.robustness[1].clean == 100


def test_flattery_has_an_interval_that_the_verdict_follows():
    audit = audit_batch_dependence(Brightness(5.0, 2.0), (X, Y), batch_sizes=[20], eps=0.04, budget=TINY)
    ours, *fixed = audit.robustness
    best = max(fixed, key=lambda record: record.strongest)
    mean, low, high = audit.flattery
    assert mean == pytest.approx(ours.usual - best.usual - (ours.strongest - best.strongest))
    assert low <= mean <= high
    assert audit.flatters == (low > 0)
    assert f"the difference is {mean:+.1f} ({low:+.1f} to {high:+.1f}) points." in audit.sentence
    assert all(len(repr(end)) < 9 for record in audit.robustness for end in record.gain)


def test_no_answer_that_changes_has_no_place():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    sentence = audit_batch_dependence(model, (X, Y), batch_sizes=[20]).sentence
    assert sentence == "None of 40 answers changes with the batch."

"""The audit of batch dependence against models whose dependence is known."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from rnlib import PGD, Budget, Dataset, audit_batch_dependence, measure, resnet
from rnlib.audit import COMPOSITIONS, _interval
from rnlib.data import test_order
from rnlib.norms import BatchNorm, RobustNorm


def dataset(n=40, classes=4):
    """Classes that differ in brightness alone, in an order that is neither sorted nor random."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    noise = torch.randint(20, (n, 3, 8, 8), generator=generator)
    images = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    return Dataset("bright", images, labels, tuple("abcd"[:classes]))


class RelativeBrightness(nn.Module):
    """Classes by brightness relative to the batch's mean: right in mixed batches, blind in sorted ones."""

    def forward(self, x):
        bright = x.mean((1, 2, 3))
        levels = torch.tensor([-90, -30, 30, 90]) / 255
        return -200 * (bright[:, None] - bright.mean() - levels).abs()


def by_cell(audit):
    return {(r.statistics, r.composition, r.batch_size): r for r in audit.table}


def test_a_model_that_compares_within_the_batch():
    cells = by_cell(audit_batch_dependence(RelativeBrightness(), dataset(), batch_sizes=(10, 40)))
    assert set(cells) == {("none", c, s) for c in COMPOSITIONS for s in (10, 40)}
    assert cells["none", "mixed", 40].accuracy == 100
    assert cells["none", "mixed", 40].changed == 0
    assert cells["none", "sorted", 40].changed == 0  # one batch of all images: the order does not matter
    assert cells["none", "sorted", 10].accuracy <= 50  # one class a batch has no contrast
    assert cells["none", "sorted", 10].changed == 100 - cells["none", "sorted", 10].accuracy
    assert cells["none", "sorted", 10].moved > 0.5


def test_tracked_statistics_look_at_each_image_by_itself_and_batch_statistics_do_not():
    model = resnet(8, width=4, num_classes=4)
    model(torch.rand(16, 3, 8, 8))
    audit = audit_batch_dependence(model, dataset(), batch_sizes=(4, 10))
    for (mode, composition, _), record in by_cell(audit).items():
        assert record.robust_accuracy is None
        if mode == "tracked":
            assert record.changed == 0
            assert record.moved < 1e-5
        elif composition == "sorted":
            assert record.moved > 1e-3


@pytest.mark.parametrize("mode", ["tracked", "batch"])
def test_its_accuracies_are_those_of_measure(mode):
    model, data, attack = resnet(8, width=4, num_classes=4), dataset(), PGD(0.1, steps=2)
    audit = audit_batch_dependence(model, data, batch_sizes=(10,), attack=attack, seed=3)
    cell = by_cell(audit)[mode, "mixed", 10]
    arranged = data.subset(test_order(len(data), 3))
    for found, attacked in ((cell.accuracy, None), (cell.robust_accuracy, attack)):
        correct, _, _ = measure(model, arranged, attacked, statistics=mode, batch_size=10, seed=3)
        assert found == pytest.approx(100 * correct.float().mean().item())


def test_a_torchvision_model_is_audited_in_both_modes_and_left_alone():
    model = torchvision.models.resnet18(num_classes=4).train()
    before = copy.deepcopy(model.state_dict())
    audit = audit_batch_dependence(model, dataset(20), batch_sizes=(10,))
    assert {record.statistics for record in audit.table} == {"tracked", "batch"}
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert all(layer.training for layer in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


class Mixed(nn.Module):
    """Right with the range that its norm of rnlib has tracked, which stands beside a native one."""

    def __init__(self):
        super().__init__()
        self.native, self.ours = nn.BatchNorm2d(3), RobustNorm(1, p=1.0, affine=False)
        self.ours.running_mean.fill_(99.5 / 255)
        self.ours.running_range.fill_(0.2)

    def forward(self, x):
        bright = self.ours(self.native(x).mean((1, 2, 3))[:, None])
        return -(bright - torch.tensor([-90, -30, 30, 90]) / 255 / 0.2).abs()


def test_norms_of_rnlib_beside_native_ones_stay_what_they_are():
    cells = by_cell(audit_batch_dependence(Mixed(), dataset(), batch_sizes=(10,)))
    assert {cells["tracked", composition, 10].accuracy for composition in COMPOSITIONS} == {100}


# Under attack ---------------------------------------------------------------------------------------

EPS, TINY = 8 / 255, Budget(steps=6, rounds=2, queries=20)


class Masked(nn.Module):
    """Classes by brightness. With statistics of the batch its logits come in steps, without a gradient."""

    def __init__(self, steps=True):
        super().__init__()
        self.norm, self.steps = BatchNorm(1, affine=False), steps
        self.norm.running_mean.fill_(99.5 / 255)
        self.norm.running_var.fill_((67 / 255) ** 2)

    def forward(self, x):
        bright = self.norm(x.mean((1, 2, 3))[:, None])
        logits = -10 * (bright - torch.tensor([-90, -30, 30, 90]) / 67).abs()
        return logits.round() + 0 * logits if self.steps and self.norm.statistics == "batch" else logits


def test_where_the_usual_attack_flatters():
    data = dataset()
    plain = [data.images.float() / 255]
    audit = audit_batch_dependence(
        Masked(), data, batch_sizes=(20,), eps=0.13, budget=TINY, plain=(x for x in plain)
    )
    found = {record.statistics: record for record in audit.robustness}
    assert list(found) == ["batch", "tracked", "plain", "clean twin"]
    batch, tracked = found["batch"], found["tracked"]
    assert batch.usual == 100  # a gradient of zero
    assert batch.strongest < 100
    assert tracked.usual < tracked.strongest + 10
    assert batch.gain == batch.usual_gain == (0, 0, 0)
    for record in audit.robustness:
        for (gain, low, high), ours, theirs in (
            (record.usual_gain, batch.usual, record.usual),
            (record.gain, batch.strongest, record.strongest),
        ):
            assert gain == pytest.approx(ours - theirs, abs=1e-4)
            assert low <= gain <= high
    assert audit.flatters
    assert "The usual attack flatters batch statistics: the difference is " in audit.sentence
    assert f"the strongest attack {batch.strongest:.1f}%" in audit.sentence


def test_where_it_does_not():
    audit = audit_batch_dependence(Masked(steps=False), dataset(), batch_sizes=(20,), eps=0.01, budget=TINY)
    assert [record.statistics for record in audit.robustness] == ["batch", "tracked", "clean twin"]
    assert not audit.flatters
    assert "is not seen to flatter" in audit.sentence


def test_a_model_without_norms_has_nothing_to_gain_over():
    audit = audit_batch_dependence(RelativeBrightness(), dataset(), batch_sizes=(20,), eps=EPS, budget=TINY)
    (record,) = audit.robustness
    assert record.statistics == "none"
    assert record.strongest <= record.usual
    assert not audit.flatters
    assert "Over" not in audit.sentence


def test_the_interval_is_that_of_the_bootstrap():
    values = torch.cat((torch.ones(60), torch.zeros(40)))
    mean, low, high = _interval(values)
    assert mean == pytest.approx(60)
    # of a binomial share: 60 -+ 1.96 * sqrt(60 * 40 / 100)
    assert (low, high) == (pytest.approx(50.4, abs=1.5), pytest.approx(69.6, abs=1.5))


@pytest.mark.parametrize("sizes", [(), (0,), (10, -1), 20, (2.5,)])
def test_wrong_batch_sizes(sizes):
    with pytest.raises((TypeError, ValueError), match=r"batch_sizes is .* at least 1"):
        audit_batch_dependence(RelativeBrightness(), dataset(), batch_sizes=sizes)


def test_nothing_to_audit():
    data = dataset()
    with pytest.raises(ValueError, match="'bright' is empty"):
        audit_batch_dependence(RelativeBrightness(), data.subset(torch.arange(0)))

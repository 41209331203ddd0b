"""The audit of batch dependence against models whose dependence is known."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from rnlib import PGD, Dataset, audit_batch_dependence, measure, resnet
from rnlib.audit import COMPOSITIONS
from rnlib.data import test_order
from rnlib.norms import RobustNorm


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


def by_cell(records):
    return {(r.statistics, r.composition, r.batch_size): r for r in records}


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
    records = audit_batch_dependence(model, dataset(), batch_sizes=(4, 10))
    for (mode, composition, _), record in by_cell(records).items():
        assert record.robust_accuracy is None
        if mode == "tracked":
            assert record.changed == 0
            assert record.moved < 1e-5
        elif composition == "sorted":
            assert record.moved > 1e-3


@pytest.mark.parametrize("mode", ["tracked", "batch"])
def test_its_accuracies_are_those_of_measure(mode):
    model, data, attack = resnet(8, width=4, num_classes=4), dataset(), PGD(0.1, steps=2)
    records = audit_batch_dependence(model, data, batch_sizes=(10,), attack=attack, seed=3)
    cell = by_cell(records)[mode, "mixed", 10]
    arranged = data.subset(test_order(len(data), 3))
    for found, attacked in ((cell.accuracy, None), (cell.robust_accuracy, attack)):
        correct, _, _ = measure(model, arranged, attacked, statistics=mode, batch_size=10, seed=3)
        assert found == pytest.approx(100 * correct.float().mean().item())


def test_a_torchvision_model_is_audited_in_both_modes_and_left_alone():
    model = torchvision.models.resnet18(num_classes=4).train()
    before = copy.deepcopy(model.state_dict())
    records = audit_batch_dependence(model, dataset(20), batch_sizes=(10,))
    assert {record.statistics for record in records} == {"tracked", "batch"}
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


@pytest.mark.parametrize("sizes", [(), (0,), (10, -1)])
def test_wrong_batch_sizes(sizes):
    with pytest.raises(ValueError, match=r"batch_sizes is .* at least 1"):
        audit_batch_dependence(RelativeBrightness(), dataset(), batch_sizes=sizes)


def test_nothing_to_audit():
    data = dataset()
    with pytest.raises(ValueError, match="'bright' is empty"):
        audit_batch_dependence(RelativeBrightness(), data.subset(torch.arange(0)))

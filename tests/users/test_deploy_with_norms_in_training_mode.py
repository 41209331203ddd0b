"""A model that is deployed with its batch norms in training mode is measured as it answers, or not at all."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rnlib import GradSign, audit_batch_dependence, convert_norms, evaluate, measure

X = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
X += torch.arange(24).div(6, rounding_mode="floor").view(-1, 1, 1, 1) / 4
X, Y = X / 2, torch.arange(24) // 6  # sorted by class, and classes differ in brightness
LOADER = DataLoader(TensorDataset(X, Y), batch_size=4)


def adapted():
    """In evaluation mode but for its norms, the usual test-time adaptation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.9), nn.Flatten())
    model.append(nn.Linear(288, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    model.eval()[1].train()
    return model


def counted(model):
    """By the user, in the deployed mode, of a copy since running statistics move."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) == y for x, y in LOADER])


def test_the_deployed_accuracy_is_that_of_batch_statistics_and_no_other_is_given():
    model = adapted()
    wanted = counted(model)
    for other in (model, adapted().train(), convert_norms(adapted(), "batch_norm")):
        with pytest.raises(ValueError, match=r"layer '1' .* training mode .*model\.eval\(\).*convert_norms"):
            measure(other, LOADER, statistics="none")
    with pytest.raises(ValueError, match="layer '1'"):
        next(evaluate(model, LOADER, {"clean": None}))
    ours = convert_norms(copy.deepcopy(model), "batch_norm")
    correct, _, _ = measure(ours, LOADER, statistics="batch")
    assert torch.equal(correct, wanted)
    with pytest.warns(UserWarning, match=r"layer '1' \(BatchNorm\) .*statistics='batch' is what the model"):
        tracked, _, _ = measure(ours, LOADER)
    assert torch.equal(tracked, counted(model.eval()))
    assert not torch.equal(tracked, wanted)


def test_the_audit_has_a_row_of_it():
    rows = audit_batch_dependence(adapted(), (X, Y), batch_sizes=[4, 24]).table
    (row,) = [r for r in rows if (r.statistics, r.composition, r.batch_size) == ("batch", "sorted", 4)]
    assert row.accuracy == 100 * counted(adapted()).float().mean()


def test_native_norms_without_running_statistics_answer_by_the_batch_in_every_mode():
    model = adapted()
    model[1].running_mean = model[1].running_var = None
    model[1].track_running_stats = False
    correct, _, _ = measure(model.eval(), LOADER, statistics="none")
    assert torch.equal(correct, counted(adapted()))


class Coupled(nn.Module):
    """A norm of one's own, which is no rnlib.Norm."""

    def forward(self, x):
        return x - x.mean(0)


def test_a_norm_of_ones_own_has_no_tracked_statistics_to_measure():
    model = nn.Sequential(Coupled(), *adapted()[:1], *adapted()[2:]).eval()
    for statistics in ("tracked", "batch"):
        with pytest.raises(
            ValueError, match=f"'{statistics}', but Sequential has no norm .*'none' .*rnlib.Norm"
        ):
            measure(model, LOADER, statistics=statistics)
    correct, _, _ = measure(model, LOADER, statistics="none")
    assert torch.equal(correct, counted(model))


def test_an_attack_names_the_layer_whose_training_mode_matters():
    for name, kind, cure in (
        ("1", "BatchNorm2d", "statistics 'batch'"),
        ("3", "Dropout", r"model\.eval\(\)$"),
    ):
        model = adapted().eval()
        model[int(name)].train()
        with pytest.warns(UserWarning, match=rf"layer '{name}' \({kind}\) is attacked in training .*{cure}"):
            GradSign(0.1)(model, X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper = nn.Sequential(nn.Identity(), adapted().eval())
        assert wrapper.training
        GradSign(0.1)(wrapper, X, Y)

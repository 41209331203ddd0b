"""An optimizer or a reference made before the conversion still holds the parameters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnlib import convert_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4), nn.BatchNorm1d(4)
    )


X, Y = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])


def steps(model, optimizer, count=3):
    for _ in range(count):
        loss = F.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_training_goes_on_as_with_the_native_layers():
    native, ours = network(), network()
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in (native, ours)]
    for model, optimizer in zip((native, ours), optimizers, strict=True):
        steps(model, optimizer)
    convert_norms(ours, "batch_norm")  # in the middle, with momentum in the optimizer
    for model, optimizer in zip((native, ours), optimizers, strict=True):
        steps(model, optimizer)
    torch.testing.assert_close(ours.state_dict(), native.state_dict())


@pytest.mark.parametrize("name", ["batch_norm", "robust_norm", "group_norm", "torch_batch_norm", "no_norm"])
def test_the_very_parameters_and_statistics_are_kept(name):
    model = network()
    before = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
    options = {"groups": 2} if name == "group_norm" else {}
    after = convert_norms(model, name, **options).state_dict(keep_vars=True)
    tracked = {"batch_norm": 5, "torch_batch_norm": 5, "robust_norm": 3, "group_norm": 2, "no_norm": 0}[name]
    for layer in ("1", "5"):
        kept = [
            key for key, tensor in after.items() if key.startswith(layer) and before.get(id(tensor)) == key
        ]
        assert len(kept) == tracked


def test_tied_and_frozen_parameters_stay_so():
    model = network()
    model[5].weight = nn.Parameter(torch.ones(4))
    twin = nn.BatchNorm1d(4)
    twin.weight, twin.bias = model[5].weight, model[5].bias
    model.append(twin)
    model[1].weight.requires_grad_(False)
    convert_norms(model, "robust_norm")
    assert model[5].weight is model[6].weight
    assert not model[1].weight.requires_grad
    before = copy.deepcopy(model[1].weight)
    steps(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))
    assert torch.equal(model[1].weight, before)

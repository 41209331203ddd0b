"""A model that changes its weights at each batch (TENT) answers by what came before: that is said."""

import copy

import pytest
import torch
from torch import nn

from rnlib import audit_batch_dependence, measure

X = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


class Tent(nn.Module):
    """Before each answer a step on scale and shift makes the entropy less (Wang et al., 2021)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
        self.optimizer = torch.optim.SGD(self.norm.parameters(), lr=1.0)

    def forward(self, x):
        with torch.enable_grad():
            p = self.rest(self.norm(x)).softmax(1)
            self.optimizer.zero_grad()
            (p * p.log()).sum().neg().backward()
            self.optimizer.step()
        return self.rest(self.norm(x))


class Chance(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + torch.rand(len(x), 3)


def test_measure_counts_right_and_says_that_the_model_is_another_one():
    model = Tent().eval()
    again = copy.deepcopy(model)
    again.optimizer = torch.optim.SGD(again.norm.parameters(), lr=1.0)
    with pytest.warns(UserWarning, match=r"changed its weights while .*measure a copy\.deepcopy"):
        correct, _, _ = measure(model, (X, Y), statistics="none", batch_size=10)
    wanted = torch.cat([again(x).argmax(1) == y for x, y in zip(X.split(10), Y.split(10), strict=True)])
    assert torch.equal(correct, wanted)
    assert not torch.equal(model.norm.weight, Tent().norm.weight)


@pytest.mark.filterwarnings("ignore:the model changed its weights")
@pytest.mark.filterwarnings("ignore:no batch has been averaged")
@pytest.mark.parametrize("model", [Tent(), Chance()])
def test_the_audit_refuses_what_answers_the_same_batch_in_two_ways(model):
    with pytest.raises(ValueError, match=r"the same batches otherwise the second time .*keeps a state"):
        audit_batch_dependence(model, (X, Y % 3), batch_sizes=[10, 20])

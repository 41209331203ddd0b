"""What an audit cannot compare, or cannot do, is said before any work."""

import pytest
import torch
from torch import nn

import rnlib
from rnlib import audit_batch_dependence

X, Y = torch.rand(21, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(21) % 3


class NeverCalled(nn.Module):
    def forward(self, x):
        raise AssertionError("work was done")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (21, {"batch_sizes": [1]}, r"\(1,\): 21 images .* nothing would be compared; add one from 2 to 20"),
        (21, {"batch_sizes": [21, 100]}, r"\(21, 100\): .*add one from 2 to 20"),
        (1, {}, r"1 images .*give more images"),
        (21, {"batch_sizes": 20}, r"batch_sizes is 20, .*as \(2, 10\)"),
        (21, {"budget": 5}, "budget is 5, it must be a Budget or one of: quick"),
        (21, {"budget": "tiny"}, "budget is 'tiny', it must be a Budget or one of: quick"),
        (21, {"eps": 8}, r"eps is 8, .* divide steps of 8 bits by 255"),
        (21, {"attack": rnlib.PGD(0.1, targeted=True)}, "use targeted=False"),
    ],
)
def test_before_any_work(images, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        audit_batch_dependence(NeverCalled(), (X[:images], Y[:images]), **options)


def test_a_budget_counts_from_one():
    with pytest.raises(ValueError, match="steps is 0, it must be an int of at least 1"):
        rnlib.Budget(steps=0)


def network(pixels):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(pixels), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * pixels**2, 3)
    )


@pytest.mark.parametrize("labels", [Y + 1, Y + 7])
def test_labels_that_the_model_has_no_class_for(labels):
    model, need = (
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3)),
        rf"labels up to {labels.max()} need .* from 0",
    )
    for call in (
        lambda: audit_batch_dependence(model, (X, labels)),
        lambda: rnlib.measure(model, (X, labels), statistics="none"),
    ):
        with pytest.raises(ValueError, match=need):
            call()


@pytest.mark.filterwarnings("ignore:no batch has been averaged")
def test_one_image_alone_has_no_statistics_where_maps_have_one_pixel():
    for sizes in ([1, 7], [2, 20]):
        with pytest.raises(ValueError, match=rf"batch_sizes \[{sizes[0]}|20\] leave one of 21 images alone"):
            audit_batch_dependence(network(1), (X, Y), batch_sizes=sizes)
    assert len(audit_batch_dependence(network(1), (X, Y), batch_sizes=[7]).table) == 6
    assert (
        len(audit_batch_dependence(network(2), (X, Y), batch_sizes=[1, 20]).table) == 12
    )  # four pixels have

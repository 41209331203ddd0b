"""A last batch of one image has no statistics where maps are 1 x 1: that is said, and it can be left out."""

import pytest
import torch
from torch import nn

from rnlib import Dataset, make_norm
from rnlib.data import batches

IMAGES = Dataset(
    "noise", torch.arange(9 * 3, dtype=torch.uint8).view(9, 3, 1, 1), torch.zeros(9, dtype=torch.long), ("a",)
)


@pytest.mark.parametrize("name", ["batch_norm", "robust_norm", "min_max_norm", "sigma_norm", "batch_renorm"])
def test_the_error_says_what_to_do_and_doing_it_helps(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), make_norm(name)(4))
    *_, (one, _) = batches(IMAGES, 4)
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 1\), too few values .*drop_last=True"):
        model(one)
    for x, _ in batches(IMAGES, 4, drop_last=True):
        assert model(x).shape == (4, 4, 1, 1)
    assert model.eval()(x[:1]).isfinite().all()  # tracked statistics need one image


@pytest.mark.parametrize(("size", "wanted"), [(4, [4, 4]), (3, [3, 3, 3]), (10, [])])
def test_only_a_smaller_last_batch_is_left_out(size, wanted):
    found = [x for x, _ in batches(IMAGES, size, drop_last=True)]
    assert [len(x) for x in found] == wanted
    whole = [x for x, _ in batches(IMAGES, size)]
    assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=False))
    assert sum(map(len, whole)) == 9

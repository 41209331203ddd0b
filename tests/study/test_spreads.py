"""What normalisers make of the activations of a network, against the network's own layers."""

import pytest
import torch

from rnlib.data import load
from rnlib.norms import Norm, make_norm
from study.runs import make_run
from study.experiments.spreads import NORMALISERS, spreads

LAYERS = {
    "batch_norm": ("batch_norm", {}),
    "two_sigma": ("sigma_norm", {"p": 1.0}),
    "mean_range_norm": ("mean_range_norm", {}),
    "robust_norm": ("robust_norm", {"p": 0.2}),
}


@pytest.fixture(scope="module")
def found():
    model = make_run("quick").new_model()
    images = load("fashion-mnist-sample", "test").subset(torch.arange(200))
    inputs = {name: [] for name, layer in model.named_modules() if isinstance(layer, Norm)}
    model.eval()
    rows = list(spreads(None, model, images, "cpu"))
    for name, layer in model.named_modules():
        if isinstance(layer, Norm):
            assert not layer._forward_pre_hooks  # all taken away
            layer.statistics = "batch"
            layer.register_forward_pre_hook(lambda layer, x, kept=inputs[name]: kept.append(x[0]))
    with torch.no_grad():
        for x in images.images.split(100):
            model(x.float() / 255)
    return rows, inputs


def test_spreads_are_those_of_the_layers_themselves(found):
    rows, inputs = found
    assert [(cell["layer"], cell["normaliser"]) for cell, _ in rows] == [
        (layer, name) for layer in inputs for name in NORMALISERS
    ]
    for cell, (widths, narrower) in rows:
        assert list(cell) == ["layer", "normaliser"]  # what is measured does not name a cell
        name, options = LAYERS[cell["normaliser"]]
        layer = make_norm(name, eps=1e-20, affine=False, **options)
        outputs = [layer(x.shape[1]).double()(x.double()) for x in inputs[cell["layer"]]]
        std = torch.stack([y.std((0, 2, 3), correction=0) for y in outputs])
        assert widths["largest"] == pytest.approx(std.max().item(), rel=1e-4)
        assert widths["std"] == pytest.approx(std.mean(0).median().item(), rel=1e-4)
        if name != "batch_norm":
            assert torch.equal(narrower, std.mean(0) < 1)


def test_popoviciu_holds_in_every_channel_of_a_network(found):
    """Eq 13: after Eq 12 no standard deviation is above 1/2, what 2 sigma leaves of every channel."""
    largest = {}
    for cell, (widths, _) in found[0]:
        largest.setdefault(cell["normaliser"], []).append(widths["largest"])
    assert max(largest["two_sigma"]) == pytest.approx(0.5)
    assert max(largest["mean_range_norm"]) <= 0.5
    assert largest["batch_norm"] == pytest.approx([1.0] * len(largest["batch_norm"]))

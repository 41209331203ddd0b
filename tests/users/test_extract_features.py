"""torch.fx and torchvision's feature extractor on models with norms of rnlib."""

import pytest
import torch
from torch import fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from rnlib import resnet, use_statistics, vgg
from rnlib.other_norms import NORMS

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(name, build=resnet, depth=8):
    torch.manual_seed(0)
    model = build(depth, name, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    model(X)
    return model.eval()


def seen(model, layer, x):
    found = []
    with layer.register_forward_hook(lambda module, inputs, output: found.append(output)):
        model(x)
    return found[0]


@pytest.mark.parametrize("name", sorted(set(NORMS) - {"weight_norm"}))
def test_features_are_those_that_a_hook_sees(name):
    model = network(name)
    assert "2" in get_graph_node_names(model)[0]
    extractor = create_feature_extractor(model, {"2": "norm"})
    torch.testing.assert_close(extractor.eval()(X)["norm"], seen(model, model[2], X), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["batch_norm", "robust_norm", "tracked_norm"])
def test_a_traced_model_still_switches_and_tracks(name):
    model = network(name)
    traced = fx.symbolic_trace(model)
    for statistics in ("tracked", "batch"):
        with use_statistics(model, statistics):
            wanted = model(X)
        with use_statistics(traced, statistics):
            torch.testing.assert_close(traced(X), wanted, rtol=0, atol=0)
    before = int(model[2].num_batches_tracked)
    traced.train()(X)
    assert traced.get_submodule("2").num_batches_tracked == before + 1


def test_a_frozen_norm_is_frozen_once_and_not_at_each_call():
    traced = fx.symbolic_trace(resnet(8, "frozen_norm", width=4).train())
    traced(X)
    kept = traced.get_submodule("2").running_mean.clone()
    traced(2 * X)
    assert torch.equal(traced.get_submodule("2").running_mean, kept)


def test_vgg_is_traced_too():
    model = network("robust_norm", vgg, 11)
    torch.testing.assert_close(fx.symbolic_trace(model)(X), model(X))

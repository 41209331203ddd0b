"""Tools of PyTorch that look for batch norm, on a converted model: they work or say what to do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, update_bn

from rnlib import Norm, convert_norms, recalibrate

KINDS = ["batch_norm", "robust_norm", "min_max_norm", "sigma_norm", "tracked_norm"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )


def loader():
    return [torch.rand(6, 3, 7, 7, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_update_bn_fills_batch_norm_as_it_fills_pytorchs():
    native, ours = network(), convert_norms(network(), "batch_norm")
    ours(torch.rand(4, 3, 7, 7))  # to be forgotten
    for model in (native, ours):
        update_bn(loader(), model)
    torch.testing.assert_close(ours.state_dict(), native.state_dict())
    assert ours[1].momentum == 0.1


@pytest.mark.parametrize("name", [kind for kind in KINDS if kind != "tracked_norm"])
def test_update_bn_of_an_averaged_model_is_recalibration(name):
    model = convert_norms(network(), name)
    model(10 * loader()[0])
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    update_bn(loader(), averaged)
    wanted = recalibrate(model, loader())
    torch.testing.assert_close(averaged.module.state_dict(), wanted.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_a_tool_that_would_rebuild_a_norm_as_another_fails(name):
    model = convert_norms(network(), name)
    for tool in (nn.SyncBatchNorm.convert_sync_batchnorm, torch.func.replace_all_batch_norm_modules_):
        with pytest.raises(AttributeError, match="has no attribute 'track_running_stats'"):
            tool(model)
    assert "track_running_stats" in Norm.__doc__  # where it says what to do


def test_synchronised_statistics_by_way_of_native_layers():
    model = convert_norms(network(), "batch_norm")
    update_bn(loader(), model)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(
        convert_norms(copy.deepcopy(model), "torch_batch_norm")
    )
    assert type(synchronised[1]) is nn.SyncBatchNorm
    back = convert_norms(synchronised.eval(), "batch_norm")
    torch.testing.assert_close(back(loader()[0]), model.eval()(loader()[0]), rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_norms_are_frozen_by_their_class(name):
    model = convert_norms(network(), name).train()
    found = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    assert found == [layer for layer in model.modules() if isinstance(layer, Norm)]
    assert len(found) == 2
    for layer in found:
        layer.eval().requires_grad_(False)
    before = copy.deepcopy([layer.state_dict() for layer in found])
    model(loader()[0]).sum().backward()
    torch.testing.assert_close([layer.state_dict() for layer in found], before)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "0.weight", "0.bias", "3.weight", "3.bias"
    ]  # fmt: skip


def test_batch_norm_is_fused_into_the_convolution_before_it():
    model = convert_norms(network(), "batch_norm")
    update_bn(loader(), model)
    x = loader()[0]
    fused = fuse_conv_bn_eval(model.eval()[0], convert_norms(model, "torch_batch_norm")[1])
    torch.testing.assert_close(fused(x), model[1](model[0](x)))


@pytest.mark.parametrize("name", KINDS)
def test_checkpoints_without_metadata_are_loaded_and_layers_traced(name):
    model = convert_norms(network(), name).eval()
    x = loader()[0]
    copied = convert_norms(network(), name).eval()
    copied.load_state_dict({key: 2 * value for key, value in model.state_dict().items()})  # a plain dict
    torch.testing.assert_close(copied[1].weight, 2 * model[1].weight)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):  # what re-initialises a network
            layer.reset_parameters()
    assert torch.equal(model[1].weight, torch.ones(4))

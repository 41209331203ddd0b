"""What makes training fast comes to the numbers of what does not, and no step waits for the device."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from tiny_training import PGD2, dataset, network, same, settings, untimed
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rnlib import PGDL2, fit
from rnlib.train import Bfloat16, WideProducts

# --- speed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "no_norm"])
def test_bfloat16_stays_near_float32(norm):
    """A step in 8 bits of mantissa has the loss within 2% and a direction within 25 degrees."""
    models, losses, steps = [network(norm) for _ in range(2)], [], []
    before = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    for model, precision in zip(models, ("float32", "bfloat16"), strict=True):
        training = settings(epochs=1, batch_size=64, precision=precision)
        losses.append(fit(model, dataset(64), training)[0]["train_loss"])
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
        assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert F.cosine_similarity(*steps, dim=0) > 0.9


def test_wide_products_are_those_of_bfloat16():
    """Against PyTorch's own kernels, whose sums have another order: the last bit of bfloat16 may differ."""
    torch.manual_seed(0)
    x, image_grad = torch.rand(8, 3, 8, 8, requires_grad=True), torch.randn(8, 10)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    answers = []
    for mode in (nullcontext(), WideProducts()):
        with torch.autocast("cpu", torch.bfloat16), mode:
            y = model(x)
        assert y.dtype == torch.bfloat16
        answers.append([y, *torch.autograd.grad((y * image_grad).sum(), [x, *model.parameters()])])
    for native, wide in zip(*answers, strict=True):
        assert wide.dtype == native.dtype
        torch.testing.assert_close(wide, native, rtol=0.02, atol=0.01 * native.abs().max().item())
    exact = model(x)
    assert not torch.equal(answers[1][0].float(), exact)
    torch.testing.assert_close(answers[1][0].float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("supported", [True, False])
def test_products_are_wide_where_bfloat16_has_no_kernels(supported, monkeypatch):
    used = []

    class Spy(WideProducts):
        def __enter__(self):
            used.append(True)
            return super().__enter__()

    monkeypatch.setattr("rnlib.train.WideProducts", Spy)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: supported)
    answer = Bfloat16(network())(torch.rand(4, 3, 32, 32))
    assert (answer.dtype, bool(used)) == (torch.float32, not supported)


def test_products_are_wide_where_pytorch_has_no_onednn(monkeypatch):
    """As in its wheels for macOS, which lack the operator that tells about kernels."""
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    monkeypatch.setattr("torch.ops.mkldnn", object())
    assert Bfloat16(nn.Identity()).wide_on_cpu


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_a_compiled_network_trains_as_the_network_does(norm, monkeypatch):
    """The compiler's front end sees all of a step; its C++ back end is its authors' to test."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    model, plain = network(norm), network(norm)
    history = fit(model, dataset(16), settings(epochs=1, attack=PGD2, compile=True))
    assert graphs
    assert untimed(history) == untimed(fit(plain, dataset(16), settings(epochs=1, attack=PGD2)))
    same(model, plain)


def test_contiguous_weights_stay_contiguous():
    model, usual = network(), network()
    options = {"epochs": 2, "attack": PGD2}
    history = fit(model, dataset(), settings(channels_last=False, **options), validation=dataset(8))
    assert all(weight.is_contiguous() for weight in model.parameters())
    expected = fit(usual, dataset(), settings(**options), validation=dataset(8))
    assert [r["train_loss"] for r in history] == pytest.approx([r["train_loss"] for r in expected], rel=1e-3)


WAITS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
MADE_HERE = (torch.ops.aten.lift_fresh, torch.ops.aten.randint, torch.ops.aten.randperm)


@pytest.mark.parametrize("attack", [None, PGD2, PGDL2((0.03, 0.02, 0.01), steps=2, step_size=0.01)])
@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_no_step_waits_for_the_device_or_brings_something_there(norm, attack):
    """Every .item(), float() or bool() of a tensor is one of WAITS, every torch.tensor() one of MADE_HERE."""
    waits, made, steps, data = [], [], [], dataset(48)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            for seen, wanted in ((waits, WAITS), (made, MADE_HERE)):
                if function.overloadpacket in wanted:
                    seen.append(len(steps))
            return function(*args, **(kwargs or {}))

    with Watch():
        fit(network(norm), data, settings(epochs=1, attack=attack), on_step=lambda: steps.append(0))
    # the look at the loss in the first step of an epoch, and those after the last
    assert len(steps) == 6
    assert set(waits) <= {0, 6}
    assert waits.count(0) == 1
    assert set(made) == {0}  # order and augmentation are drawn before the first step

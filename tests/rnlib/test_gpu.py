"""A GPU computes what the CPU does, and never waits within a training step."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rnlib import (
    BIM,
    PGD,
    PGDL2,
    CarliniWagner,
    Dataset,
    Detached,
    GaussianNoise,
    Grad,
    GradSign,
    Square,
    Training,
    fit,
    make_norm,
    measure,
    resnet,
    train,
    use_statistics,
    vgg,
)
from rnlib.data import augment
from rnlib.kernels import range_norm
from rnlib.other_norms import NORMS

if not torch.cuda.is_available():
    pytest.skip("needs a GPU, and finds none", allow_module_level=True)


ATTACKS = [
    GaussianNoise(0.1),
    Grad(0.1),
    GradSign(0.1),
    BIM(0.1, steps=3),
    PGD(0.1, steps=3, restarts=2),
    PGD(0.1, steps=3, loss="masked_margin"),
    PGDL2((0.1, 0.2, 0.3), steps=3),
    CarliniWagner(steps=3, initial_c=10, lr=0.1),
    Square(0.1, queries=20),
]


SETTINGS = Training(epochs=2, batch_size=16, lr=0.01, schedule="one_cycle")


ADVERSARIAL = replace(SETTINGS, attack=PGD(0.03, steps=2))


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32, and not in the shorter type that a GPU prefers."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def dataset(n=64):
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=chance, dtype=torch.uint8)
    return Dataset("some", images, torch.randint(0, 4, (n,), generator=chance), tuple("abcd"))


def network(norm="batch_norm"):
    torch.manual_seed(0)
    return resnet(8, norm, width=8, num_classes=4).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["train", "tracked", "batch"])
@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_layer_answers_on_a_gpu_as_on_the_cpu(name, mode, dtype, layout):
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(8, 16, 6, 5, generator=chance).to(dtype).to(memory_format=layout)
    pull = torch.randn(8, 16, 6, 5, generator=chance).to(dtype)
    layer = make_norm(name)(16).to(torch.promote_types(dtype, torch.float32))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 1, 0.1, generator=chance)
    found = []
    for device in ("cpu", "cuda"):
        there, image = copy.deepcopy(layer).to(device), x.to(device, copy=True).requires_grad_()
        there.train(mode == "train")
        with use_statistics(there, mode if mode != "train" else "tracked"):
            if name == "group_norm" and dtype == torch.bfloat16:
                there = there.to(dtype)  # PyTorch's own mixes types on one device and not on the other
            y = there(image)
        y.backward(pull.to(device))
        values = [y, image.grad, *there.buffers(), *(p.grad for p in there.parameters())]
        found.append([value.detach().cpu().double() for value in values if value is not None])
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    for here, other in zip(*found, strict=True):
        torch.testing.assert_close(
            here, other, rtol=tolerance, atol=tolerance * (1 + here.abs().max().item())
        )


@pytest.mark.parametrize("centre", ["mean", "min"])
def test_the_gradient_of_the_range_is_right_on_a_gpu(centre):
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    weight, bias = torch.randn(2, 3, dtype=torch.float64, device="cuda").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: range_norm(*given, p=0.3, centre=centre)[0], (x, weight, bias), fast_mode=True
    )


@pytest.mark.parametrize(
    "build", [lambda: resnet(8, "robust_norm", num_classes=4), lambda: vgg(11, num_classes=4)]
)
def test_a_network_answers_on_a_gpu_as_on_the_cpu(build):
    torch.manual_seed(0)
    model, x = build().eval(), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), model.cpu()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_an_attack_finds_the_same_images(norm, attack):
    """In double precision, and with the chance of a generator on the CPU."""
    model = network(norm).double()
    x, y = dataset(16).images.double() / 255, dataset(16).labels
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).eval()
        with use_statistics(model, "batch"):
            adv = attack(model, x.to(device), y.to(device), generator=torch.Generator().manual_seed(1))
        assert adv.device.type == device
        found.append(adv.cpu())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [SETTINGS, ADVERSARIAL], ids=["natural", "adversarial"])
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_training_is_that_of_the_cpu(norm, training):
    # Drawn on the device, the chance of an attack is another: the images it starts from have to be the same.
    if training.attack is not None:
        training = replace(training, attack=BIM(0.2, steps=2))
    histories = [
        fit(network(norm), dataset(), training, validation=dataset(16), device=device)
        for device in ("cpu", "cuda")
    ]
    for here, there in zip(*histories, strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=0.02)


@pytest.mark.parametrize("options", [{"compile": True}, {"precision": "bfloat16"}, {"channels_last": False}])
@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_every_way_to_train_comes_to_the_same_loss(norm, options):
    strong = replace(ADVERSARIAL, attack=BIM(0.2, steps=2))  # of which the loss depends much
    plain = fit(network(norm), dataset(), strong, device="cuda")
    other = fit(network(norm), dataset(), replace(strong, **options), device="cuda")
    assert other[-1]["train_loss"] == pytest.approx(plain[-1]["train_loss"], rel=0.05)


def test_a_killed_training_goes_on(tmp_path):
    whole, half = network(), network()
    kept = tmp_path / "checkpoint.pt"

    def stop(history):
        raise KeyboardInterrupt

    fit(whole, dataset(), ADVERSARIAL, device="cuda")
    with pytest.raises(KeyboardInterrupt):
        fit(half, dataset(), ADVERSARIAL, device="cuda", checkpoint=kept, on_epoch=stop)
    resumed, steps = network(), []
    fit(resumed, dataset(), ADVERSARIAL, device="cuda", checkpoint=kept, on_step=lambda: steps.append(0))
    assert len(steps) == 4  # of the second epoch alone
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
@pytest.mark.parametrize("wrap", [lambda model: model, Detached], ids=["itself", "detached"])
def test_a_measurement_is_that_of_the_cpu(statistics, wrap):
    model = network()
    results = [
        measure(
            wrap(model), dataset(), BIM(0.02, steps=3), statistics=statistics, batch_size=16, device=device
        )
        for device in ("cpu", "cuda")
    ]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)
    assert all(p.device.type == "cpu" for p in model.parameters())


@pytest.mark.parametrize("attack", [None, PGD(0.03, steps=2), PGDL2((0.1, 0.2, 0.3), steps=2)], ids=str)
@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "no_norm"])
def test_no_step_waits_for_the_gpu(norm, attack, monkeypatch):
    """PyTorch raises an error at the waits that it knows of, from the end of the first step to the last."""
    model, steps = network(norm), []
    monkeypatch.setattr(train, "CHECK_EVERY", 10**9)

    def on_step():
        steps.append(0)
        torch.cuda.set_sync_debug_mode("error" if len(steps) < 4 else "default")

    try:
        fit(model, dataset(64), replace(SETTINGS, epochs=1, attack=attack), device="cuda", on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 4


def test_the_debug_mode_sees_a_wait():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(3, device="cuda").sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_augmentation_is_the_same_on_both():
    images = dataset(32).images
    here, there = (
        augment(images.to(device), torch.Generator().manual_seed(3)).cpu() for device in ("cpu", "cuda")
    )
    assert torch.equal(here, there)


def test_the_logits_of_a_bfloat16_network_are_float32():
    model = train.Bfloat16(network().cuda().eval())
    y = model(torch.rand(2, 3, 8, 8, device="cuda"))
    assert y.dtype == torch.float32
    assert F.cross_entropy(y, torch.tensor([0, 1], device="cuda")).isfinite()

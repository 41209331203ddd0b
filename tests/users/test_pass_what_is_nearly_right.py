"""Arguments of another kind than asked for: taken where the meaning is plain, named where it is not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rnlib
from rnlib import PGD, Dataset, GradSign, Normalize, RobustNorm, convert_norms, load, measure

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
IMAGES = Dataset("noise", (X * 255).byte(), Y, tuple("abcd"))


def network():
    torch.manual_seed(0)
    model = rnlib.resnet(8, "batch_norm", width=4, num_classes=4)
    model(X)
    return model.eval()


MODEL = network()


@pytest.mark.parametrize(
    "kind", [torch.tensor, np.array, tuple, lambda v: torch.tensor(v, dtype=torch.float64)]
)
def test_normalize_takes_tensors_and_arrays(kind):
    layer = Normalize(kind([0.5, 0.25, 0]), kind([0.5, 1, 2]))
    wanted = torch.stack([(X[:, 0] - 0.5) / 0.5, X[:, 1] - 0.25, X[:, 2] / 2], 1)
    torch.testing.assert_close(layer(X), wanted)
    with pytest.raises(ValueError, match="std positive"):
        Normalize(kind([0.5, 0.25, 0]), kind([0.5, 1, float("nan")]))


def test_a_layer_without_a_count_of_batches_keeps_its_statistics():
    native = nn.BatchNorm2d(3)
    native(X)
    native.num_batches_tracked = None
    x = 2 * X + 1
    for training in (True, False):  # PyTorch goes on without a count
        wanted = native.train(training)(x)
    native.running_mean, native.running_var = native.running_mean.clone(), native.running_var.clone()
    torch.testing.assert_close(convert_norms(native, "batch_norm")(x), wanted)


class Scaled(nn.Module):
    """A norm of one's own, with affine=False and no parameters."""

    def __init__(self, channels, affine=False):
        super().__init__()
        self.affine = affine

    def forward(self, x):
        return x / 2


class Own(RobustNorm):
    def forward(self, x):
        return super().forward(x) * self.weight.view(1, -1, 1, 1)


def test_norms_of_ones_own_are_taken_with_and_without_parameters():
    model = convert_norms(nn.Sequential(nn.BatchNorm2d(3)), Scaled)
    assert torch.equal(model(X), X / 2)
    assert model[0].affine is False
    own = convert_norms(nn.Sequential(nn.BatchNorm2d(3, affine=False)), Own)  # it has a scale that it needs
    assert torch.equal(own[0].weight, torch.ones(3))
    own(X)


class Nameless(rnlib.Norm):
    pass


@pytest.mark.parametrize("give", [nn.Identity(), lambda channels: None])
def test_what_gives_no_layer_is_named(give):
    with pytest.raises(TypeError, match=r"gives (3|None) for 3 channels: it must give a new layer"):
        convert_norms(nn.Sequential(nn.BatchNorm2d(3)), give)
    with pytest.raises(ValueError, match=r'Nameless has no names: .*names = \("mean", "var"\)'):
        convert_norms(nn.Sequential(nn.BatchNorm2d(3)), Nameless)


@pytest.mark.parametrize("excess", [1e-7, 9e-7])
def test_rounding_beyond_the_range_is_clipped(excess):
    x = X.clone()
    x[0, 0, 0, :2] = torch.tensor([1 + excess, -excess])
    found = GradSign(0.01)(MODEL, x, Y)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, GradSign(0.01)(MODEL, x.clamp(0, 1), Y))
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        GradSign(0.01)(MODEL, X + 1e-5 + 1 - X.max(), Y)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_integer_labels_of_any_width(dtype):
    y = Y.to(dtype)
    for attack in (PGD(0.1, steps=2, random_start=False), rnlib.CarliniWagner(steps=2)):
        assert torch.equal(attack(MODEL, X, y), attack(MODEL, X, Y))
    assert torch.equal(rnlib.success(MODEL, X, y), rnlib.success(MODEL, X, Y))
    torch.testing.assert_close(
        rnlib.gradient_shares(MODEL, X, y).own, rnlib.gradient_shares(MODEL, X, Y).own, rtol=0, atol=0
    )
    images = Dataset("noise", IMAGES.images, y, IMAGES.classes)
    assert images.labels.dtype == torch.int64
    assert images.fingerprint == IMAGES.fingerprint


def test_arrays_become_tensors():
    images = Dataset("noise", IMAGES.images.numpy(), IMAGES.labels.tolist(), IMAGES.classes)
    assert images.fingerprint == IMAGES.fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.images.permute(0, 2, 3, 1), Y, r"\(4, 8, 8, 3\): .*permute\(0, 3, 1, 2\)"),
        (IMAGES.images.permute(0, 2, 3, 1).numpy(), Y, r"permute\(0, 3, 1, 2\)"),
        (255 * X, Y, r"they must lie in \[0, 1\]"),
        (X.bool(), Y, "images must be uint8 from 0 to 255 or floating-point"),
        (IMAGES.images[0], Y, r"\(N, C, H, W\), got torch.uint8 \(3, 8, 8\)"),
        (IMAGES.images, nn.functional.one_hot(Y), r"argmax\(1\)"),
        (IMAGES.images, nn.functional.one_hot(Y).float(), r"argmax\(1\)"),
        (IMAGES.images, Y.float(), r"labels must be int64 \(4,\), got .*labels\.long\(\) if they are whole"),
        (IMAGES.images, Y[:, None], r"got .*\(4, 1\): give labels\[:, 0\]\.long\(\)"),
        (IMAGES.images, Y[:3], r"got .*\(3,\): there is one for each image"),
        (IMAGES.images, Y - 1, "labels has the label -1, labels count from 0"),
        (IMAGES.images[:, 0], Y, r"\(4, 8, 8\): images\[:, None\] is"),
        (IMAGES.images[0], Y[:1], r"\(3, 8, 8\): one image is images\[None\]"),
        (IMAGES.images.long(), Y, r"got torch.int64 \(4, 3, 8, 8\)$"),
    ],
)
def test_sets_of_another_layout_are_named(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Dataset("noise", images, labels, IMAGES.classes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(MODEL, Path("images")), r"dataset is a \w*Path, .*Dataset"),
        (lambda: measure(MODEL, IMAGES, PGD), "attack is a class PGD"),
        (lambda: measure(MODEL, IMAGES, "PGD"), "attack is a str"),
        (lambda: measure(rnlib.resnet, IMAGES), "model is a function, .*Module"),
        (lambda: measure(nn.Linear, IMAGES), "model is a class Linear"),
        (lambda: list(rnlib.evaluate(MODEL, "images", {"clean": None})), "dataset is a str"),
        (lambda: list(rnlib.evaluate(MODEL, IMAGES, {"pgd": PGD})), "attack is a class PGD"),
        (lambda: rnlib.audit_batch_dependence(MODEL, Path("images")), r"dataset is a \w*Path"),
        (lambda: rnlib.audit_batch_dependence(nn.Linear, IMAGES), "model is a class Linear"),
        (lambda: rnlib.audit_batch_dependence(MODEL, IMAGES, attack=PGD), "attack is a class PGD"),
        (lambda: PGD(0.1)(nn.Linear, X, Y), "model is a class Linear"),
        (lambda: PGD(0.1)(MODEL, X.numpy(), Y), "x is a ndarray"),
    ],
)
def test_wrong_kinds_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_one_image_needs_its_batch_axis():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\).*x\[None\]"):
        PGD(0.1)(MODEL, X[0], Y[0])
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), expected \(N, 3, H, W\)"):
        MODEL(X[0])
    unbatched = torch.rand(8, 8, 8)  # which PyTorch's convolutions answer, and where C is H
    for norm in ("batch_norm", "robust_norm", "sigma_norm"):
        model = convert_norms(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), norm)
        with pytest.raises(ValueError, match="expected 4D input"):
            model(unbatched)
    assert convert_norms(nn.BatchNorm1d(8), "robust_norm")(unbatched).shape == (8, 8, 8)


def test_a_path_is_a_name_too(tmp_path):
    with pytest.raises(ValueError, match="unknown dataset"):
        load(tmp_path / "nowhere")
    assert load(Path("fashion-mnist-sample"), "test").name == "fashion-mnist-sample"

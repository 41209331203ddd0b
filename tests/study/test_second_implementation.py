"""The mechanism's central numbers a second time: own batch norm, own ResNet, own PGD, own losses.

Nothing of rnlib and of the study's measurements is used; weights and images are read from their files.
"""

import io
import lzma
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 500


def idx(name):
    content = lzma.decompress((ROOT / "data" / "fashion-mnist-sample" / f"t10k-{name}-ubyte.xz").read_bytes())
    dimensions = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return torch.from_numpy(np.frombuffer(content[4 + 4 * dimensions :], np.uint8).reshape(shape).copy())


def miniature():
    """Images in [0, 1] and labels, in the order of their file."""
    return idx("images-idx3")[:, None] / 255, idx("labels-idx1").long()


def cifar():
    """The same of the test images of the JPEG copy, in the order of their paths."""
    folders = map(Path, os.environ.get("RNLIB_DATA", "data").split(os.pathsep))
    path = next((one for folder in folders if (one := folder / "cifar10-jpeg.tar.xz").exists()), None)
    if path is None:
        pytest.skip("cifar10-jpeg.tar.xz, which does not come with the repository, is not in RNLIB_DATA")
    with tarfile.open(path) as archive:
        kept = {
            one.name: np.asarray(PIL.Image.open(io.BytesIO(archive.extractfile(one).read())))
            for one in archive
            if one.name.startswith("test/") and one.isfile()
        }
    names = sorted(kept)
    classes = sorted({name.split("/")[1] for name in names})
    images = torch.from_numpy(np.stack([kept[name] for name in names])).permute(0, 3, 1, 2) / 255
    return images, torch.tensor([classes.index(name.split("/")[1]) for name in names])


@dataclass(frozen=True)
class Network:
    """A trained network: where its files are, how it normalises, its images, and points to agree within.

    On 500 images two random starts of PGD alone move a gap by about a point.
    """

    run: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    load: Callable[[], tuple[Tensor, Tensor]]
    tolerance: float

    @property
    def folder(self):
        return ROOT / "results" / "book" / self.run

    @property
    def eps(self):
        return 0.03 * column(self.std)

    def images(self):
        images, labels = self.load()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:IMAGES]
        return images[order], labels[order]


MINIATURE = Network(
    "fashion-mnist-sample_resnet20_batch_norm_natural_seed0_miniature", (0.286,), (0.353,), miniature, 1.5
)
CIFAR = Network(
    "cifar10-jpeg_resnet20_batch_norm_natural_seed1",
    (0.4914, 0.4822, 0.4465),
    (0.2023, 0.1994, 0.2010),
    cifar,
    1.5,
)


def column(values):
    """One number a channel, to go with images."""
    return torch.tensor(values)[:, None, None]


def network(of, batch):
    """A function from images to logits; ``batch``: normalise with the statistics of the batch."""
    weights = load_file(of.folder / "weights.safetensors")

    def norm(x, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if batch:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        scale = weights[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return x * scale[:, None, None] + (weights[f"{name}.bias"] - mean * scale)[:, None, None]

    def block(x, name, stride):
        y = F.relu(
            norm(
                F.conv2d(x, weights[f"{name}.residual.0.weight"], stride=stride, padding=1),
                f"{name}.residual.1",
            )
        )
        y = norm(F.conv2d(y, weights[f"{name}.residual.3.weight"], padding=1), f"{name}.residual.4")
        if stride == 2:
            x = norm(F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=2), f"{name}.shortcut.1")
        return F.relu(x + y)

    def forward(x):
        x = F.relu(
            norm(F.conv2d((x - column(of.mean)) / column(of.std), weights["1.weight"], padding=1), "2")
        )
        for place in range(4, 13):
            x = block(x, str(place), 2 if place in (7, 10) else 1)
        return F.linear(x.mean((2, 3)), weights["15.weight"], weights["15.bias"])

    return forward


def equal_weight(logits, y):
    """Each cross-entropy over the length of its gradient at the logits, in float64."""
    logits = logits.double()
    gradient = logits.softmax(1) - F.one_hot(y, logits.shape[1])
    return (
        F.cross_entropy(logits, y, reduction="none") / gradient.norm(dim=1).detach().clamp_min(1e-15)
    ).sum()


def accuracy_under_pgd(forward, x, y, eps, loss):
    chance, correct = torch.Generator().manual_seed(0), []
    for x0, labels in zip(x.split(100), y.split(100), strict=True):
        adv = (x0 + eps * (2 * torch.rand(x0.shape, generator=chance) - 1)).clamp(0, 1)
        for _ in range(20):
            adv.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(forward(adv), labels), adv)
            adv = adv.detach() + eps / 10 * gradient.sign()
            adv = torch.minimum(torch.maximum(adv, x0 - eps), x0 + eps).clamp(0, 1)
        with torch.no_grad():
            correct.append(forward(adv).argmax(1) == labels)
    return 100 * torch.cat(correct).float().mean().item()


def stored(of, loss, factor, statistics):
    """Accuracy of the study's measurement on the same images."""
    rows = pd.read_csv(of.folder / "temperature.csv")
    kept = np.load(of.folder / "temperature.npz")[f"{loss}/{factor}/{statistics}"]
    assert len(rows[(rows.loss == loss) & (rows.factor == factor) & (rows.statistics == statistics)]) == 1
    return 100 * np.unpackbits(kept)[:IMAGES].mean()


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="sum")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "name", "factor"),
    [
        pytest.param(MINIATURE, "cross_entropy", 1.0, id="miniature, the paper's attack"),
        pytest.param(MINIATURE, "equal_weight", 1.0, id="miniature, equal weights"),
        pytest.param(CIFAR, "cross_entropy", 0.2, id="cifar10-jpeg, times 0.2"),
        pytest.param(CIFAR, "cross_entropy", 1.0, id="cifar10-jpeg, the paper's attack"),
        pytest.param(CIFAR, "cross_entropy", 4.0, id="cifar10-jpeg, times 4"),
        pytest.param(CIFAR, "equal_weight", 1.0, id="cifar10-jpeg, equal weights"),
    ],
)
def test_the_gap_is_the_same(of, name, factor):
    loss = {"cross_entropy": cross_entropy, "equal_weight": equal_weight}[name]
    images, gap = of.images(), []
    for batch in (False, True):
        forward = network(of, batch)
        gap.append(accuracy_under_pgd(lambda x, f=forward: factor * f(x), *images, of.eps, loss))
    expected = [stored(of, name, factor, mode) for mode in ("tracked", "batch")]
    print(f"{of.run}, {name} x {factor}: here {gap}, stored {expected}")
    assert gap[1] - gap[0] == pytest.approx(expected[1] - expected[0], abs=of.tolerance)


def test_the_ends_of_the_dial():
    """Towards 0 the loss is log C + f (mean logit - true logit), towards infinity f (largest - true)."""
    logits = torch.randn(50, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 10
    truth = logits.gather(1, y[:, None])[:, 0]
    small, large = 1e-6, 1e4
    at_zero = (F.cross_entropy(small * logits, y, reduction="none") - np.log(10)) / small
    assert torch.allclose(at_zero, logits.mean(1) - truth, atol=1e-5)
    at_infinity = F.cross_entropy(large * logits, y, reduction="none") / large
    assert torch.allclose(at_infinity, logits.amax(1) - truth, atol=1e-3)
    assert (at_infinity[logits.argmax(1) == y] < 1e-3).all()  # who is still right is not heard

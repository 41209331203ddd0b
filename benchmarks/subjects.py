"""What is measured against, and what with: the formulas as they stand, networks, images."""

import torch
from torch import Tensor, nn

from rnlib.data import Dataset
from rnlib.models import resnet
from rnlib.norms import BatchNorm, RobustNorm
from study import store
from study.networks import test_set, trained_model
from study.runs import grid

BATCH = 128  # images of a training step


class FormulaRobustNorm(RobustNorm):
    """Eq 14 in plain tensor operations, with autograd's own derivative and the same tracking."""

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        dims = [0, *range(2, x.dim())]
        mean = x.mean(dims, keepdim=True)
        spread = x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True)
        y = _scaled(self, (x - mean) / (spread + self.eps) ** self.p)
        return y, (mean.detach().flatten(), spread.detach().flatten())


class FormulaBatchNorm(BatchNorm):
    """Eq 6 to 8 in plain tensor operations, with autograd's own derivative and the same tracking."""

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        dims = [0, *range(2, x.dim())]
        mean = x.mean(dims, keepdim=True)
        var = ((x - mean) ** 2).mean(dims, keepdim=True)
        y = _scaled(self, (x - mean) / (var + self.eps).sqrt())
        n = x.numel() // self.num_features
        return y, (mean.detach().flatten(), var.detach().flatten() * (n / (n - 1)))


def _scaled(layer: RobustNorm | BatchNorm, y: Tensor) -> Tensor:
    assert layer.weight is not None
    assert layer.bias is not None
    shape = (1, -1, *[1] * (y.dim() - 2))
    return y * layer.weight.view(shape) + layer.bias.view(shape)


def random_images(n: int) -> Dataset:
    """Uniform noise in the shape of CIFAR's images: what a step costs does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Dataset("noise", images, torch.randint(10, (n,), generator=generator), tuple("0123456789"))


def trained(images: int, *, smoke: bool) -> tuple[nn.Module, Dataset]:
    """A naturally trained ResNet-20 with BatchNorm of ``results/book``, and test images.

    Args:
        images: how many of the test set.
        smoke: an untrained network of 8 layers and 4 channels, and noise, instead.

    Raises:
        FileNotFoundError: no such run has weights, or the test set is not there; the message says what to do.
    """
    if smoke:
        return resnet(8, "batch_norm", width=4).eval(), random_images(images)
    want = ("resnet20", "batch_norm", "natural")
    runs = [run for run in grid("book") if (run.architecture, run.norm, run.training) == want]
    run = next((run for run in runs if (run.directory / store.WEIGHTS).exists()), runs[0])
    return trained_model(run), test_set(run, images)

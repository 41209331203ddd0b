"""The paper's released code beside this book: its layer, its ResNet-50, and how it tests a network.

:class:`Protocol` has one field for each habit of testing; its defaults are the book's, ``RELEASED`` is the
released code (github awaisrauf/RobustNorm: attacks.py, functions.py and models/norm.py). ``NORMS`` and
:func:`resnet_released50` are what its networks are built of.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.attacks import PGD, Attack, GaussianNoise, GradSign, Task, draw, paper_eps, per_channel
from rnlib.convert import convert_norms
from rnlib.data import STATISTICS, Dataset
from rnlib.evaluate import measure
from rnlib.kernels import NO_EPS
from rnlib.models import Block, resnet
from rnlib.norms import BatchNorm, MakeNorm, Norm
from rnlib.statistics import evaluation_mode, norm_layers

CHOICES = {
    "eps_space": ("normalised", "pixels"),
    "clipping": ("pixels", "batch"),
    "divisor": ("sqrt(var + eps)", "std + eps"),
    "crafting": ("eval", "train"),
}


class ReleasedBatchNorm(BatchNorm):
    """The batch norm of the released code: (x - mean) / (sigma + eps), with the unbiased sigma.

    Arguments as for :class:`rnlib.Norm`; tracked are the mean and the unbiased variance.
    """

    def divisor(self, var: Tensor) -> Tensor:
        """sigma + eps (C,), of the unbiased variance."""
        return var.clamp_min(torch.finfo(var.dtype).tiny).sqrt() + self.eps  # the root of 0 has no slope

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        wide, n = x.to(torch.promote_types(x.dtype, torch.float32)), x.numel() // self.num_features
        var = wide.var([0, *range(2, x.dim())], correction=0)
        # The kernel divides by the root of var + eps; a scale that undoes it leaves the divisor alone.
        scale = (var + self.eps).sqrt() / self.divisor(var * (n / max(n - 1, 1)))
        return self._kernel(x, scale if self.weight is None else self.weight * scale, self.bias)

    def normalize_with(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        variance = self.divisor(second) ** 2
        return F.batch_norm(x, first, variance, self.weight, self.bias, False, 0.0, NO_EPS)


NORMS: dict[str, MakeNorm] = {"batch_norm_released": ReleasedBatchNorm}


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels."""

    depth, expansion = 3, 4

    def layers(self, inputs: int, planes: int, stride: int, norm: MakeNorm) -> list[nn.Module]:
        reduce = nn.Conv2d(inputs, planes, 1, bias=False)
        middle = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        expand = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        return [reduce, norm(planes), nn.ReLU(), middle, norm(planes), nn.ReLU(), expand, norm(4 * planes)]


def resnet_released50(norm: str | MakeNorm = "batch_norm", **options: Any) -> nn.Module:
    """What the released code builds when asked for depth 50: 74 layers, eight bottlenecks a stage.

    It has 776,794 parameters with BatchNorm and 10 classes. Arguments as for :func:`rnlib.resnet`.
    """
    return resnet(74, norm, block=Bottleneck, **options)


@dataclass(frozen=True)
class UnclippedNoise(GaussianNoise):
    """x + N(0, std^2): pixels may leave [0, 1]."""

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.add_(per_channel("std", self.std, x) * draw(torch.randn, x.shape, x, generator))


@dataclass(frozen=True)
class InNormalisedSpace(Attack):
    """An attack on normalised images, clipped to the smallest and largest number that the batch has.

    These are two numbers for all channels, so that what an image may become depends on the other images, and
    channels may leave [0, 1] or stay short of it.

    Args:
        attack: untargeted, with eps (and step_size) one number in normalised units.
        mean, std: of the model's Normalize layer.
    """

    attack: GradSign | PGD
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = (self.attack.eps, getattr(self.attack, "step_size", None))
        if self.attack.targeted or any(isinstance(size, tuple) for size in sizes):
            raise ValueError(f"attack is {self.attack}, it must be untargeted, with one eps for all channels")

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, std = (per_channel(name, getattr(self, name), x) for name in ("mean", "std"))
        z = (x - mean) / std
        low, width = z.min(), (z.max() - z.min()).item()
        if width == 0:
            return x  # an image of one number cannot change without leaving the range
        # In units of that range clipping is to [0, 1], which is what the attack does by itself.
        sizes = {key: getattr(self.attack, key, None) for key in ("eps", "step_size")}
        shrunk: dict[str, Any] = {key: size / width for key, size in sizes.items() if size is not None}
        view = _View(task.model, mean + std * low, std * width)
        adv = replace(self.attack, **shrunk)._perturb(
            Task(view, task.y, task.classes, self.attack.loss, False), (z - low) / width, generator
        )
        return view.pixels(adv)


class _View(nn.Module):
    """A model of images that are shifted and scaled."""

    def __init__(self, model: nn.Module, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.model, self.shift, self.scale = model, shift, scale

    def pixels(self, z: Tensor) -> Tensor:
        return self.shift + self.scale * z

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.model(self.pixels(z))
        return logits


@dataclass(frozen=True)
class InTrainingMode(Attack):
    """An attack on the model in training mode, every forward pass of which enters the running statistics.

    Afterwards every layer is in the mode it was in. A model that is given in evaluation mode drifts: its
    running statistics are not put back. Those of one with a layer in training mode are, as after every
    attack, unless it is called with ``update_buffers=True``.

    Args:
        attack: untargeted.
    """

    attack: Attack

    def __post_init__(self) -> None:
        if self.attack.targeted:
            raise ValueError(f"attack is {self.attack}, it must be untargeted: use targeted=False")

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        with evaluation_mode(task.model):  # which puts every layer back into the mode it was in
            task.model.train()
            own = Task(task.model, task.y, task.classes, self.attack.loss, False)
            return self.attack._perturb(own, x, generator)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a trained network is tested; the defaults are this book's.

    Attributes:
        eps: radius of the attacks, 0.03 in the paper.
        eps_space: ``"normalised"`` (the released code: eps is added after Normalize) or ``"pixels"`` (what
            the text can be read to mean).
        clipping: ``"pixels"``, to [0, 1], or ``"batch"`` (the released code): attacks to the range of numbers
            of the normalised batch, noise not at all.
        noise_std: of Gaussian noise in normalised units: 0.5 is the text's variance of 0.25, the released
            code has 0.1.
        divisor: of batch norms, ``"sqrt(var + eps)"``, or ``"std + eps"`` with the unbiased std.
        batch_size: of inference, 100 in the text, 128 by default in the released code.
        crafting: mode of the model under attack: ``"eval"``, or ``"train"`` as the released code has it when
            it crafts images to train on; its tests have ``"eval"``.
    """

    eps: float = 0.03
    eps_space: str = "normalised"
    clipping: str = "pixels"
    noise_std: float = 0.5
    divisor: str = "sqrt(var + eps)"
    batch_size: int = 100
    crafting: str = "eval"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, it must be one of {known}")
        if self.eps_space == "pixels" and self.clipping == "batch":
            raise ValueError("clipping='batch' is of attacks in normalised space: use eps_space='normalised'")

    def attacks(self, dataset: str) -> dict[str, Attack | None]:
        """Clean, noise, GradSign and PGD (20 steps of eps / 10) by name, for a data set's Normalize layer."""
        std = paper_eps(dataset, self.noise_std)
        found: dict[str, Attack | None] = {"clean": None}
        if self.clipping == "batch":
            found["noise"] = UnclippedNoise(std)
            found["grad_sign"] = InNormalisedSpace(GradSign(self.eps), *STATISTICS[dataset])
            found["pgd_linf"] = InNormalisedSpace(PGD(self.eps), *STATISTICS[dataset])
        else:
            radius = self.eps if self.eps_space == "pixels" else paper_eps(dataset, self.eps)
            found |= {"noise": GaussianNoise(std), "grad_sign": GradSign(radius), "pgd_linf": PGD(radius)}
        if self.crafting == "train":
            found |= {
                name: InTrainingMode(attack)
                for name, attack in found.items()
                if attack is not None and name != "noise"
            }
        return found

    def classify(
        self,
        model: nn.Module,
        dataset: Dataset,
        attack: str,
        *,
        statistics: str,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Whether each image of a set is classified correctly, bool (n,), after one of :meth:`attacks`.

        Args:
            model: of rnlib, with batch norms; tested in a copy.
            dataset: its name says how the model normalises; in a fixed, class-mixed order.
            attack: clean, noise, grad_sign or pgd_linf.
            statistics: ``"tracked"`` or ``"batch"``.
        """
        known = self.attacks(dataset.name)
        if attack not in known:
            raise ValueError(f"attack is {attack!r}, it must be one of {', '.join(known)}")
        network = copy.deepcopy(model)
        if self.divisor == "std + eps":
            for name, layer in network.named_modules():
                if isinstance(layer, Norm) and type(layer) is not BatchNorm:
                    raise ValueError(f"layer {name!r} is a {type(layer).__name__}: only BatchNorm has a std")
            network = convert_norms(network, ReleasedBatchNorm)
            for usual, layer in zip(norm_layers(model).values(), norm_layers(network).values(), strict=True):
                layer.eps = usual.eps
        correct, _, _ = measure(
            network, dataset, known[attack], statistics=statistics, batch_size=self.batch_size, device=device
        )
        return correct


RELEASED = Protocol(clipping="batch", noise_std=0.1, divisor="std + eps", batch_size=128)

# Each habit alone, what the text can be read to mean, and all that the released tests do together.
HABITS: dict[str, Protocol] = {
    "this book": Protocol(),
    "clipping to the batch": Protocol(clipping="batch"),
    "noise 0.1": Protocol(noise_std=RELEASED.noise_std),
    "std + eps": Protocol(divisor=RELEASED.divisor),
    "batches of 128": Protocol(batch_size=RELEASED.batch_size),
    "all of its test": RELEASED,
    "attack in training mode": Protocol(crafting="train"),
    "eps in pixels": Protocol(eps_space="pixels"),
}

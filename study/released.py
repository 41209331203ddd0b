"""The paper's released code (github awaisrauf/RobustNorm) beside this book: its layer, and how it tests.

:class:`Protocol` has one field for each habit of testing; its defaults are the book's.
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
from rnlib.norms import BatchNorm, MakeNorm
from rnlib.statistics import evaluation_mode, norm_layers

EPS = 0.03  # of the attacks


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


@dataclass(frozen=True)
class UnclippedNoise(GaussianNoise):
    """x + N(0, std^2): pixels may leave [0, 1]."""

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.add_(per_channel("std", self.std, x) * draw(torch.randn, x.shape, x, generator))


@dataclass(frozen=True)
class ClippedToBatch(Attack):
    """An attack on normalised images, clipped to the smallest and largest number that the batch has.

    These are two numbers for all channels, so that what an image may become depends on the other images, and
    channels may leave [0, 1] or stay short of it.

    Args:
        attack: GradSign or PGD with one eps, in normalised units, and steps of a tenth of it.
        mean, std: of the model's Normalize layer.
    """

    attack: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, std = (per_channel(name, getattr(self, name), x) for name in ("mean", "std"))
        z = (x - mean) / std
        low, width = z.min(), (z.max() - z.min()).item()
        if width == 0:
            return x  # an image of one number cannot change without leaving the range
        # In units of that range clipping is to [0, 1], which is what the attack does by itself.
        shift, scale, own = mean + std * low, std * width, copy.copy(task)
        own.model = lambda z: task.model(shift + scale * z)  # type: ignore[assignment]
        attack = replace(self.attack, eps=self.attack.eps / width)
        return shift + scale * attack._perturb(own, (z - low) / width, generator)


@dataclass(frozen=True)
class InTrainingMode(Attack):
    """An untargeted attack on the model in training mode: every forward pass enters its running statistics.

    Afterwards every layer is in the mode it was in. Statistics stay as they are then where the model was in
    evaluation mode; else they are put back, as after every attack.
    """

    attack: Attack

    def _perturb(self, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
        with evaluation_mode(task.model):  # which puts every layer back into the mode it was in
            task.model.train()
            return self.attack._perturb(task, x, generator)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a trained network is tested."""

    pixels: bool = False  # eps is 0.03 of a pixel's range, as the text can be read; else after Normalize
    clip_to_batch: bool = False  # to the range of numbers of the normalised batch, noise not at all
    noise_std: float = 0.5  # in normalised units; the text's variance of 0.25
    std_plus_eps: bool = False  # is what norms divide by, with the unbiased std; else sqrt(var + eps)
    batch_size: int = 100  # of inference
    training_mode: bool = False  # of the model under attack, as the code has it when it crafts to train on

    def attacks(self, dataset: str) -> dict[str, Attack | None]:
        """Clean, noise, GradSign and PGD (20 steps of eps / 10) by name, for a data set's Normalize layer."""
        radius = EPS if self.pixels else paper_eps(dataset, EPS)
        noise = UnclippedNoise if self.clip_to_batch else GaussianNoise
        found: dict[str, Attack | None] = {"clean": None, "noise": noise(paper_eps(dataset, self.noise_std))}
        for name, kind in (("grad_sign", GradSign), ("pgd_linf", PGD)):
            attack: Attack = kind(radius)
            if self.clip_to_batch:
                attack = ClippedToBatch(kind(EPS), *STATISTICS[dataset])
            found[name] = InTrainingMode(attack) if self.training_mode else attack
        return found

    def classify(
        self, model: nn.Module, dataset: Dataset, attack: str, *, statistics: str, device: str = "cpu"
    ) -> Tensor:
        """Whether each image of a set is classified correctly, bool (n,), after one of :meth:`attacks`.

        Args:
            model: of rnlib, with batch norms (else ValueError); tested in a copy.
            dataset: its name says how the model normalises; in a fixed, class-mixed order.
            statistics: ``"tracked"`` or ``"batch"``.
        """
        network, layers = copy.deepcopy(model), norm_layers(model)
        if self.std_plus_eps:
            if kinds := {type(layer).__name__ for layer in layers.values()} - {"BatchNorm"}:
                raise ValueError(f"the model has {', '.join(kinds)}: only BatchNorm has a std")
            network = convert_norms(network, ReleasedBatchNorm)
            for usual, layer in zip(layers.values(), norm_layers(network).values(), strict=True):
                layer.eps = usual.eps
        how: dict[str, Any] = {"statistics": statistics, "batch_size": self.batch_size, "device": device}
        return measure(network, dataset, self.attacks(dataset.name)[attack], **how)[0]


# Each habit alone, what the text can be read to mean, and all that the released tests do together.
HABITS: dict[str, Protocol] = {
    "this book": Protocol(),
    "clipping to the batch": Protocol(clip_to_batch=True),
    "noise 0.1": Protocol(noise_std=0.1),
    "std + eps": Protocol(std_plus_eps=True),
    "batches of 128": Protocol(batch_size=128),
    "all of its test": Protocol(clip_to_batch=True, noise_std=0.1, std_plus_eps=True, batch_size=128),
    "attack in training mode": Protocol(training_mode=True),
    "eps in pixels": Protocol(pixels=True),
}

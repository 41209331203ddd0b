"""The network and the images of a run: what its settings mean."""

import copy
import re
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rnlib import PGD, Attack, Dataset, Training, load, paper_eps, resnet, vgg
from rnlib.attacks import Generator, Task
from rnlib.data import STATISTICS, test_order
from rnlib.other_norms import NORMS
from study import norm_propagation, released, store
from study.runs import Run, evaluation_images

STUDY_NORMS = released.NORMS | norm_propagation.NORMS  # what only this study has, beside those of rnlib


def new_model(run: Run) -> nn.Module:
    """The network with weights drawn from the seed, without touching the global random state.

    ValueError for an unknown data set, architecture or norm (those known are named), or p for a norm without.
    """
    found = re.fullmatch(r"(resnet|vgg)(\d+)", run.architecture)
    for key, known in {"dataset": [*STATISTICS], "norm": [*(NORMS | STUDY_NORMS)]}.items():
        if getattr(run, key) not in known:
            raise ValueError(f"{key} is {getattr(run, key)!r}, it must be one of {', '.join(known)}")
    if not found:
        raise ValueError(f"architecture is {run.architecture!r}, it must be such as resnet20 or vgg11")
    mean, std = STATISTICS[run.dataset]
    classes = 100 if run.dataset == "cifar100" else 10
    options: dict[str, Any] = {"num_classes": classes, "in_channels": len(mean), "mean": mean, "std": std}
    options |= {key: getattr(run, key) for key in ("p", "width") if getattr(run, key) is not None}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(run.seed)  # torch.manual_seed seeds GPUs as well
        build = {"resnet": resnet, "vgg": vgg}[found[1]]
        try:
            model = build(int(found[2]), STUDY_NORMS.get(run.norm, run.norm), **options)
        except ValueError as error:
            raise ValueError(f"architecture {run.architecture!r} with norm {run.norm!r}: {error}") from error
        return norm_propagation.reparametrize(model)


@dataclass(frozen=True)
class AlongWithClean(Attack):
    """An attack that leaves the last images of a batch as they are, a ``clean_share`` in (0, 1) of them.

    The paper's text trains on "adversarially-perturbed samples along with clean images".
    """

    attack: Attack
    clean_share: float

    def _perturb(self, task: Task, x: Tensor, generator: Generator) -> Tensor:
        attacked, own = len(x) - round(self.clean_share * len(x)), copy.copy(task)
        own.y = task.y[:attacked]
        return torch.cat([self.attack._perturb(own, x[:attacked], generator), x[attacked:]])


def training_settings(run: Run) -> Training:
    """The settings of :func:`rnlib.fit`; ValueError for one that does not fit."""
    attack: Attack | None = None
    if run.training == "adversarial":
        eps = paper_eps(run.dataset, run.eps)
        attack = PGD(eps, steps=run.attack_steps, step_size=tuple(run.attack_step * e for e in eps))
        attack = AlongWithClean(attack, run.clean_share) if run.clean_share else attack
    shared = {field.name for field in fields(Training)} & {field.name for field in fields(Run)}
    return Training(attack=attack, **{name: getattr(run, name) for name in shared})


def training_set(run: Run) -> Dataset:
    """The images that a run is trained on."""
    dataset = load(run.dataset, "train")
    return dataset if run.train_images is None else mixed(dataset, run.train_images)


def test_set(run: Run, images: int | None = None) -> Dataset:  # noqa: PT028
    """The first test images in their fixed, class-mixed order; None: as many as the profile measures."""
    return mixed(load(run.dataset, "test"), evaluation_images(run) if images is None else images)


def mixed(dataset: Dataset, images: int, seed: int = 0) -> Dataset:
    """Some images of a set, of all its classes: the first of a fixed permutation. ValueError for too many."""
    if images > len(dataset):
        names = "train_images, validation_images, or images of the profile"
        raise ValueError(f"{names}: {images} must be at most the {len(dataset)} of {dataset.name}")
    return dataset.subset(test_order(len(dataset), seed)[:images])


def trained_model(run: Run, epoch: int | None = None) -> nn.Module:
    """The network of a finished run, or after one of its snapshots' epochs, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: the weights are not there; the message has the command that makes them.
        ValueError: training diverged, no snapshot is kept of that epoch (those that are are named), the file
            is damaged, or the folder holds a run with other settings.
    """
    model = new_model(run)
    store.read_config(run)
    if epoch is None and store.has_diverged(run):
        raise ValueError(f"training of {run.name} diverged, it has no weights: see {store.DIVERGED}")
    if epoch is not None and epoch not in run.snapshots:
        raise ValueError(f"epoch is {epoch}, {run.name} keeps snapshots of {run.snapshots}")
    path = run.directory / (store.WEIGHTS if epoch is None else store.snapshot(epoch))
    if not path.exists():
        command = f"papermill notebooks/workers/train.ipynb out.ipynb {run.options}"
        raise FileNotFoundError(f"{path} is not there (most weights are not kept); make it with: {command}")
    store.check(path)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} holds other weights than those of {run.name}: remove the folder") from error
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise ValueError(f"{path} holds weights that are not finite: remove the folder, to make it again")
    return model.to(memory_format=torch.channels_last).eval()

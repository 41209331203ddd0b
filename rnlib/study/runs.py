"""A run is one training and the evaluation of its weights; a profile says which runs there are."""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from rnlib.attacks import PGD, Attack, paper_eps, paper_suite
from rnlib.data import STATISTICS
from rnlib.models import resnet, resnet_released50, vgg
from rnlib.train import Training

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("quick", "laptop", "gpu", "paper")
TRAININGS = ("natural", "adversarial")
IDENTITY = ("profile", "experiment", "dataset", "architecture", "norm", "p", "training", "seed")


def results_folder(profile: str) -> Path:
    """``results/<profile>`` of the repository, or ``<profile>`` in the folder RNLIB_RESULTS names."""
    return Path(os.environ.get("RNLIB_RESULTS", ROOT / "results")) / profile


@dataclass(frozen=True, kw_only=True)
class Run:
    """Every setting of a training; :func:`make_run` fills in what a profile says.

    Attributes:
        profile: quick, laptop, gpu or paper.
        experiment: what the run is for; a profile may give each experiment settings of its own.
        dataset: a name of ``rnlib.data.STATISTICS``.
        architecture: resnet<depth>, resnet_released50 or vgg<depth>.
        norm, p: see :func:`rnlib.make_norm`; p is None for norms without a power.
        training: natural or adversarial.
        seed: of the weights and of everything in :class:`rnlib.Training`.
        width: channels of the first stage, None for the architecture's own.
        eps: radius of the PGD of adversarial training in normalised units, 0.03 in the paper.
        attack_steps, attack_step: its number of steps, and their size as a fraction of eps.
        train_images: train on the first so many of a fixed permutation, None for all.
        validation_images: test images measured after each epoch; nothing is chosen by them.
        snapshots: epochs after which the weights are kept as well, ``snapshot<epoch>.safetensors``.
        epochs, batch_size, lr, momentum, weight_decay, schedule, milestones, clip, crafting, precision,
            channels_last, compile: see :class:`rnlib.Training`.
    """

    profile: str
    dataset: str
    architecture: str
    norm: str
    training: str
    seed: int
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    weight_decay: float
    crafting: str
    attack_steps: int
    attack_step: float
    validation_images: int
    momentum: float = 0.9
    milestones: tuple[int, ...] = ()
    clip: float | None = None
    p: float | None = None
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    experiment: str = "headline"
    width: int | None = None
    eps: float = 0.03
    train_images: int | None = None
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dataset not in STATISTICS:
            raise ValueError(f"dataset is {self.dataset!r}, it must be one of {', '.join(STATISTICS)}")
        for name in ("milestones", "snapshots"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if any(not 1 <= epoch <= self.epochs for epoch in self.snapshots):
            raise ValueError(f"snapshots is {self.snapshots}, it must name epochs from 1 to {self.epochs}")
        self.settings()  # these find a wrong value before any work is done
        with torch.device("meta"):
            self.new_model()

    @property
    def name(self) -> str:
        """Name of the folder: what is trained, and a hash where other settings are not the profile's."""
        norm = self.norm if self.p is None else f"{self.norm}-p{self.p:g}"
        parts = [self.dataset, self.architecture, norm, self.training, f"seed{self.seed}"]
        if self.experiment != "headline":
            parts.append(self.experiment)
        if _settings({key: getattr(self, key) for key in IDENTITY}) != _settings(asdict(self)):
            parts.append(self.hash[:6])
        return "_".join(parts)

    @property
    def options(self) -> str:
        """The settings that name the run, as options of papermill."""
        return " ".join(f"-p {key} {value}" for key in IDENTITY if (value := getattr(self, key)) is not None)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits over all settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def directory(self) -> Path:
        """``results/<profile>/<name>``."""
        return results_folder(self.profile) / self.name

    def settings(self) -> Training:
        """The settings of :func:`rnlib.fit`."""
        attack: Attack | None = None
        if self.training == "adversarial":
            eps = paper_eps(self.dataset, self.eps)
            attack = PGD(eps, steps=self.attack_steps, step_size=tuple(self.attack_step * e for e in eps))
        common = {field.name for field in fields(Training)} & {field.name for field in fields(Run)}
        return Training(attack=attack, **{key: getattr(self, key) for key in common})

    def new_model(self) -> nn.Module:
        """The network with weights drawn from the seed, without touching the global random state."""
        mean, std = STATISTICS[self.dataset]
        options: dict[str, Any] = {
            "num_classes": 100 if self.dataset == "cifar100" else 10,
            "in_channels": len(mean),
        }
        options |= {"mean": mean, "std": std}
        options |= {key: getattr(self, key) for key in ("p", "width") if getattr(self, key) is not None}
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.seed)  # torch.manual_seed seeds GPUs as well
            if self.architecture == "resnet_released50":
                return resnet_released50(self.norm, **options)
            for family, build in (("resnet", resnet), ("vgg", vgg)):
                depth = self.architecture.removeprefix(family)
                if depth != self.architecture and depth.isdecimal():
                    return build(int(depth), self.norm, **options)
        known = "resnet<depth> such as resnet20, resnet_released50, vgg<depth> such as vgg11"
        raise ValueError(f"architecture is {self.architecture!r}, known are {known}")


DEFAULTS = {field.name: field.default for field in fields(Run) if field.default is not MISSING}


@cache
def read_profile(profile: str) -> dict[str, Any]:
    """The contents of ``profiles/<profile>.yml``."""
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}, it must be one of {PROFILES}")
    return yaml.safe_load((ROOT / "profiles" / f"{profile}.yml").read_text())


def shown(profile: str) -> tuple[str, ...]:
    """The profiles whose results the book of a profile shows: itself, and those that its ``beside`` names."""
    return (profile, *read_profile(profile).get("beside", ()))


def _settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's settings for a choice of norm, training, ..., overridden by the choice."""
    profile = read_profile(chosen["profile"])
    chosen = {key: value for key, value in chosen.items() if value is not None}
    norm, training = chosen.get("norm", "batch_norm"), chosen.get("training", "natural")
    if training not in TRAININGS:
        raise ValueError(f"training is {training!r}, it must be one of {TRAININGS}")
    experiments = {"headline": {}} | profile.get("experiments", {})
    if (name := chosen.get("experiment", "headline")) not in experiments:
        raise ValueError(f"experiment is {name!r}, it must be one of {', '.join(experiments)}")
    experiment = dict(experiments[name])
    budgets = {key: experiment.pop(key, {}) for key in TRAININGS}
    settings = DEFAULTS | {"norm": norm, "training": training, "seed": 0}
    settings |= profile["defaults"] | profile[training] | profile["norms"].get(norm, {})
    settings |= experiment | budgets[training] | chosen
    return settings | {name: tuple(settings[name]) for name in ("milestones", "snapshots")}


def make_run(profile: str, **chosen: Any) -> Run:
    """The run of a profile with some settings chosen; None stands for the profile's value.

    Raises:
        ValueError: an unknown profile or setting (all known ones are named), or a value that does not fit.
    """
    known = [field.name for field in fields(Run)]
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
    return Run(**_settings({"profile": profile, **chosen}))


@cache
def grid(profile: str) -> tuple[Run, ...]:
    """All runs of a profile, in the order of its file."""
    runs: list[Run] = []
    for block in read_profile(profile)["grid"]:
        values = [value if isinstance(value, list) else [value] for value in block.values()]
        runs += [
            make_run(profile, **dict(zip(block, choice, strict=True)))
            for choice in itertools.product(*values)
        ]
    return tuple(runs)


def chosen_runs(profile: str, where: Mapping[str, list[Any]]) -> list[Run]:
    """The runs of a profile whose settings are among those listed; of the headline, if no experiment is."""
    where = {"experiment": ["headline"]} | dict(where)
    return [run for run in grid(profile) if all(getattr(run, key) in values for key, values in where.items())]


def diagnosed(profile: str) -> list[tuple[Run, str]]:
    """The runs of a profile that are diagnosed, each with the name of a diagnostic, no pair twice."""
    pairs = [
        (run, name)
        for block in read_profile(profile)["diagnostics"]
        for run in chosen_runs(profile, block["runs"])
        for name in block["names"]
    ]
    return list(dict.fromkeys(pairs))


def attack_suite(run: Run) -> dict[str, Attack]:
    """The attacks of a run's evaluation: the paper's, and PGD at eps in 255ths (``pgd_linf_2px``).

    A profile may name fewer for an experiment, and attacks that only seed 0 is put to.
    """
    evaluation = read_profile(run.profile)["evaluation"]
    suite: dict[str, Attack] = paper_suite(run.dataset)
    suite |= {f"pgd_linf_{eps}px": PGD(eps / 255) for eps in evaluation["pixel_eps"]}
    spared = evaluation.get("seed0_only", []) if run.seed else []
    names = evaluation.get("attacks", {}).get(run.experiment, suite)
    return {name: suite[name] for name in names if name not in spared}

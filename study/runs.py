"""A run is one training and what is measured of its weights; a profile says which runs there are.

Nothing here needs PyTorch: pages that show results read runs and profiles in a moment.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("quick", "book", "paper")
TRAININGS = ("natural", "adversarial")
IDENTITY = ("profile", "experiment", "dataset", "architecture", "norm", "p", "training", "seed")
# How a training is computed, and what is kept of it on the way: a finished run says which, its name does not.
COMPUTATION = ("precision", "compile", "channels_last", "snapshots")
HEADLINE = "headline"
MATCHED_EPOCHS = {"natural": 100, "adversarial": 40}
PAPER_DROP = 120 / 164  # the share of the epochs after which the paper divides the learning rate by ten


def results_folder(profile: str) -> Path:
    """``results/<profile>`` of the repository, or ``<profile>`` in the folder RNLIB_RESULTS names."""
    return Path(os.environ.get("RNLIB_RESULTS", ROOT / "results")) / profile


@dataclass(frozen=True, kw_only=True)
class Run:
    """Every setting of a training; :func:`make_run` fills in what a profile says.

    Attributes:
        profile: quick, book or paper, or the path of a profile's file.
        experiment: the set of trainings that the run belongs to; a profile may give each settings of its own.
        dataset: a name of ``rnlib.data.STATISTICS``.
        architecture: resnet<depth>, resnet_released50 or vgg<depth>.
        norm, p: see :func:`study.work.new_model`; p is None for norms without a power.
        training: natural or adversarial.
        seed: of the weights and of everything in :class:`rnlib.Training`.
        width: channels of the first stage, None for the architecture's own.
        eps: radius of the PGD of adversarial training in normalised units, 0.03 in the paper.
        attack_steps, attack_step: its number of steps, and their size as a fraction of eps.
        train_images: train on the first so many of a fixed permutation, None for all.
        validation_images: test images measured after each epoch; nothing is chosen by them.
        snapshots: epochs after which the weights are kept as well, ``snapshot<epoch>.safetensors``.
        epochs, batch_size, lr, momentum, weight_decay, schedule, milestones, clip, crafting, augment,
            label_smoothing, precision, channels_last, compile: see :class:`rnlib.Training`.
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
    augment: bool = True
    label_smoothing: float = 0.0
    p: float | None = None
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    experiment: str = HEADLINE
    width: int | None = None
    eps: float = 0.03
    train_images: int | None = None
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("milestones", "snapshots"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if any(not 1 <= epoch <= self.epochs for epoch in self.snapshots):
            raise ValueError(f"snapshots is {self.snapshots}, it must name epochs from 1 to {self.epochs}")

    @property
    def name(self) -> str:
        """Name of the folder: what is trained, and a hash where other settings are not the profile's."""
        norm = self.norm if self.p is None else f"{self.norm}-p{self.p:g}"
        parts = [self.dataset, self.architecture, norm, self.training, f"seed{self.seed}"]
        if self.experiment != HEADLINE:
            parts.append(self.experiment)
        usual = _settings({key: getattr(self, key) for key in IDENTITY})
        if any(usual[key] != value for key, value in asdict(self).items() if key not in COMPUTATION):
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
        return results_folder(Path(self.profile).stem) / self.name

    @property
    def matched(self) -> bool:
        """Whether the budget is comparable to the paper's: only then a claim about robustness is judged.

        That is at least 100 epochs of natural training or 40 of adversarial training, and the learning rate
        divided by ten once, after the paper's share of them. The thresholds are ours.
        """
        drop = (round(PAPER_DROP * self.epochs),)
        enough = self.epochs >= MATCHED_EPOCHS[self.training]
        return enough and self.schedule == "step" and self.milestones == drop


DEFAULTS = {field.name: field.default for field in fields(Run) if field.default is not MISSING}


@cache
def read_profile(profile: str) -> dict[str, Any]:
    """The contents of ``study/profiles/<profile>.yml``, or of the file that a path ending in .yml names."""
    if profile in PROFILES:
        return yaml.safe_load((ROOT / "study" / "profiles" / f"{profile}.yml").read_text())
    if profile.endswith(".yml") and Path(profile).is_file():
        return yaml.safe_load(Path(profile).read_text())
    raise ValueError(f"profile is {profile!r}, it must be one of {PROFILES}, or the path of a .yml file")


def _settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's settings for a choice of norm, training, ..., overridden by the choice."""
    profile = read_profile(chosen["profile"])
    chosen = {key: value for key, value in chosen.items() if value is not None}
    norm, training = chosen.get("norm", "batch_norm"), chosen.get("training", "natural")
    if training not in TRAININGS:
        raise ValueError(f"training is {training!r}, it must be one of {TRAININGS}")
    experiments = {HEADLINE: {}} | profile.get("experiments", {})
    if (name := chosen.get("experiment", HEADLINE)) not in experiments:
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
    """All runs of a profile, in the order of its file, which is that of need."""
    runs: list[Run] = []
    for block in read_profile(profile)["grid"]:
        values = [value if isinstance(value, list) else [value] for value in block.values()]
        runs += [
            make_run(profile, **dict(zip(block, choice, strict=True)))
            for choice in itertools.product(*values)
        ]
    return tuple(dict.fromkeys(runs))


def chosen_runs(profile: str, where: Mapping[str, list[Any]]) -> list[Run]:
    """The runs of a profile whose settings are among those listed; of the headline, if no experiment is."""
    where = {"experiment": [HEADLINE]} | dict(where)
    return [run for run in grid(profile) if all(getattr(run, key) in values for key, values in where.items())]


def measured(profile: str) -> list[tuple[Run, str]]:
    """The runs of a profile that are measured, each with the name of a measurement, no pair twice."""
    pairs = [
        (run, name)
        for block in read_profile(profile)["measurements"]
        for run in chosen_runs(profile, block["runs"])
        for name in block["names"]
    ]
    return list(dict.fromkeys(pairs))

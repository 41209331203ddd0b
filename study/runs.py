"""A run is one training and what is measured of its weights; a profile says which runs there are.

Nothing here needs PyTorch: pages that show results read runs and profiles in a moment.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args

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
BATCH_SIZE = 100  # of test images, wherever weights are measured
# What a setting may be, by its type (or name): in words, and as a test.
KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("a whole number from 0 up", lambda value: type(value) is int and value >= 0),
    int: ("a whole number from 1 up", lambda value: type(value) is int and value >= 1),
    float: ("a number", lambda value: type(value) in (int, float)),
    bool: ("True or False", lambda value: type(value) is bool),
    str: ("a name", lambda value: type(value) is str),
    tuple[int, ...]: ("a list of whole numbers", lambda v: type(v) is tuple and {*map(type, v)} <= {int}),
}


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
        norm, p: see :func:`study.networks.new_model`; p is None for norms without a power.
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
        for field in fields(self):
            value, optional = getattr(self, field.name), isinstance(field.type, UnionType)
            value = tuple(value) if isinstance(value, list) else value
            kind = get_args(field.type)[0] if optional else field.type
            words, fits = KINDS[field.name if field.name in KINDS else kind]
            if not (optional and value is None) and not fits(value):
                raise ValueError(f"{field.name} is {value!r}, it must be {words}")
            object.__setattr__(self, field.name, value)
        if any(not 1 <= epoch <= self.epochs for epoch in self.snapshots):
            raise ValueError(f"snapshots is {self.snapshots}, it must name epochs from 1 to {self.epochs}")

    @property
    def _other(self) -> dict[str, Any]:
        """The settings of what is trained that are neither in the name nor the profile's."""
        usual = asdict(make_run(**{key: getattr(self, key) for key in IDENTITY}))
        here = {key: value for key, value in asdict(self).items() if key not in COMPUTATION}
        return {key: value for key, value in here.items() if usual[key] != value}

    @property
    def name(self) -> str:
        """Name of the folder: what is trained, and a hash where other settings are not the profile's."""
        norm = self.norm if self.p is None else f"{self.norm}-p{self.p:g}"
        parts = [self.dataset, self.architecture, norm, self.training, f"seed{self.seed}"]
        parts += [self.experiment] * (self.experiment != HEADLINE) + [self.hash[:6]] * bool(self._other)
        return "_".join(parts)

    @property
    def options(self) -> str:
        """The settings that tell the run from others, as options of papermill."""
        chosen = {key: getattr(self, key) for key in IDENTITY} | self._other
        return " ".join(
            f"-y '{key}: {list(value)}'" if isinstance(value, tuple) else f"-p {key} {value}"
            for key, value in chosen.items()
            if value is not None
        )

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
        step = self.schedule == "step" and self.milestones == (round(PAPER_DROP * self.epochs),)
        return step and self.epochs >= MATCHED_EPOCHS[self.training]


DEFAULTS = {field.name: field.default for field in fields(Run) if field.default is not MISSING}


@cache
def read_profile(profile: str) -> dict[str, Any]:
    """The contents of ``study/profiles/<profile>.yml``, or of the file that a path ending in .yml names."""
    path = ROOT / "study" / "profiles" / f"{profile}.yml" if profile in PROFILES else Path(str(profile))
    if path.suffix == ".yml" and path.is_file():
        return yaml.safe_load(path.read_text())
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
    return settings | experiment | budgets[training] | chosen


def make_run(profile: str, **chosen: Any) -> Run:
    """The run of a profile with some settings chosen; None stands for the profile's value.

    Of the profile's snapshots those are left that a chosen number of epochs reaches.

    Raises:
        ValueError: an unknown profile or setting (all known ones are named), or a value that does not fit.
    """
    known = [field.name for field in fields(Run)]
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
    settings = _settings({"profile": profile, **chosen})
    run, kept = Run(**settings | {"snapshots": ()}), settings["snapshots"]
    if chosen.get("snapshots") is None:
        kept = [epoch for epoch in kept if epoch <= run.epochs]
    return replace(run, snapshots=kept)


@cache
def grid(profile: str) -> tuple[Run, ...]:
    """All runs of a profile, in the order of its file, which is that of need."""
    runs: list[Run] = []
    for block in read_profile(profile)["grid"]:
        choices = itertools.product(*map(_listed, block.values()))
        runs += [make_run(profile, **dict(zip(block, choice, strict=True))) for choice in choices]
    return tuple(dict.fromkeys(runs))


def chosen_runs(profile: str, where: Mapping[str, Any]) -> list[Run]:
    """The runs of a profile whose settings are among those listed; of the headline, if no experiment is."""
    wanted = {key: _listed(value) for key, value in ({"experiment": HEADLINE} | dict(where)).items()}
    return [run for run in grid(profile) if all(getattr(run, key) in wanted[key] for key in wanted)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def measured(profile: str) -> list[tuple[Run, str]]:
    """The runs of a profile that are measured, each with the name of a measurement, no pair twice."""
    pairs = [
        (run, name)
        for block in read_profile(profile)["measurements"]
        for run in chosen_runs(profile, block["runs"])
        for name in block["names"]
    ]
    return list(dict.fromkeys(pairs))


def tables(profile: str) -> list[tuple[Run, str]]:
    """All that a profile measures: its runs, each with the name of a table, ``<name>.csv`` in its folder."""
    pairs = [(run, "evaluations") for run in grid(profile)]
    for name in ("statistics", "landscape"):
        pairs += [(run, name) for run in chosen_runs(profile, read_profile(profile)[name]["runs"])]
    return pairs + measured(profile)


def other_seed(run: Run) -> Run:
    """The run whose weights are independent of a run's: its next seed."""
    return replace(run, seed=run.seed + 1)


def evaluation_images(run: Run) -> int:
    """How many test images a run is measured on; a profile may name fewer for an experiment."""
    evaluation = read_profile(run.profile)["evaluation"]
    return evaluation.get("fewer_images", {}).get(run.experiment, evaluation["images"])

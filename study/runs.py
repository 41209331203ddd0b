"""A run is one training and what is measured of its weights; a profile says which runs there are.

Nothing here needs PyTorch: pages that show results read runs and profiles in a moment.
"""

import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from types import UnionType
from typing import Any

from study.plain import conform, read_yaml

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("quick", "book", "paper")
TRAININGS = ("natural", "adversarial")
IDENTITY = ("profile", "experiment", "dataset", "architecture", "norm", "p", "training", "seed")
# How a training is computed, and what is kept of it on the way: a finished run says which, its name does not.
COMPUTATION = ("precision", "compile", "channels_last", "snapshots")
HEADLINE = "headline"
MATCHED_EPOCHS = {"natural": 100, "adversarial": 40}
PAPER_DROP = 120 / 164  # the share of the epochs after which the paper divides the learning rate by ten
WORKERS = {"evaluations": "evaluate", "statistics": "probe", "landscape": "landscape"}  # else: measure
BATCH_SIZE = 100  # of test images, wherever weights are measured


def results_folder(profile: str) -> Path:
    """``results/<profile>`` of the repository, or ``<profile>`` in the folder RNLIB_RESULTS names."""
    return Path(os.environ.get("RNLIB_RESULTS") or ROOT / "results").expanduser() / Path(profile).stem


@dataclass(frozen=True, kw_only=True)
class Run:
    """Every setting of a training; :func:`make_run` fills in what a profile says.

    Those without a comment are explained by :class:`rnlib.Training`.
    """

    profile: str  # quick, book or paper, or the path of a profile's file
    dataset: str  # a name of rnlib.data.STATISTICS
    architecture: str  # resnet<depth> or vgg<depth>
    norm: str  # see study.networks.new_model
    training: str  # natural or adversarial
    seed: int  # of the weights, and of everything in rnlib.Training
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    weight_decay: float
    crafting: str
    attack_steps: int  # of the PGD of adversarial training
    attack_step: float  # their size as a fraction of eps
    validation_images: int  # test images measured after each epoch; nothing is chosen by them
    momentum: float = 0.9
    milestones: tuple[int, ...] = ()
    clip: float | None = None
    augment: bool = True
    label_smoothing: float = 0.0
    clean_share: float = 0.0  # of each batch of adversarial training that stays as it is
    p: float | None = None  # of the norm, None for norms without a power
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    experiment: str = HEADLINE  # the set of trainings it belongs to; a profile may give each its own settings
    width: int | None = None  # channels of the first stage, None for the architecture's own
    eps: float = 0.03  # radius of the PGD of adversarial training in normalised units, 0.03 in the paper
    train_images: int | None = None  # train on the first so many of a fixed permutation, None for all
    snapshots: tuple[int, ...] = ()  # epochs after which the weights are kept as well

    def __post_init__(self) -> None:
        told: dict[str, Any] = {}
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
            if value is not None or not isinstance(field.type, UnionType):
                told[field.name] = list(value) if type(value) is tuple else value
        conform("settings", told)
        if any(epoch > self.epochs for epoch in self.snapshots):
            raise ValueError(f"snapshots is {self.snapshots}, it must name epochs from 1 to {self.epochs}")

    @property
    def _other(self) -> dict[str, Any]:
        """The settings of what is trained that are neither in the name nor the profile's."""
        usual = asdict(make_run(**{key: getattr(self, key) for key in IDENTITY}))
        return {k: v for k, v in asdict(self).items() if k not in COMPUTATION and usual[k] != v}

    @cached_property
    def name(self) -> str:
        """Name of the folder: what is trained, and a hash where other settings are not the profile's."""
        norm = self.norm if self.p is None else f"{self.norm}-p{self.p:g}"
        parts = [self.dataset, self.architecture, norm, self.training, f"seed{self.seed}"]
        parts += [self.experiment] * (self.experiment != HEADLINE) + [self.hash[:6]] * bool(self._other)
        return "_".join(parts)

    @property
    def options(self) -> str:
        """The settings that tell the run from others, as options of papermill."""
        chosen = {
            key: getattr(self, key) for key in IDENTITY if key != "p" or self.p is not None
        } | self._other
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}
        return " ".join(
            f"-y '{k}: {v}'" if isinstance(v, list) else f"-p {k} {shlex.quote(str(v))}"
            for k, v in told.items()
        )

    @property
    def hash(self) -> str:
        """12 hexadecimal digits over all settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def directory(self) -> Path:
        """``results/<profile>/<name>``."""
        return results_folder(self.profile) / self.name

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
    """The contents of ``study/profiles/<profile>.yml``, or of the file that a path ending in .yml names.

    ValueError where there is none, or something in it is missing, unknown or not as the schema says.
    """
    path = ROOT / "study" / "profiles" / f"{profile}.yml" if profile in PROFILES else Path(str(profile))
    if path.suffix != ".yml" or not path.is_file():
        raise ValueError(f"profile is {profile!r}, it must be one of {PROFILES}, or the path of a .yml file")
    conform("profile", contents := read_yaml(path), f"{path}: ")
    return contents


def make_run(profile: str, **chosen: Any) -> Run:
    """The run of a profile with some settings chosen; None stands for the profile's value.

    Of the profile's snapshots those are left that a chosen number of epochs reaches.

    Raises:
        ValueError: an unknown profile or setting (all known ones are named), or a value that does not fit.
    """
    known = [field.name for field in fields(Run)]
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
    contents, given = read_profile(profile), {key: one for key, one in chosen.items() if one is not None}
    usual = {"norm": "batch_norm", "training": "natural", "seed": 0, "experiment": HEADLINE}
    wanted: dict[str, Any] = usual | given
    conform("settings", {key: one for key, one in wanted.items() if key in usual})
    norm, training, name = wanted["norm"], wanted["training"], wanted["experiment"]
    experiments = {HEADLINE: {}} | contents.get("experiments", {})
    if name not in experiments:
        raise ValueError(f"experiment is {name!r}, it must be one of {(*experiments,)}")
    settings = DEFAULTS | contents["defaults"] | contents[training] | contents["norms"].get(norm, {})
    settings |= experiments[name] | experiments[name].get(training, {}) | wanted | {"profile": profile}
    kept = settings["snapshots"]
    run = Run(**{key: settings[key] for key in known if key in settings} | {"snapshots": ()})
    if "snapshots" not in given:
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


def tables(profile: str) -> list[tuple[Run, str]]:
    """What a profile measures, no pair twice: its runs, each with a table, ``<name>.csv`` in its folder."""
    contents, pairs = read_profile(profile), [(run, "evaluations") for run in grid(profile)]
    blocks = [contents[name] | {"names": [name]} for name in ("statistics", "landscape")]
    for block in blocks + contents["measurements"]:
        chosen = chosen_runs(profile, block["runs"])
        if not chosen and [] not in block["runs"].values():  # with an empty list none is meant
            raise ValueError(
                f"{block['names']} of profile {profile}: runs {block['runs']} must be in its grid"
            )
        pairs += [(run, name) for run in chosen for name in block["names"]]
    return list(dict.fromkeys(pairs))


def other_seed(run: Run) -> Run:
    """The run whose weights are independent of a run's: its next seed."""
    return replace(run, seed=run.seed + 1)


def evaluation_images(run: Run) -> int:
    """How many test images a run is measured on; a profile may name fewer for an experiment."""
    evaluation = read_profile(run.profile)["evaluation"]
    return evaluation.get("fewer_images", {}).get(run.experiment, evaluation["images"])

"""The files of a run: each is written to a temporary name and renamed, so that what is there is whole."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rnlib.study.runs import DEFAULTS, Run

WEIGHTS, HISTORY, CONFIG = "weights.safetensors", "history.csv", "config.json"
EVALUATIONS, CORRECT, STATISTICS = "evaluations.csv", "correct.npz", "statistics.csv"
LANDSCAPE, SHARPNESS = "landscape.csv", "sharpness.csv"
DIVERGED = "diverged.json"  # in place of weights: where training stopped being finite
CHECKPOINT = "checkpoint.pt"  # only while a run is at work


def unfinished(table: str) -> str:
    """The file with the rows that a table of measurements has so far, only while a run is at work."""
    return f"checkpoint-{table}.csv"


def snapshot(epoch: int) -> str:
    """The file with the weights after an epoch of a run that keeps snapshots."""
    return f"snapshot{epoch}.safetensors"


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let ``writer`` write a temporary file (same suffix, same folder), then rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        writer(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV, columns in the order of the first row; a header ``run`` where there is none."""
    write(path, lambda file: pd.DataFrame(rows or {"run": []}).to_csv(file, index=False))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file; none if it is not there."""
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def write_json(path: Path, value: Any) -> None:
    """JSON, indented for reading."""
    write(path, lambda file: file.write_text(json.dumps(value, indent=2) + "\n"))


def read_config(run: Run) -> dict[str, Any]:
    """What ``config.json`` in the folder of a run holds: ``settings`` and ``provenance``; empty without one.

    Raises:
        ValueError: these are the settings of another run, for the name of a folder has only some of them.
    """
    path = run.directory / CONFIG
    if not path.exists():
        return {}
    config: dict[str, Any] = json.loads(path.read_text())
    here, defaults = (json.loads(json.dumps(values)) for values in (asdict(run), DEFAULTS))
    there = defaults | config["settings"]  # a setting that was added later has its default in an older run
    if different := {key: (there.get(key), value) for key, value in here.items() if there.get(key) != value}:
        raise ValueError(
            f"{run.directory} holds a run with other settings (there, here): {different}; set these back,"
            " or remove or rename the folder"
        )
    return config


def write_correct(path: Path, correct: Mapping[str, NDArray[np.bool_]]) -> None:
    """Outcomes of images (n,) by "statistics/attack", eight to a byte."""
    arrays: dict[str, Any] = {key: np.packbits(value) for key, value in correct.items()}
    arrays |= {f"n:{key}": np.array(len(value)) for key, value in correct.items()}
    write(path, lambda file: np.savez_compressed(file, **arrays))


def read_correct(path: Path) -> dict[str, NDArray[np.bool_]]:
    """What :func:`write_correct` wrote: bool (n,) by "statistics/attack"; empty if the file is not there."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if not name.startswith("n:")]
        return {name: np.unpackbits(file[name], count=int(file[f"n:{name}"])).astype(bool) for name in names}


def has_diverged(run: Run) -> bool:
    """Whether the training of a run diverged, so that there are no weights to measure."""
    return (run.directory / DIVERGED).exists()


def finished_rows(run: Run, path: Path) -> list[dict[str, Any]] | None:
    """The rows of a table of measurements, if it is there, else None.

    For a run that diverged a table without rows is written and returned: that measurement is done, too.

    Raises:
        ValueError: the directory holds a run with other settings.
    """
    read_config(run)
    if not path.exists() and has_diverged(run):
        write_rows(path, [])
    return read_rows(path) if path.exists() else None

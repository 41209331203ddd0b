"""The files of a run, and what each can be traced to.

A file is written to a temporary name and renamed, so that what is there is whole. ``files.json`` beside the
files has for each its checksum and its provenance: settings, data, code and machine. A file that does not
match its checksum is not used.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if sys.platform != "win32":
    import fcntl

from study.runs import COMPUTATION, DEFAULTS, Run

WEIGHTS, HISTORY, CONFIG = "weights.safetensors", "history.csv", "config.json"
DIVERGED = "diverged.json"  # in place of weights: where training stopped being finite
CHECKPOINT = "checkpoint.pt"  # only while a run is at work
FILES = "files.json"
unfinished = "checkpoint-{}.pt".format  # what is measured so far of a table, only while a run is at work
snapshot = "snapshot{}.safetensors".format  # the weights after an epoch of a run that keeps snapshots
PROVENANCE = ("config_hash", "fingerprint", "rnlib", "revision", "torch", "device", "threads")


class DamagedFile(ValueError):
    """A stored file is not what was written."""


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let ``writer`` write a temporary file (same suffix, same folder), then rename it to ``path``.

    It gets the rights that new files have, whatever those are that the writer gave it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        writer(temporary)
        os.umask(mask := os.umask(0))  # there is no other way to ask for it
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def keep(path: Path, writer: Callable[[Path], Any], origin: Mapping[str, Any] | None = None) -> None:
    """:func:`write` a finished file, and note its checksum and provenance before it gets its name."""

    def written(temporary: Path) -> None:
        writer(temporary)
        note = {"sha256": _checksum(temporary)} | ({"provenance": dict(origin)} if origin else {})
        with _locked(path.parent):
            notes = _notes(path.parent) | {path.name: note}
            write(path.parent / FILES, as_json(dict(sorted(notes.items()))))

    write(path, written)


def check(path: Path) -> dict[str, Any]:
    """The provenance noted of a file; :class:`DamagedFile` if nothing was, or its checksum is another."""
    note = _notes(path.parent).get(path.name)
    if note is None:
        raise DamagedFile(f"{path} is not listed in {FILES} beside it: remove it, and it is made again")
    if note["sha256"] != _checksum(path):
        fix = "restore it (git checkout), or remove it, and it is made again"
        raise DamagedFile(f"{path} was changed or damaged: its sha256 is not the one in {FILES}; {fix}")
    return note.get("provenance", {})


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _notes(directory: Path) -> dict[str, Any]:
    path = directory / FILES
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise DamagedFile(f"{path} is not JSON ({error}): restore it (git checkout)") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer of notes at a time; the lock of a process that died is none."""
    directory.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # which has other locks: there one process at a time may write a run
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def as_json(value: Any) -> Callable[[Path], Any]:
    """A writer of JSON, indented for reading."""
    return lambda file: file.write_text(json.dumps(value, indent=2) + "\n")


def keep_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A finished table. What is the same in all rows of their provenance is noted, and no column.

    Columns are in the order of the first row; where there is none, there is a header ``run``.
    """
    first = rows[0] if rows else {}
    shared = {key for key in PROVENANCE if key in first and all(row.get(key) == first[key] for row in rows)}
    slim = [{key: value for key, value in row.items() if key not in shared} for row in rows]
    frame = pd.DataFrame(slim or {"run": []})
    origin = {key: first[key] for key in PROVENANCE if key in shared}
    keep(path, lambda file: frame.to_csv(file, index=False), origin)


def read_table(path: Path) -> pd.DataFrame:
    """A finished table with its provenance as columns; raises as :func:`check`."""
    origin = check(path)
    return pd.read_csv(path).assign(**origin)


def read_config(run: Run) -> dict[str, Any]:
    """What ``config.json`` in the folder of a run holds: ``settings`` and ``provenance``; empty without one.

    ValueError if these are the settings of another run, for the name of a folder has only some of them.
    """
    path = run.directory / CONFIG
    if not path.exists():
        return {}
    config: dict[str, Any] = json.loads(path.read_text())
    here, defaults = (json.loads(json.dumps(values)) for values in (asdict(run), DEFAULTS))
    there = defaults | config["settings"]  # a setting that was added later has its default in an older run
    what = {key: value for key, value in here.items() if key not in COMPUTATION}
    if different := {key: (there.get(key), value) for key, value in what.items() if there.get(key) != value}:
        fix = "set these back, or remove or rename the folder"
        raise ValueError(f"{run.directory} holds a run with other settings (there, here): {different}; {fix}")
    return config


def pack(correct: Mapping[str, NDArray[np.bool_]]) -> Callable[[Path], None]:
    """A writer of outcomes of images (n,) by name, eight to a byte."""
    arrays: dict[str, Any] = {key: np.packbits(value) for key, value in correct.items()}
    arrays |= {f"n:{key}": np.array(len(value)) for key, value in correct.items()}
    return lambda file: np.savez_compressed(file, **arrays)


def read_correct(path: Path) -> dict[str, NDArray[np.bool_]]:
    """What :func:`pack` wrote: bool (n,) by name; empty if the file is not there."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if not name.startswith("n:")]
        return {name: np.unpackbits(file[name], count=int(file[f"n:{name}"])).astype(bool) for name in names}


def has_diverged(run: Run) -> bool:
    """Whether the training of a run diverged, so that there are no weights to measure."""
    return (run.directory / DIVERGED).exists()


def finished(run: Run, path: Path) -> pd.DataFrame | None:
    """A table of measurements, if it is there, else None; raises as the other readers.

    For a run that diverged a table without rows is written and returned: that measurement is done, too.
    """
    read_config(run)
    if not path.exists() and has_diverged(run):
        keep_rows(path, [])
    return read_table(path) if path.exists() else None

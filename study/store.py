"""The files of a run, and what each can be traced to.

A file is written to a temporary name and renamed, so that what is there is whole. ``files.json`` beside the
files has for each its checksum and its provenance: settings, data, code and machine. A file that does not
match its checksum is not used.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.runs import COMPUTATION, DEFAULTS, Run
from study.whole import alone, write

WEIGHTS, HISTORY, CONFIG = "weights.safetensors", "history.csv", "config.json"
DIVERGED = "diverged.json"  # in place of weights: where training stopped being finite
CHECKPOINT = "checkpoint.pt"  # only while a run is at work
FILES = "files.json"
CODE = re.compile(r"[<>|`{}\[\]$\\\n\r]|^[=+@-]")  # of a page, of a spreadsheet
unfinished = "checkpoint-{}.pt".format  # what is measured so far of a table, only while a run is at work
snapshot = "snapshot{}.safetensors".format  # the weights after an epoch of a run that keeps snapshots
PROVENANCE = ("config_hash", "fingerprint", "rnlib", "revision", "torch", "device", "threads")


class DamagedFile(ValueError):
    """A stored file is not what was written."""


def keep(path: Path, writer: Callable[[Path], Any], origin: Mapping[str, Any] | None = None) -> None:
    """:func:`write` a finished file, and note its checksum and provenance before it gets its name."""

    def written(temporary: Path) -> None:
        writer(temporary)
        note = {"sha256": checksum(temporary)} | ({"provenance": dict(origin)} if origin else {})
        with alone(path.with_name(FILES)):
            notes = _notes(path.parent)
            before = _matching(path, notes)
            if (
                before and before["sha256"] != note["sha256"]
            ):  # a kill before the renaming leaves that in place
                note["before"] = {key: value for key, value in before.items() if key != "before"}
            notes = dict(sorted((notes | {path.name: note}).items()))
            write(
                path.with_name(FILES),
                as_json(notes | {FILES: {"sha256": _sha256(json.dumps(notes).encode())}}),
            )

    write(path, written)


def check(path: Path) -> dict[str, Any]:
    """The provenance noted of a file; :class:`DamagedFile` if nothing was, or its checksum is another."""
    notes = _notes(path.parent)
    if (note := _matching(path, notes)) is not None:
        return note.get("provenance", {})
    made = f"{path.stem}.csv" if path.suffix in (".csv", ".npz") and path.name != HISTORY else "the folder"
    fix = f"restore it (git checkout), or remove {made}, to make it again"
    if path.name not in notes:
        raise DamagedFile(f"{path} is not listed in {FILES} beside it: {fix}")
    what = f"was changed or damaged: its sha256 is not the one in {FILES}" if path.exists() else "is gone"
    raise DamagedFile(f"{path} {what}; {fix}")


def _matching(path: Path, notes: dict[str, Any]) -> dict[str, Any] | None:
    """What is noted of a file as it is now, if it is there."""
    note = notes.get(path.name, {})
    sha256 = checksum(path) if path.is_file() else None
    return next(
        (one for one in (note, note.get("before", {})) if sha256 and one.get("sha256") == sha256), None
    )


def checksum(path: Path) -> str:
    """The sha256 of a file, as ``sha256sum`` has it."""
    return _sha256(path.read_bytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _notes(directory: Path) -> dict[str, Any]:
    """What is noted of each file; the checksum of the notes themselves is among them, if they are not old."""
    path = directory / FILES
    try:
        notes = json.loads(path.read_text("utf-8-sig")) if path.exists() else {}
        own = notes.pop(FILES, None)
        if own not in (None, {"sha256": _sha256(json.dumps(notes).encode())}):
            raise ValueError("its checksum is another")
        return notes
    except (ValueError, AttributeError, TypeError, RecursionError, IsADirectoryError) as error:
        fix = "restore it (git checkout), or remove the folder, to make it again"
        raise DamagedFile(f"{path} was changed or damaged ({error}): {fix}") from error


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
    """A finished table with its provenance as columns; raises as :func:`check`, and for words of code."""
    rows, origin = _read(path, pd.read_csv)
    rows = rows.assign(**origin)
    words = {*rows.columns, *rows.select_dtypes(exclude=["number", "bool"]).stack().unique()}
    if code := [word for word in words if CODE.search(str(word))]:
        fix = "remove the folder, to make it again"
        raise DamagedFile(f"{path} holds {code[0]!r:.99}, which a page or spreadsheet may run: {fix}")
    return rows


def _read(path: Path, reader: Callable[[Path], Any]) -> tuple[Any, dict[str, Any]]:
    """A file as it was written, by a reader of its kind, and its provenance.

    DamagedFile if the reader, or :func:`check`, cannot.
    """
    origin = check(path)
    try:
        return reader(path), origin
    except Exception as error:  # of a stranger's file a reader may raise anything
        what = f"has the right checksum, but cannot be read as what it is ({type(error).__name__})"
        raise DamagedFile(f"{path} {what}: remove the folder, to make it again") from error


def read_config(run: Run) -> dict[str, Any]:
    """What ``config.json`` in the folder of a run holds: ``settings`` and ``provenance``; empty without one.

    ValueError if these are the settings of another run, for the name of a folder has only some of them.
    """
    path = run.directory / CONFIG
    if not path.exists():
        there = {name for name in _notes(path.parent) if (path.parent / name).exists() or name == CONFIG}
        if len(there) > 1 and CONFIG in there:  # others were made after it, with nobody knows which settings
            check(path)
        return {}
    here, defaults = (json.loads(json.dumps(values)) for values in (asdict(run), DEFAULTS))
    config, _ = _read(path, _settings)
    there = defaults | config["settings"]  # a setting that was added later has its default in an older run
    what = {key: value for key, value in here.items() if key not in COMPUTATION}
    if different := {key: (there.get(key), value) for key, value in what.items() if there.get(key) != value}:
        fix = "set these back, or remove or rename the folder"
        raise ValueError(f"{run.directory} holds a run with other settings (there, here): {different}; {fix}")
    return config


def _settings(path: Path) -> dict[str, Any]:
    config = {"settings": {}, **json.loads(path.read_text())}
    return config | {"settings": dict(config["settings"])}


def pack(correct: Mapping[str, NDArray[np.bool_]]) -> Callable[[Path], None]:
    """A writer of outcomes of images (n,) by name, eight to a byte."""
    arrays: dict[str, Any] = {key: np.packbits(value) for key, value in correct.items()}
    arrays |= {f"n:{key}": np.array(len(value)) for key, value in correct.items()}
    return lambda file: np.savez_compressed(file, **arrays)


def read_correct(path: Path) -> dict[str, NDArray[np.bool_]]:
    """What :func:`pack` wrote: bool (n,) by name; empty if the file is not there."""
    return _read(path, _unpack)[0] if path.exists() else {}


def _unpack(path: Path) -> dict[str, NDArray[np.bool_]]:
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if not name.startswith("n:")]
        return {name: np.unpackbits(file[name], count=int(file[f"n:{name}"])).astype(bool) for name in names}


def has_diverged(run: Run) -> bool:
    """Whether the training of a run diverged, so that there are no weights to measure."""
    path = run.directory / DIVERGED
    return path.exists() and check(path) is not None


def done(run: Run, table: str) -> bool:
    """Whether a table of a run is there, or never will be, as training diverged."""
    return (run.directory / f"{table}.csv").exists() or has_diverged(run)


def finished(run: Run, path: Path) -> pd.DataFrame | None:
    """A table of measurements, if it is there, else None; raises as the other readers.

    For a run that diverged a table without rows is written and returned: that measurement is done, too.
    """
    read_config(run)
    if not path.exists() and has_diverged(run):
        keep_rows(path, [])
    return read_table(path) if path.exists() else None

"""What the kinds share: settings, ways to damage a file, and the judgement on a refusal."""

import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import time
import traceback
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml

from rnlib import data, load
from study import plain, store, whole

ROOT = Path(__file__).resolve().parents[2]
CASES = yaml.safe_load(Path(__file__).with_name("cases.yml").read_text())
PROFILE = str(ROOT / "tests" / "study" / "tiny.yml")
SEED = int(os.environ.get("FAULTS_SEED", "0"))
OTHERS = {"html": b"<html><body>404 Not Found</body></html>\n", "text": b"run,accuracy\nanother,99.9\n"}
REMEDY = "restore|remove|fetch|copy it|pack it|install|set |give|name |use |put |replace|resize|mend|make "
REMEDY += "|must|lower|takes|known"


@cache
def small(name, split):
    """A set with every fourth pixel of every fourth row, for speed."""
    found = load(name, split)
    return replace(found, images=found.images[:, :, ::4, ::4].contiguous())


def smaller(patch):
    """Images of 7 x 7 pixels in place of those of 28 x 28."""
    patch.setattr("study.networks.load", small)


def flipped(content, place):
    """With one bit changed; ``place`` counts bits."""
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def damages(chance, content, text):
    """(name, bytes): empty, zeros, another's, cut at ten places, a bit flipped at twenty; of text more."""
    yield "empty", b""
    yield "zeros", bytes(len(content))
    yield from OTHERS.items()
    for tenth in range(10):
        yield (
            f"cut after {tenth} tenths",
            content[: max(1, len(content) * tenth // 10 + chance.randrange(-1, 2))],
        )
    for number in range(20):
        yield f"bit {number}", flipped(content, chance.randrange(8 * len(content)))
    if text:
        lines = content.splitlines(keepends=True)
        yield "a line twice", b"".join([*lines, lines[-2]])
        yield "a line gone", b"".join(lines[:-1])
        yield "carriage returns", content.replace(b"\n", b"\r\n")
        yield "byte-order mark", b"\xef\xbb\xbf" + content
        yield "utf-16", content.decode().encode("utf-16")
        yield (
            "another digit",
            re.sub(rb"[0-8](?=\D*$)", lambda digit: bytes([digit[0][0] + 1]), content, count=1),
        )


def cases(files, names):
    """Pairs of a file and a damage, as pytest takes them; most bits are left to ``make faults``."""
    return [
        pytest.param(file, name, marks=pytest.mark.full if re.fullmatch(r"bit (\d\d|[5-9])", name) else [])
        for file in files
        for name in names(file)
    ]


def mount(folder, *options):
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True
    )


@contextmanager
def small_disk(folder, size):
    """A file system of so many KiB; skips where one may not be mounted."""
    folder.mkdir(exist_ok=True)
    if os.name != "posix" or mount(folder, f"size={size}k").returncode:
        pytest.skip("a file system of its own can be mounted by root on Linux only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def state(folder):
    """What a folder holds, to the last byte."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refusal(action, *words, kinds=(ValueError, OSError), right=None):
    """What an action says when it refuses: one sentence of ours, with these words and a remedy.

    None if it gives what is ``right``. AssertionError if it was accepted in silence, another package speaks,
    or something is missing in the sentence.
    """
    try:
        given = action()
    except Exception as error:
        said, frame = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        kind = type(error)
    else:
        assert right is not None, f"accepted in silence: {str(given)[:200]}"
        assert repr(given) == repr(right), f"accepted in silence: {str(given)[:200]}"
        return None
    assert Path(frame).is_relative_to(ROOT), f"{frame} speaks: {said}"
    assert ".venv" not in frame, f"{frame} speaks: {said}"
    assert issubclass(kind, kinds), f"{kind}: {said}"
    assert "\n" not in said.strip(), f"more than a sentence: {said}"
    assert len(said) < 700, f"{len(said)} characters: {said}"
    missing = [word for word in words if not re.search(word, said)]
    assert not missing, f"{missing} missing in: {said}"
    assert re.search(REMEDY, said), f"no remedy: {said}"
    return said


# The process that the others are forked from looks for its imports here.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["programs"])
NEEDS = {
    "train": None,
    "evaluations": "train",
    "along_training": "train",
    "attack": "train",
    "fit_many": None,
}
SIGNALS = {
    "KILL": [signal.SIGKILL],
    "TERM": [signal.SIGTERM],
    "INT": [signal.SIGINT],
    "INT twice": [signal.SIGINT] * 2,
}


def started(name, folder, *moment):
    """A process that does the work of a program, see programs.py."""
    from programs import program

    process = PROCESSES.Process(target=program, args=(name, str(folder), *moment))
    process.start()
    return process


def worked(process, seconds=1e9):
    """Wait until a process has computed for so many seconds, or ended; returns how long it did."""
    done = 0.0
    with suppress(psutil.Error):
        there = psutil.Process(process.pid)
        while done < seconds and process.is_alive():
            done = sum(there.cpu_times()[:2])
            time.sleep(0.002)
    return done


def ended(process):
    """The exit code of a process."""
    process.join(300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def content(folder):
    """What every file holds, but for seconds and revisions, and so the checksums of files that have them."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        found[name] = re.sub(rb'"revision": "[^"]*"', b"", path.read_bytes())
        if path.suffix == ".csv":
            table = pd.read_csv(path).drop(columns=["seconds", "revision"], errors="ignore")
            found[name] = table.to_csv().encode()
        elif path.name in ("files.json", "attack.pt", "many0.pt", "many1.pt"):
            found[name] = b"there"
    return found


def _whole_files_off():
    """Files are written under their own names, half of them first."""
    from rnlib import files, train

    def write(path, value):
        torch.save(value, path)
        os.truncate(path, path.stat().st_size // 2)
        os.replace(path, path)
        torch.save(value, path)

    files.write_tensors = train.write_tensors = write


def _anything(path, load=torch.load, **options):
    return load(path, **options | {"weights_only": False})


# Ways to break what protects a run, for a test of these tests: FAULTS_BREAK names one.
GUARDS = {
    "checksums of results": lambda: setattr(store, "_matching", lambda path, notes: notes.get(path.name)),
    "checksums of checkpoints": lambda: setattr(zipfile.ZipFile, "testzip", lambda self: None),
    "tensors only": lambda: setattr(torch, "load", _anything),
    "whole files": _whole_files_off,
    "one writer": lambda: setattr(whole, "alone", lambda path: nullcontext()),
    "no number that is none": lambda: setattr(plain.math, "isfinite", lambda value: True),
    "small images": lambda: setattr(data, "LARGEST", 1 << 40),
}
if broken := os.environ.get("FAULTS_BREAK"):
    GUARDS[broken]()

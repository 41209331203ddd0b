"""What a profile lacks, side by side within a time limit, and then packed to be carried away.

``python -m study.burst --minutes 10 --out DIR`` says what it costs, trains and measures in results/, stops in
time, and packs into DIR, in parts of at most 16 MiB, what has changed since the first burst into it. What was
cut off goes on with the next burst. ``--unpack DIR`` puts what is packed into results/ elsewhere.
"""
# ruff: noqa: E402

import time

BEGIN = time.time()  # the limit counts from here: the imports take seconds

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rnlib.files import read_tensors
from study import store
from study.networks import training_set
from study.runs import ROOT, Run, grid, results_folder, tables
from study.work import chosen_device, measure_run, train_run

PART, LARGEST, RESERVE = 16 * 2**20, 2**32, 8  # bytes of a part, of what is unpacked; seconds for packing
# Images/s of natural training of a ResNet-20: in each of four processes on an H100, on each core of a CPU.
RATES = {"cuda": 16_600, "cpu": 600}
ATTACK_STEP = 0.6  # what one costs, in steps of training


def missing(profile: str) -> list[tuple[Run, str]]:
    """Runs to train, with "", then those to measure, with a table; in the order of the profile, that of need.

    A run of which results are there but not the weights is left out: other weights have other results.
    """
    lacking: dict[Run, list[str]] = {run: [] for run in grid(profile)}
    for run, table in tables(profile):
        lacking[run] += [table] * (not store.done(run, table))
    new = [run for run in lacking if lacking[run] and not (run.directory / store.HISTORY).exists()]
    known = [run for run in lacking if run in new or (run.directory / store.WEIGHTS).exists()]
    return [(run, "") for run in new] + [(run, table) for run in known for table in lacking[run]]


def seconds(run: Run, rate: float) -> float:
    """How long the rest of a training takes, at a rate of images/s."""
    kept = run.directory / store.CHECKPOINT
    done = len(read_tensors(kept)["history"]) if kept.exists() else 0
    steps = 1 + ATTACK_STEP * run.attack_steps * (run.training == "adversarial")
    return (run.epochs - done) * len(training_set(run)) * steps / rate


def work(run: Run, table: str, device: str, manager: int, stop: float) -> None:
    """What a process does: one job, until it is done, the time is over, or its manager is no more."""

    def watch() -> None:
        while os.getppid() == manager and time.time() < stop:
            time.sleep(0.1)
        os._exit(1)  # what is there is whole: files get their names last

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    if table:
        measure_run(run, table, device=device)
    else:  # without the snapshots that nothing looks at, nine tenths of what a run weighs
        kept = run.snapshots if (run, "along_training") in tables(run.profile) else ()
        if "cuda" in device:  # as those networks of the book that were trained on one
            run = replace(run, compile=True, precision="float32")
        train_run(replace(run, snapshots=kept), device=device)


def burst(profile: str, stop: float, device: str, processes: int, rate: float) -> bool:
    """Do what is missing until the time ``stop``, or until all fails; whether no job failed."""
    pending, failed, fine = missing(profile), 0, True
    costs = [seconds(run, rate) / processes for run, table in pending if not table]
    fit = sum(sum(costs[: n + 1]) <= stop - time.time() for n in range(len(costs)))
    print(
        f"{profile} lacks {len(costs)} trainings and {len(pending) - len(costs)} tables. Trainings take about"
    )
    print(f"{sum(costs) / 60:.1f} minutes: {processes} processes, {rate} images/s each ({device}). In time")
    print(f"{fit} of them end and {len(costs) - fit} are left. Tables come after them.", flush=True)
    running: dict[multiprocessing.process.BaseProcess, tuple[Run, str]] = {}
    while time.time() < stop and failed < 2 * processes:
        for process in [one for one in running if not one.is_alive()]:
            run, table = running.pop(process)
            failed, fine = (failed + 1, False) if process.exitcode else (0, fine)
            print(f"{run.name} {table or 'training'}: {'FAILED' if process.exitcode else 'done'}", flush=True)
        ready = (job for job in pending if not job[1] or (job[0].directory / store.WEIGHTS).exists())
        job = next(ready, None)
        if job and len(running) < processes:
            pending.remove(job)
            arguments = (*job, device, os.getpid(), stop + 1)  # the manager is to be the first to end
            process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
            process.start()
            running[process] = job
        elif not running:
            break
        time.sleep(0.05)
    for process in running:
        process.kill()
        process.join()
    return fine


def pack(files: Iterable[Path], folder: Path) -> None:
    """Zip files of runs, in parts, in place of what is packed in the folder."""
    for path in folder.glob("pack-*"):
        path.unlink()
    with zipfile.ZipFile(made := io.BytesIO(), "w") as archive:
        for path in files:
            archive.write(path, "/".join(path.parts[-3:]))
    parts = [made.getvalue()[start : start + PART] for start in range(0, made.tell(), PART)]
    for number, part in enumerate(parts, 1):
        path = folder / f"pack-{number}of{len(parts)}-{hashlib.sha256(part).hexdigest()}"
        store.write(path, partial(Path.write_bytes, data=part))


def _opened(content: io.BytesIO, folder: Path) -> zipfile.ZipFile:
    """An archive that is one, and unpacks to no more than results have."""
    try:
        archive = zipfile.ZipFile(content)
    except zipfile.BadZipFile as error:
        raise store.DamagedFile(f"{folder} holds no pack ({error}): copy it again") from error
    if (size := sum(info.file_size for info in archive.infolist())) > LARGEST:
        raise ValueError(f"{folder} would unpack {size >> 20} MiB, it must be at most {LARGEST >> 20}")
    return archive


def _note(path: Path, listed: bytes) -> Any:
    """What a packed list of files says of one."""
    try:
        note = json.loads(listed).get(path.name)
        return note if note is None else {"provenance": None} | note
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise store.DamagedFile(f"{store.FILES} of {path.parent} is damaged: pack it again") from error


def unpack(folder: Path) -> None:
    """Put what is packed in a folder into results/. All is checked before anything is written.

    Raises:
        store.DamagedFile: a part is missing, or is not what was written.
        ValueError: a file that is none of a run in results/, or that differs from the finished one there.
    """
    parts: dict[int, bytes] = {}
    files: dict[Path, bytes] = {}
    for path in folder.glob("pack-*of*-*"):
        number, count, digest = re.split("of|-", path.name)[1:]
        parts[int(number)] = path.read_bytes()
        if hashlib.sha256(parts[int(number)]).hexdigest() != digest:
            raise store.DamagedFile(f"{path} was changed or damaged: copy it again")
    if not parts or {*parts} != {*range(1, int(count) + 1)}:
        raise store.DamagedFile(f"{folder} holds {len(parts)} parts, not all of one pack: copy them again")
    with _opened(io.BytesIO(b"".join(parts[number] for number in sorted(parts))), folder) as archive:
        for name in archive.namelist():
            found = re.fullmatch(r"([a-z]\w*)/(\w[\w.+-]*/\w[\w.+-]*)", name, re.ASCII)
            path = results_folder(found[1]).resolve() / found[2] if found else folder
            if path.resolve() != path or not found:
                raise ValueError(f"{name!r} is packed, which is no file of a run in results/")
            files[path] = archive.read(name)
    notes = {path: _note(path, files.get(path.with_name(store.FILES), b"{}")) for path in files}
    notes |= {path: None for path in files if path.name == store.FILES}  # keep() notes each file anew
    for path, note in notes.items():
        if not (note or path.name == store.FILES or path.match("checkpoint*.pt")):
            raise ValueError(f"{path} is packed, and not listed in {store.FILES}")
        if note and path.name != store.CONFIG and path.exists() and path.read_bytes() != files[path]:
            raise ValueError(f"{path} is another than the packed one: remove or rename one of the two")
    for path, note in sorted(notes.items()):  # weights last: they say that a training is done
        weights, writer = path.with_name(store.WEIGHTS), partial(Path.write_bytes, data=files[path])
        if note and not (path.exists() and weights.exists()):
            store.keep(path, writer, note.get("provenance"))
        elif path.name != store.FILES and not weights.exists():
            store.write(path, writer)
        if weights.exists():
            path.with_name(store.CHECKPOINT).unlink(missing_ok=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m study.burst", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder for the packed results")
    where.add_argument("--unpack", type=Path, help="folder of packed results, to be put into results/")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--profile", default="book")
    parser.add_argument("--processes", type=int, help="side by side: four on a GPU, else one on each core")
    parser.add_argument(
        "--rehearse", action="store_true", help="the tests' tiny profile on the CPU, in OUT/results"
    )
    options = parser.parse_args()
    folder, profile, device = options.out, options.profile, chosen_device("cpu" if options.rehearse else None)
    if options.rehearse:
        os.environ["RNLIB_RESULTS"], profile = str(folder / "results"), str(ROOT / "tests/study/tiny.yml")
    try:
        if options.unpack:
            return unpack(options.unpack)
        folder.mkdir(parents=True, exist_ok=True)
        if not (mark := folder / "begun").exists():
            mark.touch()
        stop = BEGIN + 60 * options.minutes - min(RESERVE, 6 * options.minutes)
        processes = options.processes or (4 if "cuda" in device else os.cpu_count() or 1)
        fine = burst(profile, stop, device, processes, RATES["cuda" if "cuda" in device else "cpu"])
        there = sorted(results_folder(Path(profile).stem).glob("*/[!.]*"))
        new = [path for path in there if path.stat().st_mtime_ns >= mark.stat().st_mtime_ns]
        pack(new, folder)
    except (OSError, ValueError) as error:
        sys.exit(f"{error}; what is in results/ is whole, and the same command goes on")
    sys.exit(None if fine else "a job failed: see above")


if __name__ == "__main__":
    main()

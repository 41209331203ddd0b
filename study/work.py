"""What the worker notebooks do: train a run, measure its weights. All resume, and repeat nothing finished."""

import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rnlib
from rnlib import Dataset, Training, TrainingDiverged, fit, statistics_modes
from rnlib.files import read_tensors, write_tensors
from study import store, whole
from study.experiments import EVERY_NORM, MEASUREMENTS
from study.experiments.subject import Found, Subject
from study.networks import new_model, test_set, trained_model, training_set, training_settings
from study.runs import ROOT, Run

Row = dict[str, Any]


def chosen_device(device: str | None) -> str:
    """The device that is named; without a name ``"cuda"`` if there is one, else ``"cpu"``."""
    try:
        if device is None:
            return "cuda" if torch.cuda.is_available() else "cpu"
        return str(torch.empty(0, device=device).device)
    except (AssertionError, RuntimeError, TypeError) as error:
        known = "cpu, or a device that is here: cuda, cuda:1, mps, ..."
        raise ValueError(f"device is {device!r}, it must be {known}") from error


def device_name(device: str) -> str:
    """The GPU's or the CPU's model, the type of any other device."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})" if kind == "cpu" else kind


def provenance(run: Run, dataset: Dataset, device: str) -> dict[str, Any]:
    """What a result can be traced to: settings, data, code (``-dirty``: not committed), machine."""
    # Not today's hash of the settings: some may not have been there when an older run was trained.
    trained = store.read_config(run).get("provenance", {})
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return {
        "config_hash": trained.get("config_hash", run.hash),
        "fingerprint": dataset.fingerprint,
        "rnlib": rnlib.__version__,
        "revision": subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown",
        "torch": str(torch.__version__),  # a class of its own, which a checkpoint may not hold
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def train_run(
    run: Run,
    *,
    device: str | None = None,
    on_epoch: Callable[[list[Row]], None] = lambda history: None,
    on_step: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Train a run unless that is done; settings, history and weights go to its folder.

    A training that diverges is a result, and not tried again: ``diverged.json`` says where, and the file of
    weights, which says that training is done, holds none. Returned is the history, one row an epoch; for
    ``on_epoch`` and ``on_step`` see :func:`rnlib.fit`. ValueError for a setting that does not fit, or a
    folder that holds a run with other settings.
    """
    how: dict[str, Any] = {"device": chosen_device(device), "on_epoch": on_epoch, "on_step": on_step}
    with _in_memory(run):
        model, settings = new_model(run), training_settings(run)
    if not _is_trained(run):
        with whole.alone(run.directory / store.WEIGHTS), _in_memory(run):
            if not _is_trained(run):  # by another process, while this one waited
                _train(run, model, settings, **how)
    whole.clear(run.directory / store.WEIGHTS, run.directory / store.CHECKPOINT)
    return store.read_table(run.directory / store.HISTORY)


def _is_trained(run: Run) -> bool:
    store.read_config(run)
    return (run.directory / store.WEIGHTS).exists() or store.has_diverged(run)


def _train(
    run: Run,
    model: nn.Module,
    settings: Training,
    device: str,
    on_epoch: Callable[[list[Row]], None],
    on_step: Callable[[], None],
) -> None:
    folder = run.directory
    dataset, validation = training_set(run), test_set(run, run.validation_images)
    origin = provenance(run, dataset, device) | {"config_hash": run.hash}  # of the settings beside it
    store.keep(folder / store.CONFIG, store.as_json({"settings": asdict(run), "provenance": origin}))

    def keep_weights(model: nn.Module, name: str) -> None:
        tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
        store.keep(folder / name, partial(save_file, tensors), origin)

    def after_epoch(history: list[Row]) -> None:
        if history and (epoch := int(history[-1]["epoch"])) in run.snapshots:
            keep_weights(model, store.snapshot(epoch))
        on_epoch(history)

    diverged: TrainingDiverged | None = None
    how: dict[str, Any] = {"checkpoint": folder / store.CHECKPOINT, "device": device, "on_step": on_step}
    try:
        history = fit(model, dataset, settings, validation=validation, on_epoch=after_epoch, **how)
    except TrainingDiverged as error:
        diverged, history = error, error.history
    store.keep_rows(folder / store.HISTORY, [record | origin for record in history])
    if diverged:
        found = {"epoch": diverged.epoch, "step": diverged.step, "message": str(diverged)}
        store.keep(folder / store.DIVERGED, store.as_json(found | {"provenance": origin}))
    keep_weights(nn.Module() if diverged else model, store.WEIGHTS)  # last, for it says that training is done


@contextmanager
def _in_memory(run: Run) -> Iterator[None]:
    """An error for a lack of memory that says what to do; what was done is kept."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(
            error
        ):
            raise
        fix = "lower batch_size or width, or name another device; finished epochs and cells are kept"
        raise MemoryError(f"{run.name} needs more memory than there is: {fix}") from error


def measure_run(
    run: Run, name: str, *, device: str | None = None, on_cell: Callable[[Row], None] = lambda row: None
) -> pd.DataFrame:
    """Measure a trained run unless that is done. What was measured before an interruption is not repeated.

    Args:
        name: one of :data:`study.experiments.MEASUREMENTS`.
        device: where to compute; the GPU if there is one.
        on_cell: called with the first row of each cell that is measured.

    Returns the rows of ``<name>.csv`` and their provenance; none if training diverged. The outcomes of images
    lie beside it in ``<name>.npz``. Raises ValueError for an unknown name or device, a run without batch
    statistics, files that are damaged or of other settings, and what :func:`trained_model` raises.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"measurement is {name!r}, it must be one of {', '.join(MEASUREMENTS)}")
    path, device = run.directory / f"{name}.csv", chosen_device(device)
    if (rows := store.finished(run, path)) is None:
        with _in_memory(run):  # before there is a folder
            subject = Subject(run, trained_model(run).to(device), test_set(run), device)
            with whole.alone(path):
                if store.finished(run, path) is None:  # else another process made it, while this one waited
                    _measure(subject, name, path, on_cell)
    whole.clear(path, run.directory / store.unfinished(name))
    return store.read_table(path) if rows is None else rows


def _measure(subject: Subject, name: str, path: Path, on_cell: Callable[[Row], None]) -> None:
    run, unfinished = subject.run, subject.run.directory / store.unfinished(name)
    if name not in EVERY_NORM and "batch" not in statistics_modes(subject.model):
        raise ValueError(f"{run.name} has no batch statistics: {name} would be the same in both modes")
    origin = provenance(run, subject.images, subject.device)
    of = [origin["fingerprint"], store.checksum(run.directory / store.WEIGHTS)]
    done: dict[str, tuple[list[Row], Tensor | None]] = {}
    if unfinished.exists():
        there = read_tensors(unfinished)
        if not isinstance(there, dict) or there.get("of") != of:
            raise ValueError(
                f"{unfinished} is of other weights or images: remove it, and all is measured anew"
            )
        done = there["cells"]
    start = perf_counter()
    for cell, outcome in MEASUREMENTS[name](subject):
        if (key := "/".join(map(str, cell.values()))) in done:
            continue
        rows, correct = _rows(outcome(), start)
        start = perf_counter()
        rows = [{**cell, **row, **origin, **row} for row in rows]  # a row may say that its images were others
        done[key] = rows, correct
        write_tensors(unfinished, {"of": of, "cells": done})
        on_cell(rows[0])
    outcomes = {key: correct.numpy() for key, (_, correct) in done.items() if correct is not None}
    if outcomes:
        store.keep(path.with_suffix(".npz"), store.pack(outcomes))
    store.keep_rows(path, [row for rows, _ in done.values() for row in rows])


def _rows(found: Found, start: float) -> tuple[list[Row], Tensor | None]:
    """The rows of a cell, and which images were classified correctly; seconds with what the cell prepared."""
    if isinstance(found, list):
        return found, None
    values, correct = ({}, found) if isinstance(found, Tensor) else found
    n, hits, seconds = len(correct), int(correct.sum()), round(perf_counter() - start, 2)
    return [values | {"n": n, "correct": hits, "accuracy": 100 * hits / n, "seconds": seconds}], correct

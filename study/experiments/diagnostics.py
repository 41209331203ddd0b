"""Experiments on the weights of trained runs, run once and kept with the outcome of every image."""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from rnlib.data import Dataset
from rnlib.modes import evaluation_mode, statistics_modes
from study.experiments import conditions, experiments, spreads, sweeps
from study import store
from study.experiments.experiments import Outcome
from study.runs import Run, read_profile
from study.work import default_device, provenance, test_set, trained_model

DIAGNOSTICS: dict[str, Callable[[Run, nn.Module, Dataset, str], Iterator[Outcome]]] = {
    "transfer": experiments.transfer,
    "transfer_8px": experiments.transfer_8px,
    "independent": experiments.independent,
    "ladder": experiments.ladder,
    "adequacy": sweeps.adequacy,
    "fraction": sweeps.fraction,
    "neighbours": sweeps.neighbours,
    "black_box": sweeps.black_box,
    "units": sweeps.units,
    "eps": sweeps.eps,
    "batch_size": sweeps.batch_size,
    "jitter": conditions.jitter,
    "composition": conditions.composition,
    "snapshots": conditions.snapshots,
    "code_path": conditions.code_path,
    "spreads": spreads.spreads,
}


def diagnose_run(
    run: Run,
    name: str,
    *,
    device: str | None = None,
    on_cell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Run a diagnostic on a trained run unless that is done.

    What an interrupted one has measured is not measured again.

    Args:
        run: trained, with batch statistics.
        name: one of ``DIAGNOSTICS``.
        device: where to compute; the GPU if there is one.
        on_cell: called with each row.

    Returns:
        The rows of ``<name>.csv``; the outcomes of images lie beside it in ``<name>.npz``.

    Raises:
        ValueError: unknown name, a run without batch statistics, or its directory holds one with other
            settings.
        FileNotFoundError: the run is not trained.
    """
    if name not in DIAGNOSTICS:
        raise ValueError(f"diagnostic is {name!r}, it must be one of {', '.join(DIAGNOSTICS)}")
    path, unfinished = run.directory / f"{name}.csv", run.directory / store.unfinished(name)
    if (there := store.finished_rows(run, path)) is not None:
        return there
    device = device or default_device()
    model = trained_model(run).to(device)
    if "batch" not in statistics_modes(model):
        raise ValueError(f"{run.name} has no batch statistics: there is nothing to diagnose")
    dataset = test_set(run, read_profile(run.profile)["evaluation"]["images"])
    origin, rows = provenance(run, dataset, device), store.read_rows(unfinished)
    kept = store.read_correct(path.with_suffix(".npz")) if rows else {}
    outcomes = dict(list(kept.items())[: len(rows)])  # the rows say what is done
    start = perf_counter()
    with evaluation_mode(model):
        for cell, outcome in DIAGNOSTICS[name](run, model, dataset, device):
            if (key := "/".join(map(str, cell.values()))) in outcomes:
                continue
            found = outcome() if callable(outcome) else outcome
            values, correct = ({}, found) if isinstance(found, Tensor) else found
            outcomes[key] = correct.numpy()
            n, hits = len(correct), int(correct.sum())
            start, seconds = perf_counter(), round(perf_counter() - start, 2)  # with what the cell prepared
            row = {"run": run.name, **cell, **values, "n": n, "correct": hits, "accuracy": 100 * hits / n}
            rows.append(row | {"seconds": seconds} | origin)
            store.write_correct(path.with_suffix(".npz"), outcomes)
            store.write_rows(unfinished, rows)
            on_cell(row)
    unfinished.rename(path)
    return rows

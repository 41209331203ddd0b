"""Experiments on the weights of trained runs, run once and kept with the outcome of every image."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from rnlib.data import Dataset
from rnlib.modes import evaluation_mode, statistics_modes
from rnlib.study import experiments, store
from rnlib.study.experiments import Outcome
from rnlib.study.runs import Run, read_profile
from rnlib.study.work import default_device, provenance, test_set, trained_model

DIAGNOSTICS: dict[str, Callable[[Run, nn.Module, Dataset, str], Iterator[Outcome]]] = {
    "transfer": experiments.transfer,
    "ladder": experiments.ladder,
    "adequacy": experiments.adequacy,
    "fraction": experiments.fraction,
    "neighbours": experiments.neighbours,
    "black_box": experiments.black_box,
    "units": experiments.units,
    "eps": experiments.eps,
    "batch_size": experiments.batch_size,
}


def diagnose_run(
    run: Run,
    name: str,
    *,
    device: str | None = None,
    on_cell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Run a diagnostic on a trained run unless that is done.

    Args:
        run: trained, with batch statistics.
        name: one of ``DIAGNOSTICS``.
        device: where to compute; the GPU if there is one.
        on_cell: called with each row.

    Returns:
        The rows of ``<name>.csv``; the outcomes of images lie beside it in ``<name>.npz``.

    Raises:
        ValueError: unknown name, or a run without batch statistics.
        FileNotFoundError: the run is not trained.
    """
    if name not in DIAGNOSTICS:
        raise ValueError(f"diagnostic is {name!r}, it must be one of {', '.join(DIAGNOSTICS)}")
    path = run.directory / f"{name}.csv"
    if path.exists():
        return store.read_rows(path)
    device = device or default_device()
    model = trained_model(run).to(device)
    if "batch" not in statistics_modes(model):
        raise ValueError(f"{run.name} has no batch statistics: there is nothing to diagnose")
    dataset = test_set(run, read_profile(run.profile)["evaluation"]["images"])
    origin, rows, outcomes = provenance(run, dataset, device), [], {}
    with evaluation_mode(model):
        for cell, correct in DIAGNOSTICS[name](run, model, dataset, device):
            outcomes["/".join(map(str, cell.values()))] = correct.numpy()
            n, hits = len(correct), int(correct.sum())
            rows.append({"run": run.name, **cell, "n": n, "correct": hits, "accuracy": 100 * hits / n})
            on_cell(rows[-1])
    store.write_correct(path.with_suffix(".npz"), outcomes)
    store.write_rows(path, [row | origin for row in rows])  # last: its being there says that all is done
    return rows

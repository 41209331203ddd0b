"""Results made by hand for the tests of the report: tables with the outcomes of their images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from study import store
from study.report import results
from study.report.comparison import Claim, make_claim
from study.runs import Run, grid, make_run

PROVENANCE = {
    "fingerprint": "f",
    "rnlib": "0",
    "revision": "r",
    "torch": "0",
    "device": "a CPU",
    "threads": 1,
}
SUITE = ("clean", "noise", "grad_sign", "bim_linf", "pgd_linf")


def write(run: Run, name: str, cells: Mapping[tuple[Any, ...], Any], columns: tuple[str, ...]) -> None:
    """A table of accuracies: of each cell (values of ``columns``) its percent of 100 images, or outcomes."""
    rows, kept = [], {}
    for cell, accuracy in cells.items():
        hits = np.arange(100) < accuracy if np.isscalar(accuracy) else np.asarray(accuracy, bool)
        counts = {"n": len(hits), "correct": int(hits.sum()), "accuracy": 100 * hits.mean()}
        rows.append(dict(zip(columns, cell, strict=True)) | counts | PROVENANCE)
        kept["/".join(map(str, cell))] = hits
    store.keep_rows(run.directory / f"{name}.csv", rows)
    store.keep(run.directory / f"{name}.npz", store.pack(kept))


def evaluate(
    accuracy: Callable[[Run, str, str], float], *, n: int = 1000, profile: str = "book", **which: Any
) -> None:
    """Evaluations of the profile's runs that have the settings in ``which``, in percent of n images."""
    for run in grid(profile):
        if all(getattr(run, key) == value for key, value in which.items()):
            modes = ("none",) if run.norm in ("no_norm", "group_norm") else ("tracked", "batch")
            cells = {
                (mode, attack): np.arange(n) < round(n * accuracy(run, mode, attack) / 100)
                for mode in modes
                for attack in SUITE
            }
            write(run, "evaluations", cells, ("statistics", "attack"))


def probe(cells: Mapping[tuple[str, str, int], Any], *, seeds: tuple[int, ...] = (0,), **which: Any) -> None:
    """A measurement called probe of natural BatchNorm: percents by statistics, attack and size."""
    for seed in seeds:
        shifted = {key: value + seed if np.isscalar(value) else value for key, value in cells.items()}
        write(make_run("book", seed=seed, **which), "probe", shifted, ("statistics", "attack", "size"))


def claim(**changes: Any) -> Claim:
    """A claim that batch statistics are ahead of tracked ones in the measurement probe."""
    base = {
        "id": "x",
        "text": "A.",
        "where": "here",
        "kind": "beyond",
        "table": "probe",
        "training": "natural",
    }
    base |= {"shared": {"norm": "batch_norm", "attack": "pgd"}, "images": 100}
    base |= {"first": {"statistics": "batch"}, "second": {"statistics": "tracked"}}
    entry = {key: value for key, value in (base | changes).items() if value is not None}
    return make_claim("page", {}, entry)


def as_in_the_paper(run: Run, mode: str, attack: str) -> float:
    """The percent that the paper's Table 2 has for a run, or 60."""
    where = {"training": run.training, "attack": attack, "norm": run.norm, "statistics": mode}
    table = results.select(results.paper(2), where)
    return float(table.accuracy.iloc[0]) if len(table) else 60.0

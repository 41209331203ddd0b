"""Results of a profile as tables, with intervals; the paper's numbers in the same form."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its statistics take a second to import, and are so where they are first used
from numpy.typing import NDArray

from study import store
from study.runs import IDENTITY, ROOT, Run, grid, results_folder

SETTINGS = [key for key in IDENTITY if key != "profile"]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95% Wilson interval of an accuracy over images, in percent: what one set of weights leaves open."""
    interval = scipy.stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """95% t interval of the mean over seeds, as the paper's tables have; at least two values."""
    mean, error = np.mean(values), scipy.stats.sem(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return float(mean - half), float(mean + half)


def difference(
    first: NDArray[np.floating], second: NDArray[np.floating], *, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two means, with its 95% percentile interval from 2,000 bootstrap resamples.

    Args:
        first, second: values of the same images, channels, ... in the same order, which are resampled
            together; where their numbers differ each side is resampled by itself.
        seed: of the resamples.

    Returns:
        first minus second, and the lower and upper end; these are infinite for a single value.
    """
    mean = float(first.mean() - second.mean())
    if min(len(first), len(second)) == 1:
        return mean, -np.inf, np.inf
    if len(first) == len(second):
        _, low, high = bootstrap_mean(first - second, seed=seed)
        return mean, low, high
    rng = np.random.default_rng(seed)
    draws = [side[rng.integers(len(side), size=(2000, len(side)))].mean(1) for side in (first, second)]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return mean, float(low), float(high)


def summary(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Mean accuracy of rows that differ in the seed, and its 95% interval: over seeds, or over images if
    there is one seed.
    """
    if len(rows) > 1:
        return (float(rows.accuracy.mean()), *over_seeds(list(rows.accuracy)))
    row = rows.iloc[0]
    return (float(row.accuracy), *wilson(int(row.correct), int(row.n)))


def select(table: pd.DataFrame, condition: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have the given values."""
    for column, value in condition.items():
        table = table[table[column] == value]
    return table


def bootstrap_mean(values: NDArray[np.floating], *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of values (n,) and its 95% percentile interval from 2,000 bootstrap resamples."""
    draws = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


@lru_cache(maxsize=64)
def _joined(found: tuple[tuple[Run, Path, int], ...]) -> pd.DataFrame | None:
    """Files of runs under one another; put together anew when the time of a last change is another."""
    tables = []
    for run, path, _ in found:
        table = pd.read_csv(path)
        settings = {key: getattr(run, key) for key in SETTINGS}
        if not table.empty:  # it is where training diverged
            tables.append(table.assign(run=run.name, row=range(len(table)), **settings))
    return pd.concat(tables, ignore_index=True) if tables else None


def _tables(profile: str, file: str, columns: Sequence[str]) -> pd.DataFrame:
    """One file of every run of a profile, with its settings; only the columns, where there is none.

    ``row`` counts the rows of each run's file.
    """
    paths = [(run, run.directory / file) for run in grid(profile)]
    found = tuple((run, path, path.stat().st_mtime_ns) for run, path in paths if path.exists())
    joined = _joined(found)
    return pd.DataFrame(columns=["run", *SETTINGS, *columns]) if joined is None else joined.copy()


def evaluations(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Accuracies: ``evaluations.csv`` of the runs of an experiment."""
    return select(table(profile, "evaluations"), {"experiment": experiment})


def histories(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Training curves: ``history.csv`` of the runs of an experiment, one row an epoch."""
    return select(_tables(profile, store.HISTORY, ["epoch"]), {"experiment": experiment})


def statistics(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Probes: ``statistics.csv`` of the runs of an experiment, one row a channel and condition."""
    return select(table(profile, "statistics"), {"experiment": experiment})


def landscapes(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Planes of losses: ``landscape.csv`` of the runs of an experiment, one row a mode and point."""
    planes = _tables(profile, store.LANDSCAPE, ["statistics", "a", "b", "loss"])
    return select(planes, {"experiment": experiment})


def sharpness(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Sharpness: ``sharpness.csv`` of the runs of an experiment, one row a mode and direction."""
    return select(table(profile, "sharpness"), {"experiment": experiment})


def diagnostic(profile: str, name: str, experiment: str = "headline") -> pd.DataFrame:
    """A diagnostic: ``<name>.csv`` of the runs of an experiment, one row a cell."""
    return select(table(profile, name), {"experiment": experiment})


def curves(profile: str) -> pd.DataFrame:
    """Training curves of all experiments, one row a run, epoch and statistics mode.

    Its columns are those of training (train_loss, train_accuracy), of validation (val_loss, val_accuracy),
    and ``rise``, how far val_loss lies above its lowest so far.
    """
    wide = _tables(profile, store.HISTORY, ["epoch", "train_loss", "train_accuracy"])
    shared = ["run", "row", *SETTINGS, "epoch", "train_loss", "train_accuracy"]
    parts = []
    for mode in ("tracked", "batch", "none"):
        if f"val_loss_{mode}" not in wide:
            continue
        loss, accuracy = f"val_loss_{mode}", f"val_accuracy_{mode}"
        part = wide[[*shared, loss, accuracy]].rename(columns={loss: "val_loss", accuracy: "val_accuracy"})
        parts.append(part.dropna(subset="val_loss").assign(statistics=mode))
    columns = [*shared, "statistics", "val_loss", "val_accuracy"]
    long = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    long = long.astype({"val_loss": float})  # also where there are no rows
    lowest = long.groupby(["run", "statistics"]).val_loss.cummin()
    return long.assign(rise=long.val_loss - lowest)


COLUMNS = {
    "evaluations": ["statistics", "attack", "accuracy"],
    "statistics": ["condition", "layer", "channel", "shift_abs", "log_ratio_abs"],
    "sharpness": ["statistics", "quantity", "value"],
}


def table(profile: str, name: str) -> pd.DataFrame:
    """A table of all experiments of a profile: evaluations, statistics, sharpness, curves, divergence or a
    diagnostic.
    """
    if name in ("curves", "divergence"):
        return curves(profile) if name == "curves" else divergence(profile)
    return _tables(profile, f"{name}.csv", COLUMNS.get(name, ["accuracy", "n", "correct"]))


def outcomes(profile: str, name: str, row: pd.Series) -> NDArray[np.bool_] | None:
    """Which test images were classified correctly in a row of a table, (n,), or None if nobody kept it."""
    folder = results_folder(profile) / row["run"]
    if name == "evaluations":
        return store.read_correct(folder / store.CORRECT).get(f"{row['statistics']}/{row['attack']}")
    kept = list(store.read_correct(folder / f"{name}.npz").values())
    return kept[row["row"]] if row["row"] < len(kept) else None


def gap(profile: str, name: str, rows: pd.DataFrame) -> tuple[float, float, float]:
    """Batch minus tracked in points, and its 95% interval, of two rows of a table: one run in both modes."""
    hits = {row["statistics"]: outcomes(profile, name, row) for _, row in rows.iterrows()}
    batch, tracked = (100.0 * np.asarray(hits[mode], dtype=float) for mode in ("batch", "tracked"))
    return difference(batch, tracked)


def pending(profile: str) -> list[Run]:
    """The runs of the grid that are not evaluated yet."""
    return [run for run in grid(profile) if not (run.directory / store.EVALUATIONS).exists()]


def hours(run: Run) -> float | None:
    """Core-hours of a run's training and evaluation, on whatever machine; None before it is evaluated."""
    history, accuracies = run.directory / store.HISTORY, run.directory / store.EVALUATIONS
    if not (history.exists() and accuracies.exists()):
        return None
    rows = pd.read_csv(accuracies)
    return float(pd.read_csv(history).seconds.sum() + rows.seconds.sum()) * int(rows.threads.max()) / 3600


def diverged(profile: str) -> list[Run]:
    """The runs of the grid whose training diverged: these are done, and have nothing to evaluate."""
    return [run for run in grid(profile) if store.has_diverged(run)]


def divergence(profile: str) -> pd.DataFrame:
    """Whether training left the finite numbers, 0 or 1: of each run that is done, once for every epoch."""
    over = diverged(profile)
    rows = [
        {"run": run.name, **{key: getattr(run, key) for key in SETTINGS}, "epoch": epoch}
        | {"diverged": int(run in over)}
        for run in grid(profile)
        if (run.directory / store.WEIGHTS).exists()
        for epoch in range(1, run.epochs + 1)
    ]
    return pd.DataFrame(rows, columns=["run", *SETTINGS, "epoch", "diverged"])


def paper(table: int) -> pd.DataFrame:
    """The paper's Table 2, 3, 4 or 5, one row a number."""
    return pd.read_csv(ROOT / "data" / "paper" / f"table{table}.csv")

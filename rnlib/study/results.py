"""Results of a profile as tables, with intervals; the paper's numbers in the same form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rnlib.study import store
from rnlib.study.runs import IDENTITY, ROOT, Run, grid, results_folder

SETTINGS = [key for key in IDENTITY if key != "profile"]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95% Wilson interval of an accuracy over images, in percent: what one set of weights leaves uncertain.
    """
    interval = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """95% t interval of the mean over seeds, as the paper's tables have; at least two values."""
    mean, error = np.mean(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return float(mean - half), float(mean + half)


def paired_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two accuracies on the same images in percentage points, with its 95% interval.

    Args:
        first, second: outcome of each image (n,).
        seed: of the 10,000 bootstrap resamples of images.

    Returns:
        first minus second, and the lower and upper end of the percentile interval.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"the outcomes are of {first.shape} and {second.shape} images; a paired difference needs the same"
            " images"
        )
    n = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    # resampling images with replacement is a multinomial draw of the three kinds of pairs
    draws = np.random.default_rng(seed).multinomial(
        n, [gained / n, lost / n, 1 - (gained + lost) / n], 10_000
    )
    low, high = np.quantile(100 * (draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return 100 * (gained - lost) / n, float(low), float(high)


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


def _tables(profile: str, experiment: str, file: str, columns: Sequence[str]) -> pd.DataFrame:
    """One file of every run of an experiment, with its settings; only the columns, where there is none."""
    tables = []
    for run in grid(profile):
        if run.experiment == experiment and (path := run.directory / file).exists():
            table = pd.read_csv(path)
            tables.append(table.assign(run=run.name, **{key: getattr(run, key) for key in SETTINGS}))
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run", *SETTINGS, *columns])
    )


def evaluations(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Accuracies: ``evaluations.csv`` of the runs of an experiment."""
    return _tables(profile, experiment, store.EVALUATIONS, ["statistics", "attack", "accuracy"])


def histories(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Training curves: ``history.csv`` of the runs of an experiment, one row an epoch."""
    return _tables(profile, experiment, store.HISTORY, ["epoch"])


def statistics(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Probes: ``statistics.csv`` of the runs of an experiment, one row a channel and condition."""
    columns = ["condition", "layer", "channel", "shift_abs", "log_ratio_abs"]
    return _tables(profile, experiment, store.STATISTICS, columns)


def landscapes(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Planes of losses: ``landscape.csv`` of the runs of an experiment, one row a mode and point."""
    return _tables(profile, experiment, store.LANDSCAPE, ["statistics", "a", "b", "loss"])


def sharpness(profile: str, experiment: str = "headline") -> pd.DataFrame:
    """Sharpness: ``sharpness.csv`` of the runs of an experiment, one row a mode and direction."""
    return _tables(profile, experiment, store.SHARPNESS, ["statistics", "quantity", "value"])


def diagnostic(profile: str, name: str) -> pd.DataFrame:
    """A diagnostic: ``<name>.csv`` of the runs of the headline, one row a cell."""
    return _tables(profile, "headline", f"{name}.csv", ["accuracy", "n", "correct"])


def outcomes(profile: str, run: str, statistics: str, attack: str) -> NDArray[np.bool_] | None:
    """Whether each test image was classified correctly, (n,), or None where that was not measured."""
    path = results_folder(profile) / run / store.CORRECT
    return store.read_correct(path).get(f"{statistics}/{attack}")


def pending(profile: str) -> list[Run]:
    """The runs of the grid that are not evaluated yet."""
    return [run for run in grid(profile) if not (run.directory / store.EVALUATIONS).exists()]


def paper(table: int) -> pd.DataFrame:
    """The paper's Table 2, 3, 4 or 5, one row a number."""
    return pd.read_csv(ROOT / "data" / "paper" / f"table{table}.csv")

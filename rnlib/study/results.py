"""Results of a profile as tables, with intervals; the paper's numbers in the same form."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rnlib.study import store
from rnlib.study.runs import ROOT, Run, grid

CONDITION = ["dataset", "architecture", "norm", "p", "training", "statistics"]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95% Wilson interval of an accuracy over images, in percent: what one set of weights leaves uncertain."""
    interval = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """95% t interval of the mean over seeds, as the paper's tables have; at least two values."""
    mean, error = np.mean(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return float(mean - half), float(mean + half)


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_], *, seed: int = 0) -> tuple[float, float, float]:
    """Difference of two accuracies on the same images in percentage points, with its 95% interval.

    Args:
        first, second: outcome of each image (n,).
        seed: of the 10,000 bootstrap resamples of images.

    Returns:
        first minus second, and the lower and upper end of the percentile interval.
    """
    if first.shape != second.shape:
        raise ValueError(f"the outcomes are of {first.shape} and {second.shape} images; a paired difference needs the same images")
    n = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    # resampling images with replacement is a multinomial draw of the three kinds of pairs
    draws = np.random.default_rng(seed).multinomial(n, [gained / n, lost / n, 1 - (gained + lost) / n], 10_000)
    low, high = np.quantile(100 * (draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return 100 * (gained - lost) / n, float(low), float(high)


def evaluations(profile: str) -> pd.DataFrame:
    """All rows of all ``evaluations.csv`` of a profile (no rows, if there are none)."""
    paths = sorted((ROOT / "results" / profile).glob(f"*/{store.EVALUATIONS}"))
    tables = [pd.read_csv(path) for path in paths]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run", *CONDITION, "seed", "attack"])


def histories(profile: str) -> pd.DataFrame:
    """All training histories of a profile, one row an epoch, with the run's name."""
    paths = sorted((ROOT / "results" / profile).glob(f"*/{store.HISTORY}"))
    tables = [pd.read_csv(path).assign(run=path.parent.name) for path in paths]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run", "epoch"])


def outcomes(profile: str, run: str, statistics: str, attack: str) -> NDArray[np.bool_] | None:
    """Whether each test image was classified correctly, (n,), or None where that was not measured."""
    path = ROOT / "results" / profile / run / store.CORRECT
    return store.read_correct(path).get(f"{statistics}/{attack}")


def pending(profile: str) -> list[Run]:
    """The runs of the grid that are not evaluated yet."""
    return [run for run in grid(profile) if not (run.directory / store.EVALUATIONS).exists()]


def paper(table: int) -> pd.DataFrame:
    """The paper's Table 2, 3, 4 or 5, one row a number."""
    return pd.read_csv(ROOT / "data" / "paper" / f"table{table}.csv")

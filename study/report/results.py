"""Results of a profile as tidy tables, with intervals; the paper's numbers in the same form.

Every interval is a 95% one. From three seeds on it is over seeds. Of one network or two it is over test
images: it leaves out what another seed would give and, for noise with batch statistics, another draw of the
noise, which all images of a batch share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its statistics take a second to import, and are so where they are first used
from numpy.typing import NDArray

from study import store
from study.runs import HEADLINE, IDENTITY, ROOT, Run, grid, results_folder

SETTINGS = [*(key for key in IDENTITY if key != "profile"), "epochs", "attack_steps", "matched"]
SEEDS = 3  # from so many on an interval is over them: of two, it is of no use
FEW = 50  # discordant images, below which a direction needs the exact test: our choice
Values = NDArray[np.floating]
Experiment = str | list[str] | None
# The columns that a page may use before anything is measured; those of evaluations, where none are named.
COLUMNS = {
    "evaluations": ["statistics", "attack", "n", "correct", "accuracy"],
    "history": ["epoch", "train_loss", "train_accuracy", "val_loss_none", "val_accuracy_none"],
    "landscape": ["statistics", "a", "b", "loss"],
}
# Of measurements, what they vary and what they find besides accuracy.
VARIED = """crafted tested source eps size habit condition layer channel normaliser loss factor at batch_size
    attacked changed composition epoch confidence vanished shift_abs log_ratio_abs std largest quantity value
    own others ratio cosine agreement probability survives threat budget winners attacks
""".split()


def table(profile: str, name: str, experiment: Experiment = HEADLINE, **where: Any) -> pd.DataFrame:
    """A table of the runs of a profile: one row a measured number, with its run's settings and provenance.

    Args:
        name: of a file of runs; or ``curves``, made of histories: a row an epoch and statistics mode, with
            ``rise``, how far the validation loss lies above its lowest so far.
        experiment: one or a list; None for all of them.
        where: columns and what they must be; a list means any of it.

    There are columns without rows where nothing is measured, and also ``run``, ``row`` (in its file),
    ``diverged``, and ``stage`` (first, last) where there are epochs.
    """
    rows = _curves(_read(profile, "history")) if name == "curves" else _read(profile, name)
    if "epoch" in rows:
        stages = np.select([rows.epoch == rows.epochs, rows.epoch == 1], ["last", "first"], "")
        rows = rows.assign(stage=stages)
    return select(rows.copy(deep=False), ({"experiment": experiment} if experiment else {}) | where)


def select(rows: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have the given values; a list means any of its values."""
    kept = np.ones(len(rows), bool)
    for column, value in where.items():
        kept &= rows[column].isin(value if isinstance(value, list) else [value]).to_numpy()
    return rows[kept]


def _read(profile: str, name: str) -> pd.DataFrame:
    paths = [(run, run.directory / f"{name}.csv") for run in grid(profile)]
    joined = _joined(tuple((run, path, path.stat().st_mtime_ns) for run, path in paths if path.exists()))
    columns = ["run", "row", *SETTINGS, "diverged", *COLUMNS.get(name, COLUMNS["evaluations"] + VARIED)]
    return pd.DataFrame(columns=columns) if joined is None else joined


@lru_cache(maxsize=64)
def _joined(found: tuple[tuple[Run, Path, int], ...]) -> pd.DataFrame | None:
    """Files of runs under one another; put together anew when the time of a last change is another."""
    tables = []
    for run, path, _ in found:
        settings = {key: getattr(run, key) for key in SETTINGS} | {"p": np.nan if run.p is None else run.p}
        rows = store.read_table(path).assign(run=run.name, **settings, diverged=int(store.has_diverged(run)))
        if len(rows):  # it is empty where training diverged
            tables.append(rows.assign(row=range(len(rows))))
    return pd.concat(tables, ignore_index=True) if tables else None


def _curves(wide: pd.DataFrame) -> pd.DataFrame:
    long = pd.wide_to_long(wide, ["val_loss", "val_accuracy"], ["run", "row"], "statistics", "_", r"\w+")
    long = long.dropna(subset="val_loss").reset_index().sort_values(["run", "statistics", "row"])
    long = long.astype({"val_loss": float})  # also where there are no rows
    return long.assign(rise=long.val_loss - long.groupby(["run", "statistics"]).val_loss.cummin())


@lru_cache
def paper(*tables: int) -> pd.DataFrame:
    """The paper's Tables 2 to 5, those that are named, one row a number; ``ci95`` is half an interval."""
    files = [ROOT / "data" / "paper" / f"table{number}.csv" for number in tables]
    return pd.concat([pd.read_csv(file) for file in files], ignore_index=True)


def outcomes(profile: str, name: str, row: pd.Series) -> NDArray[np.bool_]:
    """Which test images were classified correctly in a row of a table, (n,); ValueError if that is lost."""
    path = results_folder(profile) / row["run"] / f"{name}.npz"
    kept = _outcomes(path, path.stat().st_mtime_ns) if path.exists() else {}
    keys = list(kept)[row["row"] :] if name != "evaluations" else [f"{row['statistics']}/{row['attack']}"]
    if not keys or keys[0] not in kept:
        raise ValueError(
            f"{row['run']} has {name}.csv, but the outcomes of its images are missing: remove it"
        )
    return kept[keys[0]]


def span(counts: Sequence[float]) -> str:
    """The least and the largest of some counts: "500 to 2,000", or one number where all are the same."""
    return " to ".join(f"{one:,.0f}" for one in sorted({min(counts), max(counts)}))


def on_first(profile: str, name: str, rows: pd.DataFrame, images: pd.Series) -> pd.DataFrame:
    """Rows of a table with each accuracy on the first of its images; ``images``: how many, for each row."""
    pairs = zip(rows.iterrows(), images, strict=True)
    correct = [int(outcomes(profile, name, row)[: int(n)].sum()) for (_, row), n in pairs]
    return rows.assign(n=images, correct=correct, accuracy=100 * np.array(correct) / images)


@lru_cache(maxsize=256)
def _outcomes(path: Path, _changed: int) -> dict[str, NDArray[np.bool_]]:
    return store.read_correct(path)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson interval of an accuracy over images, in percent: what one set of weights leaves open."""
    interval = scipy.stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """t interval of the mean over seeds, as the paper's tables have; at least two values."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


@lru_cache(maxsize=4)
def _resamples(n: int) -> Values:
    """How often each of n values is drawn in each of 2,000 bootstrap resamples, (2000, n)."""
    draws = np.random.default_rng(0).integers(n, size=(2000, n))
    return np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(np.float32)


def difference(first: Values, second: Values) -> tuple[float, float, float]:
    """First minus second mean, and the ends of its percentile interval from 2,000 bootstrap resamples.

    Values of the same images, channels, ... are resampled together; where their numbers differ, each side by
    itself. The ends are infinite for a single value.
    """
    mean = float(first.mean() - second.mean())
    if min(len(first), len(second)) == 1:
        return mean, -np.inf, np.inf
    if len(first) == len(second):
        sums = _resamples(len(first)) @ (first - second).astype(np.float32)  # exact for percents of images
        means = sums.astype(float) / len(first)
    else:
        rng = np.random.default_rng(0)
        draws = [side[rng.integers(len(side), size=(2000, len(side)))].mean(1) for side in (first, second)]
        means = draws[0] - draws[1]
    low, high = np.quantile(means, [0.025, 0.975])
    return mean, float(low), float(high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Exact two-sided p that neither of two outcomes wins more of the images on which they differ."""
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def intervals(rows: pd.DataFrame, by: Sequence[str], value: str = "accuracy") -> pd.DataFrame:
    """One row for each combination of the columns ``by``: mean, low, high, and seeds, in which rows differ.

    The interval is over seeds; of fewer than three over images (Wilson); of other values none (low = high).
    """
    found = []
    for key, group in rows.groupby(list(by), sort=False, dropna=False):
        mean = float(group[value].mean())
        ends = (mean, mean)
        if len(group) >= SEEDS:
            ends = over_seeds(list(group[value]))
        elif value == "accuracy":
            ends = wilson(round(group.correct.mean()), int(group.n.iloc[0]))
        found.append((*key, mean, *ends, len(group)))
    return pd.DataFrame(found, columns=[*by, "mean", "low", "high", "seeds"])


@dataclass(frozen=True)
class Difference:
    """One side minus another, in points for accuracies.

    The interval is t over three seeds or more; else over the n images (paired where these are the same),
    channels, directions or epochs (bootstrap), of two seeds on their means. ``p`` is of the exact paired
    test, where one seed is compared on images of which fewer than ``FEW`` are discordant: the bootstrap is
    too sure of itself there.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: int
    p: float | None = None


def contrast(
    profile: str, name: str, sides: Sequence[pd.DataFrame], value: str, images: int | None = None
) -> Difference | None:
    """First minus second side, seed by seed; with four sides, less what third minus fourth are.

    A side is rows of the table ``name``. Seeds that are not in all sides are left out; None, if that leaves
    none. Accuracies are compared image by image, on the first ``images`` of each side if that is said,
    another ``value`` in its order.
    """
    seeds = [seed for seed in dict.fromkeys(sides[0].seed) if all(seed in set(one.seed) for one in sides)]
    found, p = [], None
    for seed in seeds:
        values = [_values(profile, name, rows[rows.seed == seed], value)[:images] for rows in sides]
        found.append(values[:2] if len(sides) == 2 else (values[0] - values[1], values[2] - values[3]))
    if not found:
        return None
    n = min(len(side) for pair in found for side in pair)
    if len(found) >= SEEDS:
        means = [float(first.mean() - second.mean()) for first, second in found]
        return Difference(float(np.mean(means)), *over_seeds(means), n, len(found))
    first, second = (_of_seeds([pair[side] for pair in found]) for side in (0, 1))
    if len(found) == 1 and len(sides) == 2 and value == "accuracy" and len(first) == len(second):
        p = mcnemar(first > 0, second > 0) if (first != second).sum() < FEW else None
    return Difference(*difference(first, second), n, len(found), p)


def _of_seeds(values: Sequence[Values]) -> Values:
    """The mean of each image over one or two seeds; all values, where seeds differ in their number."""
    same = len({len(one) for one in values}) == 1
    return np.mean(values, axis=0) if same else np.concatenate(values)


def _values(profile: str, name: str, rows: pd.DataFrame, value: str) -> Values:
    """What one side is the mean of: percents of images, or values by channel, direction or epoch."""
    if value != "accuracy":
        places = [column for column in ("layer", "channel", "epoch") if column in rows]
        return (rows.sort_values(places, kind="stable") if places else rows)[value].to_numpy(float)
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} rows of {name} of one seed match where one is compared: say more")
    return 100.0 * outcomes(profile, name, rows.iloc[0])


def gaps(
    profile: str,
    name: str,
    by: Sequence[str],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    experiment: Experiment = HEADLINE,
    **where: Any,
) -> pd.DataFrame:
    """One row for each combination of the columns ``by``: a :class:`Difference` of two sides of a table.

    A side is columns and their values, for instance ``{"statistics": "batch"}``; others: see :func:`table`.
    """
    found = []
    for key, rows in table(profile, name, experiment, **where).groupby(list(by), sort=False):
        gap = contrast(profile, name, [select(rows, side) for side in (first, second)], "accuracy")
        if gap is not None:
            found.append(dict(zip(by, key, strict=True)) | vars(gap))
    return pd.DataFrame(found, columns=[*by, *Difference.__dataclass_fields__])

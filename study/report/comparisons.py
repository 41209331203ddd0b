"""Two sides of a claim set against each other on the results, with an interval."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.report import results
from study.probe import BATCH_SIZE, BATCHES
from study.runs import read_profile

# What tells apart the values of one side and seed, where there are several.
PLACES = ["layer", "channel", "epoch"]


@dataclass(frozen=True)
class Comparison:
    """One side against another, first minus second.

    Attributes:
        what: what is compared, in the words of the claim's ``over`` (attacks, columns, ...).
        paper: the paper's difference, None where it gives no number.
        ours, low, high: our difference with its 95% interval: t over seeds where there are several; else over
            images (paired where the images are the same), or over channels, directions or epochs (bootstrap).
        images, seeds: what it rests on.
        direction: same, opposite or unclear: where the interval lies.
    """

    what: str
    paper: float | None
    ours: float
    low: float
    high: float
    images: int
    seeds: int
    direction: str


def compare(claim: Mapping[str, Any], profile: str) -> list[Comparison]:
    """The comparisons of a claim that can be made from the results of a profile: see ``book/claims.yml``."""
    found = []
    for label, sides in cells(claim):
        differences = _differences(claim, profile, sides)
        if differences is None:
            continue
        ours, low, high, images, seeds = differences
        direction = _direction(claim, low, high)
        found.append(Comparison(label, _paper(claim, sides), ours, low, high, images, seeds, direction))
    return found


def cells(claim: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Every comparison that a claim consists of: its label, and what each of the two sides is."""
    seconds = claim["second"] if isinstance(claim["second"], list) else [claim["second"]]
    over = claim.get("over", {})
    found = []
    for second, *values in itertools.product(seconds, *over.values()):
        shared = dict(claim.get("shared", {})) | dict(zip(over, values, strict=True))
        label = [str(value) for value in values]
        if len(seconds) > 1:
            label.append(f"against {', '.join(str(value) for value in second.values())}")
        found.append((", ".join(label), [shared | side for side in (claim["first"], second)]))
    return found


def in_the_paper(claim: Mapping[str, Any]) -> list[bool]:
    """Whether the paper's own numbers are as the claim says, for each comparison that it has them for."""
    differences = [_paper(claim, sides) for _, sides in cells(claim)]
    return [as_claimed(claim, one) for one in differences if one is not None]


def as_claimed(claim: Mapping[str, Any], difference: float) -> bool:
    """Whether a difference without an interval is what the claim says."""
    return _direction(claim, difference, difference) == "same"


def _differences(
    claim: Mapping[str, Any], profile: str, sides: list[dict[str, Any]]
) -> tuple[float, float, float, int, int] | None:
    """Mean difference, its interval, and how many images and seeds are behind it."""
    name = claim.get("table", "evaluations")
    wanted = [(name, side) for side in sides]
    if at := dict(claim.get("gap_at", {})):
        if (other := at.pop("table", name)) != name:
            shared = (*results.SETTINGS, "statistics")
            sides = [{key: side[key] for key in shared if key in side} for side in sides]
        wanted += [(other, side | at) for side in sides]
    tables = [table for table, _ in wanted]
    rows = [_rows(results.table(profile, table), claim, side) for table, side in wanted]
    seeds = [seed for seed in dict.fromkeys(rows[0].seed) if all(seed in set(side.seed) for side in rows)]
    if not seeds:
        return None
    differences = []
    for seed in seeds:
        first, second, *before = (
            _values(profile, table, side[side.seed == seed]) for table, side in zip(tables, rows, strict=True)
        )
        if before:
            first, second = first - second, before[0] - before[1]
        differences.append(results.difference(first, second))
    images = int(min(side.images.min() for side in rows))
    if len(seeds) == 1:
        return *differences[0], images, 1
    means = [mean for mean, _, _ in differences]
    return float(np.mean(means)), *results.over_seeds(means), images, len(seeds)


def _rows(table: pd.DataFrame, claim: Mapping[str, Any], side: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of one side, with the value compared and the number of images behind it."""
    where = {"experiment": "headline", "dataset": claim["evidence"]["dataset"]} | dict(side)
    value = where.pop("value", claim.get("value", "accuracy"))
    if missing := [column for column in [*where, value] if column not in table]:
        if table.empty:
            return table.assign(seed=[], images=[])
        raise ValueError(
            f"claim {claim['id']!r} names {', '.join(missing)}, which {claim.get('table', 'evaluations')}"
            f" does not have; it has {', '.join(table)}"
        )
    rows = results.select(table, where)
    options = read_profile(claim["evidence"]["profile"])
    others = {"statistics": BATCHES * BATCH_SIZE, "sharpness": options["landscape"]["images"]}
    others |= {"curves": options["defaults"]["validation_images"]}
    n = rows["n"] if "n" in rows else others.get(claim.get("table", ""), 0)
    return rows.assign(compared=rows[value], images=n).dropna(subset="compared")


def _values(profile: str, name: str, rows: pd.DataFrame) -> NDArray[np.floating]:
    """What one side is the mean of: percents of images, or values by channel, direction or epoch."""
    if len(rows) == 1 and "correct" in rows:
        hits = results.outcomes(profile, name, rows.iloc[0])
        if hits is None:
            raise ValueError(f"{rows.run.iloc[0]} has {name}.csv, but the outcomes of its images are missing")
        return 100 * hits.astype(float)
    places = [column for column in PLACES if column in rows]
    ordered = rows.sort_values(places, kind="stable") if places else rows
    return ordered.compared.to_numpy(float)


def _paper(claim: Mapping[str, Any], sides: list[dict[str, Any]]) -> float | None:
    if "paper" not in claim:
        return None
    table = results.paper(claim["paper"]["table"])
    values = []
    for side in sides:
        where = {key: value for key, value in side.items() if key in table} | {
            "dataset": claim["paper"]["dataset"]
        }
        values.append(results.select(table, where).accuracy)
    return None if any(len(value) != 1 for value in values) else float(values[0].iloc[0] - values[1].iloc[0])


def _direction(claim: Mapping[str, Any], low: float, high: float) -> str:
    """Ahead by more than ``least``, or within ``margin`` of each other."""
    least, margin = claim.get("least", 0), claim.get("margin")
    if margin is None:
        return "same" if low > least else "opposite" if high < least else "unclear"
    if -margin < low and high < margin:
        return "same"
    return "opposite" if low > margin or high < -margin else "unclear"

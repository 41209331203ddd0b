"""The claims of the paper and what our results say of them.

``book/claims.yml`` holds each claim as a comparison: two conditions, what they share, and which of them the
paper finds ahead. A verdict is computed from the result files, never written by hand; pages show it through
:func:`rnlib.study.pages.verdict`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rnlib.study import results
from rnlib.study.probe import BATCH_SIZE, BATCHES
from rnlib.study.runs import ROOT

IMAGES = BATCHES * BATCH_SIZE  # behind every row of statistics.csv
REPRODUCED, PARTLY, NOT = "reproduced", "partly reproduced", "not reproduced"
INCONCLUSIVE, UNTESTED = "inconclusive", "untested here"


@dataclass(frozen=True)
class Comparison:
    """One condition against another, first minus second.

    Attributes:
        what: name of the attack, the difference being in percentage points; or of a column of
            ``statistics.csv``.
        paper: the paper's difference, None where it gives no number.
        ours, low, high: our difference with its 95% interval: over images (paired) for one seed, t over seeds
            for more, over channels for statistics (both bootstrap).
        images, seeds: what the interval is over.
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


@dataclass(frozen=True)
class Verdict:
    """What our results say of a claim.

    Attributes:
        claim: its entry in ``book/claims.yml``.
        direction: reproduced (every comparison), partly (some), inconclusive (none is clear, and the paper's
            differences lie in our intervals), not reproduced, or untested here.
        magnitude: in words, ours against the paper's mean difference.
        comparisons: the evidence, none where it is untested.
    """

    claim: dict[str, Any]
    direction: str
    magnitude: str
    comparisons: tuple[Comparison, ...]


@cache
def read_claims() -> dict[str, dict[str, Any]]:
    """The entries of ``book/claims.yml`` by id.

    Raises:
        ValueError: an id stands twice.
    """
    entries = yaml.safe_load((ROOT / "book" / "claims.yml").read_text())
    claims = {entry["id"]: entry for entry in entries}
    if len(claims) != len(entries):
        raise ValueError("book/claims.yml has an id twice")
    return claims


def judge(claim_id: str, profile: str) -> Verdict:
    """The verdict on a claim from the results of a profile.

    Raises:
        KeyError: no such claim; the known ids are named.
    """
    claims = read_claims()
    if claim_id not in claims:
        raise KeyError(f"no claim {claim_id!r} in book/claims.yml; known are {', '.join(claims)}")
    claim = claims[claim_id]
    need = claim["evidence"]
    comparisons = tuple(_compare(claim, profile)) if need["profile"] == profile else ()
    enough = [c for c in comparisons if c.images >= need["images"] and c.seeds >= need["seeds"]]
    if len(enough) < len(claim["attacks"]):
        return Verdict(claim, UNTESTED, UNTESTED, comparisons)
    return Verdict(claim, _verdict(comparisons), _magnitude(comparisons), comparisons)


def _verdict(comparisons: Sequence[Comparison]) -> str:
    same = [c.direction == "same" for c in comparisons]
    if any(same):
        return REPRODUCED if all(same) else PARTLY
    fits = [c.direction == "unclear" and (c.paper is None or c.low <= c.paper <= c.high) for c in comparisons]
    return INCONCLUSIVE if all(fits) else NOT


def _compare(claim: dict[str, Any], profile: str) -> list[Comparison]:
    compare = _compare_statistics if "conditions" in claim else _compare_accuracy
    sample = {"dataset": claim["evidence"]["dataset"]} | claim["shared"]
    return [
        found for what in claim["attacks"] if (found := compare(claim, profile, sample, what)) is not None
    ]


def _compare_accuracy(
    claim: dict[str, Any], profile: str, sample: dict[str, Any], attack: str
) -> Comparison | None:
    experiment = claim.get("experiment", "headline")
    table = results.select(results.evaluations(profile, experiment), sample | {"attack": attack})
    first, second = (results.select(table, claim[side]) for side in ("first", "second"))
    pairs = first.merge(second, on="seed", suffixes=("", "_second"))
    if pairs.empty:
        return None
    differences = [_paired(profile, pair) for _, pair in pairs.iterrows()]
    ours, low, high = differences[0]
    if len(differences) > 1:
        values = [difference for difference, _, _ in differences]
        ours, (low, high) = float(np.mean(values)), results.over_seeds(values)
    direction = _direction(low, high, claim.get("margin"))
    return Comparison(
        attack, _paper(claim, attack), ours, low, high, int(pairs.n.min()), len(pairs), direction
    )


def _compare_statistics(
    claim: dict[str, Any], profile: str, sample: dict[str, Any], quantity: str
) -> Comparison | None:
    experiment = claim.get("experiment", "headline")
    table = results.select(results.statistics(profile, experiment), sample)
    first, second = (results.select(table, {"condition": condition}) for condition in claim["conditions"])
    pairs = first.merge(second, on=["seed", "layer", "channel"], suffixes=("", "_second"))
    if pairs.empty:
        return None
    ours, low, high = results.bootstrap_mean((pairs[quantity] - pairs[f"{quantity}_second"]).to_numpy())
    return Comparison(
        quantity, None, ours, low, high, IMAGES, pairs.seed.nunique(), _direction(low, high, None)
    )


def _paired(profile: str, pair: pd.Series) -> tuple[float, float, float]:
    first = results.outcomes(profile, pair["run"], pair["statistics"], pair["attack"])
    second = results.outcomes(profile, pair["run_second"], pair["statistics_second"], pair["attack"])
    if first is None or second is None:
        raise ValueError(f"{pair['run']} or {pair['run_second']} has evaluations.csv but not correct.npz")
    return results.paired_difference(first, second)


def _paper(claim: dict[str, Any], attack: str) -> float | None:
    if "paper" not in claim:
        return None
    source = claim["paper"]
    table = results.select(
        results.paper(source["table"]), {"dataset": source["dataset"], "attack": attack} | claim["shared"]
    )
    values = [results.select(table, claim[side]).accuracy for side in ("first", "second")]
    return None if any(len(value) != 1 for value in values) else float(values[0].iloc[0] - values[1].iloc[0])


def _direction(low: float, high: float, margin: float | None) -> str:
    """Ahead (the default), or within ``margin`` points of each other."""
    if margin is None:
        return "same" if low > 0 else "opposite" if high < 0 else "unclear"
    if -margin < low and high < margin:
        return "same"
    return "opposite" if low > margin or high < -margin else "unclear"


def _magnitude(comparisons: Sequence[Comparison]) -> str:
    ours = np.mean([c.ours for c in comparisons])
    known = [c.paper for c in comparisons if c.paper is not None]
    if len(known) < len(comparisons):
        return f"{ours:+.2f} on average; the paper gives no number"
    inside = sum(c.low <= c.paper <= c.high for c in comparisons if c.paper is not None)
    return (
        f"{ours:+.1f} points on average, {np.mean(known):+.1f} in the paper, "
        f"whose value lies in our interval in {inside} of {len(comparisons)} comparisons"
    )

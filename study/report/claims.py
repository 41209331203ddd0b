"""The claims of the paper, and what our results say of them.

``book/claims.yml`` holds each claim as a comparison of two sides; :mod:`study.report.comparisons` makes it. A
verdict is computed from the result files, never written by hand; pages show it through
:func:`study.report.ledger.verdict`. ``python -m study.report.claims`` computes all of them.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import yaml

from study.report.comparisons import Comparison, as_claimed, cells, compare
from study.runs import PROFILES, ROOT, shown

REPRODUCED, PARTLY, NOT = "reproduced", "partly reproduced", "not reproduced"
SUPPORTED, PARTLY_SUPPORTED, NOT_SUPPORTED = "supported", "partly supported", "not supported"
INCONCLUSIVE, UNTESTED = "inconclusive", "untested here"
# Of the paper's claims, and of hypotheses that go beyond it.
WORDS = {
    "paper": (REPRODUCED, PARTLY, NOT),
    "beyond": (SUPPORTED, PARTLY_SUPPORTED, NOT_SUPPORTED),
}
# What a difference is in, by the column compared.
UNITS = {"accuracy": "points", "diverged": "of the runs"}
UNITS |= dict.fromkeys(("train_loss", "val_loss", "rise", "value"), "nats")
UNITS |= {"shift_abs": "tracked standard deviations", "log_ratio_abs": "octaves"}
UNITS |= dict.fromkeys(("std", "largest"), "of the spread after BatchNorm")
REQUIRED = {"id", "page", "text", "where", "first", "second", "evidence"}
OPTIONAL = {"kind", "decides", "table", "shared", "over", "value", "margin", "least", "gap_at", "paper"}
EVIDENCE = {"profile", "dataset", "images", "seeds"}


@dataclass(frozen=True)
class Verdict:
    """What our results say of a claim.

    Attributes:
        claim: its entry in ``book/claims.yml``.
        direction: reproduced or supported (every comparison), partly (some), inconclusive (none is clear, and
            no difference of the paper's in its favour is outside our intervals), not reproduced or not
            supported, untested here.
        magnitude: in words, ours against the paper's mean difference.
        comparisons: the evidence, as far as there is any.
    """

    claim: dict[str, Any]
    direction: str
    magnitude: str
    comparisons: tuple[Comparison, ...]


@cache
def read_claims() -> dict[str, dict[str, Any]]:
    """The entries of ``book/claims.yml`` by id.

    Raises:
        ValueError: an id stands twice, or an entry has a key that is not known or lacks one.
    """
    entries = yaml.safe_load((ROOT / "book" / "claims.yml").read_text())
    for entry in entries:
        check(entry)
    claims = {entry["id"]: entry for entry in entries}
    if len(claims) != len(entries):
        ids = [entry["id"] for entry in entries]
        raise ValueError(f"book/claims.yml has an id twice: {sorted({i for i in ids if ids.count(i) > 1})}")
    return claims


def check(entry: dict[str, Any]) -> None:
    """Raise ``ValueError`` for an entry that is not of the form that ``book/claims.yml`` describes."""
    name = entry.get("id", entry)
    if unknown := sorted(set(entry) - REQUIRED - OPTIONAL):
        known = sorted(REQUIRED | OPTIONAL)
        raise ValueError(f"claim {name!r} has unknown keys {unknown}; known are {known}")
    if missing := sorted(REQUIRED - set(entry)):
        raise ValueError(f"claim {name!r} lacks {missing}")
    if set(entry["evidence"]) != EVIDENCE:
        raise ValueError(f"the evidence of claim {name!r} must say {sorted(EVIDENCE)}")
    if (kind := entry.get("kind", "paper")) not in WORDS:
        raise ValueError(f"claim {name!r} is of kind {kind!r}, it must be one of {list(WORDS)}")
    if "value" in entry.get("over", {}) and len(entry["over"]) > 1:
        raise ValueError(f"claim {name!r} compares several columns (over: value) and runs over others")
    if no_unit := [column for column in columns(entry) if column not in UNITS]:
        raise ValueError(f"claim {name!r} compares {', '.join(no_unit)}; compared can be {', '.join(UNITS)}")


def columns(entry: dict[str, Any]) -> list[str]:
    """What a claim compares: columns of its table."""
    found: list[str] = entry.get("over", {}).get("value", [entry.get("value", "accuracy")])
    return found


def judge(claim_id: str, profile: str) -> Verdict:
    """The verdict on a claim from the results of a profile, and of those that its book shows as well.

    Raises:
        KeyError: no such claim; the known ids are named.
        ValueError: the claim names a column that its table does not have.
    """
    claims = read_claims()
    if claim_id not in claims:
        raise KeyError(f"no claim {claim_id!r} in book/claims.yml; known are {', '.join(claims)}")
    claim = claims[claim_id]
    need = claim["evidence"]
    comparisons = tuple(compare(claim, need["profile"])) if need["profile"] in shown(profile) else ()
    enough = [c for c in comparisons if c.images >= need["images"] and c.seeds >= need["seeds"]]
    if len(enough) < len(cells(claim)):
        return Verdict(claim, UNTESTED, UNTESTED, comparisons)
    return Verdict(claim, _verdict(claim, comparisons), _magnitude(claim, comparisons), comparisons)


def _verdict(claim: dict[str, Any], comparisons: Sequence[Comparison]) -> str:
    yes, partly, no = WORDS[claim.get("kind", "paper")]
    same = [c.direction == "same" for c in comparisons]
    if any(same):
        return yes if all(same) else partly
    # An interval of no width around nothing is a clear tie. A difference of the paper's has to lie in our
    # interval where it speaks for the claim; some of its own do not.
    fits = [
        c.direction == "unclear"
        and c.low < c.high
        and (c.paper is None or c.low <= c.paper <= c.high or not as_claimed(claim, c.paper))
        for c in comparisons
    ]
    return INCONCLUSIVE if all(fits) else no


def _magnitude(claim: dict[str, Any], comparisons: Sequence[Comparison]) -> str:
    if "value" in claim.get("over", {}):  # each in a unit of its own
        amount = ", ".join(_amount(claim, one.what, [one]) for one in comparisons)
    else:
        amount = _amount(claim, columns(claim)[0], comparisons)
    known = [c.paper for c in comparisons if c.paper is not None]
    if claim.get("kind") == "beyond":
        return amount
    if len(known) < len(comparisons):
        return f"{amount}; the paper gives no number"
    inside = sum(c.low <= c.paper <= c.high for c in comparisons if c.paper is not None)
    paper = f"{amount}; the paper's {np.mean(known):+.1f}"
    if len(known) == 1:
        return f"{paper} lies {'within' if inside else 'outside'} the interval"
    return f"{paper} on average, its values within {inside} of {len(known)} intervals"


def _amount(claim: dict[str, Any], column: str, comparisons: Sequence[Comparison]) -> str:
    """The mean difference; within a margin the smallest and the largest, which a mean could hide."""
    unit, ours = UNITS[column], [one.ours for one in comparisons]
    if len(ours) == 1:
        low, high = comparisons[0].low, comparisons[0].high
        interval = f" ({signed(claim, low)} to {signed(claim, high)})" if math.isfinite(low) else ""
        return f"{signed(claim, ours[0])} {unit}{interval}"
    if "margin" in claim:
        return f"{signed(claim, min(ours))} to {signed(claim, max(ours))} {unit}"
    return f"{signed(claim, float(np.mean(ours)))} {unit} on average"


def signed(claim: dict[str, Any], difference: float) -> str:
    """A difference of a claim with the digits that mean something: one for points, else two."""
    digits = 1 if UNITS[columns(claim)[0]] == "points" else 2
    return f"{round(difference, digits) + 0.0:+.{digits}f}"  # without the sign of -0.0


def judge_all(profile: str) -> list[dict[str, Any]]:
    """All claims with their verdicts and comparisons, as plain values (``claims.json`` of the book)."""
    entries = []
    for claim_id in read_claims():
        verdict = judge(claim_id, profile)
        evidence = [
            {key: None if value in (math.inf, -math.inf) else value for key, value in asdict(one).items()}
            for one in verdict.comparisons
        ]
        said = {"verdict": verdict.direction, "magnitude": verdict.magnitude, "comparisons": evidence}
        entries.append(verdict.claim | said)
    return entries


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compute the verdict on every claim from the results.")
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    profile = parser.parse_args().profile
    for claim_id in read_claims():
        verdict = judge(claim_id, profile)
        print(f"{claim_id:32} {verdict.direction:18} {verdict.magnitude}")
        for one in verdict.comparisons:
            interval = f"{one.low:+8.2f} to {one.high:+8.2f}"
            rests = f"{one.images} images, {one.seeds} seed{'s' if one.seeds > 1 else ''}"
            print(f"    {one.what:30} {one.ours:+8.2f} ({interval}), {rests}")


if __name__ == "__main__":
    main()

"""What our results say of the claims in ``study/claims/``: verdicts, computed and never written by hand.

The rule is ours. A part of a claim (a training, a data set) is *reproduced* if each of its comparisons is as
claimed with 95% confidence, *partly* if some are; *inconclusive* if none is clear and no difference of the
paper's that speaks for the claim lies outside our intervals; else *not reproduced*. Where two sides are to be
within a margin, that needs an interval outside it. Hypotheses of ours are supported in place of reproduced. A
claim about robustness or accuracy after training is judged on trainings with a budget comparable to the
paper's alone (``Run.matched``); what short trainings say is shown, and is no verdict.
``python -m study.report.claims`` prints the ledger.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from study.report.comparison import LESS, OPPOSITE, SAME, Claim, Comparison, P, compare, read_claims
from study.runs import HEADLINE, PROFILES

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
INCONCLUSIVE, UNTESTED = "inconclusive", "not tested at this scale"
WORDS = {"paper": (REPRODUCED, PARTLY, NOT), "beyond": ("supported", PARTLY, "not supported")}


@dataclass(frozen=True)
class Part:
    """A claim after one training, on one data set."""

    claim: Claim
    training: str
    dataset: str
    direction: str  # a word of WORDS, inconclusive, or UNTESTED
    comparisons: list[Comparison]  # the evidence, as far as there is any at the budget of the claim
    short: list[Comparison]  # what short trainings say of a claim that is judged at a matched budget
    wanted: int  # comparisons


@dataclass(frozen=True)
class Verdict:
    """What our results say of a claim: a verdict on each part, and one on all parts that are tested."""

    claim: Claim
    parts: list[Part]

    @property
    def direction(self) -> str:
        """As the parts that are tested; partly, if they differ and one speaks for the claim."""
        yes, partly, no = WORDS[self.claim.kind]
        found = {part.direction for part in self.parts} - {UNTESTED}
        if len(found) < 2:
            return found.pop() if found else UNTESTED
        return partly if found & {yes, partly} else no


def judge(claim: str | Claim, profile: str) -> Verdict:
    """The verdict on a claim, by its id (KeyError if there is none) or as it is, from a profile's results."""
    claim = read_claims()[claim] if isinstance(claim, str) else claim
    parts = []
    for place in claim.parts:
        found, short = compare(claim, profile, *place, claim.short), []
        if claim.budget == "matched":
            found, short = compare(claim, profile, *place, HEADLINE), found
        wanted = len(list(claim.cells(*place)))
        tested = sum(one.ours.n >= claim.images for one in found) == wanted
        direction = _verdict(claim, found) if tested else UNTESTED
        parts.append(Part(claim, *place, direction, found, short, wanted))
    return Verdict(claim, parts)


def _verdict(claim: Claim, comparisons: Sequence[Comparison]) -> str:
    yes, partly, no = WORDS[claim.kind]
    directions = {one.direction for one in comparisons}
    if SAME in directions:
        return yes if directions == {SAME} else partly
    if directions & {OPPOSITE, LESS}:
        return no
    for one in comparisons if claim.margin is None else ():
        speaks = one.paper is not None and claim.directed(one.paper, one.paper) == SAME
        # An interval of no width around nothing is a clear tie.
        if one.ours.low == one.ours.high or (speaks and not _inside(one)):
            return no
    return INCONCLUSIVE


def _inside(one: Comparison) -> bool:
    return one.paper is not None and one.ours.low <= one.paper <= one.ours.high


def magnitude(comparisons: Sequence[Comparison], wanted: int, *, counted: bool = True) -> str:
    """How large differences are, as a phrase: one with its interval, the mean and range of several.

    Of several, ``counted`` tells how many are as claimed, and what the paper has.
    """
    if not comparisons:
        return "not measured yet"
    first, ours = comparisons[0], [one.ours.mean for one in comparisons]
    if len({one.unit for one in comparisons}) > 1:
        return "; ".join(f"{one.what} {magnitude([one], 1)}" for one in comparisons)
    said = f"{first.signed(float(np.mean(ours)))} {first.unit}"
    if wanted == 1:
        ends = f" ({first.signed(first.ours.low)} to {first.signed(first.ours.high)})"
        said += ends if math.isfinite(first.ours.low) else ""
        said += f", exact p = {first.ours.p:.2g}" if first.ours.p is not None and first.ours.p >= P else ""
    else:
        same = sum(one.direction == SAME for one in comparisons)
        said += f" on average (cells from {first.signed(min(ours))} to {first.signed(max(ours))})"
        if not counted:
            return said
        said += f", {SAME} in {same} of {len(ours)}"
        said += f" ({wanted - len(ours)} not measured)" if len(ours) < wanted else ""
    if not (theirs := [one.paper for one in comparisons if one.paper is not None]):
        return said
    said += f"; the paper's {first.signed(float(np.mean(theirs)))}"
    inside = sum(map(_inside, comparisons))
    if wanted == 1:
        return f"{said} lies {'within' if inside else 'outside'} the interval"
    return f"{said} on average, {inside} of its {len(theirs)} values in our intervals"


def judge_all(profile: str) -> list[dict[str, Any]]:
    """All claims with their verdicts and comparisons, as plain values (``claims.json`` of the book)."""

    def finite(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: None if value in (math.inf, -math.inf) else value for key, value in items}

    found = [judge(claim_id, profile) for claim_id in read_claims()]
    return [asdict(one, dict_factory=finite) | {"verdict": one.direction} for one in found]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compute the verdict on every claim from the results.")
    parser.add_argument("--profile", choices=PROFILES, default="book")
    profile = parser.parse_args().profile
    for found in (judge(claim_id, profile) for claim_id in read_claims()):
        print(f"{found.claim.id:34} {found.direction}")
        for part in found.parts:
            said = magnitude(part.comparisons, part.wanted)
            print(f"  {part.training}, {part.dataset}: {part.direction}: {said}")


if __name__ == "__main__":
    main()

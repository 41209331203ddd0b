"""The decision rule of the study: what has to hold if tracking is the cause of the vulnerability.

Each condition is necessary. So one that the results contradict refutes the hypothesis, and it survives only
when all of them hold. Claims of ``book/claims.yml`` say by ``decides`` which condition they are evidence for.
The rule judges accuracy under attack, as the paper does.
"""

from dataclasses import dataclass, replace
from typing import Any

from study.report.claims import UNTESTED, Verdict, judge, read_claims
from study.report.comparisons import Comparison, compare
from study.runs import TRAININGS, read_profile, shown

CONDITIONS = {
    "E1": "With batch statistics the same weights withstand the paper's attacks better than with tracked.",
    "E3": "Statistics that fit the clean batch, and cannot follow the attack, are better than tracked ones.",
    "E4": "The advantage stays when the attack is stronger: more steps, another loss.",
    "E5": "It stays when a single image of the batch is attacked, so that images cannot defend each other.",
    "E7": "It stays under an attack that uses no gradient.",
    "E10": "Norms that never had a mismatch are more robust than tracked BatchNorm.",
}
WITH_CLEAN = ("evaluations", "ladder")  # tables that have clean images, too
HOLDS, FAILS, UNCLEAR = "holds", "fails", "unclear"
SURVIVES, REFUTED, UNDECIDED, OPEN = "survives", "refuted", "undecided", "open"
SAYS = {
    SURVIVES: "**survives**: every condition holds",
    REFUTED: "is **refuted** by the rule: at least one necessary condition is contradicted",
    UNDECIDED: "is **undecided**: no condition is contradicted, and not all are clear",
    OPEN: "is **open**: no condition is contradicted so far, and some are not tested yet",
}


@dataclass(frozen=True)
class Condition:
    """A condition of the rule with what the results say of it.

    Attributes:
        name: a key of ``CONDITIONS``.
        state: holds (every comparison of its claims is clear), fails (a claim has one that is clearly the
            other way round and none as it says), unclear, or untested here.
        verdicts: of its claims.
    """

    name: str
    state: str
    verdicts: tuple[Verdict, ...]


def conditions(
    profile: str, training: str, *, lost: bool = False, evidence: str = "laptop"
) -> list[Condition]:
    """The conditions after natural or adversarial training.

    Args:
        evidence: the claims that rest on results of this profile, one that the book of ``profile`` shows.
        lost: compare the points lost from clean images to attacked ones, image by image, in place of the
            accuracy on attacked ones. Two sides that differ on clean images differ in both ways.
    """
    found = []
    for name in CONDITIONS:
        verdicts = tuple(
            judge(claim_id, profile)
            for claim_id, claim in read_claims().items()
            if claim.get("decides") == name
            and claim["shared"].get("training") == training
            and claim["evidence"]["profile"] == evidence
        )
        if lost:
            verdicts = tuple(replace(one, comparisons=_lost(one.claim)) for one in verdicts)
        found.append(Condition(name, _state(verdicts), verdicts))
    return found


def _lost(claim: dict[str, Any]) -> tuple[Comparison, ...]:
    table = claim.get("table", "evaluations")
    clean = {"attack": "clean"} | ({} if table in WITH_CLEAN else {"table": "evaluations"})
    return tuple(compare(claim | {"gap_at": clean}, claim["evidence"]["profile"]))


def _state(verdicts: tuple[Verdict, ...]) -> str:
    states = [
        HOLDS if seen == {"same"} else FAILS if "opposite" in seen and "same" not in seen else UNCLEAR
        for verdict in verdicts
        if verdict.direction != UNTESTED and (seen := {one.direction for one in verdict.comparisons})
    ]
    if FAILS in states:
        return FAILS
    if not states or len(states) < len(verdicts):
        return UNTESTED
    return HOLDS if set(states) == {HOLDS} else UNCLEAR


def decide(found: list[Condition]) -> str:
    """What the rule says: survives, refuted, undecided, or open while something is untested."""
    states = {condition.state for condition in found}
    if FAILS in states:
        return REFUTED
    if states == {HOLDS}:
        return SURVIVES
    return OPEN if UNTESTED in states else UNDECIDED


def sentence(profile: str, training: str, evidence: str = "laptop") -> str:
    """What the rule says after a training, and of points lost if that is another thing, in words."""
    found, lost = (conditions(profile, training, lost=lost, evidence=evidence) for lost in (False, True))
    epochs = read_profile(evidence)[training]["epochs"]
    told = f"After {epochs} epochs of {training} training, that tracking is the cause {said(found)}."
    if decide(lost) == decide(found):
        return told
    return f"{told} Counted in points lost from clean images, it {said(lost)}."


def budgets(profile: str) -> list[str]:
    """The profiles whose results decide in the book of a profile, the longest training first."""
    deciding = {claim["evidence"]["profile"] for claim in read_claims().values() if "decides" in claim}
    return [name for name in dict.fromkeys([*reversed(shown(profile)), "laptop"]) if name in deciding]


def answer(profile: str) -> str:
    """What the rule says after each training that :func:`budgets` names: a list."""
    return "\n".join(f"- {sentence(profile, t, name)}" for name in budgets(profile) for t in TRAININGS)


def said(found: list[Condition]) -> str:
    """What the rule says, and which conditions are how."""
    words = {FAILS: "contradicted", HOLDS: "met", UNCLEAR: "unclear", UNTESTED: "untested"}
    groups = {state: [one.name for one in found if one.state == state] for state in words}
    told = "; ".join(f"{', '.join(names)} {words[state]}" for state, names in groups.items() if names)
    return f"{SAYS[decide(found)]} ({told})" if told else SAYS[decide(found)]

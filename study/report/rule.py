"""The decision rule of the study: what has to hold if tracking is the cause of the vulnerability.

Each condition is necessary. So one that the results contradict refutes the hypothesis, and it survives only
when all of them hold. Claims say by ``decides`` which condition they are evidence for.
"""

from study.report.claims import UNTESTED, Part, judge
from study.report.comparison import OPPOSITE, SAME, read_claims
from study.report.figures import name

CONDITIONS = {
    "gap": "With batch statistics the same weights withstand the paper's attacks better.",
    "clean fit": "Statistics of the clean batch, which cannot follow the attack, beat plain averages.",
    "stronger attacks": "The advantage stays under a better attack: statistics as given, other losses.",
    "one image": "It stays when one image of the batch is attacked, so that images cannot defend each other.",
    "no gradient": "It stays under an attack that uses no gradient.",
    "other norms": "Norms that never had a mismatch are more robust than tracked BatchNorm.",
}
HOLDS, FAILS, UNCLEAR = "met", "contradicted", "unclear"
SURVIVES, REFUTED = "survives: every condition holds", "is refuted: a necessary condition is contradicted"
UNDECIDED = "is undecided: no condition is contradicted, and not all are clear"
OPEN = "is open: no condition is contradicted so far, and some are untested"
NO_GAP = "has nothing to explain: there is no gap"


def conditions(profile: str, training: str) -> dict[str, tuple[str, list[Part]]]:
    """Of each condition its state after a training, and the parts of claims that are its evidence.

    It is met if every comparison is as claimed, contradicted if a claim has one that is clearly the other way
    round and none as claimed; else unclear, or not tested at this scale.
    """
    found: dict[str, tuple[str, list[Part]]] = {}
    for condition in CONDITIONS:
        claims = [claim.id for claim in read_claims().values() if claim.decides == condition]
        parts = [part for one in claims for part in judge(one, profile).parts if part.training == training]
        found[condition] = (state([*map(_state, parts)]), parts)
    return found


def _state(part: Part) -> str:
    seen = {one.direction for one in part.comparisons}
    if part.direction == UNTESTED:
        return UNTESTED
    return HOLDS if seen == {SAME} else FAILS if OPPOSITE in seen and SAME not in seen else UNCLEAR


def state(states: list[str]) -> str:
    """The state of a condition with several claims: contradicted before untested, unclear and met."""
    order = [FAILS, UNTESTED, UNCLEAR, HOLDS]
    return min(states, key=order.index, default=UNTESTED)


def decide(states: list[str]) -> str:
    """What the rule says of the conditions' states, in their order; without the gap, which is first, nothing.

    The hypothesis survives, is refuted, is undecided, or is open while something is untested.
    """
    if states[:1] == [FAILS]:
        return NO_GAP
    return {FAILS: REFUTED, UNTESTED: OPEN, UNCLEAR: UNDECIDED, HOLDS: SURVIVES}[state(states)]


def sentence(profile: str, training: str) -> str:
    """What the rule says after a training, and which conditions are how, in words."""
    found = {condition: how for condition, (how, _) in conditions(profile, training).items()}
    groups = {how: [one for one in found if found[one] == how] for how in (FAILS, HOLDS, UNCLEAR, UNTESTED)}
    told = "; ".join(f"{how}: {', '.join(names)}" for how, names in groups.items() if names)
    return f"{name(training)}: the explanation by tracking **{decide([*found.values()])}** ({told})."

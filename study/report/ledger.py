"""The claims ledger as things that a notebook displays: verdicts, comparisons behind them, lists of both."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import pandas as pd
from IPython.display import Markdown

from study.report.claims import INCONCLUSIVE, UNTESTED, WORDS, Verdict, judge, read_claims, signed
from study.report.comparisons import Comparison, in_the_paper
from study.report.figures import ATTACKS

# How verdicts look: class of the admonition, colour of the badge, symbol.
LOOKS = [("tip", "success", "✓"), ("warning", "warning", "◐"), ("danger", "danger", "✗")]
LOOK = {word: look for words in WORDS.values() for word, look in zip(words, LOOKS, strict=True)}
LOOK |= {INCONCLUSIVE: ("note", "secondary", "?"), UNTESTED: ("note", "light", "○")}
WHAT = ATTACKS | {"shift_abs": "shift of the centre", "log_ratio_abs": "log2 ratio of spreads"}
WHAT |= {"batch_norm": "BatchNorm", "robust_norm": "RobustNorm", "group_norm": "GroupNorm"}
WHAT |= {"frozen_norm": "frozen statistics", "weight_norm": "weight normalisation"}
WHAT |= {"norm_prop": "normalisation propagation", "no_norm_bias": "no norm, with a bias"}
WHAT |= {"resnet38": "ResNet-38", "vgg11": "VGG-11", "sigma_norm": "the power of twice sigma"}
SYMBOLS = {"same": "as claimed", "opposite": "the other way round", "unclear": "unclear"}


def anchor(claim_id: str) -> str:
    """The label of a claim's place in the book: where :func:`verdict` is displayed, on the claim's page."""
    return f"claim-{claim_id}"


def what(comparison: Comparison) -> str:
    """What a comparison compares, with the names that readers know; a norm without modes has no mode."""
    name = re.sub(r"\w+", lambda word: WHAT.get(word[0], word[0]), comparison.what)
    return name.removesuffix(", none")


def where(claim: Mapping[str, Any]) -> str:
    """Where a claim stands, and in how much of it the paper's own numbers agree, where they do not in all."""
    agree = in_the_paper(claim)
    if all(agree):
        return str(claim["where"])
    return f"{claim['where']}; the paper's own numbers agree in {sum(agree)} of {len(agree)} comparisons"


def badge(direction: str) -> str:
    """A verdict as a coloured label."""
    _, colour, symbol = LOOK[direction]
    return f"{{bdg-{colour}}}`{symbol} {direction}`"


def verdict(claim_id: str, profile: str) -> Markdown:
    """A claim with its verdict, computed from the results; displayed once, on the page of the claim."""
    found = judge(claim_id, profile)
    look, _, symbol = LOOK[found.direction]
    lines = [
        f":::{{admonition}} {symbol} {found.direction.capitalize()}: {found.claim['text']}",
        f":class: {look}",
        f":name: {anchor(claim_id)}",
        f"*{where(found.claim)}.* ",
    ]
    if found.direction == UNTESTED:
        need = found.claim["evidence"]
        lines.append(
            f"A verdict needs the profile `{need['profile']}` on {need['dataset']} with at least"
            f" {need['images']:,} images and {need['seeds']} seed{'s' if need['seeds'] > 1 else ''}; that is"
            f" not there yet. {_ours(found)}"
        )
    else:
        lines.append(f"Magnitude: {found.magnitude}.")
    return Markdown("\n".join([*lines, ":::"]))


def comparisons(verdicts: Sequence[Verdict]) -> pd.DataFrame | Markdown:
    """The evidence behind verdicts, one row a comparison.

    Indexed by claim and by what is compared; n counts images, or what else is compared. Without the column of
    the paper where it gives no number; a sentence where nothing can be compared yet.
    """
    rows = [
        {
            "claim": verdict.claim["id"],
            "what": what(c),
            "paper": "" if c.paper is None else signed(verdict.claim, c.paper),
            "ours": signed(verdict.claim, c.ours),
            "95% interval": (
                f"{signed(verdict.claim, c.low)} to {signed(verdict.claim, c.high)}"
                if isfinite(c.low)
                else "none: one number"
            ),
            "n": c.images,
            "seeds": c.seeds,
            "direction": (
                "less than claimed"
                if "least" in verdict.claim and c.direction == "opposite"
                else SYMBOLS[c.direction]
            ),
        }
        for verdict in verdicts
        for c in verdict.comparisons
    ]
    if not rows:
        return Markdown("None can be made yet: the runs of this page are pending.")
    frame = pd.DataFrame(rows).set_index(["claim", "what"])
    return frame if any(frame.paper) else frame.drop(columns="paper")


def table(profile: str, kind: str = "paper") -> Markdown:
    """All claims of a kind with their verdicts and links to where they are tested."""
    verdicts = [judge(claim_id, profile) for claim_id in read_claims()]
    verdicts = [found for found in verdicts if found.claim.get("kind", "paper") == kind]
    lines = ["| Verdict | Claim | Ours against the paper |", "|---|---|---|"]
    for found in verdicts:
        claim = found.claim
        magnitude = _ours(found) if found.direction == UNTESTED else found.magnitude
        link = f"{{ref}}`{claim['text'].rstrip('.')} <{anchor(claim['id'])}>`"
        lines.append(f"| {badge(found.direction)} | {link} (*{where(claim)}*) | {magnitude} |")
    made = sum(len(found.comparisons) for found in verdicts if found.direction != UNTESTED)
    lines += [
        "",
        "A difference is positive where the side is ahead that the claim puts ahead, and else negative."
        f" {made} comparisons are behind these verdicts, each with a 95% interval of its own and without a"
        f" correction for their number: about {made / 20:.0f} of them would be wrong by chance alone.",
    ]
    return Markdown("\n".join(lines))


def tally(profile: str, kind: str = "paper") -> str:
    """How many claims of a kind have which verdict, as badges."""
    claims = [claim_id for claim_id, claim in read_claims().items() if claim.get("kind", "paper") == kind]
    counts = Counter(judge(claim_id, profile).direction for claim_id in claims)
    parts = [f"{counts[direction]} {badge(direction)}" for direction in LOOK if counts[direction]]
    return f"Of {len(claims)} claims: {', '.join(parts)}."


def summary(profile: str, claim_ids: Sequence[str]) -> Markdown:
    """Claims as a list: verdict, text with a link to where it is tested, differences."""
    lines = []
    for claim_id in claim_ids:
        found = judge(claim_id, profile)
        text = f"{{ref}}`{found.claim['text'].rstrip('.')} <{anchor(claim_id)}>`."
        lines.append(f"- {badge(found.direction)} {text} {_ours(found)}".rstrip())
    return Markdown("\n".join(lines))


def _ours(found: Verdict) -> str:
    """The comparisons behind a verdict as a sentence, which says where some are still to be made."""
    if not found.comparisons:
        return ""
    return f"{'So far' if found.direction == UNTESTED else 'Ours'}: {differences(found)}."


def differences(*verdicts: Verdict) -> str:
    """The comparisons behind verdicts as a phrase: ours, and the paper's in brackets."""
    parts = []
    for verdict in verdicts:
        for comparison in verdict.comparisons:
            name = what(comparison)
            colon = ":" if name[:1].isdigit() or name[-1:].isdigit() else ""  # two numbers would run together
            paper = "" if comparison.paper is None else f" ({signed(verdict.claim, comparison.paper)})"
            parts.append(f"{name}{colon} {signed(verdict.claim, comparison.ours)}{paper}".strip())
    return ", ".join(parts) or "not measured yet"

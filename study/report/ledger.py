"""The ledger of claims as a notebook displays it: boxes of verdicts, what is behind them, lists."""

import base64
from collections import Counter
from importlib import resources
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from study.report import results, rule
from study.report.claims import (
    INCONCLUSIVE,
    NOT,
    REPRODUCED,
    UNTESTED,
    WORDS,
    Part,
    Verdict,
    judge,
    magnitude,
)
from study.report.comparison import SAME, UNITS, paper_agrees, paper_differences, read_claims
from study.report.figures import name
from study.runs import TRAININGS

# How verdicts look: class of the admonition, colour of the badge, symbol.
LOOKS = [("tip", "success", "✓"), ("warning", "warning", "◐"), ("danger", "danger", "✗")]
LOOK = {word: look for words in WORDS.values() for word, look in zip(words, LOOKS, strict=True)}
LOOK |= {INCONCLUSIVE: ("note", "secondary", "?"), UNTESTED: ("note", "light", "○")}
# Which verdict an outcome of the rule looks like.
RULED = {rule.SURVIVES: REPRODUCED, rule.REFUTED: NOT, rule.NO_GAP: INCONCLUSIVE}
RULED |= {rule.UNDECIDED: INCONCLUSIVE, rule.OPEN: UNTESTED}
# Of the ledger: a row is a part of a claim.
HEAD = "Verdict | Claim | Training | Epochs | As claimed | Ours | Interval | Paper | n | Seeds"
PAPER = {"natural": "the paper: 164", "adversarial": "the paper: 164, with 10 steps"}
BUDGET = {"short": ". This was judged after short training, and says nothing of longer ones"}
BUDGET |= {"any": ". This does not depend on the length of training", "matched": ""}
NOISE = "The noise was drawn once: intervals leave out what another draw would give."
NOT_RUN = "not run"
# The front page: a claim of the paper in words, its part in the ledger, and the claim that says the same of
# the strongest attack, or what stands there without one.
MAIN = [
    ("Removing the tracking gains 20 points", "table2-twenty", "natural", "strong-strongest"),
    ("Tracking is the cause", None, "natural", ""),
    ("The gain is as large after adversarial training", "table2-twenty", "adversarial", NOT_RUN),
    ("A network without norm is more robust than BatchNorm", "table2-no-norm", "natural", NOT_RUN),
    ("RobustNorm is more accurate than untracked BatchNorm", "table3-clean", "natural", ""),
    ("RobustNorm is more robust than untracked BatchNorm", "fig2-best", "natural", "strong-robust-norm"),
    ("All of this is general over networks and data sets", "table4-tracking", "natural", NOT_RUN),
    ("Minima are sharp without tracking, and flat with it (nats)", "fig9-sharp", "natural", ""),
]


def anchor(claim_id: str) -> str:
    """The label of a claim's place in the book: where its box is displayed, on the claim's page."""
    return f"claim-{claim_id}"


def badge(direction: str, words: str = "") -> str:
    """A verdict as a coloured label, or other words that look like it."""
    _, colour, symbol = LOOK[direction]
    return f"{{bdg-{colour}}}`{symbol} {words or direction}`"


def _where(found: Verdict) -> str:
    agree = paper_agrees(found.claim)
    more = f"; the paper's own numbers agree in {sum(agree)} of {len(agree)} comparisons"
    return found.claim.where + ("" if all(agree) else more)


def _after(part: Part) -> str:
    return f"{name(part.training)}{f', {name(part.dataset)}' if len(part.claim.dataset) > 1 else ''}"


def _told(part: Part) -> str:
    """The verdict on a part, what it rests on, and what short trainings say."""
    told = f"{_after(part)}: **{part.direction}**"
    if part.comparisons:
        epochs, steps = part.comparisons[0].epochs, part.comparisons[0].attack_steps
        attack = f" with {steps} steps of the attack" if part.training == "adversarial" else ""
        paper = f" ({PAPER[part.training]})" if part.claim.kind == "paper" else ""
        seeds = min(one.ours.seeds for one in part.comparisons)
        few = "" if seeds >= results.SEEDS else f", {('one network', 'two networks')[seeds - 1]}"
        told += f". After {epochs} epochs{attack}{few}{paper}: {magnitude(part.comparisons, part.wanted)}"
        told += BUDGET[part.claim.budget]
    if part.short:
        shown = magnitude(part.short, part.wanted)
        told += f". After {part.short[0].epochs} epochs, too short for a verdict: {shown}"
    noisy = any(name("noise") in one.what for one in part.comparisons + part.short)
    return f"{told}. {NOISE}" if noisy else f"{told}."


def verdict(claim_id: str, profile: str) -> Markdown:
    """A claim with its verdict, computed from the results; displayed once, on the page of the claim."""
    found = judge(claim_id, profile)
    look, _, symbol = LOOK[found.direction]
    head = f":::{{admonition}} {symbol} {found.direction.capitalize()}: {found.claim.text}"
    head += f"\n:class: {look} dropdown\n:name: {anchor(claim_id)}\n\n*{_where(found)}.*\n"
    return Markdown("\n".join([head, *(f"- {_told(part)}" for part in found.parts), ":::"]))


def _page(page: str) -> list[str]:
    return [claim.id for claim in read_claims().values() if claim.page == page]


def verdicts(page: str, profile: str) -> Markdown:
    """The boxes of all claims of a page, in the order of its file."""
    return Markdown("\n\n".join(verdict(claim_id, profile).data for claim_id in _page(page)))


def comparisons(page: str, profile: str) -> pd.DataFrame | Markdown:
    """The evidence behind the claims of a page, short trainings included: one row a comparison.

    n counts images, or what else is compared; p is that of the exact paired test, where few images decide.
    """
    rows = []
    for part in (part for claim_id in _page(page) for part in judge(claim_id, profile).parts):
        for one in part.comparisons + part.short:
            both = (one.ours.low, one.ours.high)
            ends = [one.signed(end) if isfinite(end) else "one number" for end in both]
            row: dict[str, Any] = {"claim": part.claim.id}
            row |= {"what": ", ".join(filter(None, [name(part.training), one.what])), "epochs": one.epochs}
            row |= {"paper": "" if one.paper is None else one.signed(one.paper)}
            row |= {"ours": one.signed(one.ours.mean), "low": ends[0], "high": ends[1]}
            row |= {"p": "" if one.ours.p is None else f"{one.ours.p:.2g}", "n": one.ours.n}
            rows.append(row | {"seeds": one.ours.seeds, "direction": one.direction})
    if not rows:
        return Markdown("Nothing measured yet.")
    frame = pd.DataFrame(rows).set_index(["claim", "what"])
    return frame.drop(columns=[column for column in ("paper", "p") if not any(frame[column])])


def _parts(claim_id: str, profile: str, training: str) -> list[Part]:
    return [part for part in judge(claim_id, profile).parts if part.training == training]


def said(claim_id: str, profile: str, training: str) -> str:
    """The differences of a claim after a training as a phrase: "+20.9 points on average (...)"."""
    parts = _parts(claim_id, profile, training)
    return "; ".join(magnitude(part.comparisons, part.wanted, counted=False) for part in parts)


def tell(claim_id: str, profile: str, training: str, *words: str) -> str:
    """What to say by the verdict on a claim: of five texts for yes, in part, no, unclear and untested."""
    part = _parts(claim_id, profile, training)[0]
    known = (*WORDS[part.claim.kind], INCONCLUSIVE, UNTESTED)
    return dict(zip(known, words, strict=True))[part.direction]


def number(claim_id: str, profile: str, training: str, *, paper: bool = False) -> str:
    """The mean difference of a claim after a training, ours or the paper's, for a sentence: "+20.9"."""
    part = _parts(claim_id, profile, training)[0]
    if paper:
        values = paper_differences(part.claim, (part.training, part.dataset))
        return f"{np.mean(values):+.1f}" if values else "none given"
    values = [one.ours.mean for one in part.comparisons]
    return part.comparisons[0].signed(float(np.mean(values))) if values else "not measured yet"


def _numbers(part: Part) -> list[str]:
    """What a part rests on, for the columns from the epochs on; of several comparisons means and ranges."""
    found = part.comparisons or part.short
    if not found:
        return [""] * 7
    first, paper = found[0], [one.paper for one in found if one.paper is not None]
    ends = [min(one.ours.low for one in found), max(one.ours.high for one in found)]
    told = [first.signed(float(np.mean(some))) for some in ([one.ours.mean for one in found], paper) if some]
    told = [*told, ""] if len({one.unit for one in found}) == 1 else ["", ""]  # else a mean means nothing
    inner = " to ".join(map(first.signed, ends)) if told[0] and isfinite(ends[0]) else ""
    same = sum(one.direction == SAME for one in found)
    counts = [results.span([getattr(one.ours, key) for one in found]) for key in ("n", "seeds")]
    return [
        results.span([one.epochs for one in found]),
        f"{same} of {part.wanted}",
        told[0],
        inner,
        told[1],
        *counts,
    ]


def table(profile: str, kind: str = "paper") -> Markdown:
    """All claims of a kind, a row for each part of one, with links to their tests, and how many are how."""
    found = [judge(claim, profile) for claim in read_claims().values() if claim.kind == kind]
    counts = Counter(one.direction for one in found)
    tally = ", ".join(f"{counts[word]} {badge(word)}" for word in LOOK if counts[word])
    head = [f"| {HEAD} |", f"|{'---|' * 3}{'---:|' * 7}"]
    lines = [f"Of {len(found)} claims: {tally}. A claim is judged by training and data set.", "", *head]
    for one in found:
        unit = UNITS[one.claim.over.get("value", [one.claim.value])[0]]
        more = _where(one) + f"; {unit}" * (unit != "points")
        link = f"{{ref}}`{one.claim.text.rstrip('.')} <{anchor(one.claim.id)}>` (*{more}*)"
        for part in one.parts:
            cells = [badge(part.direction), link, _after(part).replace(" training", ""), *_numbers(part)]
            lines.append(f"| {' | '.join(cells)} |")
    made = sum(len(part.comparisons) for one in found for part in one.parts if part.direction != UNTESTED)
    chance = f"Each of {made} comparisons has a 95% interval of its own, with no correction for their number:"
    lines += ["", f"{chance} about {made / 20:.0f} would be clear by chance alone."]
    return Markdown("\n".join(lines))


def sortable() -> HTML:
    """Lets the reader sort and search the tables of claims, by DataTables, which comes with the page."""
    files = resources.files("itables") / "html"
    script = base64.b64encode((files / "dt_bundle.js").read_bytes()).decode()
    style = (files / "dt_bundle.css").read_text()
    return HTML(
        f"<style>{style}</style><script type='module'>"
        f"import {{ jQuery as $ }} from 'data:text/javascript;base64,{script}';"
        "$('table:has(th:contains(As claimed))').DataTable({paging: false, order: [], autoWidth: false});"
        "</script>"
    )


def main_claims(profile: str) -> Markdown:
    """The paper's eight main claims: verdict, its number, ours under its attack and under the strongest."""
    head = "| Claim | Verdict | The paper | Ours | Strongest attack |"
    lines = [head, "|---|---|---:|---:|---:|"]
    for words, claim_id, training, strong in MAIN:
        if claim_id is None:
            outcome = rule.decide([how for how, _ in rule.conditions(profile, training).values()])
            told = badge(RULED[outcome], outcome.partition(":")[0].removeprefix("is "))
            lines.append(f"| {{ref}}`{words} <verdict>` | {told} | - | - | - |")
            continue
        cells = [badge(_parts(claim_id, profile, training)[0].direction)]
        cells += [number(claim_id, profile, training, paper=paper) for paper in (True, False)]
        cells.append(number(strong, profile, training) if strong in read_claims() else strong or "-")
        lines.append(f"| {{ref}}`{words} <{anchor(claim_id)}>` | {' | '.join(cells)} |")
    return Markdown("\n".join(lines))


def conditions(profile: str) -> Markdown:
    """The decision rule: its conditions with links to evidence, a column a training, and what it says."""
    columns = [rule.conditions(profile, training) for training in TRAININGS]
    lines = [
        f"| Condition, and points in its favour | {' | '.join(map(name, TRAININGS))} |",
        "|---|---|---|",
    ]
    for condition, words in rule.CONDITIONS.items():
        states = []
        for how, parts in (column[condition] for column in columns):
            tested = [part for part in parts if part.direction != UNTESTED]
            told = [(number(part.claim.id, profile, part.training), part.claim.id) for part in tested]
            links = ", ".join(f"{{ref}}`{value} <{anchor(one)}>`" for value, one in told)
            states.append(f"{how}: {links}" if links else how)
        lines.append(f"| {words} | {' | '.join(states)} |")
    return Markdown("\n".join([*lines, "", *(f"- {rule.sentence(profile, one)}" for one in TRAININGS)]))

"""What the explanation by shared gradients predicts, what would refute it, and what came out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from IPython.display import Markdown

from study.report.claims import Part, judge, magnitude
from study.report.comparison import make_claim, read_claims
from study.report.ledger import anchor, badge

CONFIRMING = [1, 2, 3, 4]  # the first seed is the one that suggested the predictions
SHARED = {"kind": "beyond", "where": "beyond the paper", "shared": {"architecture": "resnet20"}}


def read_predictions() -> list[dict[str, Any]]:
    """The entries of ``predictions.yml``, each with the claim that decides it under ``claim``."""
    entries = yaml.safe_load(Path(__file__).with_name("predictions.yml").read_text())
    for entry in entries:
        told = {"id": entry["text"], "text": entry["text"], "training": "natural"} | entry.get("compare", {})
        told["shared"] = {"norm": "batch_norm"} | told.get("shared", {})
        known = read_claims()[entry["claim"]] if "claim" in entry else make_claim("verdict", SHARED, told)
        entry["claim"] = replace(known, training=[entry.get("training", "natural")])
    return entries


def table(profile: str) -> Markdown:
    """The predictions and how each came out: over all seeds, and over those that did not suggest it."""
    lines = [
        "| | Prediction | Refuted if | Verdict | In its favour | The same without seed 0 |",
        "|---|---|---|---|---|---|",
    ]
    for entry in read_predictions():
        claim = entry["claim"]
        other = replace(claim, shared=claim.shared | {"seed": CONFIRMING})
        (part,), (again,) = judge(claim, profile).parts, judge(other, profile).parts
        text = entry["text"]
        if claim.id in read_claims():
            text = f"{{ref}}`{text.rstrip('.')} <{anchor(claim.id)}>`"
        cells = [
            entry["letter"],
            text,
            entry["refuted"],
            badge(part.direction),
            _result(part),
            "the same" if again.comparisons == part.comparisons != [] else _result(again),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return Markdown("\n".join(lines))


def _result(part: Part) -> str:
    told = magnitude(part.comparisons, part.wanted)
    if not part.comparisons:
        return told
    seeds = max(one.ours.seeds for one in part.comparisons)
    return f"{told}; n {min(one.ours.n for one in part.comparisons):,}, {seeds} seed{'s' * (seeds > 1)}"

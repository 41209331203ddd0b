"""The parts that chapters of the book have in common, as things that a notebook displays."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from rnlib.study import results
from rnlib.study.claims import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, UNTESTED, Verdict, judge, read_claims
from rnlib.study.figures import ATTACKS, SERIES
from rnlib.study.runs import Run, grid

LOOK = {
    REPRODUCED: ("tip", "✓"),
    PARTLY: ("warning", "◐"),
    NOT: ("danger", "✗"),
    INCONCLUSIVE: ("note", "?"),
    UNTESTED: ("note", "○"),
}
WHAT = ATTACKS | {"shift_abs": "shift of the centre", "log_ratio_abs": "log2 ratio of spreads"}
SYMBOLS = {"same": "as in the paper", "opposite": "the other way round", "unclear": "unclear"}


def command(run: Run) -> str:
    """The shell command that makes a run."""
    return f"papermill notebooks/train.ipynb out.ipynb {run.options}"


def setting(profile: str) -> Markdown:
    """What the numbers of a page were measured on, and what is missing."""
    table = results.evaluations(profile)
    text = ""
    if table.empty:
        text += f"No run of the profile `{profile}` has been evaluated yet.\n\n"
    else:
        epochs = ", ".join(
            f"{int(e)} {t}"
            for t, e in table.groupby("training").epochs.max().sort_index(ascending=False).items()
        )
        names = set(table.run)
        precision = " or ".join(sorted({run.precision for run in grid(profile) if run.name in names}))
        text += (
            f"Our numbers: profile `{profile}`, dataset **{', '.join(table.dataset.unique())}**, epochs of"
            f" training: {epochs}; trained in {precision}, evaluated in float32;"
            f" {int(table.n.min()):,} test images in batches of {int(table.batch_size.max())},"
            f" {table.seed.nunique()} seed{'s' if table.seed.nunique() > 1 else ''};"
            f" data fingerprint `{table.fingerprint.iloc[0]}`,"
            f" code revision `{table.revision.iloc[-1]}`, {table.device.iloc[-1]}.\n\n"
        )
    if profile == "quick":
        text += (
            "**This is the `quick` profile: it shows that the pipeline works and supports no verdict.**\n\n"
        )
    if missing := results.pending(profile):
        text += (
            f"Pending ({len(missing)} runs, shown nowhere below), for"
            f" example\n\n```\n{command(missing[0])}\n```\n"
        )
    return Markdown(f":::{{admonition}} What was measured\n:class: note\n{text}:::")


def verdict(claim_id: str, profile: str) -> Markdown:
    """A claim with its verdict, computed from the results."""
    found = judge(claim_id, profile)
    look, symbol = LOOK[found.direction]
    lines = [
        f":::{{admonition}} {symbol} {found.direction.capitalize()}: {found.claim['text']}",
        f":class: {look}",
        f"*{found.claim['where']}.* ",
    ]
    if found.direction == UNTESTED:
        need = found.claim["evidence"]
        lines.append(
            f"A verdict needs the profile `{need['profile']}` on {need['dataset']} with at least"
            f" {need['images']:,} images and {need['seeds']} seed{'s' if need['seeds'] > 1 else ''}; that is"
            " not there yet."
        )
    else:
        lines.append(f"Magnitude: {found.magnitude}.")
    return Markdown("\n".join([*lines, ":::"]))


def comparisons(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The evidence behind verdicts, one row a comparison, as differences in percentage points."""
    rows = [
        {
            "claim": verdict.claim["id"],
            "what": WHAT.get(c.what, c.what),
            "paper": c.paper,
            "ours": c.ours,
            "95% interval": f"{c.low:+.1f} to {c.high:+.1f}",
            "images": c.images,
            "seeds": c.seeds,
            "direction": SYMBOLS[c.direction],
        }
        for verdict in verdicts
        for c in verdict.comparisons
    ]
    return pd.DataFrame(rows)


def ledger(profile: str) -> Markdown:
    """All claims with their verdicts and links to their chapters."""
    lines = ["| Claim | Where | Verdict | Ours against the paper |", "|---|---|---|---|"]
    for claim_id, claim in read_claims().items():
        found = judge(claim_id, profile)
        magnitude = "" if found.direction == UNTESTED else found.magnitude
        link = f"{{doc}}`{claim['text'].rstrip('.')} </chapters/{claim['page']}>`"
        lines.append(
            f"| {link} | {claim['where']} | {LOOK[found.direction][1]} {found.direction} | {magnitude} |"
        )
    return Markdown("\n".join(lines))


def headline(profile: str, claim_ids: Sequence[str]) -> Markdown:
    """How many claims have which verdict, and the chosen ones with their differences."""
    verdicts = {claim_id: judge(claim_id, profile) for claim_id in read_claims()}
    counts = Counter(found.direction for found in verdicts.values())
    tally = ", ".join(
        f"{symbol} {counts[direction]} {direction}"
        for direction, (_, symbol) in LOOK.items()
        if counts[direction]
    )
    lines = [f"Of {len(verdicts)} claims: **{tally}**."]
    for claim_id in claim_ids:
        found = verdicts[claim_id]
        parts = "" if found.direction == UNTESTED else f" Ours (the paper's): {differences(found)} points."
        lines.append(
            f"- {LOOK[found.direction][1]} **{found.direction.capitalize()}**: {found.claim['text']}{parts}"
        )
    return Markdown("\n".join([lines[0], "", *lines[1:]]))


def accuracies(profile: str, norms: Sequence[str]) -> pd.DataFrame:
    """Accuracy in percent (95% interval): a row an attack, a column a training, norm and mode."""
    table = results.evaluations(profile)
    table = table[table.norm.isin(norms)]
    cells = {}
    for (training, norm, mode, attack), rows in table.groupby(
        ["training", "norm", "statistics", "attack"], sort=False
    ):
        mean, low, high = results.summary(rows)
        label = SERIES[norm, mode][0]
        cells[training, label, WHAT.get(attack, attack)] = f"{mean:.1f} ({low:.0f}-{high:.0f})"
    frame = pd.Series(cells, dtype=object).unstack([0, 1]) if cells else pd.DataFrame()
    return frame.reindex([name for name in WHAT.values() if name in frame.index])


def paper_table(number: int) -> pd.DataFrame:
    """A table of the paper in its own layout, in percent, with its 95% interval where it has one."""
    table = results.paper(number)
    table["norm"] = [SERIES[pair][0] for pair in zip(table.norm, table.statistics, strict=True)]
    interval = table.ci95.map(lambda half: "" if pd.isna(half) else f" ± {half:g}")
    table["text"] = table.accuracy.map("{:.2f}".format) + interval
    table["attack"] = table.attack.map(WHAT)
    return table.pivot(
        index=["architecture", "norm"], columns=["dataset", "training", "attack"], values="text"
    )


def differences(*verdicts: Verdict) -> str:
    """The comparisons behind verdicts as a phrase, in points: ours, and the paper's in brackets."""
    parts = [
        f"{WHAT.get(c.what, c.what)} {c.ours:+.1f}" + ("" if c.paper is None else f" ({c.paper:+.1f})")
        for verdict in verdicts
        for c in verdict.comparisons
    ]
    return ", ".join(parts) or "not measured yet"


def show(figure: Figure, *, caption: str, alt: str, notebook: str, profile: str) -> HTML:
    """A figure with its caption, its text for those who cannot see it, and the command that makes it.

    Args:
        caption: states the finding; computed from results where it holds numbers.
        alt: what the picture shows.
        notebook: name of the chapter's notebook.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160)
    plt.close(figure)
    data = base64.b64encode(file.getvalue()).decode()
    made = f"papermill notebooks/{notebook}.ipynb out.ipynb -p profile {profile}"
    return HTML(
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}"'
        f' style="width:100%;background:white"><figcaption style="color:inherit">{escape(caption)}'
        f" <br><small>Made by <code>{escape(made)}</code></small></figcaption></figure>"
    )

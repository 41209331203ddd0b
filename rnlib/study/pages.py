"""The parts that chapters of the book have in common, as things that a notebook displays."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from math import isfinite

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from rnlib.study import results
from rnlib.study.claims import INCONCLUSIVE, UNTESTED, WORDS, Verdict, judge, read_claims
from rnlib.study.figures import ATTACKS, SERIES
from rnlib.study.runs import Run, grid

# How verdicts look: class of the admonition, colour of the badge, symbol.
LOOKS = [("tip", "success", "✓"), ("warning", "warning", "◐"), ("danger", "danger", "✗")]
LOOK = {word: look for words in WORDS.values() for word, look in zip(words, LOOKS, strict=True)}
LOOK |= {INCONCLUSIVE: ("note", "secondary", "?"), UNTESTED: ("note", "light", "○")}
WHAT = ATTACKS | {"shift_abs": "shift of the centre", "log_ratio_abs": "log2 ratio of spreads"}
WHAT |= {"batch_norm": "BatchNorm", "robust_norm": "RobustNorm"}
SYMBOLS = {"same": "as claimed", "opposite": "the other way round", "unclear": "unclear"}


def command(run: Run) -> str:
    """The shell command that makes a run."""
    return f"papermill notebooks/train.ipynb out.ipynb {run.options}"


def setting(
    profile: str, experiment: str = "headline", runs: Callable[[Run], bool] = lambda run: True
) -> Markdown:
    """What the numbers of a page were measured on, and what is missing.

    Args:
        experiment, runs: which runs the page is about.
    """

    def concerned(found: Sequence[Run]) -> list[Run]:
        return [run for run in found if run.experiment == experiment and runs(run)]

    table = results.evaluations(profile, experiment)
    table = table[table.run.isin([run.name for run in concerned(grid(profile))])]
    text = ""
    if table.empty:
        text += f"None of these runs of the profile `{profile}` has been evaluated yet.\n\n"
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
            f" code revision `{table.revision.iloc[-1]}`, {', '.join(sorted(table.device.unique()))}.\n\n"
        )
    if profile == "quick":
        text += (
            "**This is the `quick` profile: it shows that the pipeline works and supports no verdict.**\n\n"
        )
    if missing := concerned(results.pending(profile)):
        text += (
            f"Pending ({len(missing)} run{'s' if len(missing) > 1 else ''}, shown nowhere below), for"
            f" example\n\n```\n{command(missing[0])}\n```\n"
        )
    if diverged := concerned(results.diverged(profile)):
        listed = "; ".join(f"{run.norm}, {run.training}, seed {run.seed}" for run in diverged)
        text += f"\n\nTraining diverged, so that there is nothing to evaluate: {listed}.\n"
    return Markdown(f":::{{admonition}} What was measured\n:class: note\n{text}:::")


def anchor(claim_id: str) -> str:
    """The label of a claim's place in the book: where :func:`verdict` is displayed, on the claim's page."""
    return f"claim-{claim_id}"


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
    """The evidence behind verdicts, one row a comparison: differences, in points for accuracies.

    Indexed by claim and by what is compared; n counts images, or what else is compared. Without the column of
    the paper where it gives no number.
    """
    rows = [
        {
            "claim": verdict.claim["id"],
            "what": WHAT.get(c.what, c.what),
            "paper": "" if c.paper is None else f"{c.paper:+.1f}",
            "ours": f"{c.ours:+.2g}" if abs(c.ours) < 1 else f"{c.ours:+.1f}",
            "95% interval": f"{c.low:+.1f} to {c.high:+.1f}" if isfinite(c.low) else "none: one number",
            "n": c.images,
            "seeds": c.seeds,
            "direction": SYMBOLS[c.direction],
        }
        for verdict in verdicts
        for c in verdict.comparisons
    ]
    table = pd.DataFrame(rows).set_index(["claim", "what"]) if rows else pd.DataFrame()
    return table if rows and any(table.paper) else table.drop(columns="paper", errors="ignore")


def ledger(profile: str, kind: str = "paper") -> Markdown:
    """All claims of a kind with their verdicts and links to where they are tested."""
    verdicts = [judge(claim_id, profile) for claim_id in read_claims()]
    verdicts = [found for found in verdicts if found.claim.get("kind", "paper") == kind]
    lines = ["| Verdict | Claim | Ours against the paper |", "|---|---|---|"]
    for found in verdicts:
        claim = found.claim
        magnitude = "" if found.direction == UNTESTED else found.magnitude
        link = f"{{ref}}`{claim['text'].rstrip('.')} <{anchor(claim['id'])}>`"
        lines.append(f"| {badge(found.direction)} | {link} (*{claim['where']}*) | {magnitude} |")
    made = sum(len(found.comparisons) for found in verdicts if found.direction != UNTESTED)
    lines += [
        "",
        f"{made} comparisons are behind these verdicts, each with a 95% interval of its own and without a"
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
        parts = "" if found.direction == UNTESTED else f" Ours: {differences(found)}."
        text = f"{{ref}}`{found.claim['text'].rstrip('.')} <{anchor(claim_id)}>`."
        lines.append(f"- {badge(found.direction)} {text}{parts}")
    return Markdown("\n".join(lines))


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
        low, high = max(low, 0), min(high, 100)  # a t interval does not know that these are the limits
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
        f"{WHAT.get(c.what, c.what)}{':' if c.what[:1].isdigit() else ''} {c.ours:+.1f}".strip()
        + ("" if c.paper is None else f" ({c.paper:+.1f})")
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
        f'<figure><div class="wide"><img src="data:image/png;base64,{data}" alt="{escape(alt)}"'
        f' style="width:100%;background:white"></div><figcaption style="color:inherit">{escape(caption)}'
        f" <br><small>Made by <code>{escape(made)}</code></small></figcaption></figure>"
    )

"""The parts that chapters of the book have in common, as things that a notebook displays."""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from rnlib.study import results
from rnlib.study.claims import NOT, PARTLY, REPRODUCED, UNTESTED, Verdict, judge, read_claims
from rnlib.study.figures import ATTACKS, SERIES, attack_names
from rnlib.study.runs import Run, read_profile

LOOK = {REPRODUCED: ("tip", "✓"), PARTLY: ("warning", "◐"), NOT: ("danger", "✗"), UNTESTED: ("note", "○")}
SYMBOLS = {"same": "as in the paper", "opposite": "the other way round", "unclear": "unclear"}


def command(run: Run) -> str:
    """The shell command that makes a run."""
    keys = ("profile", "dataset", "architecture", "norm", "p", "training", "seed")
    options = " ".join(f"-p {key} {value}" for key in keys if (value := getattr(run, key)) is not None)
    return f"papermill notebooks/train.ipynb out.ipynb {options}"


def setting(profile: str) -> Markdown:
    """What the numbers of a page were measured on, and what is missing."""
    table = results.evaluations(profile)
    text = ""
    if table.empty:
        text += f"No run of the profile `{profile}` has been evaluated yet.\n\n"
    else:
        epochs = ", ".join(f"{int(e)} {t}" for t, e in table.groupby("training").epochs.max().sort_index(ascending=False).items())
        text += (
            f"Our numbers: profile `{profile}`, dataset **{', '.join(table.dataset.unique())}**, epochs of training: {epochs}; "
            f"{int(table.n.min()):,} test images in batches of {int(table.batch_size.max())}, "
            f"{table.seed.nunique()} seed{'s' if table.seed.nunique() > 1 else ''}; data fingerprint "
            f"`{table.fingerprint.iloc[0]}`, code revision `{table.revision.iloc[-1]}`, {table.device.iloc[-1]}.\n\n"
        )
    if profile == "quick":
        text += "**This is the `quick` profile: it shows that the pipeline works and supports no verdict.**\n\n"
    if missing := results.pending(profile):
        text += f"Pending ({len(missing)} runs, shown nowhere below), for example\n\n```\n{command(missing[0])}\n```\n"
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
            f"A verdict needs the profile `{need['profile']}` on {need['dataset']} with at least {need['images']:,} images and "
            f"{need['seeds']} seed{'s' if need['seeds'] > 1 else ''}; that is not there yet."
        )
    else:
        lines.append(f"Magnitude: {found.magnitude}.")
    return Markdown("\n".join([*lines, ":::"]))


def comparisons(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The evidence behind verdicts, one row a comparison: differences in percentage points with 95% intervals."""
    rows = [
        {
            "claim": verdict.claim["id"],
            "attack": ATTACKS.get(c.attack, c.attack),
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
        link = f"{{doc}}`{claim['text'].rstrip('.')} <chapters/{claim['page']}>`"
        lines.append(f"| {link} | {claim['where']} | {LOOK[found.direction][1]} {found.direction} | {magnitude} |")
    return Markdown("\n".join(lines))


def accuracy_figure(
    profile: str, table: int, training: str, attacks: Sequence[str], series: Sequence[tuple[str, str]],
    architecture: str = "resnet20", paper_dataset: str = "cifar10",
) -> Figure:  # fmt: skip
    """Accuracy under each attack, the paper's (open, with its interval) beside ours (filled, 95% interval), one colour a norm."""
    theirs, ours = results.paper(table), results.evaluations(profile)
    dataset = read_profile(profile)["defaults"]["dataset"]
    figure, axis = plt.subplots(figsize=(9, 3.6))
    step = 0.8 / len(series)
    for index, (norm, statistics) in enumerate(series):
        label, colour, _ = SERIES[norm, statistics]
        for place, attack in enumerate(attacks):
            x = place + (index - (len(series) - 1) / 2) * step
            condition = {"architecture": architecture, "norm": norm, "statistics": statistics, "training": training, "attack": attack}
            for source, where, offset in ((theirs, {"dataset": paper_dataset}, -0.2), (ours, {"dataset": dataset}, 0.2)):
                chosen = source.loc[(source[list(condition | where)] == pd.Series(condition | where)).all(axis=1)]
                if chosen.empty:
                    continue
                mean = chosen.accuracy.mean()
                if source is theirs:
                    half = chosen.ci95.iloc[0]
                    low, high = (mean - half, mean + half) if pd.notna(half) else (mean, mean)
                elif len(chosen) > 1:
                    low, high = results.over_seeds(list(chosen.accuracy))
                else:
                    low, high = results.wilson(int(chosen.correct.iloc[0]), int(chosen.n.iloc[0]))
                axis.errorbar(
                    x + offset * step, mean, [[mean - low], [high - mean]], color=colour, capsize=2, marker="o" if offset > 0 else "s",
                    markerfacecolor=colour if offset > 0 else "white", markersize=6,
                    label=label if place == 0 and offset > 0 else None,
                )  # fmt: skip
    axis.set_xticks(range(len(attacks)), attack_names(attacks))
    axis.set(ylabel="accuracy (%)", ylim=(0, 100), title=f"{training.capitalize()} training")
    for place in range(len(attacks) - 1):
        axis.axvline(place + 0.5, color="0.85", linewidth=0.8)
    axis.grid(axis="x", visible=False)
    handles, labels = axis.get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="0.3", marker=m, markerfacecolor=f, linestyle="") for m, f in (("s", "white"), ("o", "0.3"))]
    figure.legend(handles, [*labels, "open: the paper", "filled: ours"], loc="outside lower center", ncols=3, fontsize="small")
    return figure


def differences(verdict: Verdict) -> str:
    """The comparisons behind a verdict as a phrase, in percentage points: ours, and the paper's in brackets."""
    if not verdict.comparisons:
        return "not measured yet"
    return ", ".join(
        f"{ATTACKS.get(c.attack, c.attack)} {c.ours:+.1f}" + ("" if c.paper is None else f" ({c.paper:+.1f})")
        for c in verdict.comparisons
    )


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
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}" style="width:100%;background:white">'
        f"<figcaption>{escape(caption)} <br><small>Made by <code>{escape(made)}</code></small></figcaption></figure>"
    )

"""The parts that chapters of the book have in common, as things that a notebook displays."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from study.report import results
from study import store
from study.report.figures import ATTACKS, SERIES
from study.runs import Run, grid


def command(run: Run) -> str:
    """The shell command that takes a run further: trains it, or evaluates it once that is done."""
    worker = "evaluate" if (run.directory / store.WEIGHTS).exists() else "train"
    return f"papermill notebooks/{worker}.ipynb out.ipynb {run.options}"


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
        on_gpu = any("CPU" not in name for name in table.device)
        gpu = " On a GPU convolutions of float32 are in TF32 where it has that." if on_gpu else ""
        text += (
            f"Our numbers: profile `{profile}`, dataset **{', '.join(table.dataset.unique())}**, epochs of"
            f" training: {epochs}; trained in {precision}, evaluated in float32;"
            f" {int(table.n.min()):,} test images in batches of {int(table.batch_size.max())},"
            f" {table.seed.nunique()} seed{'s' if table.seed.nunique() > 1 else ''};"
            f" data fingerprint `{table.fingerprint.iloc[0]}`,"
            f" code revision `{table.revision.iloc[-1]}`, {', '.join(sorted(table.device.unique()))}."
            f"{gpu}\n\n"
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
    title = "What was measured" + ("" if experiment == "headline" else f" (experiment `{experiment}`)")
    return Markdown(f":::{{admonition}} {title}\n:class: note\n{text}:::")


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
        cells[training, label, ATTACKS.get(attack, attack)] = f"{mean:.1f} ({low:.0f}-{high:.0f})"
    frame = pd.Series(cells, dtype=object).unstack([0, 1]) if cells else pd.DataFrame()
    return frame.reindex([name for name in ATTACKS.values() if name in frame.index])


def paper_table(number: int) -> pd.DataFrame:
    """A table of the paper in its own layout, in percent, with its 95% interval where it has one."""
    table = results.paper(number)
    table["norm"] = [SERIES[pair][0] for pair in zip(table.norm, table.statistics, strict=True)]
    interval = table.ci95.map(lambda half: "" if pd.isna(half) else f" ± {half:g}")
    table["text"] = table.accuracy.map("{:.2f}".format) + interval
    table["attack"] = table.attack.map(ATTACKS)
    return table.pivot(
        index=["architecture", "norm"], columns=["dataset", "training", "attack"], values="text"
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
        f'<figure><div class="wide"><img src="data:image/png;base64,{data}" alt="{escape(alt)}"'
        f' style="width:100%;background:white"></div><figcaption>{escape(caption)}'
        f" <br><small>Made by <code>{escape(made)}</code></small></figcaption></figure>"
    )

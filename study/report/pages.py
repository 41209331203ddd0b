"""What pages have in common: what was measured, accuracies in numbers, the paper's tables beside ours.

Every function says so where nothing is measured yet, so that pages need no conditions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from IPython.display import DisplayHandle, Markdown, display

from study import runs, store
from study.report import results
from study.report.figures import NAMES, SERIES, name, named
from study.runs import HEADLINE, WORKERS, Run, chosen_runs, grid


def command(run: Run, table: str = "evaluations") -> str:
    """The shell command that makes a table of a run, or trains it where that is still to be done."""
    worker = WORKERS.get(table, "measure") if (run.directory / store.WEIGHTS).exists() else "train"
    more = f" -p measurement {table}" if worker == "measure" else ""
    return f"papermill notebooks/workers/{worker}.ipynb out.ipynb {run.options}{more}"


def setting(profile: str, *tables: str, experiment: str = HEADLINE, **where: Any) -> Markdown:
    """What the numbers of a page were measured on, and what is pending, with the command that makes it.

    ``tables`` are those that the page shows (evaluations, if none is named); ``where`` holds settings of the
    runs that it is about; a list means any of its values.
    """
    tables = tables or ("evaluations",)
    rows = pd.concat([results.table(profile, one, experiment, **where) for one in tables], ignore_index=True)
    about = chosen_runs(profile, {"experiment": experiment} | where)
    wanted = [pair for pair in runs.tables(profile) if pair[0] in about and pair[1] in tables]
    over = dict.fromkeys(run for run, _ in wanted if store.has_diverged(run))
    missing = [pair for pair in wanted if not store.done(*pair)]
    title = "What was measured" + ("" if experiment == HEADLINE else f" (experiment `{experiment}`)")
    text = [f":::{{admonition}} {title}", ":class: note dropdown", _measured(profile, rows)]
    if profile == "quick":
        text.append("**The `quick` profile judges claims about the networks in miniature, and no others.**")
    if missing:
        listed = "; ".join(f"{table} of {_of(run)}" for run, table in missing)
        text.append(f"Still missing from this page ({len(missing)}): {listed}. To make the first:")
        text.append(f"```\n{command(*missing[0])}\n```")
    if over:
        text.append(f"Training diverged, so that there is nothing to measure: {'; '.join(map(_of, over))}.")
    return Markdown("\n\n".join([*text, ":::"]).replace("\n\n:class", "\n:class"))


def _of(run: Run) -> str:
    return f"{name(run.norm)}, {run.training}, seed {run.seed}"


def _measured(profile: str, rows: pd.DataFrame) -> str:
    if rows.empty:
        return f"Of the runs of profile `{profile}` that this page asks for none is measured yet."
    epochs = rows.groupby("training", sort=False).epochs.max().items()
    trained = ", ".join(f"{int(number)} epochs of {training} training" for training, number in epochs)
    here = [run for run in grid(profile) if run.name in set(rows.run)]
    kept = {store.read_config(run).get("settings", {}).get("precision", run.precision) for run in here}
    budget = "comparable to the paper's" if rows.matched.all() else "shorter than the paper's"
    seen = rows["n"].dropna() if "n" in rows else []
    images = f" {results.span(seen)} test images," if len(seen) else ""
    return (
        f"Profile `{profile}`, **{', '.join(map(name, rows.dataset.unique()))}**; {trained}, a budget"
        f" {budget}; trained in {' or '.join(sorted(kept))}, measured in float32;{images} seeds"
        f" {', '.join(map(str, sorted(rows.seed.unique())))}; code revision"
        f" {', '.join(f'`{one}`' for one in rows.revision.dropna().unique())};"
        f" {', '.join(rows.device.dropna().unique())}."
    )


def percent(profile: str, experiment: str = HEADLINE, *, table: str = "evaluations", **where: Any) -> str:
    """An accuracy for a sentence, the mean over rows of :func:`study.report.results.table`: "49.2%"."""
    found = results.table(profile, table, experiment, **where).accuracy
    return f"{found.mean():.1f}%" if len(found) else "(not measured yet)"


def accuracies(profile: str, experiment: str = HEADLINE, **where: Any) -> pd.DataFrame | Markdown:
    """Accuracy in percent with its 95% interval: a row an attack, a column a training, norm and mode."""
    rows = results.table(profile, "evaluations", experiment, **where)
    if rows.empty:
        return Markdown("Nothing measured yet.")
    found = results.intervals(named(rows), ["training", "series", "attack"])
    ends = zip(found["mean"], found.low.clip(lower=0), found.high.clip(upper=100), strict=True)
    found["text"] = [f"{mean:.1f} ({low:.0f}-{high:.0f})" for mean, low, high in ends]
    wide = found.pivot(index="attack", columns=["training", "series"], values="text").fillna("")
    return wide.loc[[one for one in NAMES if one in wide.index]].rename(index=name)


def beside(profile: str, number: int, *experiments: str) -> pd.DataFrame:
    """A table of the paper in percent, in each cell the paper's number and ours; a column says what ran.

    Ours are of the headline, if no experiment is named; cifar10-jpeg stands beside CIFAR-10.
    """
    keys = ["dataset", "architecture", "training", "norm", "statistics"]
    ours = results.table(profile, "evaluations", list(experiments or [HEADLINE]))
    ours = ours.assign(data=ours.dataset, dataset=ours.dataset.replace("cifar10-jpeg", "cifar10"))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for place, cells in results.paper(number).groupby(keys, sort=False):
        rows = results.select(ours, dict(zip(keys, place, strict=True)))
        mean = rows.groupby("attack").accuracy.mean()
        line = {name(cell.attack): f"{cell.accuracy:.2f}" for cell in cells.itertuples()}
        line |= {name(one): f"{line[name(one)]} / {mean[one]:.1f}" for one in cells.attack if one in mean}
        seeds = rows.seed.nunique()
        ran = [f"{name(run[0])}, {run[1]} epochs" for run, _ in rows.groupby(["data", "epochs"])]
        line["ours"] = f"{'; '.join(ran)}, {seeds} seed{'s' * (seeds > 1)}" if ran else "not run here"
        lines[name(place[0]), name(place[1]), place[2], SERIES[place[3], place[4]][0]] = line
    index = pd.MultiIndex.from_tuples(lines, names=["data", "network", "training", "norm"])
    return pd.DataFrame(list(lines.values()), index=index)


@contextmanager
def live() -> Iterator[DisplayHandle]:
    """A place in the notebook that shows how far the work is, and is empty when it is done."""
    handle = display({"text/plain": "starting"}, raw=True, display_id=True)
    yield handle
    handle.update({"text/plain": ""}, raw=True)

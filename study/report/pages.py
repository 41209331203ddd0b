"""What pages have in common: what was measured, accuracies in numbers, the paper's tables beside ours.

Every function says so where nothing is measured yet, so that pages need no conditions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from IPython.display import DisplayHandle, Markdown, display

from study import store
from study.report import results
from study.report.figures import NAMES, SERIES, name, named
from study.runs import HEADLINE, Run, chosen_runs, grid, measured, read_profile


def command(run: Run, table: str = "evaluations") -> str:
    """The shell command that makes a table of a run, or trains it where that is still to be done."""
    worker, more = {"evaluations": "evaluate", "sharpness": "landscape"}.get(table, table), ""
    if worker not in ("evaluate", "statistics", "landscape"):
        worker, more = "measure", f" -p measurement {table}"
    if not (run.directory / store.WEIGHTS).exists():
        worker, more = "train", ""
    return f"papermill notebooks/workers/{worker}.ipynb out.ipynb {run.options}{more}"


def _wanted(profile: str) -> list[tuple[Run, str]]:
    """Every table that the runs of a profile have or are to have."""
    wanted = [(run, "evaluations") for run in grid(profile)] + measured(profile)
    for key, tables in {"statistics": ["statistics"], "landscape": ["landscape", "sharpness"]}.items():
        chosen = read_profile(profile).get(key, {}).get("runs")
        wanted += [(run, table) for run in chosen_runs(profile, chosen) for table in tables] if chosen else []
    return wanted


def setting(profile: str, *tables: str, experiment: str = HEADLINE, **where: Any) -> Markdown:
    """What the numbers of a page were measured on, and what is pending, with the command that makes it.

    Args:
        tables: that the page shows; evaluations, if none is named.
        experiment, where: settings of the runs that the page is about; a list means any of its values.
    """
    tables = tables or ("evaluations",)
    rows = pd.concat([results.table(profile, one, experiment, **where) for one in tables], ignore_index=True)
    missing, over = [], set()
    for run, table in _wanted(profile):
        told = where | {"experiment": experiment}
        fits = all(getattr(run, k) in (v if isinstance(v, list) else [v]) for k, v in told.items())
        if fits and table in tables and store.has_diverged(run):
            over.add(_of(run))
        elif fits and table in tables and not (run.directory / f"{table}.csv").exists():
            missing.append((run, table))
    title = "What was measured" + ("" if experiment == HEADLINE else f" (experiment `{experiment}`)")
    text = [f":::{{admonition}} {title}", ":class: note dropdown", _measured(profile, rows)]
    if profile == "quick":
        text.append("**The `quick` profile shows that the pipeline works and supports no verdict.**")
    if missing:
        listed = "; ".join(f"{table} of {_of(run)}" for run, table in missing)
        text.append(f"Pending, and shown nowhere below ({len(missing)}): {listed}. For example")
        text.append(f"```\n{command(*missing[0])}\n```")
    if over:
        text.append(f"Training diverged, so that there is nothing to measure: {'; '.join(sorted(over))}.")
    return Markdown("\n\n".join([*text, ":::"]).replace("\n\n:class", "\n:class"))


def _of(run: Run) -> str:
    return f"{name(run.norm)}, {run.training}, seed {run.seed}"


def _measured(profile: str, rows: pd.DataFrame) -> str:
    if rows.empty:
        return f"Nothing measured yet: the runs of profile `{profile}` that this page is about are pending."
    epochs = rows.groupby("training", sort=False).epochs.max().items()
    trained = ", ".join(f"{int(number)} epochs of {training} training" for training, number in epochs)
    here = [run for run in grid(profile) if run.name in set(rows.run)]
    kept = {store.read_config(run).get("settings", {}).get("precision", run.precision) for run in here}
    budget = "comparable to the paper's" if rows.matched.all() else "shorter than the paper's"
    images = f" {int(rows['n'].min()):,} test images," if "n" in rows else ""
    return (
        f"Profile `{profile}`, **{', '.join(map(name, rows.dataset.unique()))}**; {trained}, a budget"
        f" {budget}; trained in {' or '.join(sorted(kept))}, measured in float32;{images} seeds"
        f" {', '.join(map(str, sorted(rows.seed.unique())))}; code revision"
        f" {', '.join(f'`{one}`' for one in rows.revision.dropna().unique())};"
        f" {', '.join(rows.device.dropna().unique())}."
    )


def percent(profile: str, experiment: str = HEADLINE, *, table: str = "evaluations", **where: Any) -> str:
    """An accuracy for a sentence, the mean over seeds where there are several: "49.2%".

    Args:
        table, where: its rows, see :func:`study.report.results.table`.
    """
    found = results.table(profile, table, experiment, **where).accuracy
    return f"{found.mean():.1f}%" if len(found) else "(not measured yet)"


def accuracies(profile: str, experiment: str = HEADLINE, **where: Any) -> pd.DataFrame | Markdown:
    """Accuracy in percent with its 95% interval: a row an attack, a column a training, norm and mode.

    Args:
        where: settings and columns, see :func:`study.report.results.table`.
    """
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

    Args:
        experiments: of our runs, the headline if none is named; cifar10-jpeg stands beside CIFAR-10.
    """
    keys = ["dataset", "architecture", "training", "norm", "statistics"]
    ours = results.table(profile, "evaluations", list(experiments or [HEADLINE]))
    ours = ours.assign(data=ours.dataset, dataset=ours.dataset.replace("cifar10-jpeg", "cifar10"))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for place, cells in results.paper(number).groupby(keys, sort=False):
        rows = results.select(ours, dict(zip(keys, place, strict=True)))
        mean = rows.groupby("attack").accuracy.mean()
        line = {
            name(cell.attack): f"{cell.accuracy:.2f}"
            + (f" / {mean[cell.attack]:.1f}" if cell.attack in mean else "")
            for cell in cells.itertuples()
        }
        ran = [f"{name(run[0])}, {run[1]} epochs" for run, _ in rows.groupby(["data", "epochs"])]
        line["ours"] = f"{'; '.join(ran)}, {rows.seed.nunique()} seeds" if ran else "not run here"
        lines[name(place[0]), name(place[1]), place[2], SERIES[place[3], place[4]][0]] = line
    index = pd.MultiIndex.from_tuples(lines, names=["data", "network", "training", "norm"])
    return pd.DataFrame(list(lines.values()), index=index)


@contextmanager
def live() -> Iterator[DisplayHandle]:
    """A place in the notebook that shows how far the work is, and is empty when it is done."""
    handle = display({"text/plain": "starting"}, raw=True, display_id=True)
    yield handle
    handle.update({"text/plain": ""}, raw=True)

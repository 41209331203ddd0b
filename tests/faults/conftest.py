"""The harness: every test is one fault, its module the kind, and what comes out is counted.

``FAULTS=all`` takes the long ones too; ``FAULTS_SEED=n`` draws other moments, places and bits (printed in the
end); ``FAULTS_COUNTS=file.csv`` keeps the counts, which the page "How this copy was made" shows.
"""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from harness import NEEDS, PROFILE, SEED, ended, smaller, started, worked

ALL = os.environ.get("FAULTS") == "all"
OUTCOMES = ("passed", "failed", "error", "skipped")


def pytest_collection_modifyitems(config, items):
    """Leave the long ones out of ``make test``."""
    left_out = [one for one in items if one.get_closest_marker("full") and not ALL]
    items[:] = [one for one in items if one not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter):
    """One line a kind: n tried, n as promised; and the seed."""
    tried: dict[str, Counter] = {}
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            kind = Path(report.nodeid.partition("::")[0])
            if (
                kind.parts[0] == "tests"
                and kind.parts[1] in ("faults", "cluster")
                and (report.when == "call" or outcome != "passed")
            ):
                tried.setdefault(kind.stem.removeprefix("test_").replace("_", " "), Counter())[outcome] += 1
    if not tried:
        return
    names, rows = ("kind", "tried", "as promised", "skipped", "seed"), []
    for kind, n in sorted(tried.items()):
        rows.append((kind, sum(n.values()) - n["skipped"], n["passed"], n["skipped"], SEED))
    terminalreporter.section(f"faults, FAULTS_SEED={SEED}")
    for row in rows:
        terminalreporter.line("  ".join(f"{name}: {one}" for name, one in zip(names, row, strict=True)))
    if path := os.environ.get("FAULTS_COUNTS"):
        Path(path).write_text("".join(",".join(map(str, row)) + "\n" for row in (names, *rows)))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Folders as they are before each program, and after it; and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    before, after, took = {}, {}, {}
    for name, needs in NEEDS.items():
        before[name] = after[needs] if needs else folder / "nothing"
        after[name] = folder / name
        before[name].mkdir(exist_ok=True)
        shutil.copytree(before[name], after[name])
        process = started(name, after[name])
        took[name] = worked(process)
        assert ended(process) == 0
    return before, after, took


def second_stops():
    """A function that interrupts when it is called a second time."""
    calls = iter(range(9))

    def called(news):
        if next(calls):
            raise KeyboardInterrupt

    return called


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Results: a run that is trained and measured, one that was cut off in both, and one that diverged."""
    from study import store, work
    from study.runs import make_run

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        smaller(patch)
        patch.setenv("RNLIB_RESULTS", str(folder))
        run = make_run(PROFILE, experiment="two_epochs")
        work.train_run(run)
        work.measure_run(run, "evaluations")
        cut = make_run(PROFILE, experiment="two_epochs", seed=1)
        with pytest.raises(KeyboardInterrupt):
            work.train_run(cut, on_epoch=second_stops())
        shutil.copy(cut.directory / store.CHECKPOINT, folder)
        work.train_run(cut)
        with pytest.raises(KeyboardInterrupt):
            work.measure_run(cut, "evaluations", on_cell=second_stops())
        work.train_run(make_run(PROFILE, norm="no_norm", lr=1e30))
    return folder

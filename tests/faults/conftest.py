"""The harness: every test is one fault, its module the kind, and what comes out is counted.

``FAULTS=all`` takes the long ones too; ``FAULTS_SEED=n`` draws other moments, places and bits (printed in the
end); ``FAULTS_COUNTS=file.csv`` keeps the counts, which the page "How this copy was made" shows.
"""

import csv
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from harness import PROFILE, SEED, smaller

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
            if kind.parts[:2] == ("tests", "faults") and (report.when == "call" or outcome != "passed"):
                tried.setdefault(kind.stem.removeprefix("test_").replace("_", " "), Counter())[outcome] += 1
    if not tried:
        return
    rows = [
        {
            "kind": kind,
            "tried": sum(n.values()) - n["skipped"],
            "as promised": n["passed"],
            "skipped": n["skipped"],
        }
        for kind, n in sorted(tried.items())
    ]
    terminalreporter.section(f"faults, FAULTS_SEED={SEED}")
    for row in rows:
        terminalreporter.line("  ".join(f"{key}: {value}" for key, value in row.items()))
    if path := os.environ.get("FAULTS_COUNTS"):
        with Path(path).open("w", newline="") as file:
            table = csv.DictWriter(file, [*rows[0], "seed"], lineterminator="\n")
            table.writeheader()
            table.writerows(row | {"seed": SEED} for row in rows)


@pytest.fixture
def chance(request):
    """A source of random numbers of this test's own."""
    return random.Random(f"{SEED} {request.node.name}")


def second_stops():
    """A function that interrupts when it is called a second time."""
    calls = iter(range(9))

    def called(news):
        if next(calls):
            raise KeyboardInterrupt

    return called


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder of results with a run that is trained and measured, one that was cut off in both, and one that
    diverged."""
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

"""Killed work, started again, ends with the undisturbed files, and repeats nothing that was finished.

Processes are forked from one that has imported everything. Each is killed while it is at work: at a random
moment, or right before, in and after each renaming of a file, which is when a run could be left inconsistent.
"""

import random
import shutil
import signal
import time

import psutil
import pytest
from harness import NEEDS, SEED, SIGNALS, content, ended, started, worked

RENAMINGS = {"train": 12, "evaluations": 8, "along_training": 8, "attack": 3, "fit_many": 4}


def finished(name, folder, right):
    """Started again it ends as if undisturbed, and keeps what was finished."""
    tables = ("*.csv", "*.npz", "snapshot*", "weights*")
    there = {
        path: path.stat() for kind in tables for path in folder.rglob(kind) if not path.name.startswith(".")
    }
    assert ended(started(name, folder)) == 0
    assert content(folder) == content(right)
    # A snapshot is written again, to the same bytes, if it was killed before anyone knew.
    again = [path.name for path, old in there.items() if path.stat().st_mtime_ns != old.st_mtime_ns]
    assert all(
        one.startswith(("snapshot", "history", "evaluations.npz", "along_training.npz")) for one in again
    ), again


@pytest.mark.full
@pytest.mark.parametrize("time_", range(3))
@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("name", NEEDS)
def test_a_kill_at_a_random_moment(undisturbed, tmp_path, name, how, time_):
    before, after, took = undisturbed
    chance, share = random.Random(f"{SEED} {name} {how} {time_}"), 0.9
    while True:
        folder = tmp_path / "results"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before[name], folder)
        process = started(name, folder)
        worked(process, chance.uniform(0, share * took[name]))
        for kind in SIGNALS[how]:
            if process.is_alive():
                psutil.Process(process.pid).send_signal(kind)
                time.sleep(0.002)
        if ended(process):  # else it was done already, and that does not count
            break
        share *= 0.7
    finished(name, folder, after[name])


MOMENTS = ("before", "half", "after")
CRITICAL = [
    pytest.param(
        name, MOMENTS[(number + SEED) % 3], number, marks=[] if number in (2, 6) else pytest.mark.full
    )
    for name, count in RENAMINGS.items()
    for number in range(1, count + 1)
]


@pytest.mark.parametrize(("name", "moment", "number"), CRITICAL)
def test_a_kill_right_at_a_renaming(undisturbed, tmp_path, name, moment, number):
    before, after, _ = undisturbed
    folder = tmp_path / "results"
    shutil.copytree(before[name], folder)
    kind = signal.SIGTERM if number % 4 == 0 else signal.SIGKILL
    assert ended(started(name, folder, moment, number, kind)) == -kind, "it was not at work any more"
    finished(name, folder, after[name])

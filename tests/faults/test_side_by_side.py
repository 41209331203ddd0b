"""The same command twice: the second waits, says for whom and since when, and does nothing again."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from harness import NEEDS, PROFILE, ROOT, content, ended, smaller, started, worked

from study import book, store, whole, work
from study.runs import make_run, tables


@pytest.mark.parametrize("name", [*NEEDS][:3])
def test_two_processes_end_with_the_files_of_one(undisturbed, tmp_path, name):
    before, after, _ = undisturbed
    folder = tmp_path / "results"
    shutil.copytree(before[name], folder)
    first, second = started(name, folder), started(name, folder)
    assert (ended(first), ended(second)) == (0, 0)
    assert content(folder) == content(after[name])


def test_one_that_waits_goes_on_where_the_first_is_killed(undisturbed, tmp_path):
    before, after, took = undisturbed
    folder = tmp_path / "results"
    shutil.copytree(before["train"], folder)
    first = started("train", folder)
    worked(first, 0.2 * took["train"])
    second = started("train", folder)
    worked(first, 0.4 * took["train"])  # what it took may have been measured on busy cores
    first.kill()
    assert ended(first) == -signal.SIGKILL, "it was done already"
    assert ended(second) == 0
    assert content(folder) == content(after["train"])


def test_two_builds_of_the_book_take_turns(tmp_path, monkeypatch, capsys):
    inside, most = [], []

    def building(profile, *, jobs, train):
        inside.append(profile)
        most.append(len(inside))
        time.sleep(0.3)
        inside.remove(profile)

    monkeypatch.setattr(book, "_build", building)
    monkeypatch.setattr(book, "BUILD", tmp_path)
    threads = [
        threading.Thread(target=book.build, args=(name,), kwargs={"jobs": 1, "train": False}) for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1]
    assert f"html is being made by process {os.getpid()} on " in capsys.readouterr().err


def test_the_second_waits_and_says_for_whom(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    smaller(monkeypatch)
    run, steps = make_run(PROFILE), []
    going, wait = threading.Event(), threading.Event()

    def first():
        steps.append("first")
        going.set()
        wait.wait(60)

    threads = [threading.Thread(target=work.train_run, args=(run,), kwargs={"on_step": first})]
    threads[0].start()
    assert going.wait(60)
    threads += [
        threading.Thread(
            target=work.train_run, args=(run,), kwargs={"on_step": lambda: steps.append("second")}
        )
    ]
    threads[1].start()
    deadline, said = time.monotonic() + 60, ""
    while "waiting" not in said and time.monotonic() < deadline:
        said += capsys.readouterr().err
        time.sleep(0.02)
    wait.set()
    for thread in threads:
        thread.join()
    assert f"weights.safetensors is being made by process {os.getpid()} on " in said
    assert " since 20" in said
    assert set(steps) == {"first"}
    assert (run.directory / store.WEIGHTS).exists()
    assert not list(run.directory.glob(".*"))


def test_the_lock_of_a_dead_process_is_none(tmp_path):
    (tmp_path / ".x.csv.lock").write_text("process 1 on another host since yesterday")
    with whole.alone(tmp_path / "x.csv"):
        assert f"process {os.getpid()} on " in (tmp_path / ".x.csv.lock").read_text()
    assert not (tmp_path / ".x.csv.lock").exists()


@pytest.mark.full
def test_two_snakemakes_share_the_work(tmp_path):
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RNLIB_RESULTS": str(tmp_path / "results"),
        "OMP_NUM_THREADS": "1",
    }
    pairs = [(run, table) for run, table in tables(PROFILE) if table == "evaluations"][:2]
    targets = [tmp_path / "results" / "tiny" / run.name / f"{table}.csv" for run, table in pairs]
    command = [sys.executable, "-m", "snakemake", "-j2", "--config", f"profile={PROFILE}", "--", *targets]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told[-1][-2000:]
    assert all(store.check(path) is not None for path in targets)
    assert not list((tmp_path / "results").rglob(".*.lock"))

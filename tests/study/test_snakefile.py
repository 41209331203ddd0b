"""What the Snakefile asks for: all that is missing, and never a training for a table that is there."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from study import store
from study.runs import ROOT, grid, make_run, other_seed, tables

PROFILE = str(Path(__file__).with_name("tiny.yml"))


def snakemake(env, *arguments, config=f"profile={PROFILE}"):
    """The finished process, and the jobs of a dry run by rule."""
    command = [sys.executable, "-m", "snakemake", "--nolock", "--config", *config.split(), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    return Counter(re.findall(r"^rule (\w+):", told, re.MULTILINE)), told


def expected(profile):
    """The jobs that are missing, from the files that are there."""
    missing = [pair for pair in tables(profile) if not (pair[0].directory / f"{pair[1]}.csv").exists()]
    workers = {"evaluations": "evaluate", "statistics": "probe", "landscape": "landscape"}
    jobs = Counter(workers.get(table, "measure") for _, table in missing)
    needed = {run for run, _ in missing}
    needed |= {other_seed(run) for run, table in missing if table == "transfer_between_seeds"}
    jobs["train"] = sum(not (run.directory / store.WEIGHTS).exists() for run in needed)
    return +jobs + Counter(book=1)


def test_everything_is_missing_at_first(empty, processes):
    jobs, told = snakemake(processes, "-n")
    assert jobs == expected(PROFILE)
    assert jobs["train"] == len(grid(PROFILE))
    for run in grid(PROFILE):
        assert f"output: {run.directory / store.WEIGHTS}" in told


def test_tables_that_are_there_cause_no_training_where_weights_are_not_kept(empty, processes):
    first, *others = grid(PROFILE)
    for run, table in tables(PROFILE):
        if (run, table) != (first, "statistics"):
            store.keep_rows(run.directory / f"{table}.csv", [])
    jobs, told = snakemake(processes, "-n")
    assert jobs == Counter(train=1, probe=1, book=1) == expected(PROFILE)
    assert str(first.directory / store.WEIGHTS) in told
    assert not any(f"output: {run.directory / store.WEIGHTS}" in told for run in others)
    jobs, _ = snakemake(processes, "-n", config=f"profile={PROFILE} runs=existing")
    assert jobs == Counter(book=1)
    jobs, _ = snakemake(processes, "-n", "--", str(others[0].directory / "evaluations.csv"))
    assert not jobs


def test_of_the_published_profile_what_is_truly_missing_is_asked_for(processes):
    processes.pop("RNLIB_RESULTS")
    assert snakemake(processes, "-n", config="profile=book")[0] == expected("book")


def test_a_job_is_one_papermill_execution(results, processes):
    run = make_run(PROFILE)
    table, other = run.directory / "batch_size.csv", run.directory / "evaluations.csv"
    other.unlink(missing_ok=True)
    snakemake(processes, "-j2", "--", str(table), str(other))  # of two workers
    assert len(store.read_table(table)) > 1
    assert "attack" in store.read_table(other)
    before = table.read_bytes()
    (run.directory / store.WEIGHTS).unlink()
    snakemake(processes, "-j1", "--forcerun", "measure", "--", str(table))  # finds it finished, and keeps it
    assert table.read_bytes() == before  # seconds and all
    assert not (run.directory / store.WEIGHTS).exists()
    shutil.rmtree(ROOT / "_build" / "runs" / "tiny", ignore_errors=True)


def test_a_word_that_the_snakefile_does_not_know_is_refused(processes):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--nolock",
        "--config",
        f"profile={PROFILE}",
        "runs=some",
    ]
    done = subprocess.run(command, cwd=ROOT, env=processes, capture_output=True, text=True)
    assert "runs is 'some', it must be all or existing" in done.stdout + done.stderr


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_the_other_profiles_can_be_planned(empty, processes, profile):
    assert snakemake(processes, "-n", config=f"profile={profile}")[0] == expected(profile)

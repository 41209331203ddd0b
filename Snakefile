# The grid of runs and the book. One papermill execution is one job.
#
#   snakemake -j2                                           all of profile quick, then its book
#   snakemake -j2 --config profile=book runs=existing       the book from the results that are there
#   snakemake -j50 --executor slurm --config profile=paper  a cluster, with snakemake-executor-plugin-slurm
#
# Tables that are there are not asked for, and weights only where a table is missing: results whose weights are not
# kept cause no training. Outputs are marked update(), so that Snakemake never removes a result before a job: the
# job finds that it is finished. A training that diverged has a file of weights that holds none.

import os
import shlex
from pathlib import Path

from study import store
from study.runs import ROOT, WORKERS, grid, other_seed, results_folder, tables

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two jobs of one thread do more work than one job of two
PROFILE = config.get("profile", "quick")
if config.get("runs", "all") not in ("all", "existing"):
    raise ValueError(f"runs is {config['runs']!r}, it must be all or existing")
RUNS = {run.name: run for run in grid(PROFILE)}
NAME = Path(PROFILE).stem
FOLDER = results_folder(NAME)  # where the notebooks write
if FOLDER.is_relative_to(ROOT):
    FOLDER = FOLDER.relative_to(ROOT)
MEASURED = sorted({table for _, table in tables(PROFILE)} - set(WORKERS))
WANTED = [f"{FOLDER}/{run.name}/{table}.csv" for run, table in tables(PROFILE)]
MISSING = [] if config.get("runs") == "existing" else [file for file in WANTED if not os.path.exists(file)]


def weights(table=None):
    """What says which weights a table needs, if it is missing: its run's, and another seed's to set beside them."""

    def needed(wildcards):
        run, name = RUNS[wildcards.run], table or wildcards.table
        runs = [run, other_seed(run)] if name == "transfer_between_seeds" else [run]
        there = os.path.exists(f"{FOLDER}/{run.name}/{name}.csv")
        # Not ancient(): Snakemake leaves a job out whose ancient inputs are there, but were marked incomplete.
        return [] if there else [f"{FOLDER}/{one.name}/{store.WEIGHTS}" for one in runs]

    return needed


def command(worker, more=""):
    """The shell command of a worker."""
    notebook = f"notebooks/workers/{worker}.ipynb"
    return f"papermill --no-progress-bar {notebook} {{log.notebook}} {{params.settings}} {more}"


localrules: book

rule book:  # without output, as it is made anew every time
    input:
        MISSING,
    params:
        profile=shlex.quote(PROFILE),
    shell:
        "python -m study.book --profile {params.profile}"


rule train:
    output:
        update(f"{FOLDER}/{{run}}/{store.WEIGHTS}"),
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    log:
        notebook=f"_build/runs/{NAME}/{{run}}/train.ipynb",
    shell:
        command("train")


rule measure:
    input:
        weights(),
    output:
        update(f"{FOLDER}/{{run}}/{{table}}.csv"),
    wildcard_constraints:
        table="|".join(MEASURED) or "(?!)",
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    log:
        notebook=f"_build/runs/{NAME}/{{run}}/{{table}}.ipynb",
    shell:
        command("measure", "-p measurement {wildcards.table}")


for table, worker in WORKERS.items():

    rule:
        name:
            worker
        input:
            weights(table),
        output:
            update(f"{FOLDER}/{{run}}/{table}.csv"),
        params:
            settings=lambda wildcards: RUNS[wildcards.run].options,
            worker=worker,  # the command is put together when the job runs, and the loop is over then
        log:
            notebook=f"_build/runs/{NAME}/{{run}}/{worker}.ipynb",
        shell:
            command("{params.worker}")

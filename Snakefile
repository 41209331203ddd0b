# The grid of runs, the chapters and the book. One papermill execution is one job.
#
#   snakemake -j2 --config profile=laptop                  train and evaluate what is missing, then build the book
#   snakemake -j2 --config profile=laptop runs=existing    build the book from the results that are there
#   snakemake -j50 --executor slurm --config profile=paper the same on a cluster, with snakemake-executor-plugin-slurm
#
# Finished work is never repeated, also in a fresh clone, where file dates mean nothing: hence ancient(). Nor is a
# training that diverged: its file of weights holds none, and what is measured of it are tables without rows.

import os
from pathlib import Path

from rnlib.modes import statistics_modes
from study.book import chapters
from study.experiments.diagnostics import DIAGNOSTICS
from study.experiments.experiments import other_seed
from study.runs import ROOT, chosen_runs, diagnosed, grid, read_profile, results_folder, shown

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two jobs of one thread do more work than one job of two
PROFILE = config.get("profile", "quick")
RUNS = {run.name: run for run in grid(PROFILE)}
FOLDER = results_folder(PROFILE)  # where the notebooks write
if FOLDER.is_relative_to(ROOT):
    FOLDER = FOLDER.relative_to(ROOT)
RESULT = f"{FOLDER}/{{run}}/evaluations.csv"
PROBE = f"{FOLDER}/{{run}}/statistics.csv"
if config.get("runs", "all") not in ("all", "existing"):
    raise ValueError(f"runs is {config['runs']!r}, it must be all or existing")
WANTED = [RESULT.format(run=name) for name in RUNS]
HEADLINE = chosen_runs(PROFILE, {})
WANTED += [PROBE.format(run=run.name) for run in HEADLINE if len(statistics_modes(run.new_model())) > 1]
WANTED += [f"{FOLDER}/{run.name}/{name}.csv" for run, name in diagnosed(PROFILE)]
PLANE = f"{FOLDER}/{{run}}/landscape.csv"
WANTED += [PLANE.format(run=run.name) for run in chosen_runs(PROFILE, read_profile(PROFILE)["landscape"]["runs"])]
if config.get("runs") == "existing":
    WANTED = [file for file in WANTED if os.path.exists(file)]

BENCHMARKS = [file for file in ("benchmarks/results.csv",) if os.path.exists(file)]


def files(folder):
    """The files that a page is made from, compiled ones aside."""
    return [str(path) for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]


localrules: all, book

rule all:
    input:
        WANTED,
        "_build/html/index.html",

rule book:
    input:
        expand(f"_build/chapters/{PROFILE}/{{chapter}}.ipynb", chapter=chapters()),
        pages=files("book"),
        code=files("rnlib"),
        config="_config.yml",
    output:
        "_build/html/index.html",
    shell:
        f"python -m study.book --profile {PROFILE}"


rule chapter:
    input:
        notebook="notebooks/{chapter}.ipynb",
        results=WANTED,
        others=[file for name in shown(PROFILE)[1:] for file in files(results_folder(name)) if "checkpoint" not in file],
        code=files("rnlib"),
        claims="book/claims.yml",
        benchmarks=lambda wildcards: BENCHMARKS if wildcards.chapter == "performance" else [],
    output:
        f"_build/chapters/{PROFILE}/{{chapter}}.ipynb",
    shell:
        f"papermill --no-progress-bar {{input.notebook}} {{output}} -p profile {PROFILE}"


rule evaluate:
    input:
        weights=ancient(f"{FOLDER}/{{run}}/weights.safetensors"),
    output:
        RESULT,
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    log:
        notebook=f"_build/runs/{PROFILE}/{{run}}/evaluate.ipynb",
    shell:
        "papermill --no-progress-bar notebooks/evaluate.ipynb {log.notebook} {params.settings}"


rule probe:
    input:
        weights=ancient(f"{FOLDER}/{{run}}/weights.safetensors"),
    output:
        PROBE,
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    log:
        notebook=f"_build/runs/{PROFILE}/{{run}}/probe.ipynb",
    shell:
        "papermill --no-progress-bar notebooks/probe.ipynb {log.notebook} {params.settings}"


def diagnosed_weights(wildcards):
    """The weights that a diagnostic looks at: those of its run, and of another seed where it sets two together."""
    runs = [RUNS[wildcards.run]]
    runs += [other_seed(run) for run in runs if wildcards.diagnostic == "independent"]
    return [ancient(f"{FOLDER}/{run.name}/weights.safetensors") for run in runs]


rule diagnose:
    input:
        weights=diagnosed_weights,
    output:
        f"{FOLDER}/{{run}}/{{diagnostic}}.csv",
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    wildcard_constraints:
        diagnostic="|".join(DIAGNOSTICS),
    log:
        notebook=f"_build/runs/{PROFILE}/{{run}}/{{diagnostic}}.ipynb",
    shell:
        "papermill --no-progress-bar notebooks/diagnose.ipynb {log.notebook} {params.settings}"
        " -p diagnostic {wildcards.diagnostic}"


rule landscape:
    input:
        weights=ancient(f"{FOLDER}/{{run}}/weights.safetensors"),
    output:
        PLANE,
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    log:
        notebook=f"_build/runs/{PROFILE}/{{run}}/landscape.ipynb",
    shell:
        "papermill --no-progress-bar notebooks/landscape.ipynb {log.notebook} {params.settings}"


rule train:
    output:
        f"{FOLDER}/{{run}}/weights.safetensors",
    params:
        settings=lambda wildcards: RUNS[wildcards.run].options,
    log:
        notebook=f"_build/runs/{PROFILE}/{{run}}/train.ipynb",
    shell:
        "papermill --no-progress-bar notebooks/train.ipynb {log.notebook} {params.settings}"

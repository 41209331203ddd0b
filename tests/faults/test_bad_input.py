"""Damaged results: each is refused in one sentence before any work, or read rightly."""

import random
import shutil
from functools import partial

import pytest
from harness import PROFILE, SEED, cases, damages, refusal, smaller, state

from study import store, work
from study.networks import trained_model
from study.report import results as report
from study.runs import make_run

TWO, DIVERGED = {"experiment": "two_epochs"}, {"norm": "no_norm", "lr": 1e30}
SOURCES = {
    "config.json": "whole",
    "files.json": "whole",
    "history.csv": "whole",
    "weights.safetensors": "whole",
    "snapshot1.safetensors": "whole",
    "evaluations.csv": "whole",
    "evaluations.npz": "whole",
    "diverged.json": "diverged",
    "checkpoint.pt": "cut",
    "checkpoint-evaluations.pt": "cut",
}


def run_of(source):
    return make_run(PROFILE, **(DIVERGED if source == "diverged" else TWO | {"seed": int(source == "cut")}))


def outcomes(run):
    """What is counted of a run's images, from its table on."""
    rows = report.table(PROFILE, "evaluations", "two_epochs", seed=run.seed)
    return [report.outcomes(PROFILE, "evaluations", row).tolist() for _, row in rows.iterrows()]


READERS = {
    "train": lambda run: work.train_run(run).drop(columns="seconds").to_dict("list"),
    "weights": lambda run: {key: one.tolist() for key, one in trained_model(run).state_dict().items()},
    "snapshot": lambda run: {key: one.tolist() for key, one in trained_model(run, 1).state_dict().items()},
    "measure": lambda run: work.measure_run(run, "evaluations").drop(columns="seconds").to_dict("list"),
    "report": lambda run: (
        report.table(PROFILE, "evaluations", "two_epochs").drop(columns="seconds").to_dict("list")
    ),
    "outcomes": outcomes,
    "diverged": store.has_diverged,
}
READ_BY = {
    "config.json": ["train", "measure"],
    "files.json": ["train", "weights", "snapshot", "report", "outcomes"],
    "history.csv": ["train"],
    "weights.safetensors": ["weights"],
    "snapshot1.safetensors": ["snapshot"],
    "evaluations.csv": ["measure", "report"],
    "evaluations.npz": ["outcomes"],
    "diverged.json": ["diverged"],
    "checkpoint.pt": ["train"],
    "checkpoint-evaluations.pt": ["measure"],
}
NAMES = [name for name, _ in damages(random.Random(0), bytes(300) + b"\n1\n2\n", True)]
BINARY = (".safetensors", ".npz", ".pt")
DAMAGED = cases(SOURCES, lambda file: NAMES[:-6] if file.endswith(BINARY) else NAMES)


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """The finished runs, to break."""
    folder = tmp_path / "results"
    shutil.copytree(finished, folder)
    monkeypatch.setenv("RNLIB_RESULTS", str(folder))
    smaller(monkeypatch)
    return folder


@pytest.fixture(scope="session")
def right(finished, tmp_path_factory):
    """What every reader finds in files that are whole."""
    found, folder = {}, tmp_path_factory.mktemp("right") / "results"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNLIB_RESULTS", str(folder))
        smaller(patch)
        for file, readers in READ_BY.items():
            for reader in readers:
                found[file, reader] = READERS[reader](run_of(SOURCES[file]))
    return found


def no_work(*what):
    raise AssertionError("work was done before the refusal")


@pytest.mark.parametrize("how", ["gone", "a folder"])
@pytest.mark.parametrize("file", [file for file in SOURCES if not file.endswith(".pt")])
def test_a_result_that_is_no_file(folder, right, file, how):
    """What only shows what was measured needs no more than that; a table is measured again."""
    run = run_of(SOURCES[file])
    (run.directory / file).unlink()
    if how == "a folder":
        (run.directory / file).mkdir()
    report._joined.cache_clear()
    report._outcomes.cache_clear()
    for reader in READ_BY[file]:
        words = file.split(".")[0]
        if (file, how) in [("evaluations.csv", "gone"), ("diverged.json", "gone")]:
            continue
        refusal(partial(READERS[reader], run), words, right=right[file, reader])


@pytest.mark.parametrize(("file", "damage"), DAMAGED)
def test_a_damaged_result(folder, right, monkeypatch, file, damage):
    run = run_of(SOURCES[file])
    path = run.directory / file
    if file == "checkpoint.pt":  # of a training that was cut off
        shutil.copy(folder / file, path)
        for name in (store.WEIGHTS, store.HISTORY):
            (run.directory / name).unlink()
    chance = random.Random(f"{SEED} {file}")
    path.write_bytes(dict(damages(chance, path.read_bytes(), not file.endswith(BINARY)))[damage])
    if not file.endswith(".pt"):  # of which some bytes mean nothing, and then the work goes on
        monkeypatch.setattr("rnlib.train._schedule", no_work)
        monkeypatch.setattr("torch.nn.functional.cross_entropy", no_work)
    report._joined.cache_clear()
    report._outcomes.cache_clear()
    before = state(folder)
    for reader in READ_BY[file]:
        said = refusal(partial(READERS[reader], run), file.split(".")[0], right=right[file, reader])
        assert state(folder) == before or not said, said

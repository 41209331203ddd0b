"""Where measurements come from: the run in a folder, the settings and the machine that a row names."""

import json
import subprocess
import sys
from dataclasses import asdict

import pandas as pd
import pytest
import torch

from rnlib.models import resnet
from study import planes, probe, store, work
from study.report import results
from study.experiments.diagnostics import diagnose_run
from study.planes import plane_run
from study.probe import probe_run
from study.runs import ROOT, grid, make_run

TINY = {"width": 2, "architecture": "resnet8", "epochs": 1, "train_images": 128, "validation_images": 100}
ORIGIN = ["config_hash", "fingerprint", "rnlib", "revision", "torch", "device", "threads"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Its folder is empty."""
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    return make_run("quick", **TINY)


@pytest.fixture
def older(run):
    """A run that was trained when there was one setting less, and hashes were others."""
    work.train_run(run)
    config = store.read_config(run)
    del config["settings"]["compile"]
    store.write_json(run.directory / store.CONFIG, config | {"provenance": {"config_hash": "older"}})
    return run


@pytest.mark.parametrize(
    "measure",
    [work.evaluate_run, probe_run, plane_run, lambda run: diagnose_run(run, "ladder"), work.trained_model],
)
def test_a_run_of_other_settings_is_not_measured(run, measure):
    """As after an edit of the profile, which leaves the names of folders as they are."""
    store.write_json(run.directory / store.CONFIG, {"settings": asdict(run) | {"epochs": 4}})
    store.write_json(run.directory / store.DIVERGED, {})
    before = sorted(run.directory.iterdir())
    with pytest.raises(ValueError, match=r"other settings .*'epochs': \(4, 1\).*; set these back, or remove"):
        measure(run)
    assert sorted(run.directory.iterdir()) == before


def test_measurements_have_the_hash_of_their_runs_config(older, monkeypatch):
    monkeypatch.setattr(probe, "BATCHES", 1)
    train, test = work.training_set(older), work.test_set(older, 100)
    assert work.provenance(older, test, "cpu")["config_hash"] == "older"
    for rows in (probe_run(older), store.read_rows(older.directory / store.STATISTICS)):
        table = pd.DataFrame(rows)
        assert list(table)[-len(ORIGIN) :] == ORIGIN
        assert set(table.config_hash) == {"older"}
        found = table.groupby("condition", sort=False).fingerprint.unique().explode().to_dict()
        assert found == dict.fromkeys(["start", "train"], train.fingerprint) | dict.fromkeys(
            ["clean", "noise", "adversarial"], test.fingerprint
        )


def test_a_landscape_can_be_traced(older, monkeypatch):
    options = {"points": 3, "radius": 1.0, "images": 20, "directions": 1}
    monkeypatch.setattr(planes, "read_profile", lambda profile: {"landscape": options})
    plane_run(older)
    for name in (store.LANDSCAPE, store.SHARPNESS):
        table = pd.DataFrame(store.read_rows(older.directory / name))
        assert list(table)[-len(ORIGIN) :] == ORIGIN
        assert set(table.config_hash) == {"older"}


def test_a_config_has_the_hash_of_the_settings_beside_it(older):
    (older.directory / store.WEIGHTS).unlink()
    work.train_run(older)  # as after an interruption
    config = json.loads((older.directory / store.CONFIG).read_text())
    assert (config["settings"]["compile"], config["provenance"]["config_hash"]) == (False, older.hash)


@pytest.mark.parametrize(
    ("file", "table", "rows"),
    [
        (store.STATISTICS, results.statistics, [{"condition": "clean", "layer": 2, "channel": 0}]),
        (store.LANDSCAPE, results.landscapes, [{"statistics": "batch", "a": 0.0, "b": 0.0, "loss": 1.0}]),
    ],
)
def test_tables_from_before_they_named_their_origin_are_read_beside_others(run, file, table, rows):
    first, second = grid("quick")[:2]
    store.write_rows(first.directory / file, rows)
    store.write_rows(second.directory / file, [row | {"config_hash": "abc"} for row in rows])
    found = table("quick")
    assert list(found.run) == [first.name, second.name]
    assert found[list(rows[0])].to_dict("records") == rows * 2


def test_a_device_is_named_by_its_type(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    dataset = work.test_set(run, 10)
    for device, name in {"cuda": "GPU of cuda", "cuda:1": "GPU of cuda:1", "mps": "mps"}.items():
        assert work.provenance(run, dataset, device)["device"] == name
    assert " CPU (" in work.provenance(run, dataset, "cpu")["device"]


def test_the_batch_size_of_a_row_is_the_one_that_was_measured_with(older, monkeypatch):
    seen, evaluate = [], work.evaluate

    def spy(*args, **options):
        seen.append(options["batch_size"])
        return evaluate(*args, **options)

    monkeypatch.setattr(work, "evaluate", spy)
    monkeypatch.setattr(work, "attack_suite", lambda run: {})
    monkeypatch.setattr(work, "BATCH_SIZE", 50)
    rows = work.evaluate_run(older)
    assert [row["batch_size"] for row in rows] == seen == [50, 50]


def test_new_weights_leave_the_random_state_of_gpus(run, monkeypatch):
    state = torch.random.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", None)  # it seeds every device
    found = run.new_model()
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.undo()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        wanted = resnet(8, run.norm, width=2, num_classes=10, in_channels=1)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), wanted.parameters(), strict=True))


@pytest.mark.slow
def test_snakemake_makes_the_files_where_the_notebooks_write_them(run):
    weights = grid("quick")[0].directory / store.WEIGHTS
    command = [sys.executable, "-m", "snakemake", "-n", "--config", "profile=quick", "--", str(weights)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"output: {weights}" in done.stdout + done.stderr

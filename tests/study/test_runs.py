"""Runs and profiles: what a run is called, what it may hold, and which there are."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from study import store
from study.runs import (
    PROFILES,
    ROOT,
    chosen_runs,
    evaluation_images,
    grid,
    make_run,
    other_seed,
    read_profile,
    results_folder,
    tables,
)

PROFILE = str(Path(__file__).with_name("tiny.yml"))


def test_the_folder_of_results_is_named_by_the_environment(monkeypatch, tmp_path):
    for value, folder in {"": ROOT / "results", "~/x": Path.home() / "x", str(tmp_path): tmp_path}.items():
        monkeypatch.setenv("RNLIB_RESULTS", value)  # an empty one is none: else this were the folder book/
        assert results_folder("book") == folder / "book"


def test_what_reads_results_needs_no_torch():
    code = "import sys, study.runs, study.store, study.parameters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("profile", [*PROFILES, PROFILE])
def test_every_run_of_a_grid_has_a_folder_of_its_own(profile):
    runs = grid(profile)
    assert len({run.directory for run in runs}) == len(runs)
    assert {run.directory.parent.name for run in runs} == {Path(profile).stem}


@pytest.mark.parametrize("profile", PROFILES)
def test_budgets_are_equal_across_norms(profile):
    budgets = {}
    for run in grid(profile):
        budget = (run.epochs, run.batch_size, run.attack_steps, run.schedule, run.milestones, run.precision)
        budgets.setdefault((run.experiment, run.architecture, run.training), set()).add(budget)
    assert all(len(different) == 1 for different in budgets.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_measures_can_be_measured(profile):
    pairs = tables(profile)
    assert len(set(pairs)) == len(pairs) > 0
    for run, name in pairs:
        assert run.norm in ("batch_norm", "robust_norm") or name in ("evaluations", "temperature")
        assert run.snapshots or name != "along_training"
        assert run.norm == "batch_norm" or name != "released_protocol"
        assert other_seed(run) in grid(profile) or name != "transfer_between_seeds"


def test_the_folders_of_the_published_results_are_runs_of_the_book_with_its_settings():
    runs = {run.name: run for run in grid("book")}
    folders = [path for path in (ROOT / "results" / "book").iterdir() if path.is_dir()]
    assert len(folders) > 60
    for folder in folders:
        assert store.read_config(runs[folder.name]), folder


def test_the_headline_of_the_book_has_a_matched_budget_and_nothing_else_of_it_has():
    for run in grid("book"):
        assert run.matched is (run.experiment == "headline")
    usual = make_run("book")
    assert all(make_run("paper", training=training).matched for training in ("natural", "adversarial"))
    assert make_run("paper").milestones == (120,)
    assert not replace(usual, epochs=99, snapshots=()).matched
    assert not replace(usual, milestones=(74,)).matched
    assert not replace(usual, schedule="one_cycle").matched


def test_an_experiment_has_settings_and_a_folder_of_its_own():
    usual, short = make_run("book"), make_run("book", experiment="three_epochs")
    assert (usual.epochs, short.epochs) == (100, 3)
    assert short.name == f"{usual.name}_three_epochs"
    assert make_run("book", experiment="three_epochs", training="adversarial").epochs == 2
    assert make_run("book", experiment="three_epochs", epochs=5).epochs == 5
    assert (evaluation_images(usual), evaluation_images(short)) == (2000, 1000)
    with pytest.raises(
        ValueError, match=r"experiment is 'thre', it must be one of .'headline', .*'three_epochs'"
    ):
        make_run("book", experiment="thre")


def test_the_paper_profile_has_the_papers_settings():
    run = make_run("paper", training="adversarial")
    assert (run.dataset, run.architecture, run.epochs, run.lr) == ("cifar10", "resnet20", 164, 0.1)
    assert (run.attack_steps, run.attack_step, run.eps) == (10, 0.25, 0.03)
    assert make_run("paper", norm="no_norm").lr == 0.001
    assert {run.seed for run in grid("paper") if run.architecture == "resnet20"} == {0, 1, 2, 3, 4}


def test_a_changed_setting_changes_the_folder_and_the_profiles_own_value_does_not():
    usual = make_run("quick", norm="robust_norm")
    assert make_run("quick", norm="robust_norm", epochs=usual.epochs).name == usual.name
    assert make_run("quick", norm="robust_norm", epochs=usual.epochs + 1).name != usual.name
    assert make_run("quick", norm="robust_norm", p=0.4).name == usual.name.replace("p0.2", "p0.4")
    assert replace(usual, compile=True, precision="bfloat16").name == usual.name  # how, not what


def test_the_options_of_a_run_make_that_run():
    run = make_run("book", norm="robust_norm", p=0.4, training="adversarial", seed=3, lr=0.2, milestones=[5])
    words = shlex.split(run.options)
    chosen = {}
    while words:
        kind, *rest = words
        if kind == "-y":
            chosen |= yaml.safe_load(rest[0])
        else:
            chosen[rest[0]] = yaml.safe_load(rest[1])
        words = rest[1:] if kind == "-y" else rest[2:]
    assert make_run(**chosen) == run
    assert "milestones" not in make_run("book").options


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"nrom": "x"}, r"unknown setting nrom; known are profile, .*norm"),
        ({"training": "x"}, "training is 'x', it must be natural or adversarial"),
        ({"seed": "zero"}, "seed is 'zero', it must be a whole number from 0 up"),
        ({"seed": 0.5}, "seed is 0.5, it must be a whole number from 0 up"),
        ({"seed": True}, "seed is True, it must be a whole number from 0 up"),
        ({"seed": -1}, "seed is -1, it must be a whole number from 0 up"),
        ({"epochs": 2.5}, "epochs is 2.5, it must be a whole number from 1 up"),
        ({"epochs": 0}, "epochs is 0, it must be a whole number from 1 up"),
        ({"width": "4"}, "width is '4', it must be a whole number from 1 up"),
        ({"lr": "1e-4"}, "lr is '1e-4', it must be a number"),
        ({"p": True}, "p is True, it must be a number"),
        ({"norm": 3}, "norm is 3, it must be a name"),
        ({"augment": "no"}, "augment is 'no', it must be True or False"),
        ({"milestones": 3}, "milestones is 3, it must be a list of whole numbers"),
        ({"milestones": ["x"]}, "milestones.0 is 'x', it must be a whole number from 1 up"),
        ({"snapshots": [4], "epochs": 3}, r"snapshots is \(4,\), it must name epochs from 1 to 3"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(chosen, message):
    with pytest.raises(ValueError, match=message):
        make_run("quick", **chosen)


def test_of_the_profiles_snapshots_those_stay_that_training_reaches():
    assert make_run("book", epochs=10, milestones=[7]).snapshots == (1, 2, 4, 8)
    assert make_run("book", epochs=10, snapshots=[3]).snapshots == (3,)


@pytest.mark.parametrize("profile", ["huge", 3, "there-is-none.yml", None])
def test_an_unknown_profile_is_refused(profile):
    with pytest.raises(ValueError, match=r"profile is .*'quick', 'book', 'paper'.*path of a .yml file"):
        read_profile(profile)


def test_runs_are_of_the_headline_unless_an_experiment_is_named():
    assert {run.experiment for run in chosen_runs("book", {})} == {"headline"}
    thirty = chosen_runs("book", {"experiment": "thirty_epochs"})
    assert [run.snapshots for run in thirty] == [(1, 2, 4, 8, 16, 30)]
    assert chosen_runs("book", {"experiment": ["thirty_epochs"], "norm": ["batch_norm"]}) == thirty

"""Training and measuring: what is kept, killed work that goes on to the same numbers, and clear refusals."""

import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rnlib import Dataset, tracked_statistics
from rnlib.train import TrainingDiverged
from study import networks, store, work
from study.experiments import MEASUREMENTS
from study.experiments.evaluations import attack_suite
from study.networks import trained_model, training_set
from study.runs import make_run

pytestmark = pytest.mark.usefixtures("small_images")
PROFILE = str(Path(__file__).with_name("tiny.yml"))
LONGER = {"experiment": "two_epochs"}
TABLES = ("evaluations", "statistics", "landscape", "batch_size")
measures = pytest.mark.parametrize("table", TABLES)


def measure(run, table, **options):
    return work.measure_run(run, table, **options)


@pytest.fixture
def run(results):
    """It is trained, and nothing of it is measured."""
    return make_run(PROFILE)


def stamps(run):
    return {path.name: path.stat().st_mtime_ns for path in run.directory.iterdir()}


def stop(*news):
    raise KeyboardInterrupt


def weights(run, name=store.WEIGHTS):
    return load_file(run.directory / name)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# -- training


def test_training_keeps_weights_history_and_where_they_come_from(run):
    origin = store.check(run.directory / store.WEIGHTS)
    assert set(origin) == set(store.PROVENANCE)
    assert (origin["config_hash"], origin["fingerprint"]) == (run.hash, training_set(run).fingerprint)
    config = store.read_config(run)
    assert config["settings"] == json.loads(json.dumps(asdict(run)))
    assert config["provenance"] == origin
    history = store.read_table(run.directory / store.HISTORY)
    assert list(history.epoch) == [1]
    made = {"config.json", "files.json", "history.csv", "weights.safetensors"}
    assert {path.name for path in run.directory.iterdir()} == made
    before = stamps(run)
    assert work.train_run(run).equals(history)
    assert stamps(run) == before


@pytest.mark.parametrize("when", ["in the first epoch", "between its end and its snapshot", "in the second"])
def test_a_killed_training_goes_on_to_the_same_weights(results, when):
    run = make_run(PROFILE, **LONGER)
    whole = {name: weights(run, name) for name in (store.WEIGHTS, store.snapshot(1), store.snapshot(2))}
    history = store.read_table(run.directory / store.HISTORY)
    shutil.rmtree(run.directory)
    steps = iter(range(100))
    last = {"in the first epoch": 0, "in the second": 2}.get(when)
    on_step = (lambda: next(steps) == last and stop()) if last is not None else (lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        if last is None:
            patch.setattr(work.store, "snapshot", stop)
        with pytest.raises(KeyboardInterrupt):
            work.train_run(run, on_step=on_step)
    assert not (run.directory / store.WEIGHTS).exists()
    assert (run.directory / store.CHECKPOINT).exists() is (last != 0)
    seen = []
    resumed = work.train_run(run, on_epoch=lambda records: seen.append(len(records)))
    assert seen == [1, 2]
    assert all(same(weights(run, name), whole[name]) for name in whole)
    assert np.allclose(resumed.train_loss, history.train_loss)
    assert not (run.directory / store.CHECKPOINT).exists()


def test_snapshots_are_the_weights_after_their_epochs(results):
    run = make_run(PROFILE, **LONGER)
    first, second = (weights(run, store.snapshot(epoch)) for epoch in (1, 2))
    assert same(second, weights(run))
    assert not same(first, second)
    assert same(trained_model(run, 1).state_dict(), first)
    with pytest.raises(ValueError, match=r"epoch is 3, .* keeps snapshots of \(1, 2\)"):
        trained_model(run, 3)


def test_weights_that_are_not_there_are_asked_for_with_the_command_that_makes_them(run):
    (run.directory / store.WEIGHTS).unlink()
    command = f"papermill notebooks/workers/train.ipynb out.ipynb {run.options}"
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors is not there") as error:
        trained_model(run)
    assert str(error.value).endswith(command)
    work.train_run(run)
    assert not trained_model(run).training


def test_weights_that_are_not_those_that_were_written_are_not_used(run):
    path = run.directory / store.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for use in (trained_model, lambda run: measure(run, "evaluations")):
        with pytest.raises(store.DamagedFile, match=r"weights.safetensors was changed or damaged"):
            use(run)
    assert not (run.directory / "evaluations.csv").exists()


@pytest.fixture
def diverged(empty, monkeypatch):
    """A run that diverges in its second epoch, whatever its settings."""
    fit = work.fit

    def diverges(model, dataset, settings, **options):
        history = fit(model, dataset, replace(settings, epochs=1), **options)
        raise TrainingDiverged(2, 7, history)

    monkeypatch.setattr(work, "fit", diverges)
    run = make_run(PROFILE, **LONGER)
    assert list(work.train_run(run).epoch) == [1]
    monkeypatch.setattr(work, "fit", None)  # would be called
    return run


def test_a_training_that_diverges_is_a_result_and_not_tried_again(diverged):
    found = json.loads((diverged.directory / store.DIVERGED).read_text())
    assert (found["epoch"], found["step"]) == (2, 7)
    assert "lower lr" in found["message"]
    assert found["provenance"]["config_hash"] == diverged.hash
    assert not (diverged.directory / store.CHECKPOINT).exists()
    assert weights(diverged) == {}
    assert list(work.train_run(diverged).epoch) == [1]
    (diverged.directory / store.WEIGHTS).unlink()  # as where weights are not kept
    assert list(work.train_run(diverged).epoch) == [1]
    with pytest.raises(ValueError, match=r"diverged, it has no weights: see diverged\.json"):
        trained_model(diverged)


@measures
def test_a_diverged_run_has_nothing_to_measure_and_its_tables_are_done(diverged, table):
    assert measure(diverged, table).empty
    assert (diverged.directory / f"{table}.csv").exists()
    assert measure(diverged, table).empty


def test_a_training_that_diverges_at_once_has_no_history(empty):
    run = make_run(PROFILE, norm="no_norm", lr=1e38)
    assert work.train_run(run).empty
    assert work.train_run(run).empty
    assert json.loads((run.directory / store.DIVERGED).read_text())["epoch"] == 1


# -- measuring


@measures
def test_finished_work_is_not_repeated_and_can_be_traced(trained, table, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(trained))
    run = make_run(PROFILE)
    found = measure(run, table)
    origin = store.check(run.directory / f"{table}.csv")
    assert set(store.PROVENANCE) <= set(found)
    assert origin["config_hash"] == run.hash
    assert not list(run.directory.glob("checkpoint*"))
    before = stamps(run)
    monkeypatch.setattr(work, "trained_model", None)  # would be called
    assert measure(run, table).equals(found)
    assert stamps(run) == before


@measures
def test_killed_work_goes_on_to_the_same_rows_and_measures_only_what_it_lacks(
    trained, results, table, monkeypatch
):
    run, cells = make_run(PROFILE), []
    with monkeypatch.context() as patch:
        patch.setenv("RNLIB_RESULTS", str(trained))
        whole = measure(run, table)  # once for all tests
    with pytest.raises(KeyboardInterrupt):
        measure(run, table, on_cell=stop)
    assert not (run.directory / f"{table}.csv").exists()
    assert list(run.directory.glob("checkpoint*"))
    resumed = measure(run, table, on_cell=cells.append)
    keys = [key for key in ("statistics", "attack", "size", "condition") if key in whole]
    assert len(cells) == len(whole[keys].drop_duplicates()) - 1
    drop = ["seconds"] if "seconds" in whole else []
    assert resumed.drop(columns=drop).equals(whole.drop(columns=drop))


@measures
def test_a_run_of_other_settings_is_not_measured(run, table):
    """As after an edit of the profile, which leaves the names of folders as they are."""
    store.keep(run.directory / store.CONFIG, store.as_json({"settings": asdict(run) | {"epochs": 4}}))
    before = stamps(run)
    with pytest.raises(ValueError, match=r"other settings .*'epochs': \(4, 1\).*; set these back, or remove"):
        measure(run, table)
    assert stamps(run) == before


def test_a_damaged_table_is_refused(run):
    measure(run, "statistics")
    path = run.directory / "statistics.csv"
    path.write_text(path.read_text().replace("1", "2"))
    with pytest.raises(store.DamagedFile, match="was changed or damaged"):
        measure(run, "statistics")


def test_a_resumed_table_knows_a_cell_whose_measured_values_have_moved(run, monkeypatch):
    """With another number of threads they differ in the last digit."""
    losses = iter([0.1, 0.1000001])

    def drifting(subject):
        loss = next(losses)
        yield {"attack": "first", "size": 1}, lambda: ({"loss": loss}, torch.tensor([True]))
        yield {"attack": "second", "size": 0.5}, lambda: ({"loss": loss}, torch.tensor([False, True]))

    monkeypatch.setitem(MEASUREMENTS, "drifting", drifting)
    with pytest.raises(KeyboardInterrupt):
        work.measure_run(run, "drifting", on_cell=stop)
    table = work.measure_run(run, "drifting")
    outcomes = store.read_correct(run.directory / "drifting.npz")
    assert {key: list(hits) for key, hits in outcomes.items()} == {
        "first/1": [True],
        "second/0.5": [False, True],
    }
    assert list(table.loss) == [0.1, 0.1000001]
    assert list(table.accuracy) == [100, 50]


def test_an_evaluation_says_how_and_on_what_it_was_made(trained, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(trained))
    run = make_run(PROFILE)
    table = measure(run, "evaluations")
    attacks = ["clean", *attack_suite(run)]
    assert attacks == ["clean", "noise", "grad_sign", "pgd_linf_8px"]
    assert list(table.attack) == attacks * 2
    assert list(table.statistics) == ["tracked"] * 4 + ["batch"] * 4
    assert set(table.n) == {60}
    assert set(table.batch_size) == {100}
    assert set(table.fingerprint) == {work.test_set(run).fingerprint}
    eps = table.set_index("attack").eps.astype(float)
    assert eps["pgd_linf_8px"].tolist() == pytest.approx([8 / 255] * 2, rel=1e-4)
    assert eps["noise"].tolist() == pytest.approx([0.5 * 0.353] * 2)
    outcomes = store.read_correct(run.directory / "evaluations.npz")
    for row in table.itertuples():
        hits = outcomes[f"{row.statistics}/{row.attack}"]
        assert (row.n, row.correct) == (len(hits), hits.sum())
        assert row.accuracy == pytest.approx(100 * hits.mean())


def test_a_profile_may_name_fewer_attacks_for_experiments_and_other_seeds():
    assert list(attack_suite(make_run(PROFILE, seed=1))) == ["noise", "grad_sign"]
    assert list(attack_suite(make_run(PROFILE, **LONGER))) == ["noise"]
    book = attack_suite(make_run("book"))
    assert {"noise", "grad", "grad_sign", "bim_linf", "pgd_linf", "pgd_l2", "cw_l2"} < set(book)
    assert set(book) - set(attack_suite(make_run("book", seed=1))) == {"cw_l2", "pgd_linf_2px"}


def test_a_network_without_batch_statistics_is_evaluated_and_nothing_else(results):
    run = make_run(PROFILE, norm="no_norm")
    assert set(measure(run, "evaluations").statistics) == {"none"}
    for table in TABLES[1:]:
        with pytest.raises(ValueError, match=r"has no batch statistics: \w+ would be the same in both"):
            measure(run, table)


def test_unknown_measurements_and_devices_are_refused(run):
    with pytest.raises(
        ValueError, match=r"measurement is 'transfers', it must be one of evaluations, .*jitter"
    ):
        work.measure_run(run, "transfers")
    for device in ("gpu", 1.5):
        with pytest.raises(ValueError, match=rf"device is {device!r}, it must be cpu, or"):
            measure(run, "evaluations", device=device)


def test_a_probe_sees_the_distance_of_every_channel(trained, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(trained))
    run = make_run(PROFILE)
    table = measure(run, "statistics")
    channels = sum(len(first) for first, _ in tracked_statistics(trained_model(run)).values())
    conditions = ["start", "train", "clean", "noise", "adversarial"]
    assert table.condition.value_counts(sort=False).to_dict() == dict.fromkeys(conditions, channels)
    assert (table["shift_abs"] + 1e-4 >= table["shift"].abs()).all()
    assert np.isfinite(table.select_dtypes("number")).all().all()
    train, test = training_set(run).fingerprint, work.test_set(run, 40).fingerprint
    found = table.groupby("condition", sort=False).fingerprint.unique().explode()
    assert found.to_dict() == dict(zip(conditions, [train, train, test, test, test], strict=True))


def test_a_landscape_is_of_images_of_all_classes_whatever_their_order(run, monkeypatch):
    landscape, train = sys.modules["study.experiments.landscape"], training_set(run)
    by_class = train.subset(train.labels.argsort(stable=True))  # as cifar10-jpeg is stored
    monkeypatch.setattr(landscape, "training_set", lambda run: by_class)
    seen, plane = [], landscape.loss_plane
    monkeypatch.setattr(
        landscape, "loss_plane", lambda *args, **how: seen.append(args[2]) or plane(*args, **how)
    )
    table = measure(run, "landscape")
    assert all(len(y) == 20 and len(y.unique()) > 5 for y in seen)
    assert len(table) == 2 * 9
    sharp = measure(run, "sharpness")
    assert list(sharp.quantity) == ["rise", "curvature"] * 2
    centre = table[(table.a == 0) & (table.b == 0)].loss
    assert centre.nunique() == 2  # the modes differ


def test_what_was_measured_of_an_older_run_has_the_hash_of_its_config(run):
    config = store.read_config(run)
    del config["settings"]["label_smoothing"]
    config["provenance"]["config_hash"] = "older"
    store.keep(run.directory / store.CONFIG, store.as_json(config))
    assert work.provenance(run, work.test_set(run, 10), "cpu")["config_hash"] == "older"


def test_a_device_is_named_by_its_type(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    for device, name in {"cuda": "GPU of cuda", "cuda:1": "GPU of cuda:1", "mps": "mps"}.items():
        assert work.provenance(run, work.test_set(run, 10), device)["device"] == name
    assert " CPU (" in work.device_name("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert work.chosen_device(None) == "cuda"


@pytest.mark.parametrize("training", ["natural", "adversarial"])
def test_the_paper_profile_passes_the_same_path_with_its_epochs_cut_to_one_batch(
    empty, training, monkeypatch
):
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    fake = Dataset("cifar10", images, torch.arange(8) % 10, tuple("abcdefghij"))
    monkeypatch.setattr(networks, "load", lambda name, split: fake)
    monkeypatch.setattr(sys.modules["study.experiments.evaluations"], "attack_suite", lambda run: {})
    monkeypatch.setattr(networks, "evaluation_images", lambda run: 8)
    small = {"epochs": 1, "attack_steps": 1, "validation_images": 8}
    run = make_run("paper", norm="robust_norm", training=training, **small)
    assert len(work.train_run(run)) == 1
    assert list(measure(run, "evaluations").n) == [8, 8]
    assert os.listdir(empty / "paper") == [run.name]

"""The decisive experiments on a tiny run, against the public functions that they stand on."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from rnlib import PGD, measure, use_statistics
from rnlib.attacks import paper_eps
from rnlib.data import test_order as mixed_order
from study.experiments import diagnostics, experiments
from study import store, work
from study.experiments.diagnostics import DIAGNOSTICS, diagnose_run
from study.experiments.experiments import other_seed
from study.runs import ROOT, make_run

TINY = {"width": 2, "architecture": "resnet8", "epochs": 1, "train_images": 1000, "validation_images": 100}
IMAGES = 100  # one batch
EPS = paper_eps("fashion-mnist-sample")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.setattr(diagnostics, "read_profile", lambda profile: {"evaluation": {"images": IMAGES}})
        run = make_run("quick", **TINY)
        for one in (run, other_seed(run)):
            work.train_run(one)
        yield run


def diagnosed(run, name):
    table = pd.DataFrame(diagnose_run(run, name))
    return table, store.read_correct(run.directory / f"{name}.npz")


def usual(run, attack, statistics, images=IMAGES):
    dataset = work.test_set(run, images)
    return measure(work.trained_model(run), dataset, attack, statistics=statistics)[0].numpy()


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_every_diagnostic_keeps_rows_and_outcomes_and_repeats_nothing(trained, name, monkeypatch):
    table, outcomes = diagnosed(trained, name)
    assert len(table) == len(outcomes) > 1
    for row, correct in zip(table.itertuples(), outcomes.values(), strict=True):
        assert (row.n, row.correct) == (len(correct), correct.sum())
        assert row.accuracy == pytest.approx(100 * correct.mean())
    monkeypatch.setitem(DIAGNOSTICS, name, None)  # would fail if it were called again
    assert len(diagnose_run(trained, name)) == len(table)


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_the_diagonals_are_the_usual_evaluation(trained, statistics):
    wanted = usual(trained, PGD(EPS), statistics)
    _, outcomes = diagnosed(trained, "transfer")
    assert np.array_equal(outcomes[f"pgd_linf/{statistics}/{statistics}"], wanted)
    _, outcomes = diagnosed(trained, "ladder")
    source = {"tracked": "ema", "batch": "batch"}[statistics]
    assert np.array_equal(outcomes[f"pgd_linf/{source}"], wanted)
    _, outcomes = diagnosed(trained, "adequacy")
    assert np.array_equal(outcomes[f"PGD, 20 steps/{statistics}"], wanted)


def test_the_sweeps_pass_through_the_usual_evaluation(trained):
    _, outcomes = diagnosed(trained, "eps")
    for mode in ("tracked", "batch"):
        wanted = usual(trained, PGD(EPS), mode, images=IMAGES // 2)
        assert np.array_equal(outcomes[f"pgd_linf/0.03/{mode}"], wanted)
    _, outcomes = diagnosed(trained, "batch_size")
    assert np.array_equal(outcomes["clean/100/batch"], usual(trained, None, "batch"))
    assert np.array_equal(outcomes["clean/100/tracked"], usual(trained, None, "tracked"))
    assert not np.array_equal(outcomes["clean/2/batch"], outcomes["clean/100/batch"])


def test_untouched_neighbours_are_clean_images(trained):
    table, outcomes = diagnosed(trained, "neighbours")
    clean = usual(trained, None, "batch").reshape(-1, 100)
    for k in (1, 10, 25, 50):
        assert np.array_equal(outcomes[f"{k}/0.0/batch"], clean[:, k:].ravel())
    harmed = table[table.changed == 50].set_index("eps").accuracy
    assert harmed[0.3] < harmed[0.0]


def test_the_twin_is_the_clean_batch(trained):
    """Statistics frozen at those of the clean batch: clean images are classified as in batch mode."""
    _, outcomes = diagnosed(trained, "ladder")
    assert (outcomes["clean/twin"] == outcomes["clean/batch"]).mean() > 0.98  # but for unbiased variances


def test_wrong_names_and_runs_are_refused(trained):
    with pytest.raises(ValueError, match="diagnostic is 'ladders', it must be one of transfer, "):
        diagnose_run(trained, "ladders")
    run = make_run("quick", **TINY, norm="no_norm")
    work.train_run(run)
    with pytest.raises(ValueError, match="no batch statistics"):
        diagnose_run(run, "ladder")
    with pytest.raises(FileNotFoundError, match="not trained: papermill"):
        diagnose_run(make_run("quick", **TINY, norm="robust_norm"), "ladder")


def test_groups_of_attacked_images_keep_their_places(trained):
    """Every image is attacked once for each m, so that outcomes pair with those of whole batches."""
    _, outcomes = diagnosed(trained, "fraction")
    steps = PGD(EPS, steps=5, step_size=tuple(e / 2 for e in EPS))
    assert np.array_equal(outcomes["100/tracked"], usual(trained, steps, "tracked"))
    clean = usual(trained, None, "batch")
    for m in (1, 5, 25):
        assert outcomes[f"{m}/batch"].shape == clean.shape
        assert (outcomes[f"{m}/batch"] <= clean).mean() > 0.98  # an attack helps next to no image


def test_reshuffled_images_keep_their_places(trained):
    """Images crafted in their batches and tested in others: here by hand, with the public functions."""
    dataset, model = work.test_set(trained, 200), work.trained_model(trained)
    cell = {"attack": "pgd_linf", "crafted": "tracked", "tested": "reshuffled"}
    cells = experiments.transfer(trained, model, dataset, "cpu")
    (outcome,) = (outcome for found, outcome in cells if found == cell)
    x, correct = dataset.images / 255, torch.zeros(200, dtype=torch.bool)
    with use_statistics(model, "tracked"):
        for i, part in enumerate(torch.arange(200).split(100)):
            chance = torch.Generator().manual_seed(i)
            x[part] = PGD(EPS)(model, x[part], dataset.labels[part], generator=chance)
    with use_statistics(model, "batch"), torch.no_grad():
        for part in mixed_order(200, 1).split(100):
            correct[part] = model(x[part]).argmax(1) == dataset.labels[part]
    assert (outcome() == correct).float().mean() > 0.98


def test_an_interrupted_diagnostic_measures_only_what_it_lacks(trained, monkeypatch):
    measured = []

    def outcome(name):
        measured.append(name)
        if measured == ["first", "second"]:
            raise KeyboardInterrupt
        return torch.tensor([name == "first", True])

    def stubborn(run, model, dataset, device):
        for name in ("first", "second", "third"):
            yield {"attack": name, "size": 0.5}, partial(outcome, name)

    monkeypatch.setitem(DIAGNOSTICS, "stubborn", stubborn)
    with pytest.raises(KeyboardInterrupt):
        diagnose_run(trained, "stubborn")
    assert not (trained.directory / "stubborn.csv").exists()
    table, outcomes = diagnosed(trained, "stubborn")
    assert measured == ["first", "second", "second", "third"]
    assert list(table.attack) == ["first", "second", "third"]
    assert list(table.accuracy) == [100, 50, 50]
    assert [list(kept) for kept in outcomes.values()] == [[True, True], [False, True], [False, True]]
    assert diagnose_run(trained, "stubborn") == table.to_dict("records")
    assert not list(trained.directory.glob("checkpoint*"))


def test_a_resumed_diagnostic_knows_a_cell_whose_measured_values_have_moved(trained, monkeypatch):
    """With another number of threads they differ in the last digit."""
    losses = iter([0.1, 0.1000001])

    def drifting(run, model, dataset, device):
        loss = next(losses)
        yield {"attack": "first"}, ({"loss": loss}, torch.tensor([True]))
        yield {"attack": "second"}, lambda: ({"loss": loss}, torch.tensor([False]))

    def stop(row):
        raise KeyboardInterrupt

    monkeypatch.setitem(DIAGNOSTICS, "drifting", drifting)
    with pytest.raises(KeyboardInterrupt):
        diagnose_run(trained, "drifting", on_cell=stop)
    table, outcomes = diagnosed(trained, "drifting")
    assert list(outcomes) == list(table.attack) == ["first", "second"]
    assert list(table.loss) == [0.1, 0.1000001]


FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "results").rglob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_results_hold_the_outcome_of_every_image_that_a_table_counts(path):
    kept = {key: (len(hits), hits.sum()) for key, hits in store.read_correct(ROOT / path).items()}
    if path.name == store.CORRECT:
        table = pd.read_csv(ROOT / path.with_name(store.EVALUATIONS))
        assert kept == {f"{r.statistics}/{r.attack}": (r.n, r.correct) for r in table.itertuples()}
    else:
        table = pd.read_csv(ROOT / path.with_suffix(".csv"))
        assert list(kept.values()) == list(zip(table.n, table.correct, strict=True))

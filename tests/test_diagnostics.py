"""The decisive experiments on a tiny run, against the public functions that they stand on."""

import numpy as np
import pandas as pd
import pytest

from rnlib import PGD, measure
from rnlib.attacks import paper_eps
from rnlib.study import store, work
from rnlib.study.diagnostics import DIAGNOSTICS, diagnose_run
from rnlib.study.runs import make_run

TINY = {"width": 2, "architecture": "resnet8", "epochs": 1, "train_images": 1000, "validation_images": 100}
EPS = paper_eps("fashion-mnist-sample")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
        run = make_run("quick", **TINY)
        work.train_run(run)
        yield run


def diagnosed(run, name):
    table = pd.DataFrame(diagnose_run(run, name))
    return table, store.read_correct(run.directory / f"{name}.npz")


def usual(run, attack, statistics, images=200):
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
    _, outcomes = diagnosed(trained, "fraction")
    assert np.array_equal(outcomes[f"100/{statistics}"], wanted)


def test_the_sweeps_pass_through_the_usual_evaluation(trained):
    _, outcomes = diagnosed(trained, "eps")
    for mode in ("tracked", "batch"):
        wanted = usual(trained, PGD(EPS), mode)[:100]
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
    with pytest.raises(ValueError, match="diagnostic is 'ladders', it must be one of transfer, ladder"):
        diagnose_run(trained, "ladders")
    run = make_run("quick", **TINY, norm="no_norm")
    work.train_run(run)
    with pytest.raises(ValueError, match="no batch statistics"):
        diagnose_run(run, "ladder")
    with pytest.raises(FileNotFoundError, match="not trained: papermill"):
        diagnose_run(make_run("quick", **TINY, norm="robust_norm"), "ladder")


def test_groups_of_attacked_images_do_not_overlap(trained):
    _, outcomes = diagnosed(trained, "fraction")
    assert [len(outcomes[f"{m}/batch"]) for m in (1, 5, 25, 100)] == [20, 40, 100, 200]

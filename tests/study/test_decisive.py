"""Corrections for many comparisons, against values worked out by hand and scipy's tests; transfer by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.report import decisive
from study import store
from study.report.claims import Verdict
from study.report.comparisons import Comparison
from study.report.decisive import holm, multiplicity, networks, p_value
from study.report.results import over_seeds
from study.runs import make_run


def comparison(ours, low, high, seeds=1):
    return Comparison("", None, ours, low, high, 1000, seeds, "same")


def test_p_values_over_seeds_are_those_of_a_t_test():
    values = [1.0, 2.5, 0.5]
    wanted = stats.ttest_1samp(values, 0).pvalue
    found = p_value(comparison(np.mean(values), *over_seeds(values), seeds=3))
    assert found == pytest.approx(wanted)


def test_p_values_of_one_seed_agree_with_the_interval():
    assert p_value(comparison(1.0, 0.0, 2.0)) == pytest.approx(0.05)
    assert p_value(comparison(-3.0, -4.0, -2.0)) < 1e-6
    assert p_value(comparison(0.0, 0.0, 0.0)) == 1
    assert p_value(comparison(2.0, 2.0, 2.0)) == 0
    assert p_value(comparison(2.0, -np.inf, np.inf)) == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni(values):
    found, order = np.array(holm(values)), np.argsort(values)
    assert (found >= values).all()
    assert found.min() == pytest.approx(min(1, len(values) * min(values)))
    assert (np.diff(found[order]) >= 0).all()  # a smaller value stays the smaller


def test_the_sentence_counts_differences_and_leaves_out_margins():
    clear, weak = comparison(5.0, 4.0, 6.0), comparison(1.0, 0.02, 1.98)
    verdicts = [Verdict({}, "", "", (clear, weak)), Verdict({"margin": 1.0}, "", "", (clear,))]
    text = multiplicity(verdicts).data
    assert "Of the 2 differences" in text
    assert "2 are clear at 95%" in text
    assert "(Holm), 2 are" in text
    assert "(Holm), 1 are" in multiplicity([Verdict({}, "", "", (clear, weak, weak))]).data
    assert multiplicity([]).data == ""


def test_networks_are_empty_where_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    assert networks("laptop", "transfer", attack="pgd_linf").empty


def test_the_strongest_way_of_crafting_leaves_what_all_of_them_leave(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    run = make_run("laptop", norm="batch_norm", training="natural", seed=0)
    left = {  # of four images: crafted in one mode, tested in another
        ("tracked", "tracked"): [1, 0, 0, 1], ("batch", "tracked"): [1, 1, 0, 1],
        ("tracked", "batch"): [1, 1, 1, 1], ("batch", "batch"): [0, 1, 1, 0],
    }  # fmt: skip
    keys = {"run": run.name, "attack": "pgd_linf", "n": 4}
    rows = [
        keys | {"crafted": crafted, "tested": tested, "correct": sum(hit), "accuracy": 25.0 * sum(hit)}
        for (crafted, tested), hit in left.items()
    ]
    store.write_rows(run.directory / "transfer.csv", rows)
    outcomes = {"/".join(pair): np.array(hit, bool) for pair, hit in left.items()}
    store.write_correct(run.directory / "transfer.npz", outcomes)
    (row,) = decisive.strongest("laptop", networks("laptop", "transfer")).to_dict("records")
    assert (row["tracked"], row["batch"]) == (50.0, 50.0)
    assert row["batch minus tracked"].startswith("+0.0")
    assert decisive.strongest("laptop", networks("laptop", "ladder")).empty

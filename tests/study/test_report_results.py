"""Tables and intervals of the report, against scipy, closed forms and files made by hand."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study import store
from study.report import results
from study.runs import make_run
from tests.study.report_fakes import PROVENANCE, evaluate, probe, write

pytestmark = pytest.mark.usefixtures("empty")

BN = {"norm": "batch_norm", "training": "natural", "experiment": "headline"}
MODES = ({"statistics": "batch"}, {"statistics": "tracked"})


def test_the_report_leaves_torch_out():
    modules = "claims, comparison, figures, ledger, pages, results, rule"
    code = f"import sys; from study.report import {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_over_seeds_is_the_t_interval():
    values = [48.0, 50.5, 47.0, 52.0, 49.0]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert results.over_seeds(values) == pytest.approx((interval.low, interval.high))


def test_wilson_against_its_formula():
    n, share, z = 200, 0.4, stats.norm.ppf(0.975)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert results.wilson(80, n) == pytest.approx((100 * (centre - half), 100 * (centre + half)))


def test_a_paired_difference_is_the_bootstrap_of_its_images():
    rng = np.random.default_rng(3)
    first, second = 100.0 * (rng.random(900) < 0.6), 100.0 * (rng.random(900) < 0.5)
    difference, low, high = results.difference(first, second)
    draws = np.random.default_rng(0).integers(900, size=(2000, 900))
    assert difference == pytest.approx((first - second).mean())
    assert (low, high) == pytest.approx(np.quantile((first - second)[draws].mean(1), [0.025, 0.975]))
    half = 1.96 * (first - second).std(ddof=1) / 30
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.3)


def test_a_difference_of_other_images_has_the_interval_of_two_samples():
    rng = np.random.default_rng(4)
    first, second = 100.0 * (rng.random(4000) < 0.6), 100.0 * (rng.random(1000) < 0.5)
    difference, low, high = results.difference(first, second)
    half = 1.96 * np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    assert difference == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.3)


def test_a_difference_of_single_values_has_no_interval():
    assert results.difference(np.array([3.0]), np.array([1.0])) == (2, -np.inf, np.inf)


@pytest.mark.parametrize(("wins", "losses"), [(7, 1), (1, 7), (4, 4), (0, 5), (0, 0), (12, 3)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_images(wins, losses):
    first = np.array([True] * wins + [False] * losses + [True] * 50)
    second = np.array([False] * wins + [True] * losses + [True] * 50)
    n = wins + losses
    wanted = min(1.0, 2 * sum(stats.binom.pmf(k, n, 0.5) for k in range(max(wins, losses), n + 1)))
    assert results.mcnemar(first, second) == pytest.approx(wanted)


def test_tables_join_settings_and_provenance_and_say_which_trainings_are_matched():
    evaluate(lambda run, mode, attack: 50.0, norm="batch_norm", training="natural", seed=0)
    rows = results.table("book", "evaluations", None)
    first = rows[rows.experiment == "headline"].iloc[0]
    assert (first.epochs, first.matched, first.device, first.seed) == (100, True, "a CPU", 0)
    assert np.isnan(first.p)
    assert not rows[rows.experiment == "eight_epochs"].matched.any()
    assert set(results.table("book", "evaluations").experiment) == {"headline"}
    both = results.table("book", "evaluations", ["headline", "eight_epochs"], attack=["noise", "clean"])
    assert set(both.experiment) == {"headline", "eight_epochs"}
    assert set(both.attack) == {"noise", "clean"}


def test_a_table_follows_its_files_and_a_damaged_one_is_refused():
    probe({("batch", "pgd", 1): 40})
    assert results.table("book", "probe").accuracy.tolist() == [40]
    rows = results.table("book", "probe")
    rows["accuracy"] = 0.0
    assert results.table("book", "probe").accuracy.tolist() == [40]  # what is kept is not what a page changes
    probe({("batch", "pgd", 1): 70}, seeds=(0, 1))
    assert results.table("book", "probe").accuracy.tolist() == [70, 71]
    path = make_run("book").directory / "probe.csv"
    path.write_text(path.read_text().replace("70", "90"))
    with pytest.raises(store.DamagedFile):
        results.table("book", "probe")


@pytest.mark.parametrize("name", ["evaluations", "curves", "history", "landscape", "probe"])
def test_there_are_columns_where_nothing_is_measured(name):
    assert {"run", "norm", "training", "epochs", "matched"} <= set(results.table("book", name))
    assert results.gaps("book", "evaluations", ["attack"], *MODES).empty


def test_intervals_are_over_seeds_or_over_images():
    probe({("batch", "pgd", 1): 40}, seeds=(0, 1, 2))
    (row,) = results.intervals(results.table("book", "probe"), ["attack", "statistics"]).itertuples()
    assert (row.mean, row.seeds) == (pytest.approx(41), 3)
    assert (row.low, row.high) == pytest.approx(results.over_seeds([40, 41, 42]))
    (row,) = results.intervals(results.table("book", "probe", seed=0), ["attack"]).itertuples()
    assert (row.low, row.high) == pytest.approx(results.wilson(40, 100))
    (row,) = results.intervals(results.table("book", "probe", seed=0), ["attack"], "size").itertuples()
    assert (row.low, row.mean, row.high) == (1, 1, 1)


def test_gaps_pair_images_and_seeds():
    rng = np.random.default_rng(0)
    hits = {mode: rng.random(400) < share for mode, share in (("batch", 0.7), ("tracked", 0.4))}
    probe({(mode, "pgd", 1): hits[mode] for mode in hits} | {("batch", "noise", 1): 10})
    (row,) = results.gaps("book", "probe", ["attack"], *MODES).itertuples()  # noise has one side alone
    assert (row.attack, row.n, row.seeds, row.p) == ("pgd", 400, 1, None)
    wanted = results.difference(100.0 * hits["batch"], 100.0 * hits["tracked"])
    assert (row.mean, row.low, row.high) == pytest.approx(wanted)
    probe({("batch", "pgd", 1): 60, ("tracked", "pgd", 1): 30}, seeds=(0, 1))
    write(make_run("book", seed=2), "probe", {("batch", "pgd", 1): 60}, ("statistics", "attack", "size"))
    (row,) = results.gaps("book", "probe", ["attack"], *MODES).itertuples()  # seed 2 has one side alone
    assert (row.mean, row.seeds) == (pytest.approx(30), 2)
    # Of two seeds the interval is over images, each the mean of both networks.
    sides = [np.mean([np.arange(100) < hits + seed for seed in (0, 1)], 0) for hits in (60, 30)]
    wanted = results.difference(*(100.0 * side for side in sides))
    assert (row.low, row.high) == pytest.approx(wanted[1:])


def test_few_discordant_images_carry_the_exact_test():
    first = np.arange(1000) < 507
    second = (np.arange(1000) < 500) | (np.arange(1000) == 999)
    probe({("batch", "pgd", 1): first, ("tracked", "pgd", 1): second})
    (row,) = results.gaps("book", "probe", ["attack"], *MODES).itertuples()
    assert row.p == pytest.approx(stats.binomtest(1, 8).pvalue)
    assert row.low > 0  # which the bootstrap takes for clear


def test_a_comparison_of_several_rows_of_a_seed_is_refused():
    probe({(mode, "pgd", size): 50 for mode in ("batch", "tracked") for size in (1, 2)})
    with pytest.raises(ValueError, match="2 rows of probe of one seed match"):
        results.gaps("book", "probe", ["attack"], *MODES)
    (make_run("book").directory / "probe.npz").unlink()
    with pytest.raises(ValueError, match="outcomes of its images are missing"):
        results.gaps("book", "probe", ["attack", "size"], *MODES)


def test_curves_have_a_row_an_epoch_and_mode_and_how_far_the_loss_rose():
    losses = {"tracked": [2.0, 1.0, 2.5, 0.5, 1.5], "batch": [2.0, 1.5, 1.2, 1.0, 0.9]}
    rows = [
        {"epoch": epoch + 1, "train_loss": 1.0, "train_accuracy": 50.0}
        | {f"val_loss_{mode}": values[epoch] for mode, values in losses.items()}
        | {f"val_accuracy_{mode}": 50.0 for mode in losses}
        | PROVENANCE
        for epoch in range(5)
    ]
    run = make_run("book", experiment="eight_epochs")
    store.keep_rows(run.directory / store.HISTORY, rows)
    curves = results.table("book", "curves", "eight_epochs")
    tracked = curves[curves.statistics == "tracked"]
    assert tracked.rise.tolist() == pytest.approx([0, 0, 1.5, 0, 1.0])
    assert tracked.stage.tolist() == ["first", "", "", "", ""]  # the last would be the eighth
    assert not curves.diverged.any()
    sides = [results.select(curves, {"statistics": mode}) for mode in ("tracked", "batch")]
    gap = results.contrast("book", "curves", sides, "rise")
    assert (gap.mean, gap.n, gap.p) == (pytest.approx(0.5), 5, None)


def test_with_four_sides_a_gap_is_compared_with_a_gap():
    probe(
        {
            ("batch", "pgd", 30): 60,
            ("tracked", "pgd", 30): 30,
            ("batch", "pgd", 1): 45,
            ("tracked", "pgd", 1): 40,
        }
    )
    rows = results.table("book", "probe")
    sides = [
        results.select(rows, {"statistics": mode, "size": size})
        for size in (30, 1)
        for mode in ("batch", "tracked")
    ]
    assert results.contrast("book", "probe", sides, "accuracy").mean == pytest.approx(25)
    assert results.contrast("book", "probe", [*sides[:3], rows.iloc[:0]], "accuracy") is None


def test_the_papers_tables_stand_under_one_another():
    assert len(results.paper(4, 5)) == 320
    assert set(results.paper(2).table) == {2}
    pairs = results.paper(4, 5).pivot_table(
        "accuracy", ["dataset", "architecture", "norm", "statistics", "training"], "attack"
    )
    assert (pairs.grad_sign < pairs.bim_linf).sum() == 11
    assert isinstance(results.paper(3), pd.DataFrame)

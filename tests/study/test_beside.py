"""The paper's cells set against each other and against our rows."""

from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from study.report import beside, results
from study import store
from study.runs import make_run

BN, BNW = ("batch_norm", "tracked"), ("batch_norm", "batch")
RN, RNT = ("robust_norm", "batch"), ("robust_norm", "tracked")


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    yield
    plt.close("all")


def evaluated(accuracy, *, n=100, **chosen):
    """Evaluations of a run of the laptop profile, with the same accuracy under all attacks."""
    run = make_run("laptop", **chosen)
    rows = [
        {"run": run.name, "statistics": mode, "attack": attack, "n": n, "correct": accuracy,
         "accuracy": float(accuracy), "batch_size": 50}
        for mode, attack in product(("tracked", "batch"), ("clean", "noise", *beside.ATTACK_CELLS))
    ]  # fmt: skip
    store.write_rows(run.directory / store.EVALUATIONS, rows)
    return run


# As tests/test_paper_tables.py counts them from the files, line by line.
@pytest.mark.parametrize(
    ("pair", "training", "higher", "lower"),
    [
        ((BN, BNW), "natural", 24, 0),
        ((BN, BNW), "adversarial", 24, 0),
        ((BNW, RN), "natural", 11, 13),
        ((BNW, RN), "adversarial", 22, 1),
        ((BN, RNT), "natural", 15, 9),
        ((BN, RNT), "adversarial", 20, 4),
    ],
)
def test_cells_are_counted_on_the_side_of_the_second(pair, training, higher, lower):
    pairs = results.select(beside.cells(*pair), {"training": training})
    assert beside.counted(pairs) == f"{higher} of 24"
    assert beside.counted(pairs, beside.LOWER) == f"{lower} of 24"
    assert beside.counted(pairs, beside.EQUAL) == f"{24 - higher - lower} of 24"


def test_a_cell_holds_the_numbers_that_are_printed():
    where = {"dataset": "cifar10", "architecture": "vgg11", "training": "natural", "attack": "bim_linf"}
    (cell,) = results.select(beside.cells(BN, RN), where).itertuples()
    assert (cell.first, cell.second, cell.side) == (54.07, 48.69, beside.LOWER)


def test_attacks_pair_the_rows_of_a_network():
    pairs = beside.attacks(beside.published(), "grad_sign", "bim_linf")
    assert beside.counted(pairs) == "11 of 64"
    evaluated(40, seed=0)
    evaluated(60, seed=1)
    ours = beside.attacks(results.table("laptop", "evaluations"), "grad_sign", "bim_linf")
    assert sorted(zip(ours["first"], ours.second, ours.side, strict=True)) == [
        (40, 40, "equal"), (40, 40, "equal"), (60, 60, "equal"), (60, 60, "equal"),
    ]  # fmt: skip


def test_ours_have_their_columns_where_nothing_was_run():
    assert {"architecture", "training", "accuracy"} <= set(beside.ours("laptop", 5))


def test_ours_are_the_runs_of_a_tables_networks_under_the_papers_name_of_the_data():
    evaluated(50, experiment="architectures", architecture="vgg11")
    evaluated(60, experiment="short")
    evaluated(70, experiment="fashion", dataset="fashion-mnist")
    evaluated(80)
    assert set(beside.ours("laptop", 4).accuracy) == {50}
    assert set(beside.ours("laptop", 3).accuracy) == {80}
    assert set(beside.ours("laptop", 3, 4).data) == {"cifar10-jpeg"}
    assert set(beside.ours("laptop", 3, 4).dataset) == {"cifar10"}
    assert beside.ours("laptop", 5).empty


def test_the_table_says_in_each_row_what_was_run():
    evaluated(50, experiment="architectures", architecture="vgg11", norm="robust_norm")
    table = beside.table("laptop", 4)
    assert len(table) == 32
    row = table.loc["VGG-11", "natural", "RobustNorm"]
    assert (row["BIM"], row["ours"]) == ("48.69 / 50.0", "cifar10-jpeg, 1 seed")
    row = table.loc["VGG-11", "natural", "BatchNorm"]
    assert (row["BIM"], row["ours"]) == ("54.07", "not run here")
    assert set(beside.table("laptop", 5)["ours"]) == {"not run here"}


def test_points_of_the_diagonal_figure_are_the_pairs():
    pairs = beside.cells(BN, RNT)
    figure = beside.diagonal_figure([("Both", pairs)], [("across", "up")])
    (axis,) = figure.axes
    drawn = {tuple(point) for dots in axis.collections for point in dots.get_offsets().tolist()}
    assert drawn == set(zip(pairs["first"], pairs.second, strict=True))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("across", "up")
    beside.diagonal_figure([("Nothing", pairs.iloc[:0])], [("across", "up")])


def test_series_are_the_keys_of_their_looks():
    table = beside.series(pd.DataFrame({"norm": ["batch_norm"], "statistics": ["batch"]}))
    assert beside.looks([BNW])[table.series[0]][0] == "BatchNorm w/o tracking"
    assert beside.series(pd.DataFrame()).empty

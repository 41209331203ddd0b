"""The figures that chapters share draw what the tables say, where they say it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from study.report import panels, results
from study import store
from study.runs import diagnosed, make_run


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table(seeds=(0,), n=100):
    rows = [
        {"attack": attack, "statistics": mode, "size": size, "seed": seed, "accuracy": accuracy + seed}
        for attack, size in (("pgd", 1), ("noise", 10))
        for mode, accuracy in (("tracked", 40.0), ("batch", 60.0 + size))
        for seed in seeds
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(n=n, correct=frame.accuracy.astype(int))


def dots(axis):
    """Places and heights of the dots of error bars."""
    lines = [line for line in axis.lines if line.get_marker() == "o"]
    return sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in lines)


def test_intervals_are_over_images_for_one_seed_and_over_seeds_for_several():
    one = panels.intervals(table(), ["attack", "statistics"]).iloc[0]
    assert (one["low"], one["high"]) == pytest.approx(results.wilson(40, 100))
    several = panels.intervals(table(seeds=(0, 1, 2)), ["attack", "statistics"]).iloc[0]
    assert several["mean"] == pytest.approx(41)
    assert (several["low"], several["high"]) == pytest.approx(results.over_seeds([40, 41, 42]))
    other = panels.intervals(table(), ["attack", "statistics"], value="size").iloc[0]
    assert (other["mean"], other["low"], other["high"]) == (1, 1, 1)
    assert panels.intervals(table().iloc[:0], ["attack"]).empty


def test_categories_puts_each_series_beside_its_place():
    looks = panels.look("batch_norm")
    figure = panels.categories(table(), x="attack", series="statistics", looks=looks)
    (axis,) = figure.axes
    found = dots(axis)
    assert [round(y) for _, y in found] == [40, 61, 40, 70]
    assert np.round([x for x, _ in found]).tolist() == [0, 0, 1, 1]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["pgd", "noise"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [looks[m][0] for m in looks]


def test_categories_has_a_panel_for_each_value_and_leaves_out_other_series():
    looks = {"batch": ("Batch", "C0", "-")}
    figure = panels.categories(
        table(), x="size", series="statistics", looks=looks, panel="attack", titles={"pgd": "PGD"}
    )
    assert [axis.get_title() for axis in figure.axes] == ["PGD", "Noise"]
    assert [[round(y) for _, y in dots(axis)] for axis in figure.axes] == [[61], [70]]


def test_lines_go_through_the_means_with_a_tick_for_each_size():
    looks = panels.names(["tracked", "batch"], {"batch": "Batch"})
    figure = panels.lines(
        table(seeds=(0, 1, 2)), x="size", series="statistics", looks=looks, xlabel="size", xscale="log"
    )
    (axis,) = figure.axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[41, 41], [62, 71]]
    assert axis.get_xticks().tolist() == [1, 10]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["tracked", "Batch"]


def test_figures_of_nothing_are_empty_and_no_error():
    nothing = pd.DataFrame(columns=["attack", "statistics", "size", "accuracy", "n", "correct"])
    looks = panels.look("batch_norm")
    for figure in (
        panels.categories(nothing, x="attack", series="statistics", looks=looks, panel="attack"),
        panels.lines(nothing, x="size", series="statistics", looks=looks, xlabel="size"),
    ):
        assert [line for axis in figure.axes for line in axis.lines] == []


def test_pending_names_what_is_missing_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    text = panels.pending("quick", "transfer").data
    wanted = [run for run, name in diagnosed("quick") if name == "transfer"]
    assert f"Pending ({len(wanted)})" in text
    assert f"{wanted[0].options} -p diagnostic transfer" in text
    naturally = panels.pending("quick", "transfer", runs=lambda run: run.training == "natural").data
    assert "adversarial" not in naturally
    for run in wanted:
        store.write_rows(run.directory / "transfer.csv", [{"accuracy": 1.0}])
    assert panels.pending("quick", "transfer") is None
    assert panels.pending("quick", "ladder") is None  # nobody asked for it
    landscape = panels.pending("quick", "landscape").data
    assert "papermill notebooks/landscape.ipynb out.ipynb -p profile quick" in landscape
    assert "diagnostic" not in landscape
    assert make_run("quick").directory.parent == tmp_path / "quick"

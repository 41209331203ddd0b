"""Figures draw each number where it belongs, in the colour and by the name that it has everywhere."""

import base64
import re
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns

from study.report import figures, results


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rows(seeds=(0,), **columns):
    found = [
        {"norm": "batch_norm", "statistics": mode, "attack": attack, "size": size, "seed": seed}
        | {"accuracy": accuracy + seed, "training": training, "n": 100, "correct": int(accuracy + seed)}
        for training in ("natural", "adversarial")
        for attack, size in (("pgd_linf", 10.0), ("noise", 1.0))
        for mode, accuracy in (("batch", 60.0 + size), ("tracked", 40.0))
        for seed in seeds
    ]
    return pd.DataFrame(found).assign(**columns)


def dots(axis, *, hollow=False):
    """Heights of filled or open dots by place, from left to right."""
    kept = [line for line in axis.lines if line.get_marker() == "o" and (line.get_mfc() == "none") == hollow]
    return sorted(
        (round(float(x), 2), float(y)) for line in kept for x, y in zip(*line.get_data(), strict=True)
    )


def labels(axis):
    return [text.get_text() for text in axis.get_xticklabels()]


def test_names_and_colours_are_those_of_the_paper_and_of_seaborn():
    assert figures.PALETTE == [code.lower() for code in sns.color_palette("colorblind").as_hex()]
    assert figures.name("grad_sign") == "GradSign"
    assert figures.name(0.030) == "0.03"
    assert figures.name("batch", "source") == "batch"
    assert figures.name("batch") == "batch statistics"
    both = pd.DataFrame({"norm": ["batch_norm", "group_norm"], "statistics": ["batch", "none"]})
    assert figures.named(both).series.tolist() == ["BatchNorm w/o tracking", "GroupNorm"]


def test_dots_stand_side_by_side_in_one_order_with_a_panel_for_each_value():
    figure = figures.dots(rows(), panel="training")
    assert [axis.get_title() for axis in figure.axes] == ["Natural training", "Adversarial training"]
    for axis in figure.axes:
        assert labels(axis) == ["Noise", "PGD"]  # not as they come
        assert [y for _, y in dots(axis)] == [40, 61, 40, 70]
        assert np.round([x for x, _ in dots(axis)]).tolist() == [0, 0, 1, 1]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["BatchNorm", "BatchNorm w/o tracking"]
    assert figure.axes[0].get_ylabel() == "accuracy (%)"


def bars(axis):
    """Lower and upper ends of vertical lines."""
    lines = [line.get_xydata() for line in axis.lines if len(line.get_xdata()) == 2]
    return [tuple(line[:, 1]) for line in lines if line[0, 0] == line[1, 0]]


def test_seeds_are_one_dot_with_their_interval():
    figure = figures.dots(results.select(rows(seeds=(0, 1, 2)), {"training": "natural", "attack": "noise"}))
    (axis,) = figure.axes
    assert [y for _, y in dots(axis)] == pytest.approx([41, 62])
    wanted = [results.over_seeds([40, 41, 42]), results.over_seeds([61, 62, 63])]
    assert sorted(bars(axis)) == [pytest.approx(ends) for ends in wanted]


def test_one_seed_has_the_interval_over_images():
    one = results.select(rows(), {"training": "natural", "attack": "noise", "statistics": "tracked"})
    (axis,) = figures.dots(one).axes
    assert bars(axis) == [pytest.approx(results.wilson(40, 100))]


def test_intervals_that_a_table_has_are_drawn_as_they_are():
    table = pd.DataFrame({"attack": ["noise"], "series": ["x"], "mean": [-5.0], "low": [-9.0], "high": [2.0]})
    (axis,) = figures.dots(table, ylabel="points").axes
    assert dots(axis) == [(0, -5)]
    assert bars(axis) == [(-9, 2)]
    assert axis.get_ylabel() == "points"


@pytest.mark.parametrize("panel", [None, "training"])
def test_the_papers_numbers_are_open_dots_at_the_places_of_ours(panel):
    ours = rows() if panel else results.select(rows(), {"training": "natural"})
    theirs = results.select(results.paper(2), {"training": "natural"})
    figure = figures.dots(ours, panel=panel, paper=theirs)
    axis = figure.axes[0]
    assert [y for _, y in dots(axis, hollow=True)] == pytest.approx([59.16, 77.65, 29.73, 48.54])
    assert [x for x, _ in dots(axis, hollow=True)] == [x for x, _ in dots(axis)]
    assert [y for _, y in dots(axis)] == [40, 61, 40, 70]
    assert "open dots: the paper's" in figure.legends[0].get_title().get_text()
    assert [dots(other, hollow=True) for other in figure.axes[1:]] == [[]] * (len(figure.axes) - 1)


def test_lines_go_through_the_means_with_a_tick_for_each_size():
    one = results.select(rows(seeds=(0, 1, 2)), {"training": "natural"})
    (axis,) = figures.lines(one, x="size", hue="statistics", xscale="log", zero=True).axes
    curves = [list(line.get_ydata()) for line in axis.lines if line.get_marker() == "o"]
    assert [curve for curve in curves if curve] == [[41, 41], [62, 71]]
    assert axis.get_xticks().tolist() == [1, 10]
    assert (axis.get_xlabel(), axis.get_xscale()) == ("size", "log")
    assert any(list(line.get_ydata()) == [0, 0] for line in axis.lines)
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx(results.over_seeds([40, 41, 42]))


def test_nothing_measured_is_said_and_no_error():
    nothing = rows().iloc[:0]
    planes = pd.DataFrame(columns=["norm", "statistics", "training", "a", "b", "loss"])
    for figure in (
        figures.dots(nothing, panel="training", paper=results.paper(2)),
        figures.lines(nothing, x="size"),
        figures.surfaces(planes),
    ):
        assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["nothing measured yet"]


def test_surfaces_have_a_row_a_training_and_a_column_a_mode():
    grid = [(a, b) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
    planes = pd.DataFrame(
        {"norm": "batch_norm", "statistics": mode, "training": training, "a": a, "b": b, "loss": 1 + a * a}
        for training in ("natural", "adversarial")
        for mode in ("batch", "tracked")
        for a, b in grid
        if (training, mode) != ("adversarial", "batch")
    )
    *axes, bar = figures.surfaces(planes).axes
    assert [axis.get_title() for axis in axes] == ["BatchNorm", "BatchNorm w/o tracking", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["Natural training", "", "Adversarial training", ""]
    assert [len(axis.lines) for axis in axes] == [1, 1, 1, 0]
    assert bar.get_ylabel() == "log10 of the loss"


def test_a_history_has_its_losses_and_accuracies_by_epoch():
    epochs = [
        {"epoch": epoch, "lr": 0.1, "train_loss": 2.0 / epoch, "train_accuracy": 10.0 * epoch}
        | {"val_loss_batch": 1.0, "val_accuracy_batch": 50.0, "seconds": 3.0}
        for epoch in (1, 2, 3)
    ]
    figure = figures.history(epochs)
    drawn = {
        axis.get_title(): [line.get_ydata().tolist() for line in axis.lines if len(line.get_ydata())]
        for axis in figure.axes
    }
    assert drawn["loss"][:2] == [[2, 1, pytest.approx(2 / 3)], [1, 1, 1]]
    assert drawn["accuracy (%)"][:2] == [[10, 20, 30], [50, 50, 50]]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["training", "validation, batch statistics"]


def files(html):
    """By kind: what a shown figure offers below it."""
    links = re.findall(r'href="data:[^,]*;base64,([^"]*)" download="[^"]*[.](\w+)"', html)
    return {kind: base64.b64decode(content) for content, kind in links}


def test_a_shown_figure_is_svg_with_its_caption_and_text():
    html = figures.show(figures.dots(rows()[:2]), caption="a < b", alt='the "x"').data
    assert "<figcaption>a &lt; b<" in html
    assert 'alt="the &quot;x&quot;"' in html
    image = re.search('src="data:image/svg[+]xml;base64,([^"]*)', html)
    assert b"<svg" in base64.b64decode(image[1]) == files(html)["svg"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("draw", [figures.dots, figures.lines])
def test_the_table_of_a_figure_says_what_is_drawn_by_the_names_of_the_figure(draw):
    figure = draw(rows(seeds=(0, 1, 2)), x="size", panel="training")
    drawn = {y for axis in figure.axes for _, y in dots(axis)}
    table = pd.read_csv(BytesIO(files(figures.show(figure, caption="", alt="").data)["csv"]))
    assert list(table) == ["size", "series", "training", "low", "mean", "high"]
    assert set(table["mean"]) == drawn == {41, 62, 71}
    assert set(table.training) == {"Natural training", "Adversarial training"}
    for one in table.itertuples():
        ends = results.over_seeds([one.mean - 1, one.mean, one.mean + 1])
        assert (one.low, one.high) == pytest.approx(ends)


def test_the_table_of_a_figure_with_the_papers_numbers_has_both():
    theirs = results.select(results.paper(2), {"training": "natural"})
    figure = figures.dots(results.select(rows(), {"training": "natural"}), paper=theirs)
    table = pd.read_csv(BytesIO(files(figures.show(figure, caption="", alt="").data)["csv"]))
    found = results.select(table, {"whose": "the paper's", "attack": "PGD", "series": "BatchNorm"})
    assert found["mean"].tolist() == [29.73]
    assert set(table.whose) == {"ours", "the paper's"}


def test_a_figure_drawn_by_hand_has_a_table_if_it_is_given_one():
    assert set(files(figures.show(plt.figure(), caption="", alt="").data)) == {"svg"}
    html = figures.show(plt.figure(), caption="", alt="", data=pd.DataFrame({"a": [1]})).data
    assert files(html)["csv"] == b"a\n1\n"


def test_a_figure_says_from_which_results_and_by_which_notebook_it_was_made(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/notebooks/why/transfer.ipynb")
    html = figures.show(figures.dots(rows(run="a_run", revision="abc")), caption="", alt="").data
    assert "Results of a_run, measured at revision abc." in html
    assert "papermill notebooks/why/transfer.ipynb out.ipynb" in html
    assert re.findall(r'download="(.*?)-\d+[.](\w+)"', html) == [("transfer", "svg"), ("transfer", "csv")]
    both = pd.concat([rows(run="a_run", revision="abc"), rows(run="another", revision=None)])
    html = figures.show(figures.dots(both), caption="", alt="").data
    assert "Results of a_run, another, measured at revision abc." in html
    monkeypatch.delenv("JPY_SESSION_NAME")
    html = figures.show(figures.dots(rows()), caption="", alt="").data
    assert "results that the page names" in html
    assert "papermill" not in html


def test_the_style_shows_tables_whole():
    figures.style()
    assert pd.get_option("display.max_rows") is None

"""Figures that set the paper beside our results draw each number where it belongs."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import seaborn as sns

from study.report import figures, results

SERIES = [("batch_norm", "tracked"), ("robust_norm", "batch")]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rows(accuracies, **columns):
    """One row for each of ``accuracies``: {(norm, statistics, place): accuracy}."""
    frame = pd.DataFrame(
        {"norm": n, "statistics": s, "place": p, "accuracy": a} for (n, s, p), a in accuracies.items()
    )
    frame = frame.reindex(columns=["norm", "statistics", "place", "accuracy"])
    return frame.assign(n=100, correct=frame.accuracy, ci95=None, panel="one").assign(**columns)


def draw(theirs, ours, titles=None, **options):
    return figures.beside_figure(
        theirs, ours, x="place", places={"a": "A", "b": "B"}, panel="panel",
        titles=titles or {"one": "One"}, series=SERIES, **options,
    )  # fmt: skip


def marks(axis, marker):
    """Rounded places and heights of the dots with a marker."""
    lines = [line for line in axis.lines if line.get_marker() == marker]
    return sorted((round(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines)


THEIRS = {("batch_norm", "tracked", "a"): 30.0, ("robust_norm", "batch", "b"): 0.0}
OURS = {("batch_norm", "tracked", "a"): 20.0, ("robust_norm", "batch", "a"): 50.0}


def test_open_squares_are_the_papers_and_dots_are_ours():
    figure = draw(rows(THEIRS, ci95=2.0), rows(OURS))
    (axis,) = figure.axes
    assert marks(axis, "s") == [(0, 30), (1, 0)]
    assert marks(axis, "o") == [(0, 20), (0, 50)]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["A", "B"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["BatchNorm", "RobustNorm", "open: the paper", "filled: ours"]


def test_our_seeds_are_one_dot_with_their_interval():
    seeds = pd.concat([rows({("batch_norm", "tracked", "a"): value}) for value in (20.0, 22.0, 24.0)])
    (axis,) = draw(rows(THEIRS), seeds).axes
    assert marks(axis, "o") == [(0, 22)]
    bars = [line for bars in axis.collections for line in bars.get_segments()]
    ((_, low), (_, high)) = next(line for line in bars if line[0][1] != line[1][1])
    assert (low, high) == pytest.approx(results.over_seeds([20, 22, 24]))


def test_a_panel_without_ours_says_so_and_a_figure_without_the_papers_has_no_squares():
    figure = draw(rows(THEIRS), rows(OURS), titles={"one": "One", "two": "Two", "three": "Three"}, columns=2)
    shown = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert shown == ["One", "Two (ours: not run)", "Three (ours: not run)"]
    alone = draw(rows({}), rows(OURS))
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["BatchNorm", "RobustNorm"]


def test_rows_of_other_norms_do_not_count_as_ours():
    (axis,) = draw(rows(THEIRS), rows({("no_norm", "none", "a"): 10.0})).axes
    assert axis.get_title() == "One (ours: not run)"
    assert marks(axis, "o") == []


def test_accuracies_can_be_of_another_experiment_and_of_no_table(monkeypatch):
    asked = []

    def evaluations(profile, experiment):
        asked.append((profile, experiment))
        frame = rows({("batch_norm", "tracked", "a"): 20.0, ("batch_norm", "tracked", "b"): 40.0})
        return frame.assign(
            architecture="resnet20", dataset=["fashion-mnist", "cifar10-jpeg"], training="natural",
            attack="noise",
        )  # fmt: skip

    monkeypatch.setattr(results, "evaluations", evaluations)
    options = {"experiment": "fashion", "dataset": "fashion-mnist"}
    figure = figures.accuracy_figure("laptop", None, ["natural"], ["noise"], SERIES, **options)
    assert asked == [("laptop", "fashion")]
    assert marks(figure.axes[0], "o") == [(0, 20)]
    assert marks(figure.axes[0], "s") == []
    usual = figures.accuracy_figure("laptop", 2, ["natural"], ["noise"], SERIES)
    assert marks(usual.axes[0], "o") == [(0, 40)]  # of the profile's own data set
    assert marks(usual.axes[0], "s") == [(0, 59.16)]


def test_the_palette_is_that_of_the_style():
    assert figures.PALETTE == list(sns.color_palette("colorblind"))

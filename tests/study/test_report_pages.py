"""What pages say of their runs, and the paper's tables beside ours."""

import pytest

from study import store
from study.report import pages
from study.runs import chosen_runs, grid, make_run, tables
from tests.study.report_fakes import evaluate, write

pytestmark = pytest.mark.usefixtures("empty")


def test_a_setting_names_budget_and_seeds_and_what_is_pending_with_its_command():
    text = pages.setting("book", norm="batch_norm", training="natural").data
    runs = chosen_runs("book", {"norm": ["batch_norm"], "training": ["natural"]})
    assert "none is measured yet" in text
    assert f"Still missing from this page ({len(runs)})" in text
    assert f"papermill notebooks/workers/train.ipynb out.ipynb {runs[0].options}\n" in text
    evaluate(lambda run, mode, attack: 50.0, norm="batch_norm", training="natural", experiment="headline")
    text = pages.setting("book", norm=["batch_norm"], training="natural").data
    assert text.startswith(":::{admonition} What was measured\n:class: note dropdown\n\nProfile `book`")
    assert "100 epochs of natural training, a budget comparable to the paper's" in text
    assert "1,000 test images, seeds 0, 1, 2; code revision `r`; a CPU." in text
    assert "Pending" not in text
    evaluate(lambda run, mode, attack: 50.0, experiment="three_epochs")
    text = pages.setting("book", experiment="three_epochs").data
    assert "What was measured (experiment `three_epochs`)" in text
    assert "a budget shorter than the paper's" in text


def test_a_finished_run_says_in_which_precision_it_was_trained():
    evaluate(lambda run, mode, attack: 50.0, norm="batch_norm", training="natural", experiment="headline")
    assert "trained in bfloat16, measured in float32" in pages.setting("book").data


def test_measurements_are_pending_until_they_are_there():
    run = make_run("book", norm="batch_norm", training="natural", seed=0)
    assert (run, "square_attack") in tables("book")
    text = pages.setting("book", "square_attack", norm="batch_norm", training="natural").data
    assert "square_attack of BatchNorm, natural, seed 0" in text
    store.keep(run.directory / store.WEIGHTS, lambda path: path.touch())
    text = pages.setting("book", "square_attack", training="natural").data
    assert f"workers/measure.ipynb out.ipynb {run.options} -p measurement square_attack\n" in text
    write(run, "square_attack", {("batch",): 5}, ("statistics",))
    assert "Pending" not in pages.setting("book", "square_attack", training="natural").data
    assert "landscape of BatchNorm" in pages.setting("book", "landscape", experiment="eight_epochs").data


@pytest.mark.parametrize(
    ("table", "worker"),
    [
        ("evaluations", "evaluate"),
        ("statistics", "probe"),
        ("landscape", "landscape"),
        ("transfer", "measure"),
    ],
)
def test_the_command_of_a_run_makes_that_run(table, worker):
    run = make_run(
        "book", experiment="three_epochs", norm="robust_norm", p=0.4, training="adversarial", seed=0
    )
    assert run in grid("book")
    assert "workers/train.ipynb" in pages.command(run, table)
    store.keep(run.directory / store.WEIGHTS, lambda path: path.touch())
    words = pages.command(run, table).split()
    assert words[1] == f"notebooks/workers/{worker}.ipynb"
    chosen = dict(zip(words[4::3], words[5::3], strict=True))
    assert chosen.pop("measurement", "transfer") == "transfer"
    assert make_run(chosen.pop("profile"), **chosen | {"seed": 0, "p": float(chosen["p"])}) == run


def test_a_run_that_diverged_is_said_and_not_pending():
    run = make_run("book", experiment="three_epochs", norm="tracked_norm", training="natural", seed=0)
    store.keep(run.directory / store.DIVERGED, store.as_json({"epoch": 1}))
    text = pages.setting("book", experiment="three_epochs", norm="tracked_norm").data
    assert "nothing to measure: trained with tracked values, natural, seed 0" in text
    assert "Pending" not in text


def test_accuracies_are_in_the_order_of_attacks_with_intervals_within_0_and_100():
    assert "Nothing measured" in pages.accuracies("book").data
    evaluate(lambda run, mode, attack: 99.9, n=1000, norm="batch_norm", training="natural", seed=0)
    table = pages.accuracies("book", norm="batch_norm")
    assert list(table.index) == ["Clean", "Noise", "GradSign", "BIM", "PGD"]
    assert table.loc["PGD", ("natural", "BatchNorm w/o tracking")] == "99.9 (99-100)"


def test_the_papers_table_has_ours_beside_and_says_what_ran():
    evaluate(
        lambda run, mode, attack: 50.0,
        experiment="other_architectures",
        architecture="vgg11",
        norm="robust_norm",
    )
    table = pages.beside("book", 4, "other_architectures")
    assert len(table) == 32
    row = table.loc["CIFAR-10", "VGG-11", "natural", "RobustNorm"]
    assert (row["BIM"], row["ours"]) == ("48.69 / 50.0", "CIFAR-10 (JPEG), 4 epochs, 1 seed")
    row = table.loc["CIFAR-10", "VGG-11", "natural", "BatchNorm"]
    assert (row["BIM"], row["ours"]) == ("54.07", "not run here")
    assert set(pages.beside("book", 2)["ours"]) == {"not run here"}


def test_a_live_place_is_empty_when_the_work_is_done(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    monkeypatch.setattr(pages, "display", lambda data, **how: Handle())
    with pages.live() as handle:
        handle.update({"text/plain": "half"}, raw=True)
    assert shown == [{"text/plain": "half"}, {"text/plain": ""}]

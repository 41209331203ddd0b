"""A rerun beside the published results, on made-up results whose difference is known."""

import runpy
import sys

import numpy as np
import pytest

from study import store
from study.compare import compare
from study.runs import ROOT

N = 400
SETTINGS = {"training": "natural", "dataset": "cifar10", "epochs": 8, "attack_steps": 3}


def right(percent, n=N, start=0):
    """So many percent of the images, of all stretches of the order as many, from a given one on."""
    return (np.arange(start, start + n) % 100) < percent


def made(folder, outcomes, seed=0, weights="", **settings):
    run = folder / f"cifar10_resnet20_batch_norm_natural_seed{seed}"
    rows = [
        {"statistics": mode, "attack": "clean", "loss": 0.1 * seed, "n": len(one), "correct": int(one.sum())}
        for mode, one in outcomes.items()
    ]
    store.keep_rows(
        run / "evaluations.csv", [row | {"accuracy": 100 * row["correct"] / row["n"]} for row in rows]
    )
    packed = {f"{mode}/clean": one for mode, one in outcomes.items()}
    store.keep(run / "evaluations.npz", store.pack(packed))
    store.keep(run / store.CONFIG, store.as_json({"settings": SETTINGS | {"seed": seed} | settings}))
    if weights:
        store.keep(run / store.WEIGHTS, lambda file: file.write_text(weights))
    return folder


@pytest.fixture
def book(tmp_path):
    """Three seeds, whose accuracies have a standard deviation of 2."""
    for seed, percent in enumerate((78, 80, 82)):
        made(tmp_path / "book", {"tracked": right(percent)}, seed, weights=f"of {seed}")
    return tmp_path / "book"


def test_the_same_outcomes_are_as_published(book):
    rows = compare(book, book)
    assert list(rows.published) == list(rows.rerun) == [78, 80, 82]
    assert set(rows.verdict) == {"as published"}


# Two draws of that deviation, 3 seeds: t(0.975, 2) * sqrt(2) * 2 = 12.2; images add < 5 to the square.
@pytest.mark.parametrize(
    ("percent", "verdict"), [(79, "differs by chance"), (88, "differs by chance"), (96, "differs")]
)
def test_another_seed_may_lie_as_far_off_as_seeds_lie_apart(book, tmp_path, percent, verdict):
    (row,) = compare(made(tmp_path / "mine", {"tracked": right(percent)}), book).to_dict("records")
    assert (row["published"], row["rerun"], row["images"]) == (78, percent, N)
    assert row["verdict"] == verdict
    assert 12.1 < row["allowed"] < 13.5


def test_of_the_same_weights_only_images_are_left(book, tmp_path):
    moved = right(78)
    moved[:20] = ~moved[:20]  # these were all right
    mine = made(tmp_path / "mine", {"tracked": moved}, weights="of 0")
    (row,) = compare(mine, book).to_dict("records")
    assert row["rerun"] == 73
    # Of 20 in 400 discordant images: 1.96 * sqrt(0.05 * 0.95 / 400)
    assert row["allowed"] == pytest.approx(2.14, abs=0.01)
    assert row["verdict"] == "differs"


def test_fewer_images_are_compared_with_the_same_images(book, tmp_path):
    fewer = made(tmp_path / "mine", {"tracked": right(78)[:50]})
    (row,) = compare(fewer, book).to_dict("records")
    assert (row["images"], row["published"], row["rerun"]) == (50, 100, 100)
    assert row["verdict"] == "as published"


def test_another_training_and_what_is_not_published_are_no_evidence(book, tmp_path):
    mine = made(tmp_path / "mine", {"tracked": right(78), "batch": right(70)}, epochs=3, attack_steps=9)
    (row,) = compare(mine, book).to_dict("records")
    assert row["verdict"] == "another training"
    mine = made(tmp_path / "other", {"tracked": right(78)}, attack_steps=9)  # which natural training has not
    assert compare(mine, book).verdict.tolist() == ["as published"]


def test_the_command_prints_rows_and_a_summary(book, tmp_path, monkeypatch, capsys):
    def run(folder):
        monkeypatch.setattr(sys, "argv", ["study.compare", str(folder), "--published", str(book)])
        runpy.run_path(ROOT / "study" / "compare.py", run_name="__main__")

    run(made(tmp_path / "mine", {"tracked": right(96)}))
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "1 differs"
    assert "cifar10_resnet20_batch_norm_natural_seed0" in shown
    with pytest.raises(SystemExit, match="has no accuracies"):
        run(tmp_path / "nothing")
    with pytest.raises(SystemExit, match="no run of"):
        run(made(tmp_path / "seven", {"tracked": right(78)}, seed=7))

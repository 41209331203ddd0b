"""Someone wants a network of the study in a notebook of their own, in a clone or with the wheel alone."""

import csv
import json
from pathlib import Path

import pytest
import torch

import rnlib
from rnlib.models import _RESULTS, _TRAINED
from study.networks import trained_model
from study.runs import make_run

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name.rsplit("_", 2) for name in _TRAINED]


def folder(norm, training, seed):
    norm = norm.replace("robust_norm", "robust_norm-p0.2")
    return ROOT / "results" / "book" / f"cifar10-jpeg_resnet20_{norm}_{training}_{seed}"


@pytest.mark.parametrize(("norm", "training", "seed"), NAMES)
def test_every_network_that_is_offered_is_the_published_one(norm, training, seed):
    run = folder(norm, training, seed)
    model = rnlib.pretrained("resnet20", norm, training=training, seed=int(seed[4:]))
    checksum = json.loads((run / "files.json").read_text())["weights.safetensors"]["sha256"]
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert checksum.startswith(_TRAINED[f"{norm}_{training}_{seed}"][0])
    assert model.info["epochs"] == settings["epochs"]
    assert model.info["attack_steps"] == (settings["attack_steps"] if training == "adversarial" else 0)
    with (run / "evaluations.csv").open() as file:
        found = {(row["statistics"], row["attack"]): row for row in csv.DictReader(file)}
    assert {row["n"] for row in found.values()} == {"2000"}
    for cell, percent in model.info["correct"].items():
        assert percent == pytest.approx(float(found[cell]["accuracy"]))


def test_it_is_what_the_study_measures():
    ours = rnlib.pretrained("resnet20", "robust_norm")
    theirs = trained_model(make_run("book", norm="robust_norm"))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    x = torch.rand(4, 3, 32, 32)
    assert not ours.training
    assert torch.equal(ours(x), theirs(x))


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """As with the wheel alone: without the repository's results, and with an empty cache."""
    monkeypatch.setattr("rnlib.models._RESULTS", tmp_path / "no repository")
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RNLIB_WEIGHTS", raising=False)
    return tmp_path


NAME = "cifar10-jpeg_resnet20_batch_norm_natural_seed0"
WEIGHTS = _RESULTS / NAME / "weights.safetensors"


def test_the_wheel_says_where_to_get_them(wheel):
    for download in (False, True):
        with pytest.raises(
            FileNotFoundError, match=rf"results/book/{NAME}/.* RNLIB_WEIGHTS .* download=True"
        ):
            rnlib.pretrained(download=download)
    (wheel / "cache").mkdir()
    (wheel / "cache" / f"{NAME}.safetensors").write_bytes(WEIGHTS.read_bytes())
    assert rnlib.pretrained().info["correct"]["tracked", "clean"] == 87.35


def test_they_are_downloaded_once_from_a_release(wheel, monkeypatch):
    monkeypatch.setenv("RNLIB_WEIGHTS", (wheel / "release").as_uri())
    (wheel / "release").mkdir()
    asset = wheel / "release" / f"{NAME}.safetensors"
    asset.write_bytes(WEIGHTS.read_bytes())
    with pytest.raises(FileNotFoundError):
        rnlib.pretrained()
    first = rnlib.pretrained(download=True)
    asset.unlink()
    torch.testing.assert_close(rnlib.pretrained().state_dict(), first.state_dict(), rtol=0, atol=0)


def test_what_was_damaged_on_the_way_is_not_used(wheel, monkeypatch):
    monkeypatch.setenv("RNLIB_WEIGHTS", wheel.as_uri())
    (wheel / f"{NAME}.safetensors").write_bytes(WEIGHTS.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match="invalid hash value"):
        rnlib.pretrained(download=True)
    assert not list((wheel / "cache").iterdir())
    (wheel / "cache" / f"{NAME}.safetensors").write_bytes(WEIGHTS.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged: its sha256 does not start with"):
        rnlib.pretrained()


@pytest.mark.parametrize("other", [{"seed": 7}, {"norm": "group_norm"}, {"dataset": "cifar10"}])
def test_other_networks_are_not_made_up(other):
    with pytest.raises(
        ValueError, match="there are: of cifar10-jpeg and resnet20 batch_norm_natural_seed0, "
    ):
        rnlib.pretrained(**other)

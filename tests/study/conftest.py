"""A tiny profile whose runs are trained once a session."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

PROFILE = str(Path(__file__).with_name("tiny.yml"))


def _small_images(patch):
    """Every fourth pixel of every fourth row, for speed."""
    from study import networks

    load = networks.load

    def small(name, split):
        found = load(name, split)
        return replace(found, images=found.images[:, :, ::4, ::4].contiguous())

    patch.setattr(networks, "load", small)


@pytest.fixture
def small_images(monkeypatch):
    """Images of 7 x 7 pixels."""
    _small_images(monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder of results in which every run of the tiny profile is trained on small images.

    Tests may measure more there, on small images.
    """
    from study.runs import grid
    from study.work import train_run

    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        _small_images(patch)
        patch.setenv("RNLIB_RESULTS", str(folder))
        for run in grid(PROFILE):
            train_run(run)
    return folder


@pytest.fixture
def results(trained, tmp_path, monkeypatch):
    """A folder of results of one's own, to break things in: what is trained is there, nothing is measured."""
    folder = tmp_path / "results"
    shutil.copytree(trained, folder, ignore=_measured)
    monkeypatch.setenv("RNLIB_RESULTS", str(folder))
    return folder


def _measured(path, names):
    """Tables and what belongs to them, for shutil."""
    return [name for name in names if name.endswith((".csv", ".npz", ".pt")) and name != "history.csv"]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder of results."""
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def processes(tmp_path):
    """The environment for a process that writes its results to a folder of its own."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "RNLIB_RESULTS": str(tmp_path / "results"),
    }

"""A disk that is full, read-only or oddly named: the message says what to do, and nothing is lost.

After room is made the same command ends as if nothing had been.
"""

import os
import shutil
import subprocess
import warnings

import pytest
import torch
from harness import PROFILE, content, mount, refusal, small_disk, smaller, state

from rnlib import data, files
from study import store, work
from study.runs import make_run

RUN = {"experiment": "two_epochs"}


def do(name):
    run = make_run(PROFILE, **RUN)
    return work.train_run(run) if name == "train" else work.measure_run(run, name)


def done(name):
    """What work gives that does not depend on the time."""
    return do(name).drop(columns=["seconds", "revision"]).to_csv()


def right(name, after):
    """What a finished program gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNLIB_RESULTS", str(after[name]))
        return done(name)


@pytest.mark.parametrize("name", ["train", "evaluations"])
@pytest.mark.parametrize("room", [0, 4, 8, 12, 20, 28, 40, 60])
def test_a_disk_that_fills(undisturbed, tmp_path, monkeypatch, name, room):
    before, after, _ = undisturbed
    smaller(monkeypatch)
    with small_disk(tmp_path / "disk", 4096) as disk:
        monkeypatch.setenv("RNLIB_RESULTS", str(disk))
        shutil.copytree(before[name], disk, dirs_exist_ok=True)
        used = int(
            subprocess.run(["df", "--output=used", disk], capture_output=True, text=True).stdout.split()[-1]
        )
        there = state(disk)
        assert not mount(disk, "remount", f"size={used + room or 4}k").returncode
        enough = None if room < 12 else right(name, after)
        said = refusal(lambda: done(name), str(disk), "cannot be written", "make room", right=enough)
        now = state(disk)
        assert not [one for one in now if "/." in one and not one.endswith(".lock")], said
        assert all(now[one] == old for one, old in there.items() if "files.json" not in one), said
        assert not mount(disk, "remount", "size=4096k").returncode
        do(name)
        assert content(disk) == content(after[name])


@pytest.mark.parametrize("name", ["train", "evaluations", "finished"])
def test_a_disk_that_is_read_only(undisturbed, tmp_path, monkeypatch, name):
    before, after, _ = undisturbed
    smaller(monkeypatch)
    with small_disk(tmp_path / "disk", 4096) as disk:
        monkeypatch.setenv("RNLIB_RESULTS", str(disk))
        shutil.copytree(before.get(name, after["evaluations"]), disk, dirs_exist_ok=True)
        assert not mount(disk, "remount", "ro").returncode
        if name == "finished":  # which needs nothing written
            assert len(do("train")) == 2
            assert len(do("evaluations")) == 4
        else:
            refusal(lambda: do(name), str(disk), "cannot be written|Read-only")
        assert not mount(disk, "remount", "rw").returncode


@pytest.mark.parametrize("how", ["full", "read-only", "a file", "no home"])
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, how):
    made = {"train": (torch.zeros(99999), torch.zeros(1), ("a",))}
    with small_disk(tmp_path / "disk", 64) as disk:
        folder = disk / "cache"
        if how == "a file":
            folder.write_text("")
        if how == "no home":
            monkeypatch.delenv("RNLIB_CACHE", raising=False)
            monkeypatch.setenv("HOME", "/dev/null")
        else:
            monkeypatch.setenv("RNLIB_CACHE", str(folder))
        if how == "read-only":
            assert not mount(disk, "remount", "ro").returncode
        with pytest.warns(UserWarning, match=r"images are not cached.*RNLIB_CACHE"):
            assert data._cached("x", lambda: made) is made
        assert not [*disk.rglob("*.pt")]


def test_a_checkpoint_that_cannot_be_written_is_as_it_was(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        path = disk / "checkpoint.pt"
        files.write_tensors(path, {"a": torch.ones(9)})
        refusal(lambda: files.write_tensors(path, {"a": torch.ones(99999)}), "checkpoint.pt", "make room")
        assert torch.equal(files.read_tensors(path)["a"], torch.ones(9))
        assert [one.name for one in disk.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("name", ["a b", "Ünï çödé", "n" * 200, "it's $HOME; {run} [x] *"])
def test_a_path_of_any_name(undisturbed, tmp_path, monkeypatch, name):
    _, after, _ = undisturbed
    smaller(monkeypatch)
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / name))
    do("train")
    assert content(tmp_path / name) == content(after["train"])


def test_results_behind_a_link(undisturbed, tmp_path, monkeypatch):
    _, after, _ = undisturbed
    smaller(monkeypatch)
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    do("train")
    assert content(tmp_path / "disk") == content(after["train"])


def test_a_clock_that_was_set_back(undisturbed, tmp_path, monkeypatch):
    """What is there is from the future: it is taken as it is, and what is missing is made."""
    before, after, _ = undisturbed
    smaller(monkeypatch)
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    shutil.copytree(before["evaluations"], tmp_path / "results")
    for path in (tmp_path / "results").rglob("*"):
        stamp = path.stat().st_mtime + 3600
        os.utime(path, (stamp, stamp))
    assert len(do("train")) == 2
    with warnings.catch_warnings(action="error"):
        do("evaluations")
    assert content(tmp_path / "results") == content(after["evaluations"])
    assert store.has_diverged(make_run(PROFILE, **RUN)) is False

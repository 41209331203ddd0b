"""Bursts, rehearsed: what is done first, killed, out of time or disk, packed, carried away and unpacked."""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from study import burst, store
from study.runs import grid, make_run

pytestmark = [
    pytest.mark.usefixtures("small_images"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, for speed"),
]
PROFILE = str(Path(__file__).with_name("tiny.yml"))
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    """Processes that have imported all already."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: FORK)


@pytest.fixture
def long(tmp_path):
    """A profile of one run of six epochs, of which little is measured."""
    contents = yaml.safe_load(Path(PROFILE).read_text())
    contents |= {"grid": [{"seed": 0}], "natural": {"epochs": 6, "snapshots": [3]}, "measurements": []}
    contents |= {name: contents[name] | {"runs": {"seed": []}} for name in ("statistics", "landscape")}
    path = tmp_path / "long.yml"
    path.write_text(yaml.safe_dump(contents))
    return str(path)


def do(profile, seconds=60.0, processes=2):
    return burst.burst(profile, time.time() + seconds, "cpu", processes, 600.0)


def files(run):
    return {path.name: path.read_bytes() for path in run.directory.iterdir()}


def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "elsewhere"))


# -- what is done


def test_trainings_come_before_tables_in_the_order_of_the_profile_and_nothing_twice(results):
    runs = grid(PROFILE)
    assert not any(table == "" for _, table in burst.missing(PROFILE))
    (runs[1].directory / store.WEIGHTS).unlink()  # published results, without their weights
    for path in (*runs[2].directory.iterdir(), *runs[0].directory.iterdir()):
        path.unlink()
    left = burst.missing(PROFILE)
    assert left[:2] == [(runs[0], ""), (runs[2], "")]
    assert all(table for _, table in left[2:])
    assert {run for run, _ in left} == set(runs) - {runs[1]}
    assert left[2] == (runs[0], "evaluations")


def test_the_prediction_counts_epochs_images_and_attack_steps(empty, long):
    natural, adversarial = (
        make_run(PROFILE, epochs=3),
        make_run(PROFILE, training="adversarial", attack_steps=5),
    )
    assert burst.seconds(natural, 100.0) == pytest.approx(3 * 200 / 100)
    assert burst.seconds(adversarial, 100.0) == pytest.approx(200 * (1 + 0.6 * 5) / 100)
    assert do(long, seconds=0.0)
    run = make_run(long)
    store.write(run.directory / store.CHECKPOINT, lambda path: torch.save({"history": [{}] * 4}, path))
    assert burst.seconds(run, 100.0) == pytest.approx(2 * 200 / 100)


@pytest.fixture
def short(tmp_path):
    """A profile of two runs and three tables."""
    contents = yaml.safe_load(Path(PROFILE).read_text())
    contents |= {"grid": [{"norm": ["batch_norm", "no_norm"], "seed": 0}], "measurements": []}
    contents |= {"landscape": contents["landscape"] | {"runs": {"seed": []}}}
    path = tmp_path / "short.yml"
    path.write_text(yaml.safe_dump(contents))
    return str(path)


def test_a_burst_does_all_and_what_is_packed_is_equal_elsewhere(empty, short, tmp_path, monkeypatch, capfd):
    assert do(short)
    said = capfd.readouterr().out
    assert "lacks 2 trainings and 3 tables" in said
    assert "2 of them end and 0 are left" in said
    assert said.count(": done") == 5
    assert burst.missing(short) == []
    made = {run.name: files(run) for run in grid(short)}
    monkeypatch.setattr(burst, "PART", 9_000)
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "pack-1of9-old").touch()
    burst.pack(sorted(empty.glob("*/*/*")), packed)
    parts = [path.stat().st_size for path in packed.iterdir()]
    assert len(parts) > 3
    assert max(parts) == 9_000
    assert min(parts) > 0
    elsewhere(monkeypatch, tmp_path)
    for _ in range(2):  # the second time it finds all there
        burst.unpack(packed)
        for run in grid(short):
            there = files(run)
            assert json.loads(there.pop(store.FILES)) == json.loads(made[run.name][store.FILES])
            assert there == {name: text for name, text in made[run.name].items() if name != store.FILES}
    assert burst.missing(short) == []


def test_at_the_end_of_its_time_a_burst_stops_whatever_is_at_work(empty, long, monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(burst, "work", lambda *arguments: time.sleep(1000))
    assert do(long, seconds=0.5)
    os.close(write)
    assert os.read(read, 1) == b""  # no process is left that has the other end
    os.close(read)


def test_a_process_stops_by_itself_when_the_time_is_over(empty, long, monkeypatch):
    monkeypatch.setattr(burst, "train_run", lambda run, **options: time.sleep(1000))
    arguments = (make_run(long), "", "cpu", os.getpid(), time.time() + 0.3)
    process = FORK.Process(target=burst.work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 1


def test_on_a_gpu_networks_are_trained_as_those_of_the_book_were(monkeypatch):
    found = []
    monkeypatch.setattr(burst, "train_run", lambda run, device: found.append(run))
    for experiment, device in (("two_epochs", "cuda:1"), ("two_epochs", "cpu"), ("headline", "cpu")):
        burst.work(make_run(PROFILE, experiment=experiment), "", device, os.getppid(), float("inf"))
    assert [(run.compile, run.snapshots) for run in found] == [(True, (1, 2)), (False, (1, 2)), (False, ())]


# -- what goes wrong


def killed(profile, checkpoint):
    """A burst in a process of its own, killed once a checkpoint is there; returns when all of it is dead."""
    read, write = os.pipe()
    slow, train = lambda: time.sleep(0.1), burst.train_run

    def manage():
        burst.train_run = lambda run, **options: train(run, on_step=slow, **options)
        do(profile)

    manager = FORK.Process(target=manage)
    manager.start()
    os.close(write)
    while not checkpoint.exists():
        assert manager.is_alive()
        time.sleep(0.02)
    os.kill(manager.pid, signal.SIGKILL)
    assert os.read(read, 1) == b""  # its workers have noticed
    os.close(read)
    manager.join()


def test_killed_and_then_out_of_disk_the_next_burst_goes_on_to_the_same_weights(
    empty, long, tmp_path, monkeypatch, capfd
):
    run = make_run(long)
    checkpoint = run.directory / store.CHECKPOINT
    killed(long, checkpoint)
    done = len(torch.load(checkpoint, weights_only=True)["history"])
    assert 1 <= done < 6

    def full():
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (10_000, 10_000)
        )  # of each file, as if there were no more room
        sys.exit(0 if do(long) else 9)

    process = FORK.Process(target=full)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert capfd.readouterr().out.count("training: FAILED") == 1  # a job is not tried twice
    assert len(torch.load(checkpoint, weights_only=True)["history"]) == done
    assert not [path.name for path in run.directory.iterdir() if path.suffix == ".tmp" or path.name[0] == "."]

    assert do(long)
    assert not checkpoint.exists()
    assert burst.missing(long) == []
    assert not (run.directory / store.snapshot(3)).exists()  # nothing looks along this training
    weights = (run.directory / store.WEIGHTS).read_bytes()
    elsewhere(monkeypatch, tmp_path)
    burst.train_run(run, device="cpu")
    assert (run.directory / store.WEIGHTS).read_bytes() == weights


# -- what is not unpacked


def packed(folder, members):
    """A pack of the given contents by name."""
    for path in folder.glob("pack-*"):
        path.unlink()
    with zipfile.ZipFile(made := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    (path := folder / f"pack-1of1-{hashlib.sha256(made.getvalue()).hexdigest()}").write_bytes(made.getvalue())
    return path


def notes(**files):
    return json.dumps({name: {"sha256": hashlib.sha256(text).hexdigest()} for name, text in files.items()})


OUTSIDE = ["../evil", "/tmp/evil", "book/../evil", "book/run/../../evil", "book/run/a/b", "book/.git/config"]
OUTSIDE += [
    "book/run/.hidden",
    "book\\run\\evil",
    "C:/run/evil",
    "book/run/",
    "book//evil",
    "book/run/evil.py",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_is_written_that_is_no_file_of_a_run(empty, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    pack = packed(
        tmp_path, {"book/run/weights": b"1", "book/run/files.json": notes(weights=b"1"), name: b"evil"}
    )
    with pytest.raises(ValueError, match=r"no file of a run|not listed in files\.json"):
        burst.unpack(tmp_path)
    pack.unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_through_a_link(empty, tmp_path):
    (outside := tmp_path / "outside").mkdir()
    (empty / "book").mkdir(parents=True)
    (empty / "book" / "run").symlink_to(outside)
    packed(tmp_path, {"book/run/weights": b"1", "book/run/files.json": notes(weights=b"1")})
    with pytest.raises(ValueError, match="no file of a run"):
        burst.unpack(tmp_path)
    assert not any(outside.iterdir())


def test_a_damaged_part_or_a_missing_one_is_named(empty, tmp_path):
    path = packed(tmp_path, {"book/run/checkpoint.pt": b"1"})
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(store.DamagedFile, match=r"pack-1of1-\w+ was changed or damaged"):
        burst.unpack(tmp_path)
    path.write_bytes(content)
    path.rename(tmp_path / path.name.replace("1of1", "2of2"))
    with pytest.raises(store.DamagedFile, match="holds 1 parts, not all of one pack"):
        burst.unpack(tmp_path)
    assert not empty.exists()


def test_a_finished_file_is_not_replaced_and_a_checkpoint_only_where_it_is_of_use(empty, tmp_path):
    run = empty / "book" / "run"
    packed(tmp_path, {f"book/run/{name}": b"old" for name in ("checkpoint.pt", "checkpoint-transfer.pt")})
    burst.unpack(tmp_path)
    assert (run / "checkpoint.pt").read_bytes() == (run / "checkpoint-transfer.pt").read_bytes() == b"old"
    whole = {"config.json": b"{}", "weights.safetensors": b"1"}
    more = {f"book/run/{name}": text for name, text in whole.items()} | {
        "book/run/files.json": notes(**whole)
    }
    packed(tmp_path, more)
    burst.unpack(tmp_path)
    assert not (run / "checkpoint.pt").exists()
    assert all(store.check(run / name) == {} for name in whole)
    packed(tmp_path, {"book/run/checkpoint.pt": b"older"})
    burst.unpack(tmp_path)
    assert not (run / "checkpoint.pt").exists()
    other = whole | {"weights.safetensors": b"2"}
    packed(
        tmp_path,
        {f"book/run/{name}": t for name, t in other.items()} | {"book/run/files.json": notes(**other)},
    )
    with pytest.raises(ValueError, match=r"weights.safetensors is another than the packed one"):
        burst.unpack(tmp_path)
    assert (run / "weights.safetensors").read_bytes() == b"1"


def test_the_command_rehearses_and_says_what_stopped_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RNLIB_RESULTS", "set by the rehearsal")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["burst", *map(str, arguments)])
        try:
            burst.main()
        except SystemExit as stop:
            return stop.code

    out = tmp_path / "out"
    assert command("--rehearse", "--minutes", 0, "--out", out) is None
    assert "tiny.yml lacks 5 trainings and 12 tables" in capsys.readouterr().out
    assert os.environ["RNLIB_RESULTS"] == str(out / "results")
    (run := out / "results" / "tiny" / "run").mkdir(parents=True)
    for name in ("checkpoint.pt", ".77-checkpoint.pt", ".77-weights"):
        (run / name).touch()
    assert command("--rehearse", "--minutes", 0, "--out", out) is None  # packs what changed since the first
    (pack,) = out.glob("pack-*")
    assert zipfile.ZipFile(pack).namelist() == ["tiny/run/checkpoint.pt"]
    assert command("--unpack", out) is None
    assert "holds 0 parts" in command("--unpack", tmp_path)
    monkeypatch.setattr(burst, "pack", lambda *arguments: os.stat(tmp_path / "full"))
    assert "and the same command goes on" in command("--rehearse", "--minutes", 0, "--out", out)
    monkeypatch.setattr(burst, "burst", lambda *arguments: False)
    monkeypatch.setattr(burst, "pack", lambda *arguments: None)
    assert command("--rehearse", "--out", out) == "a job failed: see above"

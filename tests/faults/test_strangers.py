"""Files, names and words from strangers: nothing runs, nothing is written outside its folder."""

import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import CASES, PROFILE, ROOT, refusal, smaller, state
from PIL import Image
from torchvision import datasets

import rnlib
from rnlib import data
from rnlib.files import read_idx, read_tensors
from study import burst, store, work
from study.networks import trained_model
from study.runs import make_run


class Hostile:
    """What leaves a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of one's own, in which nothing may appear."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path / "cache"))
    yield
    assert not [*tmp_path.rglob("executed*"), *tmp_path.rglob("escaped*")]


PICKLES = {
    "torch": lambda file: torch.save({"of": Hostile()}, file),
    "torch, before zip": lambda file: torch.save(Hostile(), file, _use_new_zipfile_serialization=False),
    "plain": lambda file: Path(file).write_bytes(pickle.dumps(Hostile())),
    "protocol 0": lambda file: Path(file).write_bytes(pickle.dumps(Hostile(), protocol=0)),
    "a global": lambda file: Path(file).write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR."),
    "numpy": lambda file: np.array([Hostile()]).dump(file),
}


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "results")
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    smaller(monkeypatch)
    return tmp_path / "results"


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("place", ["checkpoint.pt", "checkpoint-evaluations.pt", "strongest", "cache"])
def test_a_pickle(folder, tmp_path, kind, place):
    run = make_run(PROFILE, experiment="two_epochs", seed=int("evaluations" in place))
    path = run.directory / place
    PICKLES[kind](path)
    if place == "checkpoint.pt":
        (run.directory / store.WEIGHTS).unlink()
        refusal(lambda: work.train_run(run), "checkpoint.pt")
    elif place == "strongest":
        model, x, y = trained_model(run), torch.zeros(4, 1, 7, 7), torch.zeros(4, dtype=torch.long)
        refusal(lambda: rnlib.strongest(model, x, y, 0.1, budget="quick", checkpoint=path), "strongest")
    elif place == "cache":  # is made again
        refusal(lambda: read_tensors(path), "cache")
        (tmp_path / "cache").mkdir()
        assert len(data._cached("x", lambda: {"train": (torch.zeros(1), torch.zeros(1), ("a",))})) == 1
    else:
        refusal(lambda: work.measure_run(run, "evaluations"), place)


def with_header(header, length=None):
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content


WEIGHTS = {
    "a header without end": with_header({}, 2**60),
    "a header of 100 MB": with_header({}, 10**8),
    "offsets outside": with_header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    "a shape beyond memory": with_header(
        {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    )
    + b"1234",
    "other names": with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"1234",
    "a pickle": pickle.dumps(Hostile()),
    "nothing": with_header({}),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights(folder, what):
    run = make_run(PROFILE, experiment="two_epochs")
    store.keep(run.directory / store.WEIGHTS, lambda file: file.write_bytes(WEIGHTS[what]))
    refusal(lambda: trained_model(run), "weights.safetensors")


@pytest.mark.parametrize("change", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder, change):
    from safetensors.torch import load_file, save_file

    run = make_run(PROFILE, experiment="two_epochs")
    tensors = load_file(run.directory / store.WEIGHTS)
    next(one for one in tensors.values() if one.is_floating_point()).flatten()[0] = change
    store.keep(run.directory / store.WEIGHTS, lambda file: save_file(tensors, file))
    refusal(lambda: trained_model(run), "weights.safetensors")


JSONS = {
    "brackets": b"[" * 10**5,
    "a number of 10,000 digits": b"1" * 10**4,
    "a list": b"[]",
    "settings of no kind": b'{"settings": 3}',
}


@pytest.mark.parametrize(
    "content", [b"[" * 10**5, b"[]", b'{"weights.safetensors": 3}', b'{"files.json": 3}']
)
def test_a_list_of_files(folder, content):
    run = make_run(PROFILE, experiment="two_epochs")
    (run.directory / store.FILES).write_bytes(content)
    refusal(lambda: trained_model(run), r"files\.json")


@pytest.mark.parametrize("what", JSONS)
def test_settings(folder, what):
    run = make_run(PROFILE, experiment="two_epochs")
    store.keep(run.directory / store.CONFIG, lambda file: file.write_bytes(JSONS[what]))
    refusal(lambda: work.train_run(run), "config.json")


@pytest.mark.parametrize("name", ["evaluations.npz", "evaluations.csv"])
def test_outcomes(folder, name):
    run = make_run(PROFILE, experiment="two_epochs")
    path = run.directory / name
    objects = {"a": np.array([Hostile()]), "n:a": np.array(1)}
    store.keep(
        path,
        lambda file: np.savez(file.open("wb"), **objects) if "npz" in name else file.write_bytes(b"\xff\x00"),
    )
    refusal(lambda: store.read_correct(path) if "npz" in name else store.read_table(path), name)


# -- archives and images


def image(size=(8, 8)):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


def tar(path, name, kind=tarfile.REGTYPE, link="", content=None):
    with tarfile.open(path, "w:gz") as file:
        for one, what in (("train/a/1.png", tarfile.REGTYPE), (name, kind)):
            member = tarfile.TarInfo(one)
            member.type, member.linkname = what, link
            body = (image() if content is None else content) if what == tarfile.REGTYPE else b""
            member.size = len(body)
            file.addfile(member, io.BytesIO(body))


MEMBERS = {
    "a name above": ("../escaped.png", tarfile.REGTYPE, ""),
    "a name above, in a split": ("train/../../../train/a/escaped.png", tarfile.REGTYPE, ""),
    "an absolute name": ("/tmp/escaped-train/train/a/escaped.png", tarfile.REGTYPE, ""),
    "a symlink": ("train/a/2.png", tarfile.SYMTYPE, "/etc/passwd"),
    "a symlink of a folder": ("train/b", tarfile.SYMTYPE, "/etc"),
    "a hard link": ("train/a/2.png", tarfile.LNKTYPE, "/etc/passwd"),
    "a device": ("train/a/2.png", tarfile.CHRTYPE, ""),
    "a pipe": ("train/a/2.png", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("what", MEMBERS)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_member_of_an_archive(tmp_path, what):
    path = tmp_path / "images.tar.gz"
    tar(path, *MEMBERS[what])
    before = state(tmp_path)
    found = data.load(str(path))
    assert found.images.shape[1:] == (1, 8, 8)
    assert not found.images.any()  # nothing but what the archive holds
    assert not [name for name in state(tmp_path).keys() - before.keys() if not name.startswith("cache")]
    assert not Path("/tmp/escaped-train").exists()


@pytest.mark.parametrize("what", ["zip", "tar", "pixels", "says more"])
def test_a_bomb(tmp_path, what):
    zeros, path = bytes(80 << 20), tmp_path / ("images.zip" if what != "tar" else "images.tar.gz")
    if what == "tar":
        tar(path, "train/a/2.png", content=zeros)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("train/a/1.png", image((16000, 16000)) if what == "pixels" else zeros)
    if what == "says more":
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<I", 80 << 20), struct.pack("<I", 2**32 - 2)))
    tracemalloc.start()
    refusal(lambda: data.load(str(path)), path.name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20, f"{peak >> 20} MiB"


@pytest.mark.parametrize("name", CASES["classes"])
@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_name_of_a_class_is_text(tmp_path, name):
    path = tmp_path / "images.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for label in (name.replace("/", "_"), "b"):
            member = tarfile.TarInfo(f"train/{label}/1.png")
            member.size = len(image())
            file.addfile(member, io.BytesIO(image()))
    assert "b" in data.load(str(path)).classes


@pytest.mark.parametrize("official", [False, True], ids=["another md5", "the md5 of the official file"])
@pytest.mark.parametrize("kind", ["plain", "protocol 0", "a global", "numpy"])
@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_official_files_with_a_pickle(tmp_path, monkeypatch, file, kind, official):
    folder, right = tmp_path / "in" / "cifar-10-batches-py", {}
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        batch = {"data": np.zeros((1, 3072), np.uint8), "labels": [0], "label_names": ["a"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
        if name == file:
            PICKLES[kind](folder / name)
        right[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    if official:
        for listed, name in (("train_list", "data_batch_1"), ("test_list", "test_batch")):
            monkeypatch.setattr(datasets.CIFAR10, listed, [(name, right[name])])
        meta = datasets.CIFAR10.meta | {"md5": right["batches.meta"]}
        monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    split = "test" if "test" in file else "train"
    words = [file, "it asks for"] if official else ["cifar-10-batches-py", "checksum"]
    refusal(lambda: data.load("cifar10", split, root=tmp_path / "in"), *words)


def test_an_archive_of_very_many_members(tmp_path):
    """Names are counted, not kept."""
    path, peaks = tmp_path / "images.tar.gz", []
    for count in (2_000, 20_000):
        member = tarfile.TarInfo("train/a/" + "x" * 80)
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(member.tobuf() * count + bytes(1024))
        tracemalloc.start()
        refusal(lambda: data.load(str(path)), path.name, "holds no image")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_bomb_of_numbers(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("rnlib.files.LARGEST", 1 << 20)
    path = tmp_path / f"train-images-idx3-ubyte.{kind}"
    with {"gz": gzip, "xz": lzma}[kind].open(path, "wb") as file:
        file.write(bytes(24 << 20))
    tracemalloc.start()
    refusal(lambda: read_idx(path), path.name, "more than 1 MiB")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("what", ["no archive", "a bomb", "a broken list"])
def test_a_pack_of_results(tmp_path, monkeypatch, what):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(burst, "LARGEST", 1 << 20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("tiny/run/files.json", b"[" * 10**5 if "list" in what else bytes(2 << 20))
    content = b"none" if what == "no archive" else file.getvalue()
    (folder := tmp_path / "packed").mkdir()
    (folder / f"pack-1of1-{hashlib.sha256(content).hexdigest()}").write_bytes(content)
    refusal(lambda: burst.unpack(folder), "packed" if "list" not in what else "files.json")
    assert not (tmp_path / "results").exists()


# -- links and words


@pytest.mark.parametrize(
    "what", ["folder", "weights.safetensors", ".weights.safetensors.lock", "files.json", "checkpoint.pt"]
)
def test_a_link_to_elsewhere_is_not_written_through(tmp_path, monkeypatch, what):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    smaller(monkeypatch)
    run, elsewhere = make_run(PROFILE), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    link = run.directory if what == "folder" else run.directory / what
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere if what == "folder" else elsewhere / "mine")
    before = state(elsewhere)
    with suppress(OSError, ValueError):
        work.train_run(run)
    assert state(elsewhere) == before


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "a b",
        "a;touch executed",
        "$(touch executed)",
        "<b>",
        "a\nb",
        "50%",
        "'",
        "{run}",
        "-x",
        "",
    ],
)
@pytest.mark.parametrize("setting", ["norm", "dataset", "architecture"])
def test_a_name_is_no_path_no_shell_and_no_page(name, setting):
    refusal(lambda: make_run(PROFILE, **{setting: name}), setting)


WORDS = [pytest.param(one, marks=pytest.mark.full) for one in CASES["words"][1:]]


@pytest.mark.parametrize("words", [CASES["words"][0], *WORDS])
def test_words_of_a_command_are_no_shell(words, tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "-j1", "--config", words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode
    assert "it must be" in done.stdout + done.stderr


@pytest.mark.full
def test_a_profile_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "it's; touch executed & {run} é"
    folder.mkdir()
    shutil.copy(PROFILE, folder)
    run = make_run(str(folder / "tiny.yml"))
    env = os.environ | {"PYTHONPATH": str(ROOT), "RNLIB_RESULTS": str(tmp_path / "results")}
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "-d",
        ROOT,
        "-j1",
        "--nolock",
    ]
    target = tmp_path / "results" / "tiny" / run.name / store.WEIGHTS
    done = subprocess.run(
        [*command, "--config", f"profile={folder}/tiny.yml", "--", target],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert target.exists()

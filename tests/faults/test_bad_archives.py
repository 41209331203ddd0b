"""Damaged archives, images and files of numbers: refused with their names, or read rightly."""

import gzip
import io
import random
import struct
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
from harness import SEED, cases, damages, refusal
from PIL import Image

from rnlib import data
from rnlib.files import read_idx

PIXELS = np.random.default_rng(0).integers(256, size=(6, 8, 8), dtype=np.uint8)
KINDS = (
    "images.zip",
    "images.tar",
    "images.tar.gz",
    "images.tar.xz",
    "train-images-idx3-ubyte.gz",
    "folder/train/a/0.png",
)
NAMES = [name for name, _ in damages(random.Random(0), bytes(300), False)]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make(folder, kind):
    """A file of a kind, and what reads it: pixels and the names of classes."""
    images = {f"train/{'ab'[i % 2]}/{i}.png": png(one) for i, one in enumerate(PIXELS)}
    path = folder / kind
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in images.items():
                zipped.writestr(zipfile.ZipInfo(name), content)
    elif ".tar" in kind:
        with tarfile.open(path, f"w:{path.suffix[1:].removeprefix('tar')}") as tar:
            for name, content in images.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    elif "idx" in kind:
        path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 6, 8, 8) + PIXELS.tobytes()))
        return path, lambda: read_idx(path).tolist()
    else:
        for name, content in images.items():
            (folder / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "folder" / name).write_bytes(content)

    def load():
        found = data.load(folder / kind.partition("/")[0])
        return found.images.tolist(), found.labels.tolist(), found.classes

    return path, load


@pytest.mark.parametrize(("kind", "damage"), cases(KINDS, lambda kind: NAMES))
@pytest.mark.filterwarnings("error:.*left out")
def test_a_damaged_file_of_images(tmp_path, monkeypatch, kind, damage):
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path / "cache"))
    path, load = make(tmp_path, kind)
    right, chance = load(), random.Random(f"{SEED} {kind}")
    path.write_bytes(dict(damages(chance, path.read_bytes(), False))[damage])
    refusal(partial(load), path.name, kinds=(ValueError, OSError, UserWarning), right=right)

"""Someone has rnlib alone, as the wheel brings it, and a notebook in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rnlib

SCRIPT = """
import warnings
from pathlib import Path

import torch

import rnlib

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    places = "images", "./images/", Path("images"), Path.cwd() / "images"
    found = [rnlib.load(place, "test") for place in places]
assert len({one.fingerprint for one in found}) == 1
assert any("not cached" in str(one.message) for one in told), told
model = rnlib.resnet(8, width=4, num_classes=2)
model(torch.rand(8, 3, 8, 8))
loader = torch.utils.data.DataLoader(found[0], batch_size=4)
audit = rnlib.audit_batch_dependence(model, loader, batch_sizes=[4])
assert len(audit.table) == 6
for call in (lambda: rnlib.pretrained(), lambda: rnlib.load("fashion-mnist-sample")):
    try:
        call()
    except FileNotFoundError as error:
        print(error)
print(rnlib.__file__)
"""


@pytest.fixture
def alone(tmp_path):
    """A copy of the package in one folder, and images in another, in which someone works."""
    source = Path(rnlib.__file__).parent
    shutil.copytree(source, tmp_path / "site" / "rnlib", ignore=shutil.ignore_patterns("__pycache__"))
    for label in "ab":
        (folder := tmp_path / "work" / "images" / "test" / label).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_everything_but_the_repositorys_data_is_there_and_nothing_is_written_beside_it(alone):
    before = listing(alone)
    (alone / "file").touch()  # where the cache should be: it cannot be written
    variables = {"PYTHONPATH": str(alone / "site"), "RNLIB_CACHE": str(alone / "file" / "cache")}
    variables |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment = {key: one for key, one in os.environ.items() if not key.startswith("RNLIB")} | variables
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=alone / "work", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    weights, sample, place = done.stdout.splitlines()
    assert "RNLIB_WEIGHTS" in weights
    assert "the sample comes with the repository: pip install --editable" in sample
    assert Path(place) == alone / "site" / "rnlib" / "__init__.py"
    (alone / "file").unlink()
    after = listing(alone)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {alone}

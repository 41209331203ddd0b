"""The named image sets: where they are found, what is made of them, what missing files do."""

import gzip
import hashlib
import io
import lzma
import pickle
import runpy
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from rnlib import data

SAMPLE = Path(data.__file__).parent.parent / "data" / "fashion-mnist-sample"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RNLIB_DATA", raising=False)


def write_cifar(monkeypatch, place, name):
    """Fake official files under `place`; torchvision is told their md5, so that its own check still runs."""
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = place / source.base_folder
    folder.mkdir(parents=True)
    key = {"cifar10": "label_names", "cifar100": "fine_label_names"}[name]
    labels = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    ramp = np.linspace(40, 200, 32).astype(np.uint8)
    red = np.broadcast_to(ramp, (32, 32))
    picture = np.stack([red, red.T, np.full_like(red, 90)])  # smooth, as JPEG likes it

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content, protocol=4))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        listed = []
        for number, (file, _) in enumerate(getattr(source, attribute)):
            content = {"data": np.stack([picture.reshape(-1)] * 2), labels: [number, 9]}
            listed.append([file, write(file, content)])
        monkeypatch.setattr(source, attribute, listed)
    names = [f"class{i}" for i in range({"cifar10": 10, "cifar100": 100}[name])]
    md5 = write(source.meta["filename"], {key: names})
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5, "key": key})
    return folder, picture


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 2)])
def test_official_cifar(tmp_path, monkeypatch, name, count):
    folder, picture = write_cifar(monkeypatch, tmp_path / "in", name)
    monkeypatch.setattr("urllib.request.urlopen", lambda *what, **how: pytest.fail("the network was asked"))
    monkeypatch.setenv("RNLIB_DATA", str(tmp_path / "in"))
    train, test = data.load(name), data.load(name, "test")
    assert train.images.shape == (count, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert torch.equal(train.images[0], torch.from_numpy(picture))
    assert train.labels[:2].tolist() == [0, 9]
    assert len(train.classes) == {"cifar10": 10, "cifar100": 100}[name]
    assert test.images.shape == (2, 3, 32, 32)
    for file in folder.iterdir():  # a changed file is not unpickled
        file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"is not the official file.*checksum"):
        data.load(name)


def test_jpeg_copy_is_made_from_the_official_files_and_cached(tmp_path, monkeypatch):
    folder, _ = write_cifar(monkeypatch, tmp_path / "in", "cifar10")
    original = data.load("cifar10", root=tmp_path / "in")
    made = data.load("cifar10-jpeg", root=tmp_path / "in")
    assert made.name == "cifar10-jpeg"
    assert made.fingerprint != original.fingerprint
    assert (made.images.float() - original.images.float()).abs().mean() < 3
    assert torch.equal(made.labels, original.labels)
    assert made.classes == original.classes
    shutil.rmtree(folder)
    assert data.load("cifar10-jpeg", root=tmp_path / "in").fingerprint == made.fingerprint


def test_jpeg_is_quality_75_with_halved_chroma():
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(images[1].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75, subsampling=2)
    expected = np.asarray(Image.open(file))
    assert np.array_equal(data.jpeg(images)[1].permute(1, 2, 0).numpy(), expected)


@pytest.fixture
def web(monkeypatch):
    """Answers by the end of an address, in place of the network; ``url`` is where a request ends."""
    answers = {}

    def urlopen(url, timeout):
        content = answers[url.rpartition("/")[2]]
        answer = io.BytesIO(content)
        answer.url, answer.length = answers.get("url", url), len(content)
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return answers


def test_download_goes_to_the_first_folder(tmp_path, monkeypatch, web):
    files = {path.stem: gzip.compress(lzma.decompress(path.read_bytes())) for path in SAMPLE.glob("*.xz")}
    web.update({f"{name}.gz": content for name, content in files.items()})
    listed = [[f"{name}.gz", hashlib.md5(content).hexdigest()] for name, content in files.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", listed)
    assert len(data.load("fashion-mnist", "test", root=tmp_path / "in", download=True)) == 1000
    web.clear()
    assert len(data.load("fashion-mnist", "test", root=tmp_path / "in")) == 1000

    folder, _ = write_cifar(monkeypatch, tmp_path / "made", "cifar10")
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    web["cifar-10-python.tar.gz"] = (tmp_path / "cifar.tar.gz").read_bytes()
    md5 = hashlib.md5(web["cifar-10-python.tar.gz"]).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    assert len(data.load("cifar10", "test", root=tmp_path / "new", download=True)) == 2
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        folder.name,
        "cifar-10-python.tar.gz",
    ]


@pytest.mark.parametrize("what", ["another", "too large", "another scheme"])
@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_a_download_that_is_not_the_official_file_is_not_kept(tmp_path, monkeypatch, web, name, what):
    if what == "too large":
        monkeypatch.setattr("rnlib.files.LARGEST", 99)
    if what == "another scheme":
        web["url"] = "ftp://elsewhere/x"
    names = ["cifar-10-python.tar.gz", *(file for file, _ in datasets.FashionMNIST.resources)]
    web.update(dict.fromkeys(names, bytes(10**7)))
    said = {"another": "checksum", "too large": "more than|checksum", "another scheme": "ftp://elsewhere"}[
        what
    ]
    with pytest.raises(OSError, match=rf"http.*{said}"):
        data.load(name, root=tmp_path / "in", download=True)
    assert not [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError):
        data.load(name, root=tmp_path / "in")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("cifar10-jpeg", "cifar10-jpeg.tar.xz.*cifar-10-batches-py"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_missing_files_say_what_to_do(tmp_path, name, files):
    with pytest.raises(FileNotFoundError, match=rf"{name} was not found.*{files}.*RNLIB_DATA.*download=True"):
        data.load(name, root=tmp_path)


def test_bad_names_and_splits(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown dataset 'cifar'.*cifar10.*cifar100.*fashion-mnist-sample.*path"
    ):
        data.load("cifar")
    with pytest.raises(ValueError, match="split must be one of train, test; got 'valid'"):
        data.load("cifar10", "valid")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="unknown dataset"):
        data.load(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("split", "per_class", "fingerprint"),
    [("train", 500, "46517d8b94bd7cd9"), ("test", 100, "03aedac90a645e69")],
)
def test_embedded_sample(tmp_path, monkeypatch, split, per_class, fingerprint):
    monkeypatch.chdir(tmp_path)  # found from any folder
    sample = data.load("fashion-mnist-sample", split)
    assert sample.images.shape == (10 * per_class, 1, 28, 28)
    assert sample.labels.bincount().tolist() == [per_class] * 10
    assert sample.labels[:100].unique().numel() == 10  # not ordered by class
    assert sample.classes == tuple(datasets.FashionMNIST.classes)
    assert sample.fingerprint == fingerprint
    mean, std = data.STATISTICS["fashion-mnist-sample"]
    pixels = data.to_float(sample.images)
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((mean[0], std[0]), abs=0.005)


def test_embedded_sample_without_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_REPOSITORY_DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"comes with the repository.*--editable") as caught:
        data.load("fashion-mnist-sample")
    assert "RNLIB_DATA" not in str(caught.value)  # where it is not looked for


def test_embedded_sample_is_small_and_licensed():
    assert sum(file.stat().st_size for file in SAMPLE.iterdir() if file.is_file()) < 2.5e6
    assert "Expat" in (SAMPLE / "LICENSE").read_text()


def test_sample_draw_is_balanced_and_fixed():
    draw = runpy.run_path(str(SAMPLE / "make.py"))["draw"]
    labels = torch.arange(1000) % 10
    chosen = draw(labels, 7)
    assert labels[chosen].bincount().tolist() == [7] * 10
    assert torch.equal(chosen, chosen.unique())
    assert torch.equal(chosen, draw(labels, 7))
    assert not torch.equal(chosen, draw(labels, 7, seed=1))


def test_idx_files_are_read_compressed_or_not(tmp_path):
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    runpy.run_path(str(SAMPLE / "make.py"))["write_idx"](tmp_path / "xz", values)
    plain = lzma.decompress((tmp_path / "xz").read_bytes())
    assert plain[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])  # as the format is published
    (tmp_path / "plain").write_bytes(plain)
    (tmp_path / "gz").write_bytes(gzip.compress(plain))
    for name in ("xz", "plain", "gz"):
        assert torch.equal(data.read_idx(tmp_path / name), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\0\0\x0d\x01\0\0\0\0", r"no IDX file of bytes .*starts with b'\\x00\\x00\\r"),
        (b"\0\0\x08\x03\0\0", "damaged or no IDX file"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"size 3 into shape \(5,\)"),
        (gzip.compress(bytes(100))[:-12], "damaged"),
        (gzip.compress(bytes(100))[:10] + b"\xff" * 20, "damaged .*: fetch it again"),
        (lzma.compress(bytes(100))[:-12], "damaged"),
    ],
    # Named, because gzip writes the time of day into its header: workers would collect different tests.
    ids=["empty", "wrong type", "short header", "short values", "cut gzip", "broken gzip", "cut xz"],
)
def test_bad_idx_files(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read_idx(tmp_path / "file")


def test_incomplete_fashion_mnist_names_the_file(tmp_path):
    (tmp_path / "fashion-mnist").mkdir()
    shutil.copy(SAMPLE / "train-images-idx3-ubyte.xz", tmp_path / "fashion-mnist")
    with pytest.raises(FileNotFoundError, match=r"lacks train-labels-idx1-ubyte.gz"):
        data.load("fashion-mnist", root=tmp_path)

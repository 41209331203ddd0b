"""Augmentation, batches, the fixed test order, the Dataset itself, and class-per-folder trees of images."""

import io
import os
import tarfile
import threading
import zipfile

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rnlib import data


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(n=10, *, channels=3, size=6):
    images = torch.randint(256, (n, channels, size, size), generator=seeded(1), dtype=torch.uint8)
    return data.Dataset("made", images, torch.arange(n) % 3, ("a", "b", "c"))


@pytest.mark.parametrize(("padding", "channels"), [(4, 3), (2, 1), (0, 3)])
def test_augment_is_crop_and_mirror_of_each_image(padding, channels):
    images = make(40, channels=channels).images
    result = data.augment(images, seeded(), padding=padding)
    generator = seeded()
    rows, columns = torch.randint(2 * padding + 1, (2, 40), generator=generator)
    mirrored = torch.randint(2, (40,), generator=generator)
    for i, image in enumerate(F.pad(images, (padding,) * 4)):
        expected = image[:, rows[i] : rows[i] + 6, columns[i] : columns[i] + 6]
        expected = expected.flip(2) if mirrored[i] else expected
        assert torch.equal(result[i], expected)
    assert result.dtype == torch.uint8


def test_augment_follows_its_generator_and_leaves_its_input():
    images = make(20).images
    before = images.clone()
    first = data.augment(images, seeded())
    assert torch.equal(first, data.augment(images, seeded()))
    assert not torch.equal(first, data.augment(images, seeded(1)))
    assert torch.equal(images, before)


def test_every_offset_and_mirroring_is_equally_likely():
    n = 16200  # 100 for each of 9 x 9 offsets and 2 orientations
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)  # a pixel tells where it came from
    result = data.augment(ramp.expand(n, 1, 16, 16), seeded()).long()
    centre, right = result[:, 0, 8, 8], result[:, 0, 8, 9]
    mirrored = (right < centre).long()
    row, column = centre // 16 - 4, centre % 16 - 4 + mirrored
    count = torch.bincount((row * 9 + column) * 2 + mirrored, minlength=162)
    assert len(count) == 162
    chi_square = ((count - 100.0) ** 2 / 100).sum().item()
    # The mean plus 4 standard deviations of chi-square with 161 degrees.
    assert chi_square < 161 + 4 * (2 * 161) ** 0.5


def test_to_float_covers_0_to_1():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert data.to_float(images).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert data.to_float(images).dtype == torch.float32


def test_batches_in_order():
    dataset = make()
    found = list(data.batches(dataset, 4))
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in found]), data.to_float(dataset.images))
    assert torch.equal(torch.cat([labels for _, labels in found]), dataset.labels)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
    images, _ = next(data.batches(dataset, 4, channels_last=False))
    assert images.is_contiguous()


def test_an_empty_set_has_no_batch():
    assert not list(data.batches(make(0), 4))


def test_shuffled_batches_hold_every_image_once_with_its_label():
    dataset = make(10)
    images, labels = zip(*data.batches(dataset, 3, generator=seeded()), strict=True)
    order = torch.randperm(10, generator=seeded())
    assert torch.equal(torch.cat(images), data.to_float(dataset.images[order]))
    assert torch.equal(torch.cat(labels), dataset.labels[order])


def test_augmented_batches_repeat_with_the_same_seed():
    dataset = make(10)
    first, again = (list(data.batches(dataset, 4, generator=seeded(), augmented=True)) for _ in range(2))
    plain = list(data.batches(dataset, 4, generator=seeded()))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], plain[0][0])
    assert torch.equal(first[0][1], plain[0][1])  # augmentation does not change which images are drawn


def test_bad_batches_fail_at_the_call():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.batches(make(), 0)
    with pytest.raises(ValueError, match="pass generator="):
        data.batches(make(), 2, augmented=True)


def test_test_order_is_fixed_and_mixes_classes():
    order = data.test_order(10_000)
    assert torch.equal(order, data.test_order(10_000))
    assert torch.equal(order.sort().values, torch.arange(10_000))
    assert not torch.equal(order, data.test_order(10_000, seed=1))
    classes = (order // 1000).reshape(100, 100)  # batches of 100 of a set ordered by class
    assert min(batch.unique().numel() for batch in classes) >= 9


def test_dataset_subset_and_fingerprint():
    dataset = make()
    part = dataset.subset(torch.tensor([7, 2]))
    assert torch.equal(part.images, dataset.images[[7, 2]])
    assert part.labels.tolist() == [1, 2]
    assert part.classes == dataset.classes
    same = dataset.subset(torch.arange(10))
    assert len(dataset.fingerprint) == 16
    assert dataset.fingerprint == same.fingerprint != part.fingerprint
    relabelled = data.Dataset("made", dataset.images, dataset.labels.flip(0), dataset.classes)
    assert relabelled.fingerprint != dataset.fingerprint
    with pytest.raises(AttributeError):
        dataset.name = "other"


def test_dataset_refuses_wrong_tensors():
    good = make()
    with pytest.raises(ValueError, match=r"images must be uint8 .* floating-point .*, got torch.int64"):
        data.Dataset("x", good.images.long(), good.labels, good.classes)
    for low, high in ((0, 255), (-2.1, 2.6), (0, 1.01), (0, float("nan"))):
        images = torch.linspace(low, high, good.images.numel()).view(good.images.shape)
        with pytest.raises(ValueError, match=r"values in \[.*\], they must lie in \[0, 1\]"):
            data.Dataset("x", images, good.labels, good.classes)
    with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.uint8 \(10, 3, 6\)"):
        data.Dataset("x", good.images[..., 0], good.labels, good.classes)
    with pytest.raises(ValueError, match=r"labels must be int64 \(10,\), got torch.int64 \(9,\)"):
        data.Dataset("x", good.images, good.labels[:9], good.classes)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RNLIB_DATA", raising=False)


def png(value, *, size=(4, 4), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 255 - value, 7)).save(file, "PNG")
    return file.getvalue()


# Not in sorted order, with what archives pick up on their way.
TREE = {
    "train/dog/0001.png": png(11),
    "train/dog/0000.png": png(10),
    "train/cat/0000.png": png(0),
    "test/dog/0000.png": png(30),
    "train/cat/._0000.png": b"metadata of macOS",
    "train/readme.txt": b"text",
    "notes/cat/0000.png": png(99),
}


def write_tree(place, kind, files=TREE, prefix="set/"):
    """A folder, tar.xz or zip of `files` named place/tiny*."""
    place.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        for name, content in files.items():
            file = place / "tiny" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return place / "tiny"
    path = place / f"tiny.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(prefix + name, content)
    else:
        with tarfile.open(path, "w:xz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(prefix + name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.xz"])
def test_tree_is_read_in_path_order(tmp_path, kind):
    path = write_tree(tmp_path / "in", kind)
    train, test = (data.load(str(path), split) for split in ("train", "test"))
    assert train.name == "tiny"
    assert train.classes == test.classes == ("cat", "dog")
    assert train.images.shape == (3, 3, 4, 4)
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 11]
    assert train.images[1, :, 2, 3].tolist() == [10, 245, 7]
    assert train.labels.tolist() == [0, 1, 1]
    assert test.labels.tolist() == [1]
    assert len(train) == 3


def test_folder_zip_and_tar_have_the_same_fingerprint(tmp_path):
    paths = [write_tree(tmp_path / "in", kind) for kind in ("folder", "zip", "tar.xz")]
    assert len({data.load(str(path)).fingerprint for path in paths}) == 1


def test_jpeg_copy_is_found_by_name_in_each_place(tmp_path, monkeypatch):
    archive = write_tree(tmp_path / "in", "tar.xz").rename(tmp_path / "in" / "cifar10-jpeg.tar.xz")
    found = data.load("cifar10-jpeg", "test", root=archive.parent)
    assert found.name == "cifar10-jpeg"
    monkeypatch.setenv("RNLIB_DATA", f"{tmp_path / 'nowhere'}{os.pathsep}{archive.parent}")
    assert data.load("cifar10-jpeg", "test").fingerprint == found.fingerprint


def test_hostile_archive_writes_nothing(tmp_path):
    path = tmp_path / "in" / "hostile.tar.xz"
    path.parent.mkdir()
    content = png(1)
    with tarfile.open(path, "w:xz") as archive:
        for name in ("../../train/cat/up.png", str(tmp_path / "train/cat/absolute.png"), "train/../dots.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("train/cat/link.png")
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    # The first two are images of a split whatever comes before; the rest is not.
    assert len(data.load(str(path))) == 2
    written = {file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("*")}
    assert written == {"in", "cache"}


def test_cache_is_used_until_the_archive_changes(tmp_path, monkeypatch):
    path = write_tree(tmp_path / "in", "zip")
    first = data.load(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(data, "decode", lambda path: pytest.fail("decoded again"))
        assert data.load(str(path)).fingerprint == first.fingerprint
        assert len(data.load(str(path), "test")) == 1  # both splits were decoded at once
    write_tree(tmp_path / "in", "zip", TREE | {"train/cat/0001.png": png(50)})
    assert len(data.load(str(path))) == 4
    folder = write_tree(tmp_path / "in", "folder")
    assert len(data.load(str(folder))) == 3
    (folder / "train" / "cat" / "0001.png").write_bytes(png(50))
    assert len(data.load(str(folder))) == 4


def test_unreadable_cache_is_made_again(tmp_path):
    path = write_tree(tmp_path / "in", "zip")
    first = data.load(str(path)).fingerprint
    (file,) = (tmp_path / "cache").iterdir()
    replacement = tmp_path / "half"
    replacement.write_bytes(file.read_bytes()[:100])
    replacement.replace(file)
    assert data.load(str(path)).fingerprint == first


def test_interrupted_write_leaves_no_cache_file(tmp_path, monkeypatch):
    def half(found, file):
        file.write(b"half")
        raise OSError("disk full")

    path = write_tree(tmp_path / "in", "zip")
    monkeypatch.setattr(torch, "save", half)
    with pytest.warns(UserWarning, match="disk full.*RNLIB_CACHE"):
        assert len(data.load(str(path))) == 3
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.warns(UserWarning, match="not cached"), pytest.raises(ValueError, match="no split 'test'"):
        data.load(str(write_tree(tmp_path / "other", "zip", {"train/a/0.png": png(1)})), "test")


def test_loads_at_the_same_time_agree(tmp_path):
    path = write_tree(tmp_path / "in", "zip")
    start, found = threading.Barrier(4), []

    def work():
        start.wait()
        found.append(data.load(str(path)).fingerprint)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".pt"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train/a/0.png": png(1), "train/a/1.png": png(1, size=(5, 4))},
            r"train/a/1.png has \(4, 5\) rows and columns.*\(4, 4\)",
        ),
        ({"train/a/0.png": b"no image"}, "train/a/0.png cannot be read"),
        ({"train/0.png": png(1)}, "holds no image: images must be files .* train/<class>"),
    ],
)
def test_bad_trees_say_what_is_wrong(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        data.load(str(write_tree(tmp_path / "in", "zip", files, prefix="")))


def test_missing_split_names_those_there(tmp_path):
    path = write_tree(tmp_path / "in", "zip", {"train/a/0.png": png(1)})
    data.load(str(path))
    with pytest.raises(ValueError, match=r"no split 'test' in .*tiny.zip: it has train"):
        data.load(str(path), "test")


@pytest.mark.parametrize("kind", ["zip", "tar.xz"])
def test_damaged_archive(tmp_path, kind):
    path = write_tree(tmp_path / "in", kind)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match="damaged"):
        data.load(str(path))

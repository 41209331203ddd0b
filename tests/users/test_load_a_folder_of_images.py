"""Folders of images as people have them: links, nested folders, many formats, grey among colour, 16 bits."""

import io
import struct
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rnlib import load

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(256, size=(4, 5, 3), dtype=np.uint8)
GREY = RNG.integers(256, size=(4, 5), dtype=np.uint8)
DEEP = RNG.integers(65536, size=(4, 5), dtype=np.uint16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path / "cache"))


def encoded(array, kind="PNG", **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def only_image(root, content, name="train/a/0.png"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (image,) = load(str(folder(root, {name: content}))).images
    return image.permute(1, 2, 0).squeeze(2).numpy()


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "TIFF", "ppm"])
def test_lossless_formats_give_their_pixels_in_any_case(tmp_path, ending):
    kind = {"tif": "TIFF"}.get(ending.lower(), ending.upper())
    np.testing.assert_array_equal(only_image(tmp_path, encoded(COLOUR, kind), f"train/a/0.{ending}"), COLOUR)


@pytest.mark.parametrize("ending", ["pgm", "png", "tif"])
def test_grey_formats(tmp_path, ending):
    kind = {"pgm": "PPM", "tif": "TIFF"}.get(ending, ending.upper())
    np.testing.assert_array_equal(only_image(tmp_path, encoded(GREY, kind), f"train/a/0.{ending}"), GREY)


def test_gif_and_webp(tmp_path):
    found = only_image(tmp_path / "gif", encoded(GREY, "GIF"), "train/a/0.gif")  # has a palette
    np.testing.assert_array_equal(found, np.dstack([GREY] * 3))
    np.testing.assert_array_equal(
        only_image(tmp_path / "webp", encoded(COLOUR, "WEBP", lossless=True), "train/a/0.webp"), COLOUR
    )


def png_of_16_bits(array, colour_type):
    """Written by hand from the PNG specification: an independent way to 16 bits."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_of_grey_are_scaled_to_8(tmp_path, ending):
    content = (
        png_of_16_bits(DEEP, 0) if ending == "png" else encoded(DEEP, "TIFF" if ending == "tif" else "PPM")
    )
    wanted = np.rint(DEEP / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(only_image(tmp_path, content, f"train/a/0.{ending}"), wanted)


def test_12_bits_of_a_pgm_are_scaled_to_8(tmp_path):
    values = (DEEP >> 4).astype(">u2")
    found = only_image(tmp_path, b"P5 5 4 4095\n" + values.tobytes(), "train/a/0.pgm")
    np.testing.assert_allclose(found, values / 4095 * 255, atol=0.51)


def test_a_palette_and_an_opaque_alpha_keep_the_colours(tmp_path):
    few = Image.fromarray(COLOUR // 64 * 64)
    palette = few.quantize(64, dither=Image.Dither.NONE)
    np.testing.assert_array_equal(only_image(tmp_path / "palette", encoded(palette)), palette.convert("RGB"))
    opaque = np.dstack([COLOUR, np.full((4, 5), 255, np.uint8)])
    np.testing.assert_array_equal(only_image(tmp_path / "alpha", encoded(opaque)), COLOUR)


SEE_THROUGH = np.dstack([COLOUR, np.full((4, 5), 128, np.uint8)])


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (encoded(SEE_THROUGH), "0.png", "transparent"),
        (encoded(Image.fromarray(COLOUR).quantize(4), transparency=0), "0.png", "transparent"),
        (png_of_16_bits(np.dstack([DEEP] * 3), 2), "0.png", "16-bit RGB"),
        (encoded(Image.new("CMYK", (5, 4)), "JPEG"), "0.jpg", "CMYK"),
        (encoded(np.ones((4, 5), np.float32), "TIFF"), "0.tif", "F: save"),
        (
            encoded(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            "0.gif",
            "several frames",
        ),
        (encoded(np.tile(COLOUR, (20, 20, 1)), "JPEG")[:700], "0.jpg", "truncated|Truncated"),
        (encoded(COLOUR)[:-40], "0.png", "replace or remove it"),
        (b"", "0.bmp", "cannot identify"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_cannot_be_represented_or_read_is_named(tmp_path, content, name, message, packed):
    path = folder(tmp_path / "set", {"train/a/fine.png": encoded(COLOUR), f"train/b/{name}": content})
    if packed:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in sorted(path.rglob("*.*")):
                archive.write(file, file.relative_to(path))
        path = tmp_path / "set.zip"
    with pytest.raises(ValueError, match=rf"train/b/{name} cannot be read .*({message})"):
        load(path)


def test_grey_among_colour_is_grey_in_colour_whichever_comes_first(tmp_path):
    for first, second in ((GREY, COLOUR), (COLOUR, GREY)):
        place = tmp_path / str(first.ndim)
        found = load(folder(place, {"train/a/0.png": encoded(first), "train/b/0.png": encoded(second)}))
        for image, array in zip(found.images, (first, second), strict=True):
            wanted = np.dstack([array] * 3) if array.ndim == 2 else array
            np.testing.assert_array_equal(image.permute(1, 2, 0), wanted)
    (image,) = load(folder(tmp_path / "grey", {"test/a/0.png": encoded(GREY)}), "test").images
    assert image.shape == (1, 4, 5)


def test_links_and_nested_folders_count(tmp_path):
    elsewhere = folder(tmp_path / "elsewhere", {"1.png": encoded(GREY), "deeper/2.png": encoded(255 - GREY)})
    root = folder(tmp_path / "set", {"train/a/0.png": encoded(GREY)})
    (root / "train" / "b").symlink_to(elsewhere)
    (root / "test").symlink_to(root / "train")
    for split in ("train", "test"):
        found = load(root, split)
        assert found.labels.tolist() == [0, 1, 1]
        np.testing.assert_array_equal(found.images[:, 0], [GREY, GREY, 255 - GREY])
    (elsewhere / "1.png").write_bytes(encoded(255 - GREY))  # behind the link
    np.testing.assert_array_equal(load(root).images[1, 0], 255 - GREY)
    (elsewhere / "deeper" / "up").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="deeper/up links to a folder that holds it"):
        load(root)


def test_what_is_left_out_is_counted_each_time(tmp_path):
    content = {f"train/a/{i}.png": encoded(GREY) for i in range(2)}
    left_out = {"train/a/notes.txt": b"", "train/b/0.npy": b"", "train/1.png": b"", "val/a/0.png": b""}
    hidden = {"train/a/._0.png": b"", "train/a/.DS_Store": b"", "README.md": b""}
    root = folder(tmp_path / "set", content | left_out | hidden)
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(
            UserWarning, match=r"set: 4 files are left out, as train/1\.png; images must be files"
        ):
            assert len(load(root)) == 2


def test_links_in_an_archive_are_counted(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        member = tarfile.TarInfo("train/a/0.png")
        member.size = len(encoded(GREY))
        archive.addfile(member, io.BytesIO(encoded(GREY)))
        link = tarfile.TarInfo("train/a/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        archive.addfile(link)
        nested = tarfile.TarInfo("train/a/more")
        nested.type = tarfile.DIRTYPE
        archive.addfile(nested)
    with pytest.warns(UserWarning, match=r"1 files are left out, as train/a/1\.png; .*no links"):
        assert len(load(tmp_path / "set.tar")) == 1


def test_trees_in_two_places_of_an_archive_are_all_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, place in enumerate(("one", "two")):
            archive.writestr(f"{place}/train/a/0.png", encoded(np.full((4, 5), number, np.uint8)))
    assert load(tmp_path / "set.zip").images[:, 0, 0, 0].tolist() == [0, 1]


def test_the_tree_of_pytorchs_image_folder_gives_the_same_images(tmp_path):
    from torchvision.datasets import ImageFolder

    files = {f"train/{name}/{i}.png": encoded(COLOUR + i) for name in ("cat", "Dog") for i in range(2)}
    files["train/cat/more/0.png"] = encoded(GREY)
    ours, theirs = load(folder(tmp_path, files)), ImageFolder(tmp_path / "train")
    assert list(ours.classes) == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    wanted = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image, _ in theirs])
    assert torch.equal(ours.images.permute(0, 2, 3, 1), wanted)

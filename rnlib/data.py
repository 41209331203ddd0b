"""Image sets as whole uint8 tensors in memory, with batched augmentation.

`load("cifar10-jpeg", "train")` gives a `Dataset` with `.images` (N, C, H, W) uint8 and `.labels` (N,) int64.
CIFAR at 150 MB and Fashion-MNIST at 47 MB fit in memory, so there is no loader process: a batch is an index
into a tensor. A batch of 128 CIFAR images, shuffled, cropped, mirrored and made float, takes 1.7 ms on one
core (2017, AVX2). The second half of the file finds, reads and caches what is on disk.
"""

import gzip
import hashlib
import io
import lzma
import math
import os
import pickle
import tarfile
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Mean and standard deviation per channel, for pixels in [0, 1], as the models' Normalize layer takes them.
# The CIFAR row is that of the paper's released code, which uses it for CIFAR-100 too. Its "standard
# deviation" is the average over images of each image's own one; that over all pixels is (0.247, 0.243,
# 0.262). The paper's eps is in these units.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_FASHION_MNIST = ((0.2860,), (0.3530,))
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    **dict.fromkeys(("cifar10", "cifar100", "cifar10-jpeg"), _CIFAR),
    **dict.fromkeys(("fashion-mnist", "fashion-mnist-sample"), _FASHION_MNIST),
}
SPLITS = ("train", "test")
ROUNDING = 1e-6  # how far a resized image may leave [0, 1]
ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar", ".zip")
COMPRESSED = (".xz", ".gz", "")  # of IDX files
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_REPOSITORY_DATA = Path(__file__).resolve().parent.parent / "data"

Split = tuple[Tensor, Tensor, tuple[str, ...]]  # images uint8 (N, C, H, W), labels int64 (N,), class names


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of an image set.

    images: (N, C, H, W), uint8 0 to 255 or floating-point in [0, 1]. labels: int64 (N,), indices into
    `classes`. Both on the CPU. Raises ValueError where types, shapes or values differ from this.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, floating = self.images, self.images.is_floating_point()
        if not (floating or images.dtype == torch.uint8) or images.ndim != 4:
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images must be uint8 or floating-point (N, C, H, W), got {got}")
        if floating and not bool(((images >= -ROUNDING) & (images <= 1 + ROUNDING)).all()):
            fix = "divide by 255, or normalise in the model: nn.Sequential(rnlib.Normalize(mean, std), model)"
            got = "[{:.3g}, {:.3g}]".format(*images.aminmax())
            raise ValueError(f"images have values in {got}, they must lie in [0, 1]; {fix}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            shape = tuple(self.labels.shape)
            raise ValueError(f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} {shape}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the sha256 over the bytes of the images, then of the labels."""
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def subset(self, indices: Tensor) -> "Dataset":
        """The images at `indices` int64 (M,), in that order: a data set with a fingerprint of its own."""
        return Dataset(self.name, self.images[indices], self.labels[indices], self.classes)


def load(
    name: str, split: str = "train", *, root: str | Path | None = None, download: bool = False
) -> Dataset:
    """Load one split ("train" or "test") of an image set into memory.

    name: cifar10, cifar100, fashion-mnist (the official files), cifar10-jpeg, fashion-mnist-sample
    (embedded), or the path of a folder or archive of `train/<class>/<image>` and `test/<class>/<image>`, all
    images of one size.
    root: the one folder to look in; without it those of the environment variable RNLIB_DATA (separated as in
    PATH), then the repository's data/, then ./data. The embedded sample is always the repository's.
    download: fetch official files that are not there into the first of these folders; the only use of the
    network.
    Raises ValueError for an unknown name or split, FileNotFoundError with what to do where files are missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if name in SOURCES:
        return Dataset(name, *SOURCES[name](split, folders(root), download))
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and name.endswith(ARCHIVES)):
        return Dataset(path.resolve().name.split(".")[0], *read_tree(path, split))
    raise ValueError(
        f"unknown dataset {name!r}: give one of {', '.join(SOURCES)}, or the path of a folder or "
        f"archive ({', '.join(ARCHIVES)}) of train/<class>/<image> and test/<class>/<image>"
    )


def to_float(images: Tensor) -> Tensor:
    """uint8 0 to 255, or numbers in [0, 1] but for rounding -> float32 in [0, 1], same memory format."""
    if images.is_floating_point():
        return images.float().clamp(0, 1)
    return images.to(torch.float32).div_(255)


def test_order(n: int, seed: int = 0) -> Tensor:  # noqa: PT028
    """A fixed permutation of range(n), int64 (n,): the order in which test images are put into batches.

    Needed wherever a model may use batch statistics: cifar10-jpeg is ordered by class, and a batch of one
    class has other statistics than a mixed one.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


test_order.__test__ = False  # type: ignore[attr-defined]  # the name is no test: pytest must not collect it


def augment(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Random crop of the zero-padded image, then mirroring with probability 1/2; vectorised over the batch.

    images: uint8 (N, C, H, W); the result has the same shape. Each image draws its own offset, uniform on
    {0, ..., 2 padding}^2. generator: of the CPU or of the images' device.
    """
    n, _, height, width = images.shape
    source, target = generator.device, images.device
    offset = torch.randint(2 * padding + 1, (2, n), generator=generator, device=source)
    offset = offset.to(target, non_blocking=True)  # else every batch would wait for the device
    # A view of all windows of the padded image, (N, C, 2 padding + 1, 2 padding + 1, H, W).
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(n, device=target), :, offset[0], offset[1]]
    mirrored = torch.randint(2, (n, 1, 1, 1), generator=generator, device=source)
    return torch.where(mirrored.to(target, non_blocking=True) == 1, cropped.flip(3), cropped)


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augmented: bool = False,
    device: str | torch.device = "cpu",
    channels_last: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the set in batches of images float32 (B, C, H, W) in [0, 1] and labels int64 (B,).

    generator: shuffles, and augments, with it; without one the order is the data set's own.
    augmented: crop and mirror each batch with `augment`; needs the generator.
    channels_last: memory format of the images; it makes the convolutions 15-20% faster on a CPU.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if augmented and generator is None:
        raise ValueError("augmented=True is random: pass generator=torch.Generator().manual_seed(...)")

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        everything, labels, order = dataset.images.to(device), dataset.labels.to(device), torch.arange(n)
        if generator is not None:
            order = torch.randperm(n, generator=generator, device=generator.device)
        for index in order.to(device).split(batch_size) if n else ():
            images = everything[index]
            if augmented and generator is not None:
                images = augment(images, generator)
            yield to_float(images.contiguous(memory_format=memory_format)), labels[index]

    n, memory_format = len(dataset), torch.channels_last if channels_last else torch.contiguous_format
    return stream()


# --- where the named sets come from -------------------------------------------------------------------------
# torchvision takes two seconds to import, and most jobs read files without it: it is imported where needed.


def folders(root: str | Path | None) -> list[Path]:
    """The folders to look in: `root` alone, or those of RNLIB_DATA, the repository's data/ and ./data."""
    if root is not None:
        return [Path(root).expanduser()]
    named = [Path(part).expanduser() for part in os.environ.get("RNLIB_DATA", "").split(os.pathsep) if part]
    return [*named, _REPOSITORY_DATA, Path("data")]


def _cifar(name: str, split: str, places: list[Path], download: bool) -> Split:
    """The official CIFAR-10 or CIFAR-100; torchvision checks the md5 of each file before it unpickles it."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = _first(places, source.base_folder)
    if folder is None and not download:
        raise _missing(name, f"the folder {source.base_folder}/ (unpacked from {source.filename})", places)
    stored = source(folder.parent if folder else places[0], train=split == "train", download=download)
    images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(stored.targets), tuple(stored.classes)


def _cifar10_jpeg(split: str, places: list[Path], download: bool) -> Split:
    """The JPEG copy of CIFAR-10: the folder or archive cifar10-jpeg, else made from the official files."""
    if path := _first(places, *(f"cifar10-jpeg{suffix}" for suffix in ("", *ARCHIVES))):
        return read_tree(path, split)

    def make() -> dict[str, Split]:
        images, labels, classes = _cifar("cifar10", split, places, download)
        return {split: (jpeg(images), labels, classes)}

    try:
        return _cached(f"cifar10 {split} as JPEG by Pillow {PIL.__version__}", make)[split]
    except FileNotFoundError as error:
        files = "cifar10-jpeg.tar.xz, and for the official folder cifar-10-batches-py/ to make it from,"
        raise _missing("cifar10-jpeg", files, places) from error


def _fashion_mnist(split: str, places: list[Path], download: bool) -> Split:
    """The official Fashion-MNIST, in fashion-mnist/ or as torchvision lays it out, compressed or not."""
    laid_out = ("fashion-mnist", "FashionMNIST/raw")
    names = [f"{folder}/train-images-idx3-ubyte{suffix}" for folder in laid_out for suffix in COMPRESSED]
    if path := _first(places, *names):
        return _idx_folder(path.parent, split)
    if not download:
        raise _missing("fashion-mnist", "the *-ubyte.gz files in fashion-mnist/ or FashionMNIST/raw/", places)
    from torchvision import datasets

    datasets.FashionMNIST(places[0], download=True)
    return _idx_folder(places[0] / "FashionMNIST" / "raw", split)


def _fashion_mnist_sample(split: str, places: list[Path], download: bool) -> Split:
    """The 5,000 training and 1,000 test images that come with the repository (see data/README.md)."""
    folder = _REPOSITORY_DATA / "fashion-mnist-sample"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"fashion-mnist-sample was not found in {folder}: it comes with the repository and not with an "
            "installed rnlib. Run in a clone, or install from one: pip install --editable <clone>."
        )
    return _idx_folder(folder, split)


def _first(places: list[Path], *names: str) -> Path | None:
    return next((path for place in places for name in names if (path := place / name).exists()), None)


def _missing(name: str, files: str, places: list[Path]) -> FileNotFoundError:
    looked = ", ".join(str(place) for place in places)
    return FileNotFoundError(
        f"{name} was not found. Looked for {files} in: {looked}. Put it into one of these, name its folder "
        f"in root= or in the environment variable RNLIB_DATA, "
        f"or fetch the official files: load({name!r}, download=True)."
    )


SOURCES: dict[str, Callable[[str, list[Path], bool], Split]] = {
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "fashion-mnist": _fashion_mnist,
    "cifar10-jpeg": _cifar10_jpeg,
    "fashion-mnist-sample": _fashion_mnist_sample,
}


# --- files --------------------------------------------------------------------------------------------------


def _idx_folder(folder: Path, split: str) -> Split:
    """One split of the IDX files of a Fashion-MNIST folder."""
    tensors = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
        if not (file := _first([folder], *(f"{stem}{suffix}" for suffix in COMPRESSED))):
            fix = "copy it there, or name another folder in RNLIB_DATA"
            raise FileNotFoundError(f"{folder} lacks {stem}.gz: {fix}")
        tensors.append(read_idx(file))
    names = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    return tensors[0][:, None], tensors[1].long(), tuple(names.split(","))


def read_idx(path: Path) -> Tensor:
    """The uint8 array in an IDX file of MNIST-like sets, plain, gzip or xz, of the shape its header gives.

    Raises ValueError where it is not one.
    """
    content = path.read_bytes()
    unpack = {b"\x1f\x8b": gzip.decompress, b"\xfd7": lzma.decompress}.get(content[:2], bytes)
    try:
        content = unpack(content)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    start = 4 + 4 * int.from_bytes(content[3:4])  # the fourth byte is the number of dimensions
    if content[:3] != b"\0\0\x08" or len(content) < start:
        beginning = f"it has {len(content)} bytes and starts with {content[:4]!r}"
        raise ValueError(f"{path} is not an IDX file of unsigned bytes, or cut short: {beginning}")
    shape, body = np.frombuffer(content[4:start], ">u4").tolist(), np.frombuffer(content[start:], np.uint8)
    if len(body) != math.prod(shape):
        raise ValueError(f"{path} holds {len(body)} values where its header says {shape}: fetch it again")
    return torch.from_numpy(body.reshape(shape).copy())


def jpeg(images: Tensor) -> Tensor:
    """RGB images uint8 (N, 3, H, W) after JPEG compression as in cifar10-jpeg: quality 75, 4:2:0 chroma."""
    decoded = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def read_tree(path: Path, split: str) -> Split:
    """Images, labels and class names of one split of a class-per-folder tree, a folder or a tar/zip archive.

    The images come in the order of their paths; the classes are the sorted folder names over both splits.
    Both splits are decoded and cached at the first call (60,000 CIFAR images: 11 s on one core of 2017; then
    0.01 s). Raises ValueError where the split is not there, the archive is damaged or the images differ in
    size.
    """
    path = path.resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    found = _cached(repr(stamps), lambda: decode(path))
    if split not in found:
        raise ValueError(f"there is no split {split!r} in {path}: it has {', '.join(found)}")
    return found[split]


def decode(path: Path) -> dict[str, Split]:
    """Decode every image below `path`, by split.

    The first image decides the size, and whether all are read as grey (1 channel) or RGB (3 channels).
    """
    arrays: dict[tuple[str, ...], np.ndarray] = {}  # of a name that comes twice the last, as in unpacking
    mode, size = "", (0, 0)
    try:
        for name, content in _files(path):
            with Image.open(io.BytesIO(content)) as image:
                if not arrays:
                    mode, size = ("L" if image.mode in ("1", "L") else "RGB"), image.size
                if image.size != size:
                    raise ValueError(
                        f"{path}: {name} is {image.width} x {image.height} pixels, the first image "
                        f"{size[0]} x {size[1]}; all images must have one size: resize them first"
                    )
                arrays[PurePosixPath(name).parts[-3:]] = np.asarray(image.convert(mode))
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or no tar/zip archive ({error}): fetch it again") from error
    except OSError as error:  # Pillow's, on an image it cannot read
        raise ValueError(f"{path}: an image cannot be read ({error}): replace or remove it") from error
    if not arrays:
        known = ", ".join(IMAGES)
        raise ValueError(f"{path} holds no train/<class>/<image> and no test/<class>/<image> ({known})")
    classes = tuple(sorted({label for _, label, _ in arrays}))
    splits = {}
    for split in SPLITS:
        if keys := sorted(key for key in arrays if key[0] == split):
            pixels = torch.from_numpy(np.stack([arrays[key] for key in keys]))  # (N, H, W) or (N, H, W, 3)
            pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2).contiguous()
            splits[split] = (pixels, torch.tensor([classes.index(label) for _, label, _ in keys]), classes)
    return splits


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name with forward slashes, content) of every image of a split.

    Archives are read member by member in memory and never unpacked, so a hostile member name has nowhere to
    escape to; links in them are left out.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if _is_image(name) and file.is_file():
                yield name, file.read_bytes()
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:
            for name in filter(_is_image, zipped.namelist()):
                yield name, zipped.read(name)
    else:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() and _is_image(member.name) else None
                if stream is not None:
                    yield member.name, stream.read()


def _is_image(name: str) -> bool:
    """Whether a name ends in <split>/<class>/<image>; hidden files (macOS adds ._x.jpg) do not count."""
    split, label, file = ("", "", "", *PurePosixPath(name).parts)[-3:]
    return split in SPLITS and file.lower().endswith(IMAGES) and "." not in (label[0], file[0])


def _cached(identity: str, make: Callable[[], dict[str, Split]]) -> dict[str, Split]:
    """What `make()` gives, kept under the hash of `identity` in RNLIB_CACHE or ~/.cache/rnlib.

    The file is written under a temporary name and renamed, so processes that start together never see half of
    it; it is memory-mapped, so that they share one copy. An unreadable cache file is made again; a cache that
    cannot be written is a warning.
    """
    folder = Path(os.environ.get("RNLIB_CACHE") or Path.home() / ".cache" / "rnlib")
    file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
    with suppress(OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return torch.load(file, mmap=True, weights_only=True)
    found, temporary = make(), file.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(found, temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        message = f"images are not cached, {folder} cannot be written ({error}): set RNLIB_CACHE"
        warnings.warn(message, stacklevel=2)
    return found

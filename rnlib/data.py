"""Image sets as whole uint8 tensors in memory, with batched augmentation; and how files are found.

`load("cifar10-jpeg", "train")` gives a `Dataset`. There is no loader process: a batch of 128 CIFAR images,
shuffled, cropped, mirrored and made float, takes 1.7 ms on one core (2017).
"""

import hashlib
import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from rnlib.files import DAMAGES, Member, fetch, read_idx, read_pickle, read_tensors, unpacked, write_tensors
from rnlib.statistics import check_labels

# Mean and standard deviation per channel, for pixels in [0, 1], as the models' Normalize layer takes them.
# The CIFAR row is that of the paper's released code, for CIFAR-100 too, and the unit of its eps; it averages
# each image's own standard deviation (that over all pixels is (0.247, 0.243, 0.262)).
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    **dict.fromkeys(("cifar10", "cifar100", "cifar10-jpeg"), _CIFAR),
    **dict.fromkeys(("fashion-mnist", "fashion-mnist-sample"), ((0.2860,), (0.3530,))),
}
SPLITS = ("train", "test")
ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar", ".zip")
COMPRESSED = (".xz", ".gz", "")  # of IDX files
LARGEST = 16 << 20  # bytes of an image
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_REPOSITORY_DATA = Path(__file__).resolve().parent.parent / "data"

Split = tuple[Tensor, Tensor, tuple[str, ...]]  # images uint8 (N, C, H, W), labels int64 (N,), class names


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of an image set.

    images: (N, C, H, W), uint8 0 to 255 or floating-point in [0, 1]. labels: integers (N,), indices into
    `classes`, kept as int64. Both become tensors. ValueError where types, shapes or values differ from this.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = torch.as_tensor(self.images), torch.as_tensor(self.labels)
        shape, floating = tuple(images.shape), images.is_floating_point()
        swapped = shape[3:] in ((1,), (3,)) and shape[1] not in (1, 3)
        if not (floating or images.dtype == torch.uint8) or len(shape) != 4 or swapped:
            grey = ": images[:, None] is" if labels.shape == shape[:1] else ": one image is images[None]"
            fix = ": images.permute(0, 3, 1, 2) is" if swapped else grey * (len(shape) == 3)
            need = "images must be uint8 from 0 to 255 or floating-point in [0, 1], (N, C, H, W)"
            raise ValueError(f"{need}, got {images.dtype} {shape}{fix}")
        if floating and not bool(((images >= -1e-6) & (images <= 1 + 1e-6)).all()):  # but for rounding
            fix = "divide by 255, or normalise in the model: nn.Sequential(rnlib.Normalize(mean, std), model)"
            got = "[{:.3g}, {:.3g}]".format(*images.aminmax())
            raise ValueError(f"images have values in {got}, they must lie in [0, 1]; {fix}")
        check_labels("labels", labels, len(images))
        vars(self).update(images=images, labels=labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image, float32 in [0, 1], and its label, as a DataLoader asks for them."""
        return to_float(self.images[index]), self.labels[index]

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
    name: str | Path, split: str = "train", *, root: str | Path | None = None, download: bool = False
) -> Dataset:
    """Load one split ("train" or "test") of an image set into memory.

    name: cifar10, cifar100, fashion-mnist (the official files), cifar10-jpeg, fashion-mnist-sample (5,000 and
    1,000 images), or the path of a folder or archive of `train/<class>/<image>` and `test/<class>/<image>`.
    All images have one size; they are grey if every one is, else RGB. root: the one folder to look in;
    without it those of the environment variable RNLIB_DATA (separated as in PATH), then the repository's
    data/, then ./data. download: fetch missing official files into the first of these folders; the only use
    of the network. ValueError for an unknown name or split, FileNotFoundError with what to do where files are
    missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if source := SOURCES.get(str(name)):
        return Dataset(str(name), *source(split, folders(root), download))
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.name.endswith(ARCHIVES)):
        return Dataset(path.resolve().name.split(".")[0], *read_tree(path, split))
    known = f"{', '.join(SOURCES)}, or the path of a folder or archive ({', '.join(ARCHIVES)})"
    raise ValueError(f"unknown dataset {name!r}: give {known} of train/<class>/<image> and test/...")


def to_float(images: Tensor) -> Tensor:
    """uint8 0 to 255, or numbers in [0, 1] but for rounding -> float32 in [0, 1], same memory format."""
    return images.float().clamp(0, 1) if images.is_floating_point() else images.float().div_(255)


def test_order(n: int, seed: int = 0) -> Tensor:  # noqa: PT028
    """A fixed permutation of range(n), int64 (n,): the order in which test images are put into batches.

    cifar10-jpeg is ordered by class, and a batch of one class has other statistics than a mixed one.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


test_order.__test__ = False  # type: ignore[attr-defined]  # the name is no test: pytest must not collect it


def augment(images: Tensor, generator: torch.Generator | Tensor, *, padding: int = 4) -> Tensor:
    """Random crop of the zero-padded image, then mirroring with probability 1/2; vectorised over the batch.

    Each of the images (N, C, H, W) draws its own offset, uniform on {0, ..., 2 padding}^2. generator: of the
    CPU or of the images' device, or what `_moves` drew from it.
    """
    n, _, height, width = images.shape
    moves = generator if isinstance(generator, Tensor) else _moves(n, generator, padding).to(images.device)
    # A view of all windows of the padded image, (N, C, 2 padding + 1, 2 padding + 1, H, W).
    windows = torch.nn.functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(n, device=images.device), :, moves[0], moves[1]]
    return torch.where(moves[2].view(-1, 1, 1, 1) == 1, cropped.flip(3), cropped)


def _moves(n: int, generator: torch.Generator, padding: int = 4) -> Tensor:
    """For each image row and column of its window, and whether to mirror it: int64 (3, n)."""
    draw = partial(torch.randint, generator=generator, device=generator.device)
    return torch.cat([draw(2 * padding + 1, (2, n)), draw(2, (1, n))])


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augmented: bool = False,
    drop_last: bool = False,
    device: str | torch.device = "cpu",
    channels_last: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the set in batches of images float32 (B, C, H, W) in [0, 1] and labels int64 (B,).

    generator: shuffles, at the call, and where `augmented` crops and mirrors (`augment`); None: no shuffling.
    channels_last: memory format of the images; it makes the convolutions 15-20% faster on a CPU.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if augmented and generator is None:
        raise ValueError("augmented=True is random: pass generator=torch.Generator().manual_seed(...)")
    n, memory_format = len(dataset), torch.channels_last if channels_last else torch.contiguous_format
    images, labels = dataset.images.to(device), dataset.labels.to(device)
    order = torch.randperm(n, generator=generator, device=generator.device) if generator else torch.arange(n)
    used = n - n % batch_size if drop_last else n
    indices = order[:used].to(device).split(batch_size) if used else ()
    # Before the first batch, so that none waits for the device.
    drawn = [_moves(len(index), generator) for index in indices] if augmented and generator else []
    moves = torch.cat(drawn, 1).to(device) if drawn else order[None]
    pairs = zip(indices, moves.split(batch_size, 1), strict=False)
    chosen = ((augment(images[at], move) if augmented else images[at], labels[at]) for at, move in pairs)
    return ((to_float(x.contiguous(memory_format=memory_format)), y) for x, y in chosen)


def folders(root: str | Path | None) -> list[Path]:
    """The folders to look in: `root` alone, or those of RNLIB_DATA, the repository's data/ and ./data."""
    if root is not None:
        return [Path(root).expanduser()]
    named = [Path(part).expanduser() for part in os.environ.get("RNLIB_DATA", "").split(os.pathsep) if part]
    return [*named, _REPOSITORY_DATA, Path("data")]


def _cifar(name: str, split: str, places: list[Path], download: bool) -> Split:
    """The official CIFAR-10 or CIFAR-100; torchvision knows where it is, and the md5 of each file."""
    from torchvision import datasets  # takes two seconds, and most jobs read files without it

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = _first(places, source.base_folder)
    if folder is None and not download:
        raise _missing(name, f"the folder {source.base_folder}/ (unpacked from {source.filename})", places)
    if folder is None:
        archive = fetch(source.url, places[0] / source.filename, source.tgz_md5)
        with TemporaryDirectory(dir=places[0]) as unfinished, tarfile.open(archive) as tar:
            tar.extractall(unfinished, filter="data")
            folder = Path(unfinished, source.base_folder).rename(places[0] / source.base_folder)
    listed = source.train_list if split == "train" else source.test_list
    files = [*listed, (source.meta["filename"], source.meta["md5"])]
    *parts, words = [read_pickle(folder / file, md5) for file, md5 in files]
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = [label for part in parts for label in part.get("labels", part.get("fine_labels"))]
    return torch.from_numpy(images), torch.tensor(labels), tuple(words[source.meta["key"]])


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
    from torchvision.datasets import FashionMNIST

    for file, md5 in reversed(FashionMNIST.resources):  # the last is the one that is looked for
        fetch(f"{FashionMNIST.mirrors[0]}{file}", places[0] / "fashion-mnist" / file, md5)
    return _idx_folder(places[0] / "fashion-mnist", split)


def _first(places: list[Path], *names: str) -> Path | None:
    return next((path for place in places for name in names if (path := place / name).exists()), None)


def _missing(name: str, files: str, places: list[Path]) -> FileNotFoundError:
    looked = f"Looked for {files} in: {', '.join(map(str, places))}"
    fix = f"name its folder in root= or in RNLIB_DATA, or fetch official files: load({name!r}, download=True)"
    return FileNotFoundError(f"{name} was not found. {looked}. Put it into one of these, {fix}.")


SOURCES: dict[str, Callable[[str, list[Path], bool], Split]] = {
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "fashion-mnist": _fashion_mnist,
    "cifar10-jpeg": _cifar10_jpeg,
    "fashion-mnist-sample": lambda split, *_: _idx_folder(_REPOSITORY_DATA / "fashion-mnist-sample", split),
}


def _idx_folder(folder: Path, split: str) -> Split:
    """One split of the IDX files of a Fashion-MNIST folder."""
    tensors = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
        if not (file := _first([folder], *(f"{stem}{suffix}" for suffix in COMPRESSED))):
            fix = "copy it there (the sample comes with the repository: pip install --editable <clone>)"
            raise FileNotFoundError(f"{folder} lacks {stem}.gz: {fix}")
        tensors.append(read_idx(file))
    names = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    return tensors[0][:, None], tensors[1].long(), tuple(names.split(","))


def jpeg(images: Tensor) -> Tensor:
    """RGB images uint8 (N, 3, H, W) after JPEG compression as in cifar10-jpeg: quality 75, 4:2:0 chroma."""
    decoded = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
        decoded.append(np.asarray(PIL.Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def read_tree(path: Path, split: str) -> Split:
    """Images, labels and class names of one split of a class-per-folder tree, a folder or a tar/zip archive.

    The images come in the order of their paths; the classes are the sorted folder names over both splits.
    Both are decoded and cached at the first call (60,000 CIFAR images: 11 s on one core of 2017; then 0.01
    s). A warning counts what is left out. ValueError where the split is not there, the archive is damaged, or
    an image has another size, cannot be read or cannot be represented.
    """
    path = path.resolve()
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _below(path)]
    found, left_out = _cached(f"images, grey or RGB: {stamps}", lambda: decode(path))
    if left_out:
        warnings.warn(f"{path}: {left_out}", stacklevel=2)
    if split not in found:
        raise ValueError(f"there is no split {split!r} in {path}: it has {', '.join(found)}")
    return found[split]


def decode(path: Path) -> tuple[dict[str, Split], str]:
    """Every image below `path` by split, grey if every one is, else RGB; and in words what was left out."""
    # By split, class, ... and what comes before; of a name that comes twice the last, as in unpacking.
    arrays: dict[tuple[tuple[str, ...], ...], np.ndarray] = {}
    size: Any = None
    left_out, count = "", 0  # the first, and how many: of an archive of millions of names none is kept
    try:
        for name, read in _files(path):
            parts, is_image = PurePosixPath(name).parts, name.lower().endswith(IMAGES)
            start = max((i for i in range(len(parts) - 2) if parts[i] in SPLITS), default=-1)
            hidden = any(part[0] == "." for part in parts[start:])  # as the ._x.jpg that macOS adds
            if start >= 0 and is_image and read and not hidden:
                array = arrays[parts[start:], parts[:start]] = _pixels(f"{path}: {name}", read)
                if array.shape[:2] != (size := size or array.shape[:2]):
                    given = f"{name} has {array.shape[:2]} rows and columns, the first image {size}"
                    raise ValueError(f"{path}: {given}; all images must have one size: resize them first")
            elif (start >= 0 or is_image) and not hidden:
                left_out, count = left_out or name, count + 1
    except DAMAGES as error:
        raise ValueError(f"{path} is damaged or no tar/zip archive ({error}): fetch it again") from error
    wanted = f"images must be files (no links) train/<class>/... and test/<class>/... in {', '.join(IMAGES)}"
    if not arrays:
        raise ValueError(f"{path} holds no image: {wanted}")
    classes = tuple(sorted({place[1] for place, _ in arrays}))
    channels, splits = max(array.shape[2] for array in arrays.values()), {}
    for split in SPLITS:
        if keys := sorted(key for key in arrays if key[0][0] == split):
            stacked = np.stack([np.broadcast_to(arrays[key], (*size, channels)) for key in keys])
            images = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
            splits[split] = (images, torch.tensor([classes.index(place[1]) for place, _ in keys]), classes)
    return splits, f"{count} files are left out, as {left_out}; {wanted}" if count else ""


def _pixels(name: str, opened: Callable[[], Any]) -> np.ndarray:
    """An image as uint8 (H, W, 1) where it is grey, else (H, W, 3); 16 bits of grey are rounded to 8."""
    with opened() as file:
        content = file.read(LARGEST + 1)  # whatever an archive says of its size
    try:
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        with PIL.Image.open(io.BytesIO(content)) as image:
            mode, deep = image.mode, ";16" in str(image.tile)
            alpha = "transparency" in image.info or mode[-1] == "A"
            if alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("it is transparent in places: put it on a background")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise ValueError("it has several frames: keep one")
            if mode[0] == "I" and (deep or image.format == "PPM"):
                return ((np.asarray(image)[..., None].astype(np.int64) + 128) // 257).astype(np.uint8)
            if deep or mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                raise ValueError(f"its pixels are {'16-bit ' * deep}{mode}: save 8 bits of grey or RGB")
            return np.atleast_3d(np.asarray(image.convert("L" if mode in ("1", "L", "LA") else "RGB")))
    except Exception as error:  # what Pillow raises differs from format to format
        raise ValueError(f"{name} cannot be read ({error}): replace or remove it") from error


def _below(path: Path) -> list[Path]:
    """All files below a folder in order, links followed; a file itself."""
    files = [path] if path.is_file() else []
    for place, _, names in os.walk(path, followlinks=True):
        if os.path.islink(place) and Path(place).parent.resolve().is_relative_to(Path(place).resolve()):
            raise ValueError(f"{place} links to a folder that holds it: remove it")
        files += [Path(place, name) for name in names]
    return sorted(files)


def _files(path: Path) -> Iterator[tuple[str, Callable[[], Any] | None]]:
    """(name with forward slashes, what opens it) of every file; None for what is none, as links in archives.

    Archives are read member by member and never unpacked: a hostile name has nowhere to escape to.
    """
    if path.is_dir():
        for file in _below(path):
            yield file.relative_to(path).as_posix(), partial(file.open, "rb")
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:
            yield from ((name, partial(zipped.open, name)) for name in zipped.namelist() if name[-1] != "/")
    else:
        with unpacked(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
            for member in (member for member in tar if not member.isdir()):
                yield member.name, partial(tar.extractfile, member) if member.isfile() else None
                tar.members.clear()  # type: ignore[attr-defined]  # else all of a long archive would be kept
            while file.read(1 << 20):  # the checksum of what is compressed is at its end
                pass


def _cached(identity: str, make: Callable[[], Any]) -> Any:
    """What `make()` gives, kept under the hash of `identity` in RNLIB_CACHE or ~/.cache/rnlib.

    It is memory-mapped, so that processes share it; made again where damaged.
    """
    folder = Path(os.environ.get("RNLIB_CACHE") or Path.home() / ".cache" / "rnlib")
    file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
    with suppress(OSError, ValueError):
        return read_tensors(file, mmap=True)
    found = make()
    try:
        write_tensors(file, found)
    except OSError as error:
        warnings.warn(f"images are not cached: {error}, or set RNLIB_CACHE to another folder", stacklevel=2)
    return found

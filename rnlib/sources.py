"""Where each named image set comes from: the files looked for, and what to do when they are not there.

torchvision takes two seconds to import, and most jobs read files without it: it is imported where it is used.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import PIL
import torch
from PIL import Image
from torch import Tensor

from rnlib import imagetree
from rnlib.idx import read_idx
from rnlib.imagetree import Split

_REPOSITORY_DATA = Path(__file__).resolve().parent.parent / "data"
FASHION_MNIST = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                 "Ankle boot")  # fmt: skip


def folders(root: str | Path | None) -> list[Path]:
    """The folders to look in: `root` alone, or those of RNLIB_DATA, the repository's data/ and ./data."""
    if root is not None:
        return [Path(root).expanduser()]
    named = [Path(part).expanduser() for part in os.environ.get("RNLIB_DATA", "").split(os.pathsep) if part]
    return [*named, _REPOSITORY_DATA, Path("data")]


def cifar(name: str, split: str, places: list[Path], download: bool) -> Split:
    """The official CIFAR-10 or CIFAR-100; torchvision checks the md5 of each file before it unpickles it."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    place = next((place for place in places if (place / source.base_folder).is_dir()), None)
    if place is None and not download:
        raise _missing(name, f"the folder {source.base_folder}/ (unpacked from {source.filename})", places)
    stored = source(str(place or places[0]), train=split == "train", download=download)
    images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(stored.targets), tuple(stored.classes)


def cifar10_jpeg(split: str, places: list[Path], download: bool) -> Split:
    """The JPEG copy of CIFAR-10: the folder or archive cifar10-jpeg, else made from the official files."""
    for place in places:
        for suffix in ("", *imagetree.ARCHIVES):
            if (path := place / f"cifar10-jpeg{suffix}").exists():
                return imagetree.read_tree(path, split)

    def make() -> imagetree.Decoded:
        images, labels, classes = cifar("cifar10", split, places, download)
        return {split: (jpeg(images), labels)}, classes

    try:
        return imagetree.cached(f"cifar10 {split} as JPEG by Pillow {PIL.__version__}", split, make)
    except FileNotFoundError as error:
        files = "cifar10-jpeg.tar.xz, and for the official folder cifar-10-batches-py/ to make it from,"
        raise _missing("cifar10-jpeg", files, places) from error


def fashion_mnist(split: str, places: list[Path], download: bool) -> Split:
    """The official Fashion-MNIST, in fashion-mnist/ or as torchvision lays it out, compressed or not."""
    for place in places:
        for path in (place / "fashion-mnist", place / "FashionMNIST" / "raw"):
            if path.is_dir() and any(path.glob("train-images-idx3-ubyte*")):
                return idx_folder(path, split)
    if not download:
        raise _missing("fashion-mnist", "the *-ubyte.gz files in fashion-mnist/ or FashionMNIST/raw/", places)
    from torchvision import datasets

    datasets.FashionMNIST(str(places[0]), download=True)
    return idx_folder(places[0] / "FashionMNIST" / "raw", split)


def fashion_mnist_sample(split: str, places: list[Path], download: bool) -> Split:
    """The 5,000 training and 1,000 test images that come with the repository (see data/README.md)."""
    folder = _REPOSITORY_DATA / "fashion-mnist-sample"
    try:
        return idx_folder(folder, split)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"fashion-mnist-sample was not found in {folder}: it comes with the repository and not with an "
            "installed rnlib. Run in a clone, or install from one: pip install --editable <clone>."
        ) from error


def idx_folder(folder: Path, split: str) -> Split:
    """One split of the IDX files of a Fashion-MNIST folder."""
    tensors = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
        found = [file for suffix in (".xz", ".gz", "") if (file := folder / f"{stem}{suffix}").is_file()]
        if not found:
            raise FileNotFoundError(
                f"{folder} lacks {stem}.gz: copy it there, or name another folder in RNLIB_DATA"
            )
        tensors.append(read_idx(found[0]))
    images, labels = tensors
    return images[:, None], labels.long(), FASHION_MNIST


def jpeg(images: Tensor) -> Tensor:
    """RGB images uint8 (N, 3, H, W) after JPEG compression as in cifar10-jpeg: quality 75, 4:2:0 chroma."""
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    decoded = torch.empty_like(images)
    for i, image in enumerate(images):
        file = io.BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
        decoded[i] = pil_to_tensor(Image.open(file))
    return decoded


def _missing(name: str, files: str, places: list[Path]) -> FileNotFoundError:
    looked = ", ".join(str(place) for place in places)
    return FileNotFoundError(
        f"{name} was not found. Looked for {files} in: {looked}. Put it into one of these, name its folder "
        f"in root= or in the environment variable RNLIB_DATA, "
        f"or fetch the official files: load({name!r}, download=True)."
    )


SOURCES: dict[str, Callable[[str, list[Path], bool], Split]] = {
    "cifar10": lambda split, places, download: cifar("cifar10", split, places, download),
    "cifar100": lambda split, places, download: cifar("cifar100", split, places, download),
    "fashion-mnist": fashion_mnist,
    "cifar10-jpeg": cifar10_jpeg,
    "fashion-mnist-sample": fashion_mnist_sample,
}

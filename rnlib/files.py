"""Files of tensors and files from outside: written whole or not at all, read only as they were written."""

import gzip
import hashlib
import io
import lzma
import os
import pickle
import struct
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

DAMAGES = (  # what reading a damaged archive raises
    *(EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile),
    *(NotImplementedError, RuntimeError, UnicodeError, KeyError, struct.error),  # of a zip file
)
LARGEST = 1 << 28  # bytes of a file that is fetched or unpacked; CIFAR has 170 MB


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary file that gets the name `path` after the block, and is removed where the block fails.

    What a killed writer of it left is removed. OSError, with the path and the remedy, where it cannot be
    written; what was there is then as it was.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".*-{path.name}"):
            left.unlink()
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError | RuntimeError):  # the latter is PyTorch's word for a full disk
            fix = "make room, or give the right to write"
            raise OSError(f"{path} cannot be written ({error}): {fix}") from error
        raise


def write_tensors(path: Path, value: Any) -> None:
    """Save tensors and plain values; the file gets its name when it is whole, OSError where it cannot."""
    with _whole(path) as temporary, temporary.open("wb") as file:  # by name, PyTorch refuses some names
        torch.save(value, file)


def read_tensors(path: Path, device: str | torch.device = "cpu", *, mmap: bool = False) -> Any:
    """What :func:`write_tensors` wrote.

    ValueError where a byte is another, or the file holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if changed := file.testzip():  # which PyTorch does not ask
                raise ValueError(f"the checksum of {changed} is another")
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged zip file makes zipfile and PyTorch raise nearly anything
        fix = "remove it, and what it held is computed again"
        raise ValueError(f"{path} is damaged, or holds more than tensors: {fix}") from error


def fetch(url: str, path: Path, md5: str) -> Path:
    """Download a file of known md5; OSError, with the address, where it is another or too large."""
    with _whole(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as response, temporary.open("wb") as file:
                if not response.url.startswith(("https:", "http:")):
                    raise ValueError(f"it leads to {response.url}")
                with tqdm.wrapattr(response, "read", response.length, desc=path.name) as stream:
                    while file.tell() <= LARGEST and (content := stream.read(1 << 20)):
                        file.write(content)
            _checked(temporary.read_bytes(), md5)
        except (OSError, ValueError) as error:
            raise OSError(f"{url} gives no such file: {error}; fetch it another way") from error
    return path


def _checked(content: bytes, md5: str) -> bytes:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError("its checksum is not that of the official file")
    return content


class _Arrays(pickle.Unpickler):
    """Reads arrays, lists, dictionaries and words: a pickle can ask for nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if module not in modules or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace(".core.", "._core."), name)


def read_pickle(path: Path, md5: str) -> Any:
    """A pickle of arrays of known md5; ValueError where it is another, or would run anything."""
    try:
        return _Arrays(io.BytesIO(_checked(path.read_bytes(), md5)), encoding="latin1").load()
    except Exception as error:  # of a damaged pickle nearly anything is raised
        fix = "remove its folder, and fetch it again"
        raise ValueError(f"{path} is not the official file ({error}): {fix}") from error


def unpacked(path: Path) -> Any:
    """A file, plain, gzip or xz, opened to read what it holds."""
    with path.open("rb") as plain:
        opened: Any = {b"\x1f\x8b": gzip.open, b"\xfd7": lzma.open}.get(plain.read(2), Path.open)
    return opened(path, "rb")


class Member(tarfile.TarInfo):
    """A member of an archive whose headers are whole: tarfile takes a damaged one for the archive's end."""

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile) -> "Member":
        try:
            return super().fromtarfile(file)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def read_idx(path: Path) -> Tensor:
    """The uint8 array in an IDX file of MNIST-like sets, plain, gzip or xz; a ValueError where it is none."""
    try:
        with unpacked(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        start = 4 + 4 * content[3]  # the fourth byte is the number of dimensions
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"it starts with {content[:4]!r}")
        shape = np.frombuffer(content[4:start], ">u4").tolist()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
    except (*DAMAGES, IndexError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no IDX file of bytes ({error}): fetch it again") from error

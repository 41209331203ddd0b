"""Files of tensors: written whole or not at all, and read only as they were written."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def write_tensors(path: Path, value: Any) -> None:
    """Save tensors and plain values; the file gets its name when it is whole.

    What a killed writer of it left is removed. OSError, with the path and the remedy, where it cannot be
    written; what was there is then as it was.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".*-{path.name}"):
            left.unlink()
        with temporary.open("wb") as file:  # by name, PyTorch refuses some names
            torch.save(value, file)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # a RuntimeError is PyTorch's word for a full disk
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"{path} cannot be written ({error}): make room, or give the right to write") from error


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

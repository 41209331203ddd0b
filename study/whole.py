"""Files that are whole: written under another name first, by one process at a time."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from platform import node
from typing import Any

from safetensors import SafetensorError

if sys.platform != "win32":
    import fcntl


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let ``writer`` write a temporary file (same suffix, same folder), then rename it to ``path``.

    It gets the rights that new files have, whatever those are that the writer gave it. What a killed writer
    left is removed. OSError, with the path and the remedy, where it cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with _writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".*-{path.name}"):
            left.unlink()
        writer(temporary)
        os.umask(mask := os.umask(0))  # there is no other way to ask for it
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)


@contextmanager
def _writing(path: Path, *temporary: Path) -> Iterator[None]:
    """An OSError that has the path and the remedy; what was written temporarily is removed."""
    try:
        yield
    except BaseException as error:
        for file in temporary:
            with suppress(OSError):
                file.unlink()
        if isinstance(error, OSError | RuntimeError | SafetensorError) and "cannot be written" not in str(
            error
        ):
            fix = "make room, or give the right to write, and start again: it goes on from here"
            raise OSError(f"{path} cannot be written ({error}): {fix}") from error
        raise


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes a file; others wait, and say for whom. The lock of a dead one is none."""
    lock = _lock(path)
    if path.parent.is_symlink():
        raise ValueError(
            f"{path.parent} is a link to another folder: put a folder there, or set RNLIB_RESULTS"
        )
    while sys.platform != "win32":  # which has other locks: there one process at a time may write a run
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(file, 200, 0).decode()
                print(f"{path} is being made by {holder}: waiting for it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:  # else its last holder has removed it
                with suppress(OSError):
                    os.truncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {node()} since {datetime.now():%F %T}".encode())
                try:
                    yield
                finally:
                    clear(path)
                return
        finally:
            os.close(file)
    yield


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def clear(path: Path, *unfinished: Path) -> None:
    """Remove what is of no use when a file is there: its lock, and unfinished work."""
    for file in (_lock(path), *unfinished):
        with suppress(OSError):
            file.unlink()

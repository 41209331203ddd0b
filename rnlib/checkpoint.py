"""The state of a training on disk: written after every epoch, and refused where it belongs to another one."""

import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

History = list[dict[str, float]]


def save(path: Path, identity: dict[str, str], parts: dict[str, Any], history: History) -> None:
    """Write the state of all parts (model, optimizer, ...) to a temporary name, then rename it to path.

    Args:
        identity: what the training is, as text by name; :func:`resume` compares it.
        parts: objects with ``state_dict``, by name.
        history: the epochs so far.
    """
    state = {**identity, "history": history, **{name: part.state_dict() for name, part in parts.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def resume(
    path: Path, identity: dict[str, str], parts: dict[str, Any], device: str | torch.device
) -> History:
    """Load what :func:`save` wrote into the parts, and return the history.

    Raises:
        ValueError: the checkpoint is of another training; the first line that differs is shown.
    """
    state = torch.load(path, map_location=device, weights_only=True)
    for key, value in identity.items():
        for there, here in zip_longest(state[key].splitlines(), value.splitlines()):
            if there != here:
                fix = f"remove it, or name another checkpoint. There {there!r}, here {here!r}"
                raise ValueError(f"{path} was written with other {key}: {fix}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["history"]

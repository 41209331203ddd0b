"""The parameters of a notebook, checked: papermill only warns of a name that it does not know."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from study.runs import Run, make_run

VALUES = (type(None), bool, int, float, str, list, tuple, dict)
KERNEL = {"In", "Out"}  # the only plain values that a fresh kernel defines without an underscore


def parameters(namespace: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The parameters that a notebook was given, by name; ValueError for one that is not ``known``.

    The namespace is ``globals()``, right after the parameters cell, before any other value is assigned.
    """
    given = {name: value for name, value in namespace.items() if isinstance(value, VALUES)}
    given = {name: value for name, value in given.items() if not name.startswith("_") and name not in KERNEL}
    if unknown := sorted(set(given) - set(known)):
        takes = ", ".join(sorted(known))
        raise ValueError(f"unknown parameter {', '.join(unknown)}; this notebook takes {takes}")
    return given


def chosen_run(namespace: Mapping[str, Any], *others: str) -> tuple[Run, dict[str, Any]]:
    """The run that a worker was given the settings of, and its other parameters by name.

    ValueError for an unknown parameter, or a setting of a wrong type or value (what is allowed is said).
    """
    given = parameters(namespace, [*(field.name for field in fields(Run)), *others])
    return make_run(**{name: given.pop(name) for name in list(given) if name not in others}), given

"""Fig 9: the loss around the weights of a run, on clean training images of all classes, in both modes.

``papermill notebooks/workers/landscape.ipynb out.ipynb``
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from rnlib.data import batches
from rnlib.landscape import loss_plane, loss_rise, top_curvature
from study.experiments.subject import Outcome, Subject
from study.networks import mixed
from study.runs import read_profile


def landscape(subject: Subject) -> Iterator[Outcome]:
    """A plane of losses, on the same directions in every mode: rows of a, b and loss."""
    for mode in subject.modes:
        yield {"statistics": mode}, partial(_plane, subject, mode)


def sharpness(subject: Subject) -> Iterator[Outcome]:
    """How fast the loss rises: each random direction (``rise``), and the Hessian (``curvature``)."""
    for mode in subject.modes:
        yield {"statistics": mode}, partial(_sharpness, subject, mode)


def _setting(subject: Subject, mode: str) -> tuple[dict[str, Any], tuple[Tensor, Tensor], dict[str, Any]]:
    """The profile's ``landscape``, the images and labels, and what all measures take."""
    options = read_profile(subject.run.profile)["landscape"]
    images = mixed(subject.images, options["images"], 5)
    x, y = next(iter(batches(images, len(images), device=subject.device)))
    return options, (x, y), {"statistics": mode, "seed": subject.run.seed}


def _plane(subject: Subject, mode: str) -> list[dict[str, Any]]:
    options, images, how = _setting(subject, mode)
    axis, plane = loss_plane(
        subject.model, *images, radius=options["radius"], points=options["points"], **how
    )
    places = [round(place, 6) for place in axis.tolist()]
    rows = zip(places, plane.tolist(), strict=True)
    return [{"a": a, "b": b, "loss": loss} for a, row in rows for b, loss in zip(places, row, strict=True)]


def _sharpness(subject: Subject, mode: str) -> list[dict[str, Any]]:
    options, images, how = _setting(subject, mode)
    rises = loss_rise(subject.model, *images, directions=options["directions"], **how)
    curvature = {"quantity": "curvature", "value": top_curvature(subject.model, *images, **how)}
    return [*({"quantity": "rise", "value": rise} for rise in rises.tolist()), curvature]

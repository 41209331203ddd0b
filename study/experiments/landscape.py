"""Fig 9: the loss around the weights of a run, on clean training images of all classes, in both modes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rnlib.data import batches
from rnlib.landscape import loss_plane, loss_rise, top_curvature
from study.experiments.subject import Outcome, Subject
from study.networks import mixed, training_set
from study.runs import read_profile

Row = dict[str, Any]
Rows = list[Row]


def landscape(subject: Subject) -> Iterator[Outcome]:
    """A plane of losses, on the same directions in every mode: rows of a, b and loss."""
    return _by_mode(subject, _plane)


def sharpness(subject: Subject) -> Iterator[Outcome]:
    """How fast the loss rises: each random direction (``rise``), and the Hessian (``curvature``)."""
    return _by_mode(subject, _sharpness)


def _by_mode(subject: Subject, measure: Callable[..., Rows]) -> Iterator[Outcome]:
    """Rows in each mode, of the training images that the profile's ``landscape`` asks for."""
    train, options = training_set(subject.run), read_profile(subject.run.profile)["landscape"]
    images = mixed(train, options["images"], 5)
    of = (subject.model, *next(iter(batches(images, len(images), device=subject.device))))
    for mode in subject.modes:
        how = {"statistics": mode, "seed": subject.run.seed}
        yield {"statistics": mode}, partial(measure, of, options, {"fingerprint": train.fingerprint}, how)


def _plane(of: tuple[Any, ...], options: dict[str, Any], origin: Row, how: dict[str, Any]) -> Rows:
    axis, plane = loss_plane(*of, radius=options["radius"], points=options["points"], **how)
    places, losses = [round(place, 6) for place in axis.tolist()], iter(plane.flatten().tolist())
    return [{"a": a, "b": b, "loss": next(losses)} | origin for a in places for b in places]


def _sharpness(of: tuple[Any, ...], options: dict[str, Any], origin: Row, how: dict[str, Any]) -> Rows:
    values = [("rise", rise) for rise in loss_rise(*of, directions=options["directions"], **how).tolist()]
    values.append(("curvature", top_curvature(*of, **how)))
    return [{"quantity": quantity, "value": value} | origin for quantity, value in values]

"""Fig 9's experiment: the loss around the weights of a run, in both statistics modes."""

from collections.abc import Callable
from typing import Any

from rnlib.data import batches, test_order
from rnlib.landscape import loss_plane, loss_rise, top_curvature
from rnlib.modes import statistics_modes
from study import store
from study.runs import Run, read_profile
from study.work import default_device, provenance, trained_model, training_set


def plane_run(
    run: Run, *, device: str | None = None, on_mode: Callable[[str], None] = lambda mode: None
) -> list[dict[str, Any]]:
    """Sample a plane of losses around a trained run, and measure its sharpness, unless that is done.

    The images are some of the training set, of all classes, clean and without augmentation; the directions
    are the same in every mode. Points, radius and images are those of the profile's ``landscape``.

    Returns:
        The rows of ``landscape.csv``: statistics, a, b, loss, and their provenance. Beside it
        ``sharpness.csv`` has one row for each random direction (quantity ``rise``) and one for the Hessian
        (``curvature``).

    Raises:
        FileNotFoundError: the run is not trained.
        ValueError: a run without batch statistics, or its directory holds one with other settings.
    """
    path = run.directory / store.LANDSCAPE
    if (there := store.finished_rows(run, path)) is not None:
        return there
    device = device or default_device()
    options = read_profile(run.profile)["landscape"]
    dataset = training_set(run)
    model, origin = trained_model(run).to(device), provenance(run, dataset, device)
    mixed = dataset.subset(test_order(len(dataset), 5)[: options["images"]])
    x, y = next(iter(batches(mixed, options["images"], device=device)))
    rows: list[dict[str, Any]] = []
    sharpness: list[dict[str, Any]] = []
    for mode in statistics_modes(model):
        if mode == "none":
            raise ValueError(f"{run.name} has no batch statistics: its landscape is the same in both modes")
        shared = {"run": run.name, "statistics": mode}
        plane = loss_plane(
            model, x, y, statistics=mode, radius=options["radius"], points=options["points"], seed=run.seed
        )
        for a, row in zip(plane.coordinates.tolist(), plane.losses.tolist(), strict=True):
            for b, loss in zip(plane.coordinates.tolist(), row, strict=True):
                rows.append(shared | {"a": round(a, 6), "b": round(b, 6), "loss": loss} | origin)
        rises = loss_rise(model, x, y, statistics=mode, directions=options["directions"], seed=run.seed)
        sharpness += [shared | {"quantity": "rise", "value": rise} for rise in rises.tolist()]
        top = top_curvature(model, x, y, statistics=mode, seed=run.seed)
        sharpness.append(shared | {"quantity": "curvature", "value": top})
        on_mode(mode)
    store.write_rows(run.directory / store.SHARPNESS, [row | origin for row in sharpness])
    store.write_rows(path, rows)
    return rows

"""Fig 1's experiment: what the norm layers of a run see in a batch, against what they have tracked."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rnlib.attacks import paper_suite
from rnlib.data import Dataset, batches
from rnlib.modes import use_statistics
from study import store
from study.runs import Run
from study.work import BATCH_SIZE, default_device, provenance, test_set, trained_model, training_set
from rnlib.tracking import batch_statistics, distance, tracked_statistics

BATCHES = 10


def probe_run(run: Run, *, device: str | None = None) -> list[dict[str, Any]]:
    """Measure, for every channel of every norm layer, how far batches lie from the tracked statistics of a
    trained run.

    Conditions: ``start`` (training images through the untrained weights, as in the paper's Fig 1, hence
    other weights as well), and through the trained weights ``train``, ``clean``, ``noise``, ``adversarial``
    (the latter three the same test images, attacked by PGD-linf under batch statistics).

    Returns:
        The rows of ``statistics.csv``: layer, channel, condition, the mean over batches of the shift of the
        centre and of log2 of the ratio of spreads (see :func:`rnlib.distance`), and the means of their
        absolute values; and their provenance, its ``fingerprint`` that of the training or test images.

    Raises:
        FileNotFoundError: the run is not trained.
        ValueError: its directory holds a run with other settings.
    """
    path = run.directory / store.STATISTICS
    if (there := store.finished_rows(run, path)) is not None:
        return there
    device = device or default_device()
    model = trained_model(run).to(device)
    tracked = tracked_statistics(model)
    train, test = training_set(run), test_set(run, BATCHES * BATCH_SIZE)
    origin = provenance(run, test, device)
    untrained = run.new_model().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    rows: list[dict[str, Any]] = []
    for condition in ("start", "train", "clean", "noise", "adversarial"):
        network = untrained if condition == "start" else model
        dataset = train if condition in ("start", "train") else test
        traced = origin | {"fingerprint": dataset.fingerprint}
        found = [
            distance(model, batch_statistics(network, x), tracked)
            for x in _images(run, condition, dataset, model, device)
        ]
        for layer in tracked:
            shift, ratio = (torch.stack([one[layer][i] for one in found]).cpu() for i in (0, 1))
            columns = (shift.mean(0), shift.abs().mean(0), ratio.mean(0), ratio.abs().mean(0))
            for channel, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
                names = ("shift", "shift_abs", "log_ratio", "log_ratio_abs")
                place = {"run": run.name, "condition": condition, "layer": layer, "channel": channel}
                means = {name: round(value, 5) for name, value in zip(names, values, strict=True)}
                rows.append(place | means | traced)
    store.write_rows(path, rows)
    return rows


def _images(
    run: Run, condition: str, dataset: Dataset, model: torch.nn.Module, device: str
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(run.seed)
    if condition in ("start", "train"):
        order = torch.randperm(len(dataset), generator=generator)[: BATCHES * BATCH_SIZE]
        dataset = dataset.subset(order)
        stream = batches(dataset, BATCH_SIZE, generator=generator, augmented=True, device=device)
    else:
        stream = batches(dataset, BATCH_SIZE, device=device)
    attack = {"noise": "noise", "adversarial": "pgd_linf"}.get(condition)
    for index, (x, y) in enumerate(stream):
        if attack is not None:
            with use_statistics(model, "batch"):
                x = paper_suite(run.dataset)[attack](
                    model, x, y, generator=torch.Generator(device).manual_seed(index)
                )
        yield x

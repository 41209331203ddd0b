"""Core-hours of each profile, predicted from a few measured costs.

Predicted are training, the validation after each epoch, and the evaluation; not diagnostics and landscapes. A
network's cost is that of the measured ResNet-20 with BatchNorm, in proportion to the floating-point
operations of a forward pass; passes are counted.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evaluation import bare_passes, count_passes
from benchmarks.measure import Line, exact, interleaved
from benchmarks.subjects import BATCH, random_images
from benchmarks.training import EPS, batch, fitting
from rnlib import statistics_modes
from rnlib.attacks import PGD
from rnlib.data import STATISTICS, Dataset
from rnlib.models import resnet
from study.experiments.evaluations import attack_suite
from study.networks import new_model
from study.runs import PROFILES, Run, evaluation_images, grid, make_run

TRAINING_IMAGES = {"fashion-mnist-sample": 5_000, "fashion-mnist": 60_000}  # of the CIFARs 50,000
SIDES = {"fashion-mnist-sample": 28, "fashion-mnist": 28}
PRECISIONS = ("float32", "bfloat16")


def measured_costs(smoke: bool) -> dict[str, float]:
    """Seconds an image of ResNet-20 by name: ``natural`` and ``attack step`` of training in each precision,
    and the passes of evaluation, ``forward`` and ``gradient``.
    """
    n, depth, width = (4, 8, 4) if smoke else (BATCH, 20, 16)
    data, (x, y) = random_images(n), batch(n)
    model = resnet(depth, width=width).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    functions = {
        "forward": lambda: bare_passes(model, x, y, 1, 0),
        "gradient": lambda: bare_passes(model, x, y, 1, 1),
    }
    for precision in PRECISIONS:
        for name, attack in {"natural": None, "PGD": PGD(EPS, steps=3)}.items():
            options = (resnet(depth, width=width), data, attack)
            functions[f"{name} {precision}"] = fitting(*options, batch_size=n, precision=precision)
    times = interleaved(functions, seconds=0 if smoke else 1, least=3)
    costs = {name: float(np.median(values)) / n for name, values in times.items()}
    for precision in PRECISIONS:
        extra = costs.pop(f"PGD {precision}") - costs[f"natural {precision}"]
        costs[f"attack step {precision}"] = max(extra, 0) / 3
    return costs


@cache
def forward_flops(architecture: str, width: int | None, dataset: str) -> int:
    """Floating-point operations of a forward pass of one image."""
    side, channels = SIDES.get(dataset, 32), len(STATISTICS[dataset][0])
    model = new_model(make_run("paper", architecture=architecture, width=width, dataset=dataset)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, channels, side, side))
    return counter.get_total_flops()


@cache
def modes(norm: str) -> int:
    """How many statistics modes a network with this norm is measured in."""
    return len(statistics_modes(new_model(make_run("book", norm=norm, architecture="resnet8", width=8))))


@cache
def passes(profile: str, experiment: str, dataset: str, seed: int) -> tuple[int, int]:
    """Forward and backward passes of an evaluation of one batch in one mode."""
    channels = len(STATISTICS[dataset][0])
    images = torch.zeros(2, channels, 32, 32, dtype=torch.uint8)
    data = Dataset("zeros", images, torch.tensor([0, 1]), ("a", "b"))
    model = resnet(8, "no_norm", width=2, in_channels=channels)
    run = make_run(profile, experiment=experiment, dataset=dataset, seed=seed)
    attacks = {"clean": None, **attack_suite(run)}
    counts = [count_passes(model, data, attack) for attack in attacks.values()]
    return sum(forward for forward, _ in counts), sum(backward for _, backward in counts)


def predicted_hours(run: Run, costs: dict[str, float]) -> float:
    """Core-hours of a run, from the costs of :func:`measured_costs`."""
    flops = forward_flops(run.architecture, run.width, run.dataset)
    scale = flops / forward_flops("resnet20", None, "cifar10")
    steps = run.attack_steps if run.training == "adversarial" else 0
    step = costs[f"natural {run.precision}"] + steps * costs[f"attack step {run.precision}"]
    images = run.train_images or TRAINING_IMAGES.get(run.dataset, 50_000)
    epoch = images * step + run.validation_images * modes(run.norm) * costs["forward"]
    forward, backward = passes(run.profile, run.experiment, run.dataset, run.seed)
    image = backward * costs["gradient"] + (forward - backward) * costs["forward"]
    evaluated = evaluation_images(run) * modes(run.norm)
    return scale * (run.epochs * epoch + evaluated * image) / 3600


def hours(case: str, runs: Sequence[Run], costs: dict[str, float]) -> Iterator[Line]:
    """Yield how many runs there are, and their hours."""
    yield exact(case, "runs", len(runs), "runs")
    yield exact(case, "predicted", sum(predicted_hours(run, costs) for run in runs), "core-hours")


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the costs, and the hours of the grid of each profile and of each experiment in it."""
    costs = measured_costs(smoke)
    for name, cost in costs.items():
        yield exact(f"cost, {name}", "cost", 1e3 * cost, "ms/image")
    for profile in PROFILES:
        runs = grid(profile)
        yield from hours(profile, runs, costs)
        experiments = list(dict.fromkeys(run.experiment for run in runs))
        for experiment in experiments if len(experiments) > 1 else ():
            chosen = [run for run in runs if run.experiment == experiment]
            yield from hours(f"{profile}, {experiment}", chosen, costs)

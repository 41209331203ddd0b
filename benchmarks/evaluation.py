"""The whole attack suite on one network in both statistics modes, against the bare sum of its gradient calls.

The sum has as many forward and backward passes as the suite makes, on the same images, and nothing else.
Suite and sum take turns, attack by attack; the spread of the ratio is that between the two modes. The cost of
each attack comes with it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Line, exact
from benchmarks.subjects import trained
from rnlib import statistics_modes, use_statistics
from rnlib.attacks import Attack
from rnlib.data import Dataset, batches
from rnlib.evaluate import evaluate
from study.experiments.evaluations import attack_suite
from study.runs import make_run


def suite() -> dict[str, Attack | None]:
    """What a headline run of the published book is evaluated under."""
    return {"clean": None, **attack_suite(make_run("book"))}


def count_passes(model: nn.Module, dataset: Dataset, attack: Attack | None) -> tuple[int, int]:
    """Forward and backward passes that one evaluation of the data set under an attack makes."""
    forward = backward = 0

    def on_backward(grad: Tensor) -> None:
        nonlocal backward
        backward += 1

    def on_forward(module: nn.Module, inputs: object, logits: Tensor) -> None:
        nonlocal forward
        forward += 1
        if logits.requires_grad:
            logits.register_hook(on_backward)

    handle = model.register_forward_hook(on_forward)
    try:
        list(evaluate(model, dataset, {"attack": attack}, statistics=statistics_modes(model)[:1]))
    finally:
        handle.remove()
    return forward, backward


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient at the images, by one forward and one backward pass."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def bare_passes(model: nn.Module, x: Tensor, y: Tensor, forward: int, backward: int) -> None:
    """So many passes, each backward one after a forward one."""
    for _ in range(backward):
        input_gradient(model, x, y)
    with torch.no_grad():
        for _ in range(forward - backward):
            model(x)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = perf_counter()
    function()
    return perf_counter() - start


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the cost of every attack in each mode, and the ratio."""
    size = 4 if smoke else 100
    model, dataset = trained(size, smoke=smoke)
    model.requires_grad_(False)  # what the attacks do themselves
    ((x, y),) = batches(dataset, size)
    tiny = dataset.subset(torch.arange(2))
    attacks = suite()
    if smoke:
        attacks = {name: attacks[name] for name in ("clean", "grad_sign")}
    passes = {name: count_passes(model, tiny, attack) for name, attack in attacks.items()}
    bare_passes(model, x, y, 2, 1)  # warm up
    ours, bare = {}, {}
    for mode in statistics_modes(model):
        ours[mode] = bare[mode] = 0.0
        for name, attack in attacks.items():
            took = seconds(partial(list, evaluate(model, dataset, {name: attack}, statistics=[mode])))
            yield exact(f"attack, {name}, {mode}", "cost", 1e3 * took / size, "ms/image")
            ours[mode] += took
            with use_statistics(model, mode):
                bare[mode] += seconds(partial(bare_passes, model, x, y, *passes[name]))
    case = "attack suite in both modes / its gradient calls"
    yield exact(case, "ours", sum(ours.values()), "s")
    yield exact(case, "baseline", sum(bare.values()), "s")
    ratios = [ours[mode] / bare[mode] for mode in ours]
    ratio = sum(ours.values()) / sum(bare.values())
    yield Line(case, "ratio", ratio, "x", min(ratios), max(ratios), "<= 1.05")

"""Our attacks against those of foolbox and torchattacks: time and success, one network, the same images.

All attack the same trained ResNet-20, in evaluation mode with tracked statistics, in batches of 100 test
images, with the same eps, steps and step size and without random start, so that success can be compared. Of a
peer only its images are asked for, not its own check of success. Of the CW attacks, ours looks at the images
once more after its last step, so it is given a step less: all look at the same ones.

Networks and images are contiguous, the one memory format that all three take (PGDL2 of torchattacks fails in
the other); what channels_last makes of ours is measured beside it, without a target.

foolbox comes with the project's ``dev`` extra. torchattacks asks for a release of requests from 2020 and
would take other packages of the environment back with it, so it belongs into an environment of its own::

    python -m venv .venv-peers
    .venv-peers/bin/pip install -e . pandas pyyaml foolbox torchattacks
    .venv-peers/bin/python -m benchmarks attacks

This measures the row anew, with every peer, and leaves the other rows of ``benchmarks/results.csv`` alone.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Line, compare, exact, interleaved, missing
from benchmarks.subjects import trained
from rnlib.attacks import PGD, PGDL2, CarliniWagner, GradSign, success
from rnlib.data import batches

INSTALL = {
    "foolbox": "pip install foolbox",
    "torchattacks": "it needs an environment of its own, see the top of benchmarks/attacks.py",
}
EPS, STEP = 1.5 / 255, 0.375 / 255
EPS_L2, STEP_L2 = 0.1, 0.025
# Small steps: with larger ones the loss rises in between, and torchattacks then stops before the others.
CW = {"lr": 0.002, "c": 1.0}
LAST = "rnlib in channels_last"
Perturb = Callable[[Tensor, Tensor], Tensor]


def our_attacks(model: nn.Module, steps: int) -> dict[str, Perturb]:
    """The four attacks of rnlib, as functions of images and labels."""
    attacks = {
        "FGSM": GradSign(EPS),
        "PGD-linf": PGD(EPS, steps=steps, step_size=STEP, random_start=False),
        "PGD-l2": PGDL2(EPS_L2, steps=steps, step_size=STEP_L2, random_start=False),
        "CW-l2": CarliniWagner(steps=2 * steps - 1, lr=CW["lr"], initial_c=CW["c"], binary_search_steps=1),
    }
    return {name: partial(attack, model) for name, attack in attacks.items()}


def foolbox_attacks(foolbox: Any, model: nn.Module, steps: int) -> dict[str, Perturb]:
    """The same attacks of foolbox."""
    them = foolbox.attacks
    options = {"steps": steps, "random_start": False}
    attacks = {
        "FGSM": (them.LinfFastGradientAttack(random_start=False), EPS),
        "PGD-linf": (them.LinfProjectedGradientDescentAttack(abs_stepsize=STEP, **options), EPS),
        "PGD-l2": (them.L2ProjectedGradientDescentAttack(abs_stepsize=STEP_L2, **options), EPS_L2),
        "CW-l2": (
            them.L2CarliniWagnerAttack(
                binary_search_steps=1,
                steps=2 * steps,
                stepsize=CW["lr"],
                confidence=0,
                initial_const=CW["c"],
                abort_early=False,
            ),
            None,
        ),
    }
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))

    def run(attack: Any, eps: float | None, x: Tensor, y: Tensor) -> Tensor:
        criterion = foolbox.criteria.Misclassification(y)
        if eps is not None:
            return attack.run(wrapped, x, criterion, epsilon=eps)
        adv = attack.run(wrapped, x, criterion)
        # Its CW hands out black images where it failed, and many a network gets a black image wrong.
        return torch.where(adv.flatten(1).any(1).view(-1, 1, 1, 1), adv, x)

    return {name: partial(run, attack, eps) for name, (attack, eps) in attacks.items()}


def torchattacks_attacks(torchattacks: Any, model: nn.Module, steps: int) -> dict[str, Perturb]:
    """The same attacks of torchattacks."""
    options = {"steps": steps, "random_start": False}
    return {
        "FGSM": torchattacks.FGSM(model, eps=EPS),
        "PGD-linf": torchattacks.PGD(model, eps=EPS, alpha=STEP, **options),
        "PGD-l2": torchattacks.PGDL2(model, eps=EPS_L2, alpha=STEP_L2, **options),
        "CW-l2": torchattacks.CW(model, c=CW["c"], kappa=0, steps=2 * steps, lr=CW["lr"]),
    }


class Rounds:
    """Attacks one batch a call, in a fixed order, and keeps the images."""

    def __init__(self, perturb: Perturb, data: Sequence[tuple[Tensor, Tensor]]):
        self.perturb, self.data = perturb, data
        self.adversarial: list[Tensor] = []

    def __call__(self) -> None:
        x, y = self.data[len(self.adversarial) % len(self.data)]
        self.adversarial.append(self.perturb(x, y))

    def success_rate(self, model: nn.Module) -> float:
        """Percent of the images that the model gets wrong."""
        labels = [self.data[index % len(self.data)][1] for index in range(len(self.adversarial))]
        pairs = zip(self.adversarial, labels, strict=True)
        return 100 * float(np.mean([success(model, adv, y).float().mean().item() for adv, y in pairs]))


def imported(name: str) -> ModuleType | None:
    """A package, or None where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def lines(smoke: bool) -> Iterator[Line]:
    """Yield for every attack and peer the ratio of times and the difference of success."""
    size, steps = (4, 2) if smoke else (100, 5)
    model, dataset = trained(3 * size, smoke=smoke)
    model.to(memory_format=torch.contiguous_format)
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    data = list(batches(dataset, size, channels_last=False))
    attackers = {"rnlib": our_attacks(model, steps), LAST: our_attacks(nhwc, steps)}
    for name, make in {"torchattacks": torchattacks_attacks, "foolbox": foolbox_attacks}.items():
        if (package := imported(name)) is not None:
            attackers[name] = make(package, model, steps)
    for attack in attackers["rnlib"]:
        rounds = {name: Rounds(attacks[attack], data) for name, attacks in attackers.items()}
        rounds[LAST].data = list(batches(dataset, size))
        # What the first attack warms up, the others find warm.
        times = interleaved(rounds, seconds=0 if smoke else 8, least=3, warm_up=attack == "FGSM")
        rates = {name: run.success_rate(model) for name, run in rounds.items()}
        yield exact(f"{attack}, rnlib", "success", rates["rnlib"], "%")
        yield from compare(f"{attack} / rnlib, ours in channels_last", times[LAST], times["rnlib"])
        for peer in INSTALL:
            case = f"{attack} / {peer}"
            if peer not in rounds:
                yield missing(case, "<= 1.0", f"not installed: {INSTALL[peer]}")
                continue
            yield from compare(case, times["rnlib"], times[peer], "<= 1.0")
            yield exact(f"{attack}, {peer}", "success", rates[peer], "%")
            difference = abs(rates["rnlib"] - rates[peer])
            yield exact(case, "difference of success", difference, "points", "<= 1.0")

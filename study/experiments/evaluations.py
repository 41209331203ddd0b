"""The paper's tables: accuracy clean and under every attack, in every statistics mode."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from rnlib import PGD, Attack, measure, paper_suite
from study.experiments.subject import Outcome, Subject
from study.runs import BATCH_SIZE, Run, read_profile


def attack_suite(run: Run) -> dict[str, Attack]:
    """The attacks of a run's evaluation: the paper's, and PGD at eps in 255ths (``pgd_linf_2px``).

    A profile may name fewer for an experiment, and attacks that only seed 0 is put to.
    """
    evaluation = read_profile(run.profile)["evaluation"]
    suite: dict[str, Attack] = paper_suite(run.dataset)
    suite |= {f"pgd_linf_{eps}px": PGD(eps / 255) for eps in evaluation["pixel_eps"]}
    spared = evaluation.get("seed0_only", []) if run.seed else []
    names = evaluation.get("attacks", {}).get(run.experiment, suite)
    return {name: suite[name] for name in names if name not in spared}


def evaluations(subject: Subject) -> Iterator[Outcome]:
    """A cell is a statistics mode and an attack; measured are the loss and the mean l2 distance as well."""
    attacks: dict[str, Attack | None] = {"clean": None, **attack_suite(subject.run)}
    for mode in subject.modes:
        for name, attack in attacks.items():
            yield {"statistics": mode, "attack": name}, partial(_evaluated, subject, attack, mode)


def _evaluated(subject: Subject, attack: Attack | None, mode: str) -> tuple[dict[str, Any], Tensor]:
    how = {"statistics": mode, "batch_size": BATCH_SIZE, "device": subject.device}
    correct, loss, distance = measure(subject.model, subject.images, attack, **how)  # type: ignore[arg-type]
    eps = getattr(attack, "eps", getattr(attack, "std", None))
    sizes = eps if isinstance(eps, tuple) else (eps,)
    values = {
        "eps": None if eps is None else " ".join(f"{size:.6g}" for size in sizes),
        "eps_unit": None if eps is None else "pixel (0 to 1)",
        "steps": getattr(attack, "steps", None),
        "batch_size": BATCH_SIZE,
    }
    return values | {"loss": loss, "distance": distance.mean().item()}, correct

"""Whether the attacks are strong enough to tell: more steps, no gradients, other sizes, other habits."""

from collections.abc import Iterator
from functools import partial

from rnlib import PGD, Attack, GaussianNoise, Square, paper_suite
from study.experiments.subject import Outcome, Subject
from study.released import HABITS


def stronger_attacks(subject: Subject) -> Iterator[Outcome]:
    """PGD with more steps, restarts (on half of the images), other step sizes and losses; and one step."""
    radius = subject.radius()
    attacks: dict[str, Attack] = {
        "PGD, 20 steps": PGD(radius),
        "100 steps": PGD(radius, steps=100),
        "margin loss": PGD(radius, loss="margin"),
        "margin loss, fooled images masked": PGD(radius, loss="masked_margin"),
        "steps of eps / 4": PGD(radius, step_size=tuple(e / 4 for e in radius)),
        "one step": subject.suite["grad_sign"],
    }
    yield from subject.under(attacks)
    yield from subject.half.under({"5 restarts": PGD(radius, restarts=5)})


def square_attack(subject: Subject) -> Iterator[Outcome]:
    """The Square attack on fixed batches, beside PGD at the same eps: masking shows as the weaker PGD.

    Queries are many: the larger eps, which only gives Square more room, is tried on half of the images.
    """
    for size, some in {0.03: subject, 0.1: subject.half}.items():
        radius = subject.radius(size)
        yield from some.under({"Square": Square(radius, queries=300), "PGD": PGD(radius)}, eps=size)


def noise_and_pixel_eps(subject: Subject) -> Iterator[Outcome]:
    """Sweeps of the noise in normalised units and of PGD's eps in pixels."""
    for size in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7):
        yield from subject.under({"noise": GaussianNoise(subject.radius(size))}, size=size)
    for eps in (0.5, 1, 2, 4, 8):
        yield from subject.under({"pgd": PGD(eps / 255)}, size=eps)


def eps_sweep(subject: Subject) -> Iterator[Outcome]:
    """Figs 4 and 6: Grad, BIM and PGD at the seven eps of the paper, on half of the images."""
    for size in (0.003, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9):
        suite = paper_suite(subject.run.dataset, size)
        few = {name: suite[name] for name in ("grad", "bim_linf", "pgd_linf")}
        yield from subject.half.under(few, eps=size)


def released_protocol(subject: Subject) -> Iterator[Outcome]:
    """The attacks as each habit of the released code has them; what a habit leaves as it is is left out."""
    usual, dataset = HABITS["this book"], subject.run.dataset
    for habit, protocol in HABITS.items():
        inference = protocol.std_plus_eps or protocol.batch_size != usual.batch_size
        for mode in subject.modes:
            for name, attack in protocol.attacks(dataset).items():
                if habit == "this book" or inference or attack != usual.attacks(dataset)[name]:
                    cell = {"habit": habit, "attack": name, "statistics": mode}
                    how = {"statistics": mode, "device": subject.device}
                    yield cell, partial(protocol.classify, subject.model, subject.images, name, **how)

"""The protocol of the released code, habit by habit.

``papermill notebooks/workers/measure.ipynb out.ipynb -p measurement released_protocol``
"""

from collections.abc import Iterator
from functools import partial

from study.experiments.subject import Outcome, Subject
from study.released import HABITS


def released_protocol(subject: Subject) -> Iterator[Outcome]:
    """The attacks as each habit has them: what a habit leaves as it is is not repeated."""
    usual, dataset = HABITS["this book"], subject.run.dataset
    for habit, protocol in HABITS.items():
        inference = (protocol.divisor, protocol.batch_size) != (usual.divisor, usual.batch_size)
        for mode in subject.modes:
            for name, attack in protocol.attacks(dataset).items():
                if habit == "this book" or inference or attack != usual.attacks(dataset)[name]:
                    cell = {"habit": habit, "attack": name, "statistics": mode}
                    how = {"statistics": mode, "device": subject.device}
                    yield cell, partial(protocol.classify, subject.model, subject.images, name, **how)

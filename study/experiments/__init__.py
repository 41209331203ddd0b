"""What is measured on trained weights, by the name of its table; one module a topic."""

from collections.abc import Callable, Iterator

from study.experiments.activation_spreads import activation_spreads
from study.experiments.along_training import along_training
from study.experiments.attack_strength import eps_sweep, noise_and_pixel_eps, square_attack, stronger_attacks
from study.experiments.batch import (
    attacked_fraction,
    attacks_through_neighbours,
    batch_composition,
    batch_size,
)
from study.experiments.frozen_statistics import frozen_statistics, jitter
from study.experiments.mechanism import gradient_sources, temperature
from study.experiments.released_protocol import released_protocol
from study.experiments.strongest import strongest
from study.experiments.subject import Outcome, Subject
from study.experiments.transfer import transfer, transfer_8px, transfer_between_seeds

Experiment = Callable[[Subject], Iterator[Outcome]]
MEASUREMENTS: dict[str, Experiment] = {
    experiment.__name__: experiment
    for experiment in (
        transfer,
        transfer_8px,
        transfer_between_seeds,
        frozen_statistics,
        jitter,
        stronger_attacks,
        square_attack,
        noise_and_pixel_eps,
        eps_sweep,
        batch_size,
        batch_composition,
        attacked_fraction,
        attacks_through_neighbours,
        along_training,
        released_protocol,
        activation_spreads,
        temperature,
        gradient_sources,
        strongest,
    )
}
EVERY_NORM = (temperature,)  # also of networks without batch statistics

"""What is measured on trained weights, by the name of its table; one module a topic.

``papermill notebooks/workers/measure.ipynb out.ipynb -p measurement <name>``
"""

from collections.abc import Callable, Iterator

from study.experiments import attack_strength, batch
from study.experiments.along_training import along_training
from study.experiments.channel_statistics import activation_spreads, channel_statistics
from study.experiments.evaluations import evaluations
from study.experiments.frozen_statistics import frozen_statistics, jitter
from study.experiments.landscape import landscape, sharpness
from study.experiments.mechanism import gradient_sources, temperature
from study.experiments.strongest import strongest, strongest_five_times
from study.experiments.subject import Outcome, Subject
from study.experiments.transfer import transfer, transfer_8px, transfer_between_seeds

MEASUREMENTS: dict[str, Callable[[Subject], Iterator[Outcome]]] = {
    "evaluations": evaluations,
    "statistics": channel_statistics,
    "landscape": landscape,
    "sharpness": sharpness,
    "transfer": transfer,
    "transfer_8px": transfer_8px,
    "transfer_between_seeds": transfer_between_seeds,
    "frozen_statistics": frozen_statistics,
    "jitter": jitter,
    "stronger_attacks": attack_strength.stronger_attacks,
    "square_attack": attack_strength.square_attack,
    "noise_and_pixel_eps": attack_strength.noise_and_pixel_eps,
    "eps_sweep": attack_strength.eps_sweep,
    "batch_size": batch.batch_size,
    "batch_composition": batch.batch_composition,
    "attacked_fraction": batch.attacked_fraction,
    "attacks_through_neighbours": batch.attacks_through_neighbours,
    "along_training": along_training,
    "released_protocol": attack_strength.released_protocol,
    "activation_spreads": activation_spreads,
    "temperature": temperature,
    "gradient_sources": gradient_sources,
    "strongest": strongest,
    "strongest_five_times": strongest_five_times,
}
EVERY_NORM = ("evaluations", "temperature")  # also of networks without batch statistics

"""What experiments look at, and the form of what they find.

An experiment yields (cell, outcome) for a subject: what is done, as columns, and what finds out. After an
interruption :mod:`study.work` computes only the cells that it lacks, so that a cell must be the same when met
again; numbers that are measured, which may differ in the last digit, belong to the outcome.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rnlib import Attack, Dataset, measure, paper_eps, paper_suite, statistics_modes, use_statistics
from rnlib.data import batches
from study.networks import mixed, training_set
from study.runs import BATCH_SIZE, Run

# Whether each image is classified correctly, bool (n,), in their order; the same behind other values of the
# row; or several rows, without images.
Found = Tensor | tuple[dict[str, Any], Tensor] | list[dict[str, Any]]
Outcome = tuple[dict[str, Any], Callable[[], Found]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network in evaluation mode, and images in a fixed, class-mixed order to measure it on."""

    run: Run
    model: nn.Module
    images: Dataset
    device: str
    batch_size: int = BATCH_SIZE

    @property
    def modes(self) -> tuple[str, ...]:
        """The statistics that the network can be measured with."""
        return statistics_modes(self.model)

    @property
    def half(self) -> "Subject":
        """With the first half of the images, for what is dear."""
        return self.first(len(self.images) // 2)

    def first(self, images: int) -> "Subject":
        """With so many of the images."""
        return replace(self, images=self.images.subset(torch.arange(min(images, len(self.images)))))

    def training(self, images: int, seed: int = 2) -> "Subject":
        """With so many of the training images, or all if there are fewer, of all classes, as they are."""
        dataset = training_set(self.run)
        return replace(self, images=mixed(dataset, min(images, len(dataset)), seed))

    @property
    def suite(self) -> dict[str, Attack]:
        """The paper's attacks by name."""
        return dict(paper_suite(self.run.dataset))

    def radius(self, size: float = 0.03) -> tuple[float, ...]:
        """An eps in normalised units (the paper's by default) in pixels."""
        return paper_eps(self.run.dataset, size)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
        """The images (N, C, H, W) in [0, 1], their labels (N,), and the chance of an attack on this batch."""
        for index, (x, y) in enumerate(batches(self.images, self.batch_size, device=self.device)):
            yield x, y, self.chance(index)

    def inputs(self) -> Iterator[Tensor]:
        """The images alone, batch by batch."""
        return (x for x, _, _ in self.batches())

    def chance(self, seed: int) -> torch.Generator:
        """A source of random numbers on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def correct(
        self, attack: Attack | None, statistics: str, batch_size: int = BATCH_SIZE, seed: int = 0
    ) -> Tensor:
        """Which images are classified correctly, each batch attacked as it is; bool (n,)."""
        how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": self.device}
        return measure(self.model, self.images, attack, statistics=statistics, **how)[0]

    def under(self, attacks: Mapping[str, Attack | None], **cell: Any) -> Iterator[Outcome]:
        """A cell for each of these attacks by name, in each statistics mode."""
        for name, attack in attacks.items():
            for mode in self.modes:
                yield {"attack": name, **cell, "statistics": mode}, partial(self.correct, attack, mode)


def classified(model: nn.Module, x: Tensor, y: Tensor, statistics: str) -> Tensor:
    """Which images of a batch (N, C, H, W) are classified as their labels, on the CPU, bool (N,)."""
    with use_statistics(model, statistics), torch.no_grad():
        return (model(x).argmax(1) == y).cpu()

"""Each model's training step as a CUDA graph on a stream of its own: an experiment, ready to run on a GPU.

It has run on none so far, and nothing else uses it. ``python -m benchmarks graphs`` compares it with
:func:`rnlib.fit`, then times it for 1 to 16 models beside each other. On a CPU the same steps are made
without being recorded, which the tests compare with fit.

What a step of a small network waits for is the start of its kernels; a recorded step is started at once.
Whatever it needs is therefore a tensor on the device: the images, the order and the crops of an epoch, where
in them the step begins, and the learning rate, which a fused SGD takes as a tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu import MODELS, STEPS, cuda, seconds, synchronize
from benchmarks.measure import Line, exact
from benchmarks.subjects import BATCH, random_images
from benchmarks.training import EPS, LR, STEP_SIZE
from rnlib.attacks import BIM, PGD
from rnlib.data import Dataset, _moves, augment, to_float
from rnlib.models import resnet
from rnlib.train import Bfloat16, Training, _schedule, fit

WARM_UP = 3  # steps before recording: libraries choose their kernels and allocate in them
CLOSE = 0.1  # share of the way that 20 steps lead: kernels add up in another order every time


class Member:
    """One of the models that are trained side by side, and all that its steps read and write.

    Args:
        model: without dropout, whose chance would be common to all graphs.
        dataset: its tensors are on the device, and shared by all members.
        training: the settings; SGD, and no augmentation of one's own.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, training: Training) -> None:
        self.device, n = dataset.images.device, len(dataset)
        self.memory_format = torch.channels_last if training.channels_last else torch.contiguous_format
        model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.model, self.dataset, self.training = model, dataset, training
        self.network: nn.Module = Bfloat16(model) if training.precision == "bfloat16" else model
        self.sizes = [len(part) for part in torch.arange(n).split(training.batch_size)]
        zeros = partial(torch.zeros, dtype=torch.int64, device=self.device)
        self.order, self.moves, self.start, self.step_number = zeros(n), zeros(3, n), zeros(1), zeros(1)
        self.range = torch.arange(training.batch_size, device=self.device)
        self.rates = torch.tensor(rates(training, len(self.sizes)), device=self.device)
        self.lr = self.rates[0].clone()
        options: dict[str, Any] = {"momentum": training.momentum, "weight_decay": training.weight_decay}
        self.optimizer = torch.optim.SGD(model.parameters(), self.lr, fused=True, **options)
        self.noise = torch.Generator(self.device)
        self.loss, self.hits = torch.zeros(2, device=self.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        synchronize(self.device)  # before other streams read what this one has made

    def turn(self) -> AbstractContextManager[Any]:
        """Within the block, what is started on the device is put into this member's stream."""
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def begin(self, epoch: int) -> None:
        """Draw what an epoch needs as :func:`rnlib.fit` does, and bring it to the device."""
        order, noise = (100_003 * self.training.seed + epoch + k * 10**9 for k in range(2))
        chance = torch.Generator().manual_seed(order)
        with self.turn():
            self.order.copy_(torch.randperm(len(self.order), generator=chance))
            if self.training.augment in (None, True):
                self.moves.copy_(torch.cat([_moves(size, chance) for size in self.sizes], 1))
            for tensor in (self.start, self.loss, self.hits):
                tensor.zero_()
            self.step_number.fill_(epoch * len(self.sizes))
        self.noise.manual_seed(noise)

    def step(self, size: int) -> None:
        """The next step, of so many images; nothing in it waits for the device or comes from the CPU."""
        training, places = self.training, self.start + self.range[:size]
        index = self.order[places]
        images, y = self.dataset.images[index], self.dataset.labels[index]
        if training.augment in (None, True):
            images = augment(images, self.moves[:, places])
        x = to_float(images.contiguous(memory_format=self.memory_format))
        if training.attack is not None:
            self.model.train(training.crafting != "eval")
            tracked = training.crafting == "train"
            x = training.attack(
                self.network, x, y, generator=self.noise, update_buffers=tracked, checked=True
            )
        self.model.train()
        logits = self.network(x)
        loss = F.cross_entropy(logits, y, label_smoothing=training.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self.lr.copy_(self.rates.index_select(0, self.step_number)[0])
        self.optimizer.step()
        self.loss += loss.detach() * size
        self.hits += (logits.detach().argmax(1) == y).sum()
        self.start += size
        self.step_number += 1

    def record(self) -> None:
        """Record the step of a full batch; weights, statistics and counts are then as they were."""
        counts = (self.start, self.step_number, self.loss, self.hits)
        before = [tensor.clone() for tensor in (*counts, *self.model.state_dict().values())]
        with self.turn():
            for _ in range(WARM_UP):
                self.start.zero_()  # however few steps an epoch has
                self.step_number.zero_()
                self.step(self.sizes[0])
        synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.noise)
        with torch.cuda.graph(graph, stream=self.stream):  # with memory of its own
            self.step(self.sizes[0])
        self.graphs[self.sizes[0]] = graph
        with torch.no_grad():
            for tensor, value in zip((*counts, *self.model.state_dict().values()), before, strict=True):
                tensor.copy_(value)
            for state in self.optimizer.state.values():
                state["momentum_buffer"].zero_()
        synchronize(self.device)

    def advance(self, size: int) -> None:
        """Start the next step, recorded or not."""
        with self.turn():
            if size in self.graphs:
                self.graphs[size].replay()
            else:  # the smaller batch at the end of an epoch
                self.step(size)


def rates(training: Training, steps: int) -> list[float]:
    """The learning rate of every step of a training."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], training.lr)
    schedule, found = _schedule(optimizer, training, steps), []
    for _ in range(steps * training.epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def train(members: Sequence[Member], record: bool) -> list[list[float]]:
    """Train members side by side, step by step; returns the mean loss of every epoch, for each.

    All have data sets and batches of one size, and as many epochs.
    """
    for member in members if record else ():
        member.record()
    losses: list[list[float]] = [[] for _ in members]
    for epoch in range(members[0].training.epochs):
        for member in members:
            member.begin(epoch)
        for size in members[0].sizes:
            for member in members:
                member.advance(size)
        synchronize(members[0].device)
        for member, history in zip(members, losses, strict=True):
            history.append(member.loss.item() / len(member.dataset))
    return losses


def on_device(dataset: Dataset, device: str) -> Dataset:
    """A data set whose tensors are on a device."""
    return replace(dataset, images=dataset.images.to(device), labels=dataset.labels.to(device))


def difference(model: nn.Module, wanted: nn.Module, begin: nn.Module) -> float:
    """How far a model is from the wanted one, by weights or statistics, as a share of the way it has come."""
    shares = []
    for part in (nn.Module.parameters, nn.Module.buffers):
        here, there, start = (
            torch.cat([t.detach().double().cpu().flatten() for t in part(m)]) for m in (model, wanted, begin)
        )
        shares.append(float((here - there).norm() / (there - start).norm()))
    return max(shares)


def checked(device: str, make: Callable[[str], nn.Module], dataset: Dataset, size: int) -> Iterator[Line]:
    """Yield how far members, alone and together, end from :func:`rnlib.fit`.

    Raises:
        RuntimeError: farther than :data:`CLOSE`.
    """
    there, norms = on_device(dataset, device), ("batch_norm", "robust_norm")
    for attack in (None, BIM(EPS, steps=2, step_size=STEP_SIZE), PGD(EPS, steps=2, step_size=STEP_SIZE)):
        ways = [Training(epochs=1, batch_size=size, lr=LR, attack=attack, seed=seed) for seed in (0, 1)]
        wanted = [make(norm) for norm in norms]
        for model, way in zip(wanted, ways, strict=True):
            fit(model, dataset, way, device=device)
        for case in ("together", "alone"):
            members = [Member(make(norm), there, way) for norm, way in zip(norms, ways, strict=True)]
            for group in [members] if case == "together" else [[member] for member in members]:
                train(group, record=device != "cpu")
            for norm, member, model in zip(norms, members, wanted, strict=True):
                found, name = difference(member.model, model, make(norm)), type(attack).__name__
                what = f"check, {norm}, {name if attack else 'natural'}, {case}"
                yield exact(what, "difference", found, "of the way", f"<= {CLOSE}")
                if not found <= CLOSE:
                    raise RuntimeError(f"{what}: {found:.2g} of the way from fit, at most {CLOSE} is close")


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the check, then images/s of all models together.

    Raises:
        FileNotFoundError: there is no CUDA device.
    """
    device, (depth, width, size) = cuda(smoke), (8, 4, 4) if smoke else (20, 16, BATCH)

    def network(norm: str, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return resnet(depth, norm, width=width)

    yield from checked(device, network, random_images(20 * size + size // 2), size)
    dataset = on_device(random_images((2 if smoke else STEPS) * size), device)
    for kind, attack in {"natural": None, "PGD-3": PGD(EPS, steps=3, step_size=STEP_SIZE)}.items():
        for precision, channels_last in (("bfloat16", True), ("bfloat16", False), ("float32", True)):
            options: dict[str, Any] = {
                "precision": precision,
                "channels_last": channels_last,
                "attack": attack,
            }
            for count in MODELS[: 2 if smoke else None]:
                ways = [Training(epochs=1, batch_size=size, lr=LR, seed=i, **options) for i in range(count)]
                members = [Member(network("batch_norm", way.seed), dataset, way) for way in ways]
                train(members, record=not smoke)
                took = seconds(device, partial(train, members, record=False))
                layout = "channels_last" if channels_last else "contiguous"
                case = f"{kind}, {count} models, graphs, {precision}, {layout}"
                yield exact(case, "speed", count * len(dataset) / took, "images/s")

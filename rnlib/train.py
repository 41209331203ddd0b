"""Natural and adversarial training that can be killed at any moment and resumed to the same weights.

Every epoch draws its order, augmentation and attack noise from generators seeded by (seed, epoch), and the
state at the end of every epoch is written to a temporary name and renamed. Resuming therefore needs the
epoch's number only, and repeats the epoch that was cut short.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from torch.overrides import TorchFunctionMode

from rnlib.attacks import Attack
from rnlib.data import Dataset, batches
from rnlib.evaluate import measure
from rnlib.files import read_tensors, write_tensors
from rnlib.statistics import evaluation_mode, statistics_modes

SCHEDULES = ("step", "one_cycle")
CRAFTING = ("train", "train-frozen", "eval")
PRECISIONS = ("float32", "bfloat16")
CHECK_EVERY = 50  # steps between looks at the loss, each of which waits for the device

History = list[dict[str, float]]


class TrainingDiverged(RuntimeError):
    """The training loss or a weight is not finite any more.

    Attributes:
        epoch, step: where that was found, the epoch counted from 1.
        history: of the epochs before.
    """

    def __init__(self, epoch: int, step: int, history: History) -> None:
        super().__init__(
            f"the training loss or a weight is not finite in epoch {epoch} (found at step {step}); lower lr, "
            f"or set clip. The {len(history)} epochs before it are kept in the history"
        )
        self.epoch, self.step, self.history = epoch, step, history


@dataclass(frozen=True)
class Training:
    """How to train: the optimiser is SGD with momentum on the cross-entropy.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step.
        lr: learning rate; the peak of ``"one_cycle"``.
        momentum, weight_decay: of SGD.
        schedule: ``"step"`` divides lr by 10 after each of ``milestones`` (in epochs), ``"one_cycle"`` rises
            linearly for a fifth of the steps and falls to 0 (for short budgets).
        milestones: epochs, for ``"step"``.
        attack: trains on the images that it returns (Madry et al., 2017), or None for natural training.
        crafting: mode of the model while it is attacked: ``"train"`` (the released code: batch statistics,
            and every forward pass of the attack enters the running statistics), ``"train-frozen"`` (batch
            statistics, running statistics untouched) or ``"eval"`` (running statistics).
        clip: largest gradient norm, > 0, or None for no clipping.
        precision: ``"bfloat16"`` computes the network under autocast, in training and crafting; weights,
            running statistics, loss and validation stay ``"float32"``. Twice as fast on GPUs and on CPUs with
            bfloat16 units; on other CPUs as fast as float32.
        channels_last: memory format of weights and images, the faster one for convolutions.
        compile: let ``torch.compile`` fuse the network, and record it as CUDA graphs on a GPU, which halves
            the time of a step there; costs about a minute at the start, and a C++ compiler on a CPU.
        seed: of order, augmentation, dropout and attack noise (not of the weights).
        label_smoothing: share of the target, in [0, 1), that is spread evenly over all classes in the
            training loss; the attack's loss and that of validation have none.
        augment: crop and mirror the images at random (:func:`rnlib.data.augment`).
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = (120,)
    attack: Attack | None = None
    crafting: str = "train"
    clip: float | None = None
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    label_smoothing: float = 0.0
    augment: bool = True

    def __post_init__(self) -> None:
        choices = {"schedule": SCHEDULES, "crafting": CRAFTING, "precision": PRECISIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, it must be one of {known}")
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0:
            sizes = f"epochs ({self.epochs}), batch_size ({self.batch_size}) and lr ({self.lr})"
            raise ValueError(f"{sizes} must be positive")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is {self.clip}, it must be positive, or None for no clipping")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, it must lie in [0, 1)")
        if getattr(self.attack, "targeted", False):
            raise ValueError(f"{self.attack} would be given the true labels as targets; use targeted=False")


def fit(
    model: nn.Module,
    dataset: Dataset,
    training: Training,
    *,
    validation: Dataset | None = None,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[History], None] = lambda history: None,
    on_step: Callable[[], None] = lambda: None,
) -> History:
    """Train a model in place.

    Args:
        model: takes images in [0, 1]; moved to ``device`` and to channels_last. Afterwards every layer is in
            the mode, train or eval, that it came in.
        dataset: the training set, at least one image.
        training: the settings.
        validation: measured after every epoch, clean, under each statistics mode that the model has, in
            batches of 100 of its own order; never used to choose anything.
        checkpoint: file that holds the state after the last finished epoch. If it is there, training goes on
            from it.
        device: where to train.
        on_epoch: called after every epoch with the history so far, and with that of a resumed training.
        on_step: called after every step, e.g. to move a progress bar.

    Returns:
        One record an epoch, with epoch, lr (at its end), train_loss and train_accuracy (percent, on the
        images trained on, hence adversarial ones in adversarial training), val_loss_<statistics>,
        val_accuracy_<statistics> and seconds.

    Raises:
        TrainingDiverged: the loss or a weight became infinite or NaN.
        ValueError: no image, or the checkpoint belongs to other settings, images or another network.
    """
    if not len(dataset):
        raise ValueError(f"the data set {dataset.name!r} is empty: there is nothing to train on")
    memory_format = torch.channels_last if training.channels_last else torch.contiguous_format
    model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    network: nn.Module = Bfloat16(model) if training.precision == "bfloat16" else model
    if training.compile:
        # Most of a GPU's time would go into starting kernels; recorded as a graph they are started together.
        mode = "reduce-overhead" if torch.device(device).type == "cuda" else None
        network = torch.compile(network, mode=mode)  # type: ignore[assignment]
    optimizer = torch.optim.SGD(
        model.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay
    )
    schedule = _schedule(optimizer, training, steps=-(-len(dataset) // training.batch_size))
    history: History = []
    # The attack by its own repr: asdict would not tell PGD from PGDL2.
    identity = {"settings": repr(asdict(training) | {"attack": training.attack})}
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if checkpoint is not None:
        identity |= {"images": dataset.fingerprint, "network": repr(model)}
        if checkpoint.exists():
            history = _resume(checkpoint, identity, parts, device)
            on_epoch(history)  # it may have been killed before it was called
    for epoch in range(len(history), training.epochs):
        start = perf_counter()
        with evaluation_mode(model):  # which puts every layer back into the mode that it was in
            loss, accuracy = _epoch(
                network, dataset, training, epoch, optimizer, schedule, history, device, on_step
            )
        record = {"epoch": epoch + 1, "lr": float(schedule.get_last_lr()[0])}
        record |= {"train_loss": loss, "train_accuracy": accuracy}
        for mode in statistics_modes(model) if validation is not None else ():
            correct, val_loss, _ = measure(model, validation, statistics=mode, device=device)  # type: ignore[arg-type]
            val_accuracy = 100 * correct.float().mean().item()
            record |= {f"val_loss_{mode}": val_loss, f"val_accuracy_{mode}": val_accuracy}
        history = [*history, record | {"seconds": perf_counter() - start}]
        if checkpoint is not None:
            _save(checkpoint, identity, parts, history)
        on_epoch(history)
    return history


def _epoch(
    network: nn.Module,
    dataset: Dataset,
    training: Training,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    history: History,
    device: str | torch.device,
    on_step: Callable[[], None],
) -> tuple[float, float]:
    seed = 100_003 * training.seed + epoch
    # A stream for each kind of chance: generators of one seed would draw the same raw numbers.
    # A CPU's generator looks at 32 bits of its seed.
    order, noise, dropout = seed, seed + 10**9, seed + 2 * 10**9
    attacker = torch.Generator(device).manual_seed(noise)
    total_loss = torch.zeros((), device=device)
    total_correct = torch.zeros((), dtype=torch.long, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(dropout)
        options: dict[str, Any] = {"augmented": training.augment, "channels_last": training.channels_last}
        chance = torch.Generator().manual_seed(order)
        stream = batches(dataset, training.batch_size, generator=chance, device=device, **options)
        for step, (x, y) in enumerate(stream):
            if training.attack is not None:
                network.train(training.crafting != "eval")
                tracked = training.crafting == "train"
                x = training.attack(network, x, y, generator=attacker, update_buffers=tracked, checked=True)
            network.train()
            logits = network(x)
            loss = F.cross_entropy(logits, y, label_smoothing=training.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if training.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimizer.step()
            schedule.step()
            total_loss += loss.detach() * len(y)
            total_correct += (logits.detach().argmax(1) == y).sum()
            if step % CHECK_EVERY == 0 and not torch.isfinite(total_loss):
                raise TrainingDiverged(epoch + 1, step, history)
            on_step()
    # The last step may have spoilt weights that no loss has seen yet.
    if not all(torch.isfinite(tensor).all() for tensor in (total_loss, *network.parameters())):
        raise TrainingDiverged(epoch + 1, step, history)
    return total_loss.item() / len(dataset), 100 * total_correct.item() / len(dataset)


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    if training.schedule == "step":
        return MultiStepLR(optimizer, [steps * epoch for epoch in training.milestones])
    total = steps * training.epochs + 1
    rise = max(0.2, 1.5 / total)  # 1 / total would be divided by zero
    lines: dict[str, Any] = {"anneal_strategy": "linear", "cycle_momentum": False, "final_div_factor": 1e4}
    return OneCycleLR(optimizer, training.lr, total_steps=total, pct_start=rise, **lines)


def _save(path: Path, identity: dict[str, str], parts: dict[str, Any], history: History) -> None:
    """Write what the training is, its history, and the state of its parts."""
    state = {**identity, "history": history, **{name: part.state_dict() for name, part in parts.items()}}
    write_tensors(path, state)


def _resume(
    path: Path, identity: dict[str, str], parts: dict[str, Any], device: str | torch.device
) -> History:
    """Load what :func:`_save` wrote into the parts; a ValueError shows the first line that differs."""
    state = read_tensors(path, device)
    if not isinstance(state, dict) or state.keys() != {*identity, *parts, "history"}:
        raise ValueError(f"{path} is no checkpoint of this version: remove it, and training starts anew")
    for key, value in identity.items():
        for there, here in zip_longest(state[key].splitlines(), value.splitlines()):
            if there != here:
                fix = f"remove it, or name another checkpoint. There {there!r}, here {here!r}"
                raise ValueError(f"{path} was written with other {key}: {fix}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["history"]


class Bfloat16(nn.Module):
    """A network under autocast that answers float32, so that the loss is computed in float32.

    Weights and running statistics keep their type. Where PyTorch has no bfloat16 kernels for the CPU (x86
    before AVX-512, builds without oneDNN) it computes the products of :class:`WideProducts`, and so is at
    least as fast as in float32 on every machine.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        onednn = torch.backends.mkldnn.is_available()  # without it the operator does not exist
        self.wide_on_cpu = not (onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide_on_cpu and x.device.type == "cpu"
        with torch.autocast(x.device.type, torch.bfloat16), WideProducts() if wide else nullcontext():
            return self.model(x).float()


class WideProducts(TorchFunctionMode):
    """Convolutions and linear layers of bfloat16 numbers, multiplied in float32 and rounded to bfloat16.

    Kernels for bfloat16 add up in float32 as well, so answers and gradients are theirs but for the order of
    the sum. Without such kernels PyTorch falls back on loops ten times slower than float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_rounded, args), **{k: _rounded(v) for k, v in kwargs.items()}).bfloat16()


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value

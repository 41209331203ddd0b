"""Natural and adversarial training that can be killed at any moment and resumed to the same weights.

Every epoch draws its order, augmentation and attack noise from generators seeded by (seed, epoch), and the
state at the end of every epoch is written to a temporary name and renamed. Resuming therefore needs the
epoch's number only, and repeats the epoch that was cut short.
"""

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from torch.overrides import TorchFunctionMode
from torch.utils import data as torch_data

from rnlib.attacks import Attack
from rnlib.data import Dataset, augment, batches
from rnlib.evaluate import Images, measure, stream
from rnlib.files import read_tensors, write_tensors
from rnlib.statistics import check_kind, evaluation_mode, logits_of, statistics_modes

SCHEDULES = ("step", "one_cycle")
CRAFTING = ("train", "train-frozen", "eval")
PRECISIONS = ("float32", "bfloat16")
CHECK_EVERY = 50  # steps between looks at the loss, each of which waits for the device

History = list[dict[str, float]]

# What a setting must be, in words and as a test.
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "epochs batch_size": ("a whole number from 1 up", lambda v: isinstance(v, int) and v >= 1),
    "seed": ("a whole number", lambda v: isinstance(v, int)),
    "lr": ("a number above 0", lambda v: isinstance(v, int | float) and v > 0),
    "momentum weight_decay": ("a number from 0 up", lambda v: isinstance(v, int | float) and v >= 0),
    "label_smoothing": ("a number in [0, 1)", lambda v: isinstance(v, int | float) and 0 <= v < 1),
    "clip": ("None or a number above 0", lambda v: v is None or (isinstance(v, int | float) and v > 0)),
    "schedule": (f"one of {SCHEDULES}", lambda v: v in SCHEDULES),
    "crafting": (f"one of {CRAFTING}", lambda v: v in CRAFTING),
    "precision": (f"one of {PRECISIONS}", lambda v: v in PRECISIONS),
    "channels_last compile drop_last": ("True or False", lambda v: v in (True, False)),
    "augment": ("None, True, False or a function", lambda v: v in (None, True, False) or callable(v)),
    "optimizer": ("None or a class of optimizers", lambda v: v is None or callable(v)),
    "attack": ("untargeted, for it is given the true labels", lambda v: not getattr(v, "targeted", False)),
}


class TrainingDiverged(RuntimeError):
    """The training loss or a weight is not finite; ``history`` is that of the epochs before."""

    def __init__(self, epoch: int, step: int, history: History) -> None:
        super().__init__(
            f"the training loss or a weight is not finite in epoch {epoch} (found at step {step}); lower lr, "
            f"or set clip. The {len(history)} epochs before it are kept in the history"
        )
        self.epoch, self.step, self.history = epoch, step, history


@dataclass(frozen=True)
class Training:
    """How to train on the cross-entropy; ValueError for a setting that does not fit.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step; a loader has its own.
        lr: learning rate; the peak of ``"one_cycle"``.
        momentum, weight_decay: of SGD; another ``optimizer`` is told weight_decay alone.
        schedule: ``"step"`` divides lr by 10 after each of ``milestones`` (in epochs), ``"one_cycle"`` rises
            linearly for a fifth of the steps and falls to 0 (for short budgets).
        milestones: epochs, for ``"step"``.
        attack: trains on the images that it returns (Madry et al., 2017), or None for natural training.
        crafting: of images in ``"train"`` mode (the released code: each forward pass of the attack enters the
            running statistics), in ``"train-frozen"`` (they stay as they are), or in ``"eval"``.
        clip: largest gradient norm, or None.
        precision: ``"bfloat16"`` computes the network under autocast, twice as fast on GPUs and on CPUs with
            bfloat16 units; weights, running statistics, loss and validation stay ``"float32"``.
        channels_last: memory format of weights and images, the faster one for convolutions.
        compile: let ``torch.compile`` fuse the network, and record it as CUDA graphs on a GPU, which halves
            the time of a step there; costs about a minute at the start, and a C++ compiler on a CPU.
        seed: of order, augmentation, dropout and attack noise (not of the weights).
        label_smoothing: share of the target, in [0, 1), spread over all classes in the training loss alone.
        augment: True crops and mirrors (:func:`rnlib.data.augment`). A function is given each batch, images
            float (B, C, H, W) in [0, 1], with torch's global generator seeded for the epoch. None is True for
            a :class:`rnlib.Dataset`, False for sets and loaders of PyTorch, which augment by themselves.
        drop_last: leave out a smaller last batch (one image may have no statistics); a loader has its own.
        optimizer: a class of optimizers, called with parameters, ``lr`` and ``weight_decay``; None for SGD.
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
    augment: bool | Callable[[Tensor], Tensor] | None = None
    drop_last: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] | None = None

    def __post_init__(self) -> None:
        check_kind("attack", self.attack, Attack | None)
        for names, (need, fits) in RULES.items():
            for name in names.split():
                if not fits(value := getattr(self, name)):
                    raise ValueError(f"{name} is {value!r}, it must be {need}")


def fit(
    model: nn.Module,
    dataset: Images,
    training: Training,
    *,
    validation: Images | None = None,
    checkpoint: Path | str | None = None,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[History], None] = lambda history: None,
    on_step: Callable[[], None] = lambda: None,
) -> History:
    """Train a model in place.

    Args:
        model: takes images in [0, 1]; moved to ``device`` and to channels_last. Every layer is left in the
            mode, train or eval, that it came in.
        dataset: the training set, kept on ``device`` as uint8; or one of PyTorch, which is shuffled; or a
            ``DataLoader``, whose batches are used as they come.
        validation: measured after every epoch, clean, under each statistics mode that the model has, in
            batches of 100 of its own order; never used to choose anything.
        checkpoint: file with the state after the last finished epoch, from which training goes on if it is
            there. Needs a :class:`rnlib.Dataset`, of which images and order are known.
        on_epoch: called after every epoch with the history so far, and with that of a resumed training.
        on_step: called after every step, e.g. to move a progress bar.

    Returns one record an epoch, with epoch, lr (at its end), train_loss and train_accuracy (percent, on the
    images trained on, hence adversarial ones in adversarial training), val_loss_<statistics>,
    val_accuracy_<statistics> and seconds. Raises TrainingDiverged where the loss or a weight became infinite
    or NaN; TypeError or ValueError for what is no model, settings or images, or a checkpoint of other ones.
    """
    check_kind("model", model, nn.Module)
    check_kind("training", training, Training)
    if isinstance(dataset, tuple):
        dataset = Dataset("images", dataset[0], dataset[1], ())
    chance, size, change, attack = torch.Generator(), training.batch_size, training.augment, training.attack
    if isinstance(dataset, Dataset):
        options: Any = {"generator": chance, "device": device, "channels_last": training.channels_last}
        there = copy.copy(dataset)  # is not checked again, which would wait for the device
        vars(there).update(images=dataset.images.to(device), labels=dataset.labels.to(device))
        source: Any = partial(batches, there, size, augmented=change in (None, True), **options)
        steps = len(dataset) // size if training.drop_last else -(-len(dataset) // size)
    else:
        if checkpoint is not None:
            raise ValueError(f"a training on {type(dataset).__name__} cannot resume: leave checkpoint out")
        if isinstance(dataset, torch_data.Dataset):
            options = {"shuffle": True, "generator": chance, "drop_last": training.drop_last}
            dataset = torch_data.DataLoader(dataset, size, **options)
        change = partial(augment, generator=chance) if change is True else change
        (_, steps), source = stream(dataset), lambda: stream(dataset, None, device)[0]
    if not steps:
        name, why = getattr(dataset, "name", type(dataset).__name__), "is empty, too small or without length"
        raise ValueError(f"the data set {name!r} {why}: it gives no batch of {size} images")
    memory_format = torch.channels_last if training.channels_last else torch.contiguous_format
    model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    network: nn.Module = Bfloat16(model) if training.precision == "bfloat16" else model
    if training.compile:
        # Most of a GPU's time would go into starting kernels; recorded as a graph they are started together.
        mode = "reduce-overhead" if torch.device(device).type == "cuda" else None
        network = torch.compile(network, mode=mode)  # type: ignore[assignment]
    make = training.optimizer or partial(torch.optim.SGD, momentum=training.momentum)
    optimizer = make(model.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule, history = _schedule(optimizer, training, steps), History()
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    # Where a function lies in memory is not what it is.
    identity = {"settings": re.sub(r" at 0x[0-9a-f]+", "", repr(vars(training))), "network": repr(model)}
    if checkpoint is not None and isinstance(dataset, Dataset):
        checkpoint, identity = Path(checkpoint), identity | {"images": dataset.fingerprint}
        if checkpoint.exists():
            history = _resume(checkpoint, identity, parts, device)
            on_epoch(history)  # it may have been killed before it was called
    for epoch in range(len(history), training.epochs):
        start = perf_counter()
        # A stream for each kind of chance: generators of one seed would draw the same raw numbers.
        # A CPU's generator looks at 32 bits of its seed.
        order, noise, dropout = (100_003 * training.seed + epoch + k * 10**9 for k in range(3))
        chance.manual_seed(order)
        attacker = torch.Generator(device).manual_seed(noise)
        images, total_loss, hits = 0, *torch.zeros(2, device=device)
        with evaluation_mode(model), torch.random.fork_rng():  # which puts every layer back into its mode
            torch.manual_seed(dropout)
            for step, (x, y) in enumerate(islice(source(), steps)):
                x = change(x) if callable(change) else x
                if attack is not None:
                    network.train(training.crafting != "eval")
                    tracked = training.crafting == "train"
                    x = attack(network, x, y, generator=attacker, update_buffers=tracked, checked=True)
                network.train()
                logits = logits_of(network(x))
                loss = F.cross_entropy(logits, y, label_smoothing=training.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                if training.clip is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), training.clip)
                optimizer.step()
                schedule.step()
                images += len(y)
                total_loss += loss.detach() * len(y)
                hits += (logits.detach().argmax(1) == y).sum()
                if step % CHECK_EVERY == 0 and not torch.isfinite(total_loss):
                    raise TrainingDiverged(epoch + 1, step, history)
                on_step()
        # The last step may have spoilt weights that no loss has seen yet.
        if not all(torch.isfinite(tensor).all() for tensor in (total_loss, *network.parameters())):
            raise TrainingDiverged(epoch + 1, step, history)
        record = {"epoch": epoch + 1, "lr": float(schedule.get_last_lr()[0])}
        record |= {"train_loss": total_loss.item() / images, "train_accuracy": 100 * hits.item() / images}
        for mode in statistics_modes(model) if validation is not None else ():
            with evaluation_mode(model):
                correct, val_loss, _ = measure(model, validation, statistics=mode, device=device)  # type: ignore[arg-type]
            accuracy = 100 * correct.float().mean().item()
            record |= {f"val_loss_{mode}": val_loss, f"val_accuracy_{mode}": accuracy}
        history = [*history, record | {"seconds": perf_counter() - start}]
        if checkpoint is not None:
            states = {name: part.state_dict() for name, part in parts.items()}
            write_tensors(Path(checkpoint), {**identity, "history": history, **states})
        on_epoch(history)
    return history


def fit_many(
    models: Sequence[nn.Module],
    dataset: Images,
    training: Training | Sequence[Training],
    *,
    checkpoints: Sequence[Path | str | None] | None = None,
    on_epoch: Callable[[int, History], None] = lambda index, history: None,
    **options: Any,
) -> list[History | TrainingDiverged]:
    """Train models in place on the same images, one after another, each as :func:`fit` does, which see.

    Settings are those of all or a sequence; checkpoints a sequence. ``on_epoch`` is called with the place of
    a model and its history. Returned is for each model its history, or, where training diverged, the error,
    which has the history up to there; the others are trained all the same.
    """
    settings = [training] * len(models) if isinstance(training, Training) else training
    files = [None] * len(models) if checkpoints is None else checkpoints
    if len(counts := {len(models), len({*map(id, models)}), len(settings), len(files)}) > 1:
        raise ValueError(f"{sorted(counts)} different models, settings and checkpoints: each needs its own")
    found: list[History | TrainingDiverged] = []
    for i, (model, one, file) in enumerate(zip(models, settings, files, strict=True)):
        try:
            found.append(fit(model, dataset, one, checkpoint=file, on_epoch=partial(on_epoch, i), **options))
        except TrainingDiverged as error:
            found.append(error)
    return found


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    if training.schedule == "step":
        return MultiStepLR(optimizer, [steps * epoch for epoch in training.milestones])
    total = steps * training.epochs + 1
    rise = max(0.2, 1.5 / total)  # 1 / total would be divided by zero
    lines: dict[str, Any] = {"anneal_strategy": "linear", "cycle_momentum": False, "final_div_factor": 1e4}
    return OneCycleLR(optimizer, training.lr, total_steps=total, pct_start=rise, **lines)


def _resume(
    path: Path, identity: dict[str, str], parts: dict[str, Any], device: str | torch.device
) -> History:
    """Load the states of a checkpoint into the parts; a ValueError shows the first line that differs."""
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

    Where PyTorch has no bfloat16 kernels for the CPU (x86 before AVX-512, builds without oneDNN) it computes
    the products of :class:`WideProducts`, and so is at least as fast as in float32 on every machine.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        onednn = torch.backends.mkldnn.is_available()  # without it the operator does not exist
        self.wide_on_cpu = not (onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide_on_cpu and x.device.type == "cpu"
        with torch.autocast(x.device.type, torch.bfloat16), WideProducts() if wide else nullcontext():
            return logits_of(self.model(x)).float()


class WideProducts(TorchFunctionMode):
    """Convolutions and linear layers of bfloat16 numbers, multiplied in float32 and rounded to bfloat16.

    Kernels for bfloat16 add up in float32 too. PyTorch's loops without them take ten times as long.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_rounded, args), **{k: _rounded(v) for k, v in kwargs.items()}).bfloat16()


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value

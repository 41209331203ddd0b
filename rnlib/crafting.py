"""What every attack shares: the base class, what it asks of the model, and putting the model back.

:mod:`rnlib.attacks` is the place to start reading.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnlib.checks import Pixels, check_batch


class Attack:
    """Base of all attacks. A subclass is a frozen dataclass that defines ``_perturb``."""

    targeted: bool = False
    loss: str = "cross_entropy"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None,
        update_buffers: bool = False, checked: bool = False,
    ) -> Tensor:  # fmt: skip
        """Craft adversarial versions of a batch of images.

        Args:
            model: answers logits (N, classes); attacked in the mode it is in and left as it was.
            x: floating-point images (N, C, ...) in [0, 1].
            y: int64 labels (N,): the true ones, or the wanted ones where ``targeted``.
            generator: source of the attack's randomness; ``None`` is torch's global one.
            update_buffers: let the forward passes of a model in training mode update its running statistics.
            checked: trust that x and y are as described; looking at their values waits for the device.

        Returns:
            Images like ``x``: same shape, dtype, device and memory format, in [0, 1], detached.

        Raises:
            TypeError, ValueError: unusable model, images or labels.
        """
        classes = 0 if checked else check_batch(model, x, y)
        # Gradients are needed inside torch.no_grad() and torch.inference_mode() too.
        with torch.inference_mode(False), torch.enable_grad(), borrowed(model, update_buffers):
            task = Task(model, y.to(x.device, copy=True), classes, self.loss, self.targeted)
            return self._perturb(task, x.detach().clone(), generator).detach()

    def _perturb(self, task: "Task", x: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _perturb")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus that of y, (N,): positive where fooled."""
    y = y[:, None]
    # Masked by -inf and not by 0: the logits may all be negative.
    return logits.scatter(1, y, -math.inf).amax(1) - logits.gather(1, y)[:, 0]


# By name a loss (N,) of logits, labels and a sign, -1 where the labels are the wanted ones.
LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "cross_entropy": lambda logits, y, sign: sign * F.cross_entropy(logits, y, reduction="none"),
    "margin": lambda logits, y, sign: sign * margin(logits, y),
    # An image that has reached its aim asks for nothing: under batch statistics it is there for the others.
    "masked_margin": lambda logits, y, sign: (sign * margin(logits, y)).clamp(max=0),
}


class Task:
    """What an attack asks of the model about one batch. Larger is better for the attacker, targeted too."""

    def __init__(self, model: nn.Module, y: Tensor, classes: int, loss: str, targeted: bool):
        self.model, self.y, self.classes = model, y, max(2, classes)
        self.per_image, self.sign = LOSSES[loss], -1 if targeted else 1

    def logits(self, x: Tensor) -> Tensor:
        """The model's answer (N, classes), checked without waiting for the device."""
        logits = self.model(x)
        if logits.ndim != 2 or len(logits) != len(self.y) or logits.shape[1] < self.classes:
            raise ValueError(
                f"the model's answer has shape {tuple(logits.shape)}, but {len(self.y)} images "
                f"with labels up to {self.classes - 1} need ({len(self.y)}, >= {self.classes})"
            )
        if x.requires_grad and not logits.requires_grad:
            raise ValueError(
                "the model's answer does not depend on the images in a differentiable way: "
                "look for detach, no_grad or argmax in its forward"
            )
        return logits

    def margin(self, logits: Tensor) -> Tensor:
        """(N,), positive where the attack has reached its aim."""
        return self.sign * margin(logits, self.y)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient at x, shaped like x, of the loss summed over the batch: its images attack together."""
        x = x.detach().requires_grad_()
        loss = self.per_image(self.logits(x), self.y, self.sign)
        return torch.autograd.grad(loss.sum(), x)[0]

    def score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image has reached the aim, and its loss; both (N,)."""
        with torch.no_grad():
            logits = self.logits(x)
            return self.margin(logits) > 0, self.per_image(logits, self.y, self.sign)


@contextmanager
def borrowed(model: nn.Module, update_buffers: bool) -> Iterator[None]:
    """Switch off gradients of parameters, a third of the cost; afterwards restore these flags and buffers."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    keep = not update_buffers and any(m.training for m in model.modules())
    modules = model.modules() if keep else []
    saved = [
        (m, name, b, None if b is None else b.clone()) for m in modules for name, b in m._buffers.items()
    ]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        with torch.no_grad():
            for module, name, buffer, value in saved:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
                # Some modules assign a new tensor instead of writing into the old one.
                module._buffers[name] = buffer


def column(v: Tensor, x: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, ...), to go with x."""
    return v.view(-1, *[1] * (x.ndim - 1))


def per_channel(name: str, value: Pixels, x: Tensor) -> Tensor:
    """A float as a 0-d tensor, a tuple as (1, C, 1, ...), of the dtype and device of x."""
    tensor = torch.tensor(value, dtype=x.dtype).to(x.device, non_blocking=True)
    if tensor.ndim == 0:
        return tensor
    if len(tensor) != x.shape[1]:
        raise ValueError(
            f"{name} has {len(tensor)} values, but images of shape {tuple(x.shape)} have "
            f"{x.shape[1]} channels: give one value per channel, or a single float"
        )
    return tensor.view(1, -1, *[1] * (x.ndim - 2))


def draw(
    sampler: Callable[..., Tensor], shape: torch.Size, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Random numbers for ``like``, drawn where the generator is: a CPU one gives all devices the same."""
    device = like.device if generator is None else generator.device
    return sampler(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)

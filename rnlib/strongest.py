"""The strongest attack on a batch that is known here: an ensemble, of which whole batches are judged."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from rnlib.attacks import Attack, Generator, Pixels, Task, column
from rnlib.files import read_tensors, write_tensors
from rnlib.statistics import Detached, borrowed, check_batch, frozen, logits_of
from rnlib.strong_attacks import APGD, FPA, GMSA, Square, rank


@dataclass(frozen=True)
class Budget:
    """Steps and restarts of APGD, a fifth of these steps in each round of FPA and GMSA, queries of Square."""

    steps: int = 40
    rounds: int = 4
    queries: int = 100
    restarts: int = 1


BUDGETS = {"quick": Budget(10, 2, 20), "book": Budget(), "five times": Budget(200, 4, 500)}


@dataclass(frozen=True, eq=False)
class Strongest:
    """The adversarial images (N, C, H, W), which are still correct (N,), and the attack that they are from.

    ``image_wise``: which no attack fools in its own batch (N,), as AutoAttack counts; ``assembled``: which
    are correct of the worst versions of all images, judged again in one batch (N,). ``accuracies``: of the
    whole batch under each attack, in percent. ``cost``: their forward and backward passes at most.
    """

    images: Tensor
    correct: Tensor
    image_wise: Tensor
    assembled: Tensor
    winner: str
    accuracies: dict[str, float]
    cost: tuple[int, int]


@torch.inference_mode(False)
def strongest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Pixels,
    *,
    budget: str | Budget = "book",
    sources: Mapping[str, nn.Module] | None = None,
    generator: Generator = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Strongest:
    """Attack a batch in the l-inf ball in every way known here; keep the batch that is classified worst.

    Where an image's answer depends on the others (Chen et al., 2022; Croce et al., 2022): four losses through
    the statistics; statistics taken as given at each step; FPA; GMSA; transfer from statistics frozen at the
    tracked ones, the clean batch, and other ``sources``; Square. Else APGD on cross-entropy and targeted DLR,
    and Square. Batches are judged as wholes by the model as it is; of equal ones that of larger mean margin
    wins. Last, images of several attacks are put together, and kept if that batch, judged again, is lower.

    Args:
        model, x, y, eps, generator: as for :class:`APGD`; x is (N, C, H, W).
        budget: one of ``BUDGETS``, or of your own.
        sources: more models, by name, from which images are transferred.
        progress: say what it will cost before it starts, and where it is.
        checkpoint: file that keeps what is done for this batch, to go on after an interruption.

    Raises:
        TypeError, ValueError: as attacks do; native batch norms in training mode (:func:`rnlib.convert_norms`
            helps); a checkpoint of another batch, model or budget.
    """
    classes = check_batch(model, x, y)
    if isinstance(budget, str) and budget not in BUDGETS:
        raise ValueError(f"budget is {budget!r}, it must be a Budget or one of: {', '.join(BUDGETS)}")
    plan = _plan(model, x, eps, BUDGETS[budget] if isinstance(budget, str) else budget, sources or {})
    cost = sum(entry[2] for entry in plan.values()), sum(entry[3] for entry in plan.values())
    seed = torch.randint(2**40, (1,), generator=generator, device=generator.device if generator else None)
    done: dict[str, Any] = {"seed": int(seed), "images": {}}
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        what = hashlib.sha256(repr([(name, attack) for name, (_, attack, *_) in plan.items()]).encode())
        for tensor in (x, y, *model.state_dict().values()):
            what.update(tensor.cpu().double().numpy().tobytes())
        done["of"] = what.hexdigest()
    if path is not None and path.exists():
        there = read_tensors(path, x.device)
        if not isinstance(there, dict) or there.get("of") != done["of"]:
            raise ValueError(f"{path} is of another batch, model or budget: remove it, or name another file")
        done = there
    images: dict[str, Tensor] = done["images"]
    title = f"at most {cost[0]:,} forward and {cost[1]:,} backward passes of {len(x)} images"
    task, judged = Task(model, y, classes, "margin", False), dict[str, tuple[Tensor, Tensor]]()
    with borrowed(model), tqdm(plan.items(), title, disable=not progress) as bar:
        for index, (name, (source, attack, *_)) in enumerate(bar):
            if name not in images:
                chance = torch.Generator(x.device).manual_seed(done["seed"] + index)
                images[name] = attack(source, x, y, generator=chance, checked=True)
                if path is not None:
                    write_tensors(path, done)
            judged[name] = task.score(images[name])
            least = min(percent(~fooled) for fooled, _ in judged.values()) if progress else 0
            bar.set_postfix_str(f"{least:.1f}% correct")
        winner = max(judged, key=lambda name: rank(*judged[name]).item())
        best, (fooled, _) = images[winner], judged[winner]
        most = torch.stack([margin for _, margin in judged.values()]).argmax(0)
        worst = torch.stack([*images.values()])[most, torch.arange(len(x), device=x.device)]
        lost = torch.stack([fooled for fooled, _ in judged.values()]).any(0)
        together = [worst, torch.where(column(fooled, x), best, worst)]
        again = [task.score(assembled) for assembled in together]
        for assembled, found in zip(together, again, strict=True):
            if found[0].sum() > fooled.sum():
                winner, best, fooled, judged["assembled"] = "assembled", assembled, found[0], found
    accuracies = {name: percent(~found[0]) for name, found in judged.items()}
    return Strongest(best, ~fooled, ~lost, ~again[0][0], winner, accuracies, cost)


def percent(right: Tensor) -> float:
    """How many of all (n,)."""
    return 100 * int(right.sum()) / len(right)


Plan = dict[str, tuple[nn.Module, Attack, int, int]]


def _plan(model: nn.Module, x: Tensor, eps: Pixels, budget: Budget, sources: Mapping[str, nn.Module]) -> Plan:
    """By name: what is differentiated, the attack, and its forward and backward passes at most."""
    half = (len(x) + 1) // 2
    with torch.no_grad(), borrowed(model):
        whole, alone = logits_of(model(x)), logits_of(model(x[:half]))
    classes = whole.shape[1]
    ratio = "dlr" if classes > 2 else "margin"
    run = budget.restarts * (budget.steps + 1)
    more: dict[str, Any] = {"steps": budget.steps, "restarts": budget.restarts}
    last: Plan = {"Square": (model, Square(eps, queries=budget.queries), budget.queries + 1, 0)}
    if (whole[:half] - alone).abs().amax() <= 0.01 * whole.abs().amax():  # floating point errs by less
        first: Plan = {"cross_entropy": (model, APGD(eps, **more), run, run)}
        targeted, runs = ("dlr_targeted", run * min(9, classes - 1)) if classes > 3 else (ratio, run)
        return first | {targeted: (model, APGD(eps, loss=targeted, **more), runs + 1, runs)} | last
    losses = ("cross_entropy", "equal_weight", "margin", ratio)
    joint = {loss: APGD(eps, loss=loss, joint=True, **more) for loss in losses}
    plan: Plan = {f"through, {loss}": (model, attack, run, run) for loss, attack in joint.items()}
    if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        given, short = Detached(model), APGD(eps, steps=max(1, budget.steps // 5), loss="equal_weight")
        for loss in ("equal_weight", "margin"):
            plan[f"as given, {loss}"] = given, joint[loss], 2 * run, run
        passes = budget.rounds * (short.steps + 1)
        plan["FPA"] = model, FPA(short, rounds=budget.rounds), passes + 2 * budget.rounds, passes
        passes = passes * (budget.rounds + 1) // 2
        for mode in ("average", "minimum"):
            gmsa = GMSA(short, rounds=budget.rounds, mode=mode)
            plan[f"GMSA, {mode}"] = model, gmsa, passes + 2 * budget.rounds, passes
        own = APGD(eps, loss="equal_weight", **more)
        others = {"tracked": frozen(model), "clean batch": frozen(model, [x]), **sources}
        plan |= {f"transfer, {name}": (source, own, run, run) for name, source in others.items()}
    return plan | last

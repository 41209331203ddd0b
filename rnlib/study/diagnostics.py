"""Decisive experiments on the weights of one run: is tracking the cause? Each yields the outcome of images.

Every diagnostic is a function of a model and test images that yields (cell, correct): what was done, as a
dictionary, and for each image whether it was classified correctly. :func:`diagnose_run` writes them.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rnlib.attacks import PGD, Attack, GaussianNoise, paper_eps, paper_suite
from rnlib.data import Dataset, batches, test_order
from rnlib.evaluate import measure
from rnlib.modes import evaluation_mode, statistics_modes, use_statistics
from rnlib.neighbours import Among, attack_neighbours
from rnlib.square import Square
from rnlib.study import store
from rnlib.study.runs import Run, read_profile
from rnlib.study.work import default_device, provenance, test_set, trained_model, training_set
from rnlib.tracking import recalibrate

BATCH_SIZE = 100
Outcome = tuple[dict[str, Any], Tensor]
Suite = dict[str, Attack | None]


def _generator(index: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(index)


def _classified(model: nn.Module, x: Tensor, y: Tensor, statistics: str) -> Tensor:
    with use_statistics(model, statistics), torch.no_grad():
        return (model(x).argmax(1) == y).cpu()


def _crafted(model: nn.Module, dataset: Dataset, attack: Attack, statistics: str, device: str) -> Tensor:
    """The whole set attacked in batches, float (N, C, H, W)."""
    with use_statistics(model, statistics):
        stream = enumerate(batches(dataset, BATCH_SIZE, device=device))
        return torch.cat([attack(model, x, y, generator=_generator(i, device)) for i, (x, y) in stream])


def transfer(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E2: images crafted in one statistics mode, classified in another, and among other images."""
    labels, other = dataset.labels.to(device), test_order(len(dataset), 1).to(device)
    for name in ("grad_sign", "pgd_linf"):
        for crafted in statistics_modes(model):
            adv = _crafted(model, dataset, paper_suite(run.dataset)[name], crafted, device)
            for tested, order in (("tracked", None), ("batch", None), ("reshuffled", other)):
                x, y = (adv, labels) if order is None else (adv[order], labels[order])
                mode = "tracked" if tested == "tracked" else "batch"
                parts = zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True)
                correct = torch.cat([_classified(model, a, b, mode) for a, b in parts])
                if order is not None:
                    correct = torch.empty_like(correct).index_copy_(0, order.cpu(), correct)
                yield {"attack": name, "crafted": crafted, "tested": tested}, correct


def _suite(run: Run) -> Suite:
    suite = paper_suite(run.dataset)
    return {"clean": None, **{name: suite[name] for name in ("noise", "grad_sign", "pgd_linf")}}


def ladder(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E3: the same weights with statistics frozen at several sources, each attacked as it is."""
    train = training_set(run)
    train = train.subset(test_order(len(train), 2)[: 10 * BATCH_SIZE])
    clean = [x for x, _ in batches(train, BATCH_SIZE, device=device)]
    pgd = paper_suite(run.dataset)["pgd_linf"]
    adversarial = _crafted(model, train, pgd, "batch", device).split(BATCH_SIZE)
    networks = {
        "ema": model,
        "clean": recalibrate(copy.deepcopy(model), clean),
        "adversarial": recalibrate(copy.deepcopy(model), adversarial),
    }
    for attack_name, attack in _suite(run).items():
        for source, network in networks.items():
            correct, _, _ = measure(network, dataset, attack, statistics="tracked", device=device)
            yield {"attack": attack_name, "source": source}, correct
        parts = []
        for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
            twin = recalibrate(copy.deepcopy(model), [x])  # statistics of the clean images, whatever comes
            adv = x if attack is None else attack(twin, x, y, generator=_generator(index, device))
            parts.append(_classified(twin, adv, y, "tracked"))
        yield {"attack": attack_name, "source": "twin"}, torch.cat(parts)
        correct, _, _ = measure(model, dataset, attack, statistics="batch", device=device)
        yield {"attack": attack_name, "source": "batch"}, correct


def adequacy(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E4: PGD with more steps, restarts, other step sizes and the margin loss; and one step against many."""
    eps = paper_eps(run.dataset)
    quarter = tuple(e / 4 for e in eps)
    attacks = {
        "PGD, 20 steps": PGD(eps),
        "100 steps": PGD(eps, steps=100),
        "steps of eps / 4": PGD(eps, step_size=quarter),
        "5 restarts": PGD(eps, restarts=5),
        "margin loss": PGD(eps, loss="margin"),
        "one step": paper_suite(run.dataset)["grad_sign"],
    }
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for name, attack in attacks.items():
            correct, _, _ = measure(model, half, attack, statistics=mode, device=device)
            yield {"attack": name, "statistics": mode}, correct


def fraction(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E5: only m images of a batch of 100 are attacked, among clean neighbours; accuracy of the attacked.

    With tracked statistics neighbours do not matter: there the whole batch is attacked, for comparison.
    """
    attack = paper_suite(run.dataset)["pgd_linf"]
    for m, groups in {1: 10, 5: 4, 25: 2}.items():  # groups of each batch, so that every m has enough images
        parts = []
        for index, (x, y) in enumerate(batches(dataset, BATCH_SIZE, device=device)):
            for group in range(groups):
                order = torch.arange(len(x), device=x.device).roll(-group * m)
                among = Among(model, x[order[m:]])
                with use_statistics(model, "batch"):
                    adv = attack(among, x[order[:m]], y[order[:m]], generator=_generator(index, device))
                parts.append(_classified(among, adv, y[order[:m]], "batch"))
        yield {"attacked": m, "statistics": "batch"}, torch.cat(parts)
    for mode in statistics_modes(model):
        correct, _, _ = measure(model, dataset, attack, statistics=mode, device=device)
        yield {"attacked": BATCH_SIZE, "statistics": mode}, correct


def neighbours(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E6: k images of a batch are changed to spoil the others; accuracy of the untouched ones.

    With tracked statistics the gradient towards neighbours is zero, so that only batch statistics are tried.
    """
    for k in (1, 10, 25, 50):
        for eps in (0.0, 0.03, 0.3):
            parts = []
            for x, y in batches(dataset, BATCH_SIZE, device=device):
                with use_statistics(model, "batch"):
                    adv = attack_neighbours(model, x, y, k, paper_eps(run.dataset, eps))
                parts.append(_classified(model, adv, y, "batch")[k:])
            yield {"changed": k, "eps": eps, "statistics": "batch"}, torch.cat(parts)


def black_box(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E7: the Square attack on fixed batches, beside PGD at the same eps: masking shows as the weaker PGD."""
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for eps in (0.03, 0.1):
            radius = paper_eps(run.dataset, eps)
            for name, attack in {"Square": Square(radius, queries=300), "PGD": PGD(radius)}.items():
                correct, _, _ = measure(model, half, attack, statistics=mode, device=device)
                yield {"attack": name, "eps": eps, "statistics": mode}, correct


def units(run: Run, model: nn.Module, dataset: Dataset, device: str) -> Iterator[Outcome]:
    """E8: sweeps of the noise in normalised units and of PGD's eps in pixels."""
    attacks: dict[tuple[str, float], Attack] = {
        ("noise", s): GaussianNoise(paper_eps(run.dataset, s)) for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    }
    attacks |= {("pgd", e): PGD(e / 255) for e in (0.5, 1, 2, 4, 8)}
    half = dataset.subset(torch.arange(len(dataset) // 2))
    for mode in statistics_modes(model):
        for (name, size), attack in attacks.items():
            correct, _, _ = measure(model, half, attack, statistics=mode, device=device)
            yield {"attack": name, "size": size, "statistics": mode}, correct


DIAGNOSTICS: dict[str, Callable[[Run, nn.Module, Dataset, str], Iterator[Outcome]]] = {
    "transfer": transfer,
    "ladder": ladder,
    "adequacy": adequacy,
    "fraction": fraction,
    "neighbours": neighbours,
    "black_box": black_box,
    "units": units,
}


def diagnose_run(
    run: Run,
    name: str,
    *,
    device: str | None = None,
    on_cell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Run a diagnostic on a trained run unless that is done.

    Args:
        run: trained, with batch statistics.
        name: one of ``DIAGNOSTICS``.
        device: where to compute; the GPU if there is one.
        on_cell: called with each row.

    Returns:
        The rows of ``<name>.csv``; the outcomes of images lie beside it in ``<name>.npz``.

    Raises:
        ValueError: unknown name, or a run without batch statistics.
        FileNotFoundError: the run is not trained.
    """
    if name not in DIAGNOSTICS:
        raise ValueError(f"diagnostic is {name!r}, it must be one of {', '.join(DIAGNOSTICS)}")
    path = run.directory / f"{name}.csv"
    if path.exists():
        return store.read_rows(path)
    device = device or default_device()
    model = trained_model(run).to(device)
    if "batch" not in statistics_modes(model):
        raise ValueError(f"{run.name} has no batch statistics: there is nothing to diagnose")
    dataset = test_set(run, read_profile(run.profile)["evaluation"]["images"])
    origin, rows, outcomes = provenance(run, dataset, device), [], {}
    with evaluation_mode(model):
        for cell, correct in DIAGNOSTICS[name](run, model, dataset, device):
            outcomes["/".join(map(str, cell.values()))] = correct.numpy()
            n, hits = len(correct), int(correct.sum())
            rows.append({"run": run.name, **cell, "n": n, "correct": hits, "accuracy": 100 * hits / n})
            on_cell(rows[-1])
    store.write_correct(path.with_suffix(".npz"), outcomes)
    store.write_rows(path, [row | origin for row in rows])  # last: its being there says that all is done
    return rows

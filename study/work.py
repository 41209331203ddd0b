"""What the worker notebooks do: train a run and evaluate it. Both resume, and finished work is never
repeated.
"""

import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rnlib
from rnlib.attacks import Attack
from rnlib.data import Dataset, load, test_order
from rnlib.evaluate import Evaluation, evaluate
from rnlib.modes import statistics_modes
from study import store
from study.runs import IDENTITY, ROOT, Run, attack_suite, read_profile
from rnlib.train import History, TrainingDiverged, fit

BATCH_SIZE = 100  # of test images, wherever weights are measured


def default_device() -> str:
    """``"cuda"`` if there is one, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """The GPU's or the CPU's model, the type of any other device."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})" if kind == "cpu" else kind


def provenance(run: Run, dataset: Dataset, device: str) -> dict[str, Any]:
    """What a result can be traced to: settings, data, code and machine.

    ``config_hash`` is the one in the run's ``config.json``: a run of today has settings that were not there
    when an older one was trained.
    """
    trained = store.read_config(run).get("provenance", {})
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "config_hash": trained.get("config_hash", run.hash),
        "fingerprint": dataset.fingerprint,
        "rnlib": rnlib.__version__,
        "revision": git.stdout.strip() or "unknown",
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def training_set(run: Run) -> Dataset:
    """The images that a run is trained on."""
    dataset = load(run.dataset, "train")
    return (
        dataset if run.train_images is None else dataset.subset(test_order(len(dataset))[: run.train_images])
    )


def test_set(run: Run, images: int) -> Dataset:
    """The first ``images`` of the test set in its fixed, class-mixed order."""
    dataset = load(run.dataset, "test")
    return dataset.subset(test_order(len(dataset))[:images])


def train_run(
    run: Run,
    *,
    device: str | None = None,
    on_epoch: Callable[[History], None] = lambda history: None,
    on_step: Callable[[], None] = lambda: None,
) -> History:
    """Train a run unless that is done; settings, history and weights go to its directory.

    A training that diverges is a result, and not tried again: ``diverged.json`` says where, and the file of
    weights, which says that training is done, holds none.

    Raises:
        ValueError: the directory holds a run with other settings.
    """
    device = device or default_device()
    directory = run.directory
    store.read_config(run)
    if (directory / store.WEIGHTS).exists():
        return store.read_rows(directory / store.HISTORY)
    dataset = training_set(run)
    origin = provenance(run, dataset, device) | {"config_hash": run.hash}  # of the settings beside it
    store.write_json(directory / store.CONFIG, {"settings": asdict(run), "provenance": origin})

    def keep(history: History) -> None:
        store.write_rows(directory / store.HISTORY, history)
        if history and (epoch := int(history[-1]["epoch"])) in run.snapshots:
            _save(model, directory / store.snapshot(epoch))
        on_epoch(history)

    model = run.new_model()
    try:
        history = fit(
            model, dataset, run.settings(), validation=test_set(run, run.validation_images),
            checkpoint=directory / store.CHECKPOINT, device=device, on_epoch=keep, on_step=on_step,
        )  # fmt: skip
        keep(history)  # also after a resume that had nothing left to do
        _save(model, directory / store.WEIGHTS)
    except TrainingDiverged as error:
        history = error.history
        found = {"epoch": error.epoch, "step": error.step, "message": str(error)}
        found |= {"provenance": provenance(run, dataset, device)}
        store.write_json(directory / store.DIVERGED, found)
        _save(nn.Module(), directory / store.WEIGHTS)
    (directory / store.CHECKPOINT).unlink(missing_ok=True)
    return history


def _save(model: nn.Module, path: Path) -> None:
    tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    store.write(path, lambda file: save_file(tensors, file))


def trained_model(run: Run, epoch: int | None = None) -> nn.Module:
    """The network of a finished run, in evaluation mode.

    Args:
        epoch: one of the run's snapshots; None is the end of training.

    Raises:
        FileNotFoundError: the run is not trained yet; the message says how to.
        ValueError: training diverged, no snapshot was kept of that epoch (those that were are named), or the
            directory holds a run with other settings.
    """
    store.read_config(run)
    if epoch is None and store.has_diverged(run):
        raise ValueError(f"training of {run.name} diverged, it has no weights: see {store.DIVERGED}")
    if epoch is not None and epoch not in run.snapshots:
        raise ValueError(f"epoch is {epoch}, {run.name} keeps snapshots of {run.snapshots}")
    path = run.directory / (store.WEIGHTS if epoch is None else store.snapshot(epoch))
    if not path.exists():
        command = f"papermill notebooks/train.ipynb out.ipynb {run.options}"
        raise FileNotFoundError(f"{run.name} is not trained: {command}")
    model = run.new_model()
    model.load_state_dict(load_file(path))
    return model.to(memory_format=torch.channels_last).eval()


def evaluate_run(
    run: Run,
    *,
    device: str | None = None,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
) -> list[dict[str, Any]]:
    """Evaluate a run's weights in every statistics mode, clean and under the paper's attacks, unless that
    is done.

    What an interrupted evaluation has measured is not measured again.

    Returns:
        The rows of ``evaluations.csv``; none if training diverged.

    Raises:
        FileNotFoundError: the run is not trained.
        ValueError: its directory holds a run with other settings.
    """
    finished, unfinished = run.directory / store.EVALUATIONS, run.directory / store.unfinished("evaluations")
    if (there := store.finished_rows(run, finished)) is not None:
        return there
    device = device or default_device()
    dataset = test_set(run, read_profile(run.profile)["evaluation"]["images"])
    model, origin = trained_model(run), provenance(run, dataset, device)
    rows, correct = store.read_rows(unfinished), store.read_correct(run.directory / store.CORRECT)
    done = {(row["statistics"], row["attack"]) for row in rows}
    attacks: dict[str, Attack | None] = {"clean": None, **attack_suite(run)}
    for mode in statistics_modes(model):
        for name, attack in attacks.items():
            if (mode, name) in done:
                continue
            (evaluation,) = evaluate(
                model, dataset, {name: attack}, statistics=[mode], batch_size=BATCH_SIZE, device=device
            )
            correct[f"{mode}/{name}"] = evaluation.correct.numpy()
            rows.append(_row(run, evaluation, attack) | origin)
            store.write_correct(run.directory / store.CORRECT, correct)
            store.write_rows(unfinished, rows)  # after the outcomes: its rows say what is done
            on_evaluation(evaluation)
    unfinished.rename(finished)
    return rows


def _row(run: Run, evaluation: Evaluation, attack: Attack | None) -> dict[str, Any]:
    keys = (*IDENTITY, "epochs")
    eps = getattr(attack, "eps", getattr(attack, "std", None))
    n, correct = len(evaluation.correct), int(evaluation.correct.sum())
    return {
        "run": run.name,
        **{key: getattr(run, key) for key in keys},
        "statistics": evaluation.statistics,
        "attack": evaluation.attack,
        "eps": (
            None if eps is None else " ".join(f"{e:.6g}" for e in (eps if isinstance(eps, tuple) else (eps,)))
        ),
        "eps_unit": None if eps is None else "pixel (0 to 1)",
        "steps": getattr(attack, "steps", None),
        "batch_size": BATCH_SIZE,
        "n": n,
        "correct": correct,
        "accuracy": 100 * correct / n,
        "loss": evaluation.loss,
        "distance": evaluation.distance.mean().item(),
        "seconds": round(evaluation.seconds, 2),
    }

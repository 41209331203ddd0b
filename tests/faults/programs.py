"""What is killed: functions for processes of their own, which write to a folder of results."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch._dynamo  # which an optimiser imports at its first step: here once for all processes
from harness import PROFILE, small, smaller
from safetensors.torch import save_file

from rnlib import fit_many, strongest
from rnlib.audit import Budget
from study import work
from study.networks import new_model, test_set, trained_model, training_set, training_settings
from study.runs import make_run

RUN = make_run(PROFILE, experiment="two_epochs")
IMAGES = [small(RUN.dataset, split) for split in ("train", "test")]  # read once for all processes
REPLACE, SAVE = os.replace, torch.save


def at(moment, number, kind):
    """Send this process a signal at the n-th renaming of a file: before, after, or with half of the file."""
    calls = iter(range(1, 999))

    def replace(source, target):
        if next(calls) != number:
            return REPLACE(source, target)
        if moment == "half":
            os.truncate(source, os.path.getsize(source) // 2)
        if moment == "after":
            REPLACE(source, target)
        os.kill(os.getpid(), kind)
        signal.pause()

    os.replace = replace
    Path.replace = lambda self, target: replace(self, target)


def program(name, folder, *moment):
    """Do the work of a name, alone in its process."""
    os.environ["RNLIB_RESULTS"] = folder
    smaller(pytest.MonkeyPatch())
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if moment:
        at(*moment)
    if name == "train":
        work.train_run(RUN)
    elif name == "attack":
        batch = test_set(RUN, 20)
        x, y, path = batch.images / 255, batch.labels, Path(folder) / "attack.pt"
        chance = torch.Generator().manual_seed(0)
        budget = Budget(steps=5, rounds=1, queries=5)
        found = strongest(
            trained_model(RUN), x, y, 0.1, budget=budget, progress=True, generator=chance, checkpoint=path
        )
        save_file({"images": found.images.contiguous()}, Path(folder) / "found.safetensors")
    elif name == "fit_many":
        runs = [RUN, make_run(PROFILE, experiment="two_epochs", seed=1)]
        models, settings = [new_model(run) for run in runs], [training_settings(run) for run in runs]
        paths = [Path(folder) / f"many{i}" for i in range(2)]
        checkpoints = [path.with_suffix(".pt") for path in paths]
        fit_many(models, training_set(RUN), settings, checkpoints=checkpoints)
        for model, path in zip(models, paths, strict=True):
            tensors = {key: one.contiguous() for key, one in model.state_dict().items()}
            save_file(tensors, path.with_suffix(".safetensors"))
    else:
        work.measure_run(RUN, name)

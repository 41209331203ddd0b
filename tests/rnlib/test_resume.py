"""Training that is killed at any moment and resumed, against itself without a break."""

import copy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import PGD2, dataset, exact, network, same, settings, untimed

from rnlib import PGDL2, fit, resnet, vgg
from rnlib.train import SCHEDULES

# --- killed and resumed -------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_at(step=None, epoch=None):
    """Callbacks that raise at the given step of this start, or at the end of the given epoch."""
    steps = []

    def on_step():
        steps.append(None)
        if len(steps) == step:
            raise Killed

    def on_epoch(history):
        if len(history) == epoch:
            raise Killed

    return {"on_step": on_step, "on_epoch": on_epoch}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("attack", [None, PGD2])
@pytest.mark.parametrize(("build", "norm"), [(resnet, "batch_norm"), (vgg, "robust_norm")])
def test_killed_at_any_moment_it_resumes_to_the_same_numbers(tmp_path, build, norm, attack, schedule):
    training = settings(attack=attack, schedule=schedule)
    data, validation, checkpoint = dataset(), dataset(8, seed=1), tmp_path / "new" / "checkpoint.pt"
    uninterrupted = network(norm, build=build)
    wanted = fit(uninterrupted, data, training, validation=validation)
    # In epoch 1 (nothing is saved yet), at the end of epoch 1, in epoch 2 twice, in epoch 3, at the end.
    moments = [{"step": 2}, {"epoch": 1}, {"step": 1}, {"step": 3}, {"step": 5}, {"epoch": 3}]
    for number, moment in enumerate(moments):
        # Once a checkpoint is there, not even the initial weights matter.
        model = network(norm, build=build, seed=number if checkpoint.exists() else 0)
        torch.manual_seed(number)
        with pytest.raises(Killed):
            fit(model, data, training, validation=validation, checkpoint=checkpoint, **killed_at(**moment))
    model = network(norm, build=build, seed=9)
    history = fit(model, data, training, validation=validation, checkpoint=checkpoint, **killed_at(step=1))
    same(model, uninterrupted)
    assert untimed(history) == untimed(wanted)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


def long_training():
    return settings(epochs=6, attack=PGD2, schedule="one_cycle")


def slow_fit(checkpoint, threads):
    """What the process runs that is about to be killed."""
    torch.set_num_threads(threads)
    fit(network(), dataset(), long_training(), checkpoint=Path(checkpoint), on_step=lambda: time.sleep(0.1))


def test_sigkill(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    call = f"import test_resume; test_resume.slow_fit({str(checkpoint)!r}, {torch.get_num_threads()})"
    process = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parent)
    try:
        while not checkpoint.exists():
            assert process.poll() is None, "the training ended before it could be killed"
            time.sleep(0.02)
        time.sleep(0.15)  # into the next epoch
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(torch.load(checkpoint, weights_only=True)["history"]) < 6
    resumed, uninterrupted = network(seed=1), network()
    history = fit(resumed, dataset(), long_training(), checkpoint=checkpoint)
    assert untimed(history) == untimed(fit(uninterrupted, dataset(), long_training()))
    same(resumed, uninterrupted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"lr": 0.06}}, "other settings.*remove it, or name another.*0.05.*0.06"),
        ({"training": {"attack": PGDL2(0.03, steps=2)}}, r"other settings.*PGD\(.*PGDL2\("),
        ({"training": {"epochs": 4}}, "other settings"),
        ({"training": {"label_smoothing": 0.1}}, "other settings"),
        ({"training": {"augment": False}}, "other settings"),
        ({"data": 1}, "other images"),
        ({"network": {"p": 0.3}}, r"other network.*p=0\.2.*p=0\.3"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, change, message):
    training, checkpoint = settings(epochs=1, attack=PGD2), tmp_path / "checkpoint.pt"
    fit(network("robust_norm", p=0.2), dataset(), training, checkpoint=checkpoint)
    model = network("robust_norm", **{"p": 0.2, **change.get("network", {})})
    before = copy.deepcopy(model.state_dict())
    other = replace(training, **change.get("training", {}))
    with pytest.raises(ValueError, match=message):
        fit(model, dataset(seed=change.get("data", 0)), other, checkpoint=checkpoint)
    torch.testing.assert_close(model.state_dict(), before, **exact)

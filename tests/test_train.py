"""Training against a loop written by hand, and against itself after it was killed at any moment."""

import copy
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rnlib import train
from rnlib.attacks import BIM, PGD, PGDL2, Attack
from rnlib.data import Dataset, batches
from rnlib.evaluate import measure
from rnlib.models import resnet, vgg
from rnlib.norms import Norm
from rnlib.precision import Bfloat16, WideProducts
from rnlib.train import Training, TrainingDiverged, fit

exact = {"rtol": 0, "atol": 0}
PGD2 = PGD(0.03, steps=2)


def dataset(n=20, seed=0):
    """Noise, brighter the higher the class: 3 steps of 8 images an epoch."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    noise = torch.randint(100, (n, 3, 8, 8), generator=generator)
    images = (noise + 70 * labels[:, None, None, None]).to(torch.uint8)
    return Dataset("noise", images, labels, ("a", "b", "c"))


def network(norm="batch_norm", seed=0, build=resnet, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(8 if build is resnet else 11, norm, width=4, num_classes=3, **options)


def settings(**options):
    return Training(**{"epochs": 3, "batch_size": 8, "lr": 0.05, "milestones": (1, 2), **options})


def untimed(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def same(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), **exact)


# --- what a step does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [None, PGD2])
def test_fit_is_sgd_with_momentum_on_the_augmented_batches(attack):
    training = settings(epochs=2, seed=4, milestones=(1,), momentum=0.8, weight_decay=0.01, attack=attack)
    data, model, by_hand = dataset(), network(), network().to(memory_format=torch.channels_last)
    history = fit(model, data, training)
    velocity = {name: torch.zeros_like(p) for name, p in by_hand.named_parameters()}
    for epoch in range(2):
        order, noise = (torch.Generator().manual_seed(100_003 * 4 + epoch + k * 10**9) for k in range(2))
        loss_sum = correct = 0
        for x, y in batches(data, 8, generator=order, augmented=True):
            if attack is not None:
                x = attack(by_hand, x, y, generator=noise, update_buffers=True)
            logits = by_hand(x)
            loss = F.cross_entropy(logits, y)
            gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
            with torch.no_grad():
                for (name, p), gradient in zip(by_hand.named_parameters(), gradients, strict=True):
                    velocity[name] = 0.8 * velocity[name] + gradient + 0.01 * p
                    p -= 0.05 / 10**epoch * velocity[name]
            loss_sum += loss.item() * len(y)
            correct += (logits.argmax(1) == y).sum().item()
        assert history[epoch]["train_loss"] == pytest.approx(loss_sum / 20, rel=1e-3)
        assert history[epoch]["train_accuracy"] == pytest.approx(100 * correct / 20)
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "no_norm"])
def test_the_loss_falls(norm):
    history = fit(network(norm), dataset(32), settings(epochs=8, schedule="one_cycle"))
    assert history[-1]["train_loss"] < 0.85 * history[0]["train_loss"]
    assert [record["epoch"] for record in history] == list(range(1, 9))


@pytest.mark.parametrize(("norm", "modes"), [("robust_norm", ["tracked", "batch"]), ("no_norm", ["none"])])
def test_one_training_is_measured_in_every_statistics_mode(norm, modes):
    model, validation = network(norm), dataset(12, seed=1)
    history = fit(model, dataset(), settings(epochs=1), validation=validation)
    columns = [f"val_{kind}_{mode}" for mode in modes for kind in ("loss", "accuracy")]
    assert list(history[0]) == ["epoch", "lr", "train_loss", "train_accuracy", *columns, "seconds"]
    for mode in modes:
        correct, loss, _ = measure(model, validation, statistics=mode)
        assert history[0][f"val_loss_{mode}"] == loss
        assert history[0][f"val_accuracy_{mode}"] == 100 * correct.float().mean().item()


def test_validation_changes_nothing():
    model, alone = network(), network()
    fit(model, dataset(), settings(attack=PGD2), validation=dataset(12, seed=1))
    fit(alone, dataset(), settings(attack=PGD2))
    same(model, alone)


def test_clip_bounds_the_step():
    def step(clip):
        model = network()
        before = copy.deepcopy(model)
        fit(model, dataset(8), settings(epochs=1, lr=2, momentum=0, weight_decay=0, clip=clip))
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        return sum((new - old).square().sum().item() for new, old in pairs) ** 0.5

    assert step(0.01) == pytest.approx(0.02, rel=1e-3)
    assert step(None) > 0.2
    assert step(1e6) == step(None)


def test_frozen_parameters_stay_frozen():
    model = network()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    fit(model, dataset(), settings(epochs=1, attack=PGD2))
    assert torch.equal(model[1].weight, before)


@pytest.mark.parametrize("build", [resnet, vgg])
def test_the_global_random_state_neither_matters_nor_changes(build):
    model, other = network(build=build), network(build=build)
    torch.manual_seed(1)
    fit(model, dataset(), settings(epochs=1, attack=PGD2))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    fit(other, dataset(), settings(epochs=1, attack=PGD2))
    assert torch.equal(torch.random.get_rng_state(), before)
    same(model, other)


def test_seed_decides_the_order():
    model, other = network(), network()
    fit(model, dataset(), settings(epochs=1))
    fit(other, dataset(), settings(epochs=1, seed=1))
    assert not torch.equal(model[-1].weight, other[-1].weight)


def test_order_attack_and_dropout_have_streams_of_their_own(monkeypatch):
    """The CPU's generators look at 32 bits of a seed only."""
    seeds, model, images = [], network(), dataset()
    seen = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or seen(seed))

    class Spy(torch.Generator):
        def manual_seed(self, seed):
            seeds.append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Spy)
    fit(model, images, settings(epochs=2, attack=PGD2))
    assert len({seed % 2**32 for seed in seeds}) == len(seeds) == 6


# --- speed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "no_norm"])
def test_bfloat16_stays_near_float32(norm):
    """A step in 8 bits of mantissa has the loss within 2% and a direction within 25 degrees."""
    models, losses, steps = [network(norm) for _ in range(2)], [], []
    before = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    for model, precision in zip(models, ("float32", "bfloat16"), strict=True):
        training = settings(epochs=1, batch_size=64, precision=precision)
        losses.append(fit(model, dataset(64), training)[0]["train_loss"])
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
        assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert F.cosine_similarity(*steps, dim=0) > 0.9


def test_wide_products_are_those_of_bfloat16():
    """Against PyTorch's own kernels, whose sums have another order: the last bit of bfloat16 may differ."""
    torch.manual_seed(0)
    x, image_grad = torch.rand(8, 3, 8, 8, requires_grad=True), torch.randn(8, 10)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    answers = []
    for mode in (nullcontext(), WideProducts()):
        with torch.autocast("cpu", torch.bfloat16), mode:
            y = model(x)
        assert y.dtype == torch.bfloat16
        answers.append([y, *torch.autograd.grad((y * image_grad).sum(), [x, *model.parameters()])])
    for native, wide in zip(*answers, strict=True):
        assert wide.dtype == native.dtype
        torch.testing.assert_close(wide, native, rtol=0.02, atol=0.01 * native.abs().max().item())
    exact = model(x)
    assert not torch.equal(answers[1][0].float(), exact)
    torch.testing.assert_close(answers[1][0].float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("supported", [True, False])
def test_products_are_wide_where_bfloat16_has_no_kernels(supported, monkeypatch):
    used = []

    class Spy(WideProducts):
        def __enter__(self):
            used.append(True)
            return super().__enter__()

    monkeypatch.setattr("rnlib.precision.WideProducts", Spy)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: supported)
    answer = Bfloat16(network())(torch.rand(4, 3, 32, 32))
    assert (answer.dtype, bool(used)) == (torch.float32, not supported)


def test_products_are_wide_where_pytorch_has_no_onednn(monkeypatch):
    """As in its wheels for macOS, which lack the operator that tells about kernels."""
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    monkeypatch.setattr("torch.ops.mkldnn", object())
    assert Bfloat16(nn.Identity()).wide_on_cpu


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_a_compiled_network_trains_as_the_network_does(norm, monkeypatch):
    """The compiler's front end sees all of a step; its C++ back end is its authors' to test."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    model, plain = network(norm), network(norm)
    history = fit(model, dataset(16), settings(epochs=2, attack=PGD2, compile=True))
    assert graphs
    assert untimed(history) == untimed(fit(plain, dataset(16), settings(epochs=2, attack=PGD2)))
    same(model, plain)


def test_contiguous_weights_stay_contiguous():
    model, usual = network(), network()
    options = {"epochs": 2, "attack": PGD2}
    history = fit(model, dataset(), settings(channels_last=False, **options), validation=dataset(8))
    assert all(weight.is_contiguous() for weight in model.parameters())
    expected = fit(usual, dataset(), settings(**options), validation=dataset(8))
    assert [r["train_loss"] for r in history] == pytest.approx([r["train_loss"] for r in expected], rel=1e-3)


@pytest.mark.parametrize("attack", [None, PGD2, PGDL2(0.03, steps=2)])
@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_no_step_waits_for_the_device(norm, attack):
    """Every .item(), float() or bool() of a tensor is one of these operators."""
    waits, steps = [], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
                waits.append(len(steps))
            return function(*args, **(kwargs or {}))

    with Watch():
        fit(network(norm), dataset(48), settings(epochs=1, attack=attack), on_step=lambda: steps.append(0))
    # the look at the loss in the first step of an epoch, and those after the last
    assert len(steps) == 6
    assert set(waits) <= {0, 6}
    assert waits.count(0) == 1


# --- schedules ----------------------------------------------------------------------------------------------


def rates(steps, **options):
    """The learning rate of every step, then that after the last."""
    training = settings(lr=0.4, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], training.lr)
    schedule = train._schedule(optimizer, training, steps)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps * training.epochs):
        optimizer.step()
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_step_schedule_divides_by_ten_after_the_milestones():
    found = rates(3, epochs=5, milestones=(2, 4))
    assert found[:-1] == pytest.approx([0.4] * 6 + [0.04] * 6 + [0.004] * 3)
    history = fit(network(), dataset(), settings(lr=0.4, epochs=3, milestones=(2,)))
    assert [record["lr"] for record in history] == pytest.approx([0.4, 0.04, 0.04])


def test_one_cycle_rises_for_a_fifth_of_the_steps_and_falls_to_zero():
    found = rates(50, epochs=4, schedule="one_cycle")
    top = found.index(max(found))
    assert max(found) == pytest.approx(0.4, rel=0.01)
    assert top == pytest.approx(0.2 * 200, abs=2)
    assert found[0] == pytest.approx(0.4 / 25)
    assert found[-1] < 1e-5 * 0.4
    changes = torch.tensor(found).diff()
    for part in (changes[: top - 1], changes[top + 1 :]):  # straight lines
        torch.testing.assert_close(part, part[:1].expand_as(part), rtol=1e-2, atol=1e-7)
    assert changes[0] > 0 > changes[-1]


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_takes_any_number_of_steps(steps):
    found = rates(steps, epochs=1, schedule="one_cycle")
    assert 0 < min(found) == found[-1] < 1e-5
    assert max(found) <= 0.4


# --- crafting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crafting", "updates"), [("train", 3), ("train-frozen", 1), ("eval", 1)])
@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", nn.BatchNorm2d])
def test_running_statistics_are_updated_once_a_step_or_at_every_forward(norm, crafting, updates):
    model = network(norm)
    fit(model, dataset(), settings(epochs=2, attack=PGD2, crafting=crafting))
    counts = {m.num_batches_tracked.item() for m in model.modules() if isinstance(m, Norm | nn.BatchNorm2d)}
    assert counts == {2 * 3 * updates}


@dataclass(frozen=True)
class Spy(Attack):
    """Answers grey images and notes the mode that the model is in."""

    seen: list

    def _perturb(self, task, x, generator):
        self.seen.append({m.training for m in task.model.modules()})
        return torch.full_like(x, 0.25)


@pytest.mark.parametrize(("crafting", "training"), [("train", True), ("train-frozen", True), ("eval", False)])
def test_the_mode_of_crafting_and_that_the_crafted_images_are_trained_on(crafting, training):
    model, spy, inputs = network(), Spy([]), []

    def note(module, args):
        inputs.append((module.training, args[0].unique().tolist()))

    model.register_forward_pre_hook(note)
    fit(model, dataset(), settings(epochs=1, attack=spy, crafting=crafting))
    assert spy.seen == [{training}] * 3
    assert inputs == [(True, [0.25])] * 3


@pytest.mark.parametrize("crafting", train.CRAFTING)
def test_an_attack_of_size_zero_is_natural_training(crafting):
    natural, attacked = network(), network()
    fit(natural, dataset(), settings())
    fit(attacked, dataset(), settings(attack=BIM(0.0, steps=2), crafting=crafting))
    for (name, value), other in zip(natural.named_parameters(), attacked.parameters(), strict=True):
        assert torch.equal(value, other), name
    if crafting == "train":
        assert not torch.equal(natural[2].running_mean, attacked[2].running_mean)
    else:
        same(natural, attacked)


# --- divergence ---------------------------------------------------------------------------------------------


def spoil(model):
    with torch.no_grad():
        model[-1].weight.fill_(float("nan"))


def test_divergence_stops_the_run_and_keeps_its_history(tmp_path):
    model, seen, checkpoint = network(), [], tmp_path / "checkpoint.pt"

    def on_epoch(history):
        seen.append(history)
        if len(history) == 2:
            spoil(model)

    message = r"not finite in epoch 3 .*lower lr, or set clip\. The 2 epochs before it"
    with pytest.raises(TrainingDiverged, match=message) as caught:
        fit(model, dataset(), settings(epochs=5), checkpoint=checkpoint, on_epoch=on_epoch)
    assert caught.value.history == seen[-1]
    assert [record["epoch"] for record in caught.value.history] == [1, 2]
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["history"] == caught.value.history
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_a_learning_rate_out_of_all_bounds_diverges():
    with pytest.raises(TrainingDiverged) as caught:
        fit(network("no_norm"), dataset(), settings(lr=1e20))
    assert caught.value.history == []


def test_divergence_is_noticed_within_the_epoch(monkeypatch):
    monkeypatch.setattr(train, "CHECK_EVERY", 1)
    model, steps = network(), []

    def on_step():
        steps.append(None)
        spoil(model)

    with pytest.raises(TrainingDiverged, match=r"epoch 1 \(found at step 1\)"):
        fit(model, dataset(), settings(), on_step=on_step)
    assert len(steps) == 1


def test_the_last_step_may_be_the_one_that_diverges():
    model = network()
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        fit(model, dataset(8), settings(epochs=1), on_step=lambda: spoil(model))


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


@pytest.mark.parametrize("schedule", train.SCHEDULES)
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
    fit(network(), dataset(), long_training(), checkpoint=Path(checkpoint), on_step=lambda: time.sleep(0.2))


def test_sigkill(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    call = f"import test_train; test_train.slow_fit({str(checkpoint)!r}, {torch.get_num_threads()})"
    process = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parent)
    try:
        while not checkpoint.exists():
            assert process.poll() is None, "the training ended before it could be killed"
            time.sleep(0.02)
        time.sleep(0.3)  # into the next epoch
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "schedule is 'cosine'.*'step', 'one_cycle'"),
        ({"crafting": "frozen"}, "crafting is 'frozen'.*'train', 'train-frozen', 'eval'"),
        ({"precision": "float16"}, "precision is 'float16'.*'float32', 'bfloat16'"),
        ({"epochs": 0}, r"epochs \(0\).*must be positive"),
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"lr": 0.0}, r"lr \(0.0\)"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"attack": BIM(0.1, targeted=True)}, "true labels as targets"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_an_empty_training_set_is_an_error():
    with pytest.raises(ValueError, match="'noise' is empty"):
        fit(network(), dataset(0), settings())

"""Training against loops written by hand, mostly to the last bit."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_training import PGD2, dataset, network, same, settings, stop, untimed
from torch import nn
from torch.nn import functional as F

from rnlib import (
    BIM,
    PGD,
    Attack,
    Norm,
    Training,
    TrainingDiverged,
    fit,
    fit_many,
    load,
    measure,
    resnet,
    train,
    vgg,
)
from rnlib.data import batches

# --- what a step does ---------------------------------------------------------------------------------------


def smoothed(logits, y, share):
    """Cross-entropy with a target of which this share is spread evenly over all classes."""
    target = (1 - share) * F.one_hot(y, logits.shape[1]) + share / logits.shape[1]
    return -(target * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize(
    ("attack", "share", "augment"),
    [(None, 0.0, True), (PGD2, 0.0, True), (None, 0.2, False), (PGD2, 0.3, True)],
)
def test_fit_is_sgd_with_momentum_on_the_augmented_batches(attack, share, augment):
    options = {"attack": attack, "label_smoothing": share, "augment": augment}
    training = settings(epochs=2, seed=4, milestones=(1,), momentum=0.8, weight_decay=0.01, **options)
    data, model, by_hand = dataset(), network(), network().to(memory_format=torch.channels_last)
    history = fit(model, data, training)
    velocity = {name: torch.zeros_like(p) for name, p in by_hand.named_parameters()}
    for epoch in range(2):
        order, noise = (torch.Generator().manual_seed(100_003 * 4 + epoch + k * 10**9) for k in range(2))
        loss_sum = correct = 0
        for x, y in batches(data, 8, generator=order, augmented=augment):
            if attack is not None:
                x = attack(by_hand, x, y, generator=noise, update_buffers=True)
            logits = by_hand(x)
            loss = smoothed(logits, y, share)
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


@pytest.mark.parametrize("crafting", train.CRAFTING)
def test_every_layer_keeps_the_mode_that_it_came_in(crafting):
    model = network().eval()
    model[2].train()
    before = [m.training for m in model.modules()]
    fit(model, dataset(), settings(epochs=1, attack=PGD2, crafting=crafting), validation=dataset(8))
    assert [m.training for m in model.modules()] == before
    with pytest.raises(TrainingDiverged):
        fit(model, dataset(8), settings(epochs=1), on_step=lambda: spoil(model))
    assert [m.training for m in model.modules()] == before


def plain_loop(model, data, training):
    """Training as one writes it by hand: each image cropped alone, PyTorch's optimizer, rates by epoch."""
    network = train.Bfloat16(model) if training.precision == "bfloat16" else model
    memory = torch.channels_last if training.channels_last else torch.contiguous_format
    model.to(memory_format=memory)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, training.momentum, weight_decay=1e-4)
    for epoch in range(training.epochs):
        optimizer.param_groups[0]["lr"] = training.lr * (0.1 if epoch in training.milestones else 1)
        order, noise = (torch.Generator().manual_seed(100_003 * 3 + epoch + k * 10**9) for k in range(2))
        for index in torch.randperm(len(data), generator=order).split(training.batch_size):
            x, y, n = data.images[index], data.labels[index], len(index)
            if training.augment is not False:
                draws = [*torch.randint(9, (2, n), generator=order), torch.randint(2, (n,), generator=order)]
                padded = zip(F.pad(x, (4, 4, 4, 4)), *draws, strict=True)
                x = torch.stack([p[:, r : r + 28, c : c + 28].flip([2] * m) for p, r, c, m in padded])
            x = (x.float() / 255).contiguous(memory_format=memory)
            if training.attack is not None:
                model.train(training.crafting != "eval")
                tracked = training.crafting == "train"
                x = training.attack(network, x, y, generator=noise, update_buffers=tracked)
            model.train()
            loss = F.cross_entropy(network(x), y, label_smoothing=training.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if training.clip:
                nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()


SLOPED = PGD((0.03,), steps=2, step_size=(0.01,))
WAYS = [
    {},
    {"attack": PGD2},
    {"precision": "bfloat16"},
    {"precision": "bfloat16", "attack": SLOPED, "label_smoothing": 0.1},
    {"attack": SLOPED, "crafting": "eval", "channels_last": False, "augment": False, "clip": 0.5},
]


def grey(norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet(8, norm, in_channels=1, width=4, mean=(0.286,), std=(0.353,))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_fit_many_fit_and_a_plain_loop_come_to_the_same_bits(norm, tmp_path):
    """However the training is done: natural or adversarial, in either precision, broken off and resumed."""
    sample = load("fashion-mnist-sample").subset(torch.arange(100))
    ways = [Training(epochs=2, batch_size=48, milestones=(1,), seed=3, **options) for options in WAYS]
    files, calls = [None, None, tmp_path / "c", None, str(tmp_path / "d")], []
    with pytest.raises(KeyboardInterrupt):
        fit(grey(norm), sample, ways[2], checkpoint=files[2], on_epoch=stop)
    together, alone, hand = ([grey(norm) for _ in ways] for _ in range(3))
    options = {"on_epoch": lambda place, history: calls.append((place, len(history)))}
    histories = fit_many(together, sample, ways, checkpoints=files, **options)
    assert calls == [(place, epoch) for place in range(5) for epoch in (1, 2)]
    for place, training in enumerate(ways):
        assert untimed(histories[place]) == untimed(fit(alone[place], sample, training))
        plain_loop(hand[place], sample, training)
        same(together[place], alone[place])
        same(together[place], hand[place])
    assert all(file is None or Path(file).exists() for file in files)


def test_of_many_the_one_that_diverges_says_so_and_the_others_are_trained():
    models, alone = [network(), network(), network()], network()
    first, broken, last = fit_many(models, dataset(), [settings(), settings(lr=1e30), settings()])
    assert isinstance(broken, TrainingDiverged)
    assert (broken.epoch, broken.history) == (1, [])
    assert untimed(first) == untimed(last) == untimed(fit(alone, dataset(), settings()))
    same(models[2], alone)


def test_many_need_each_their_own():
    model = network()
    for models, more in [([model, model], {}), ([model], {"checkpoints": [None, None]})]:
        with pytest.raises(ValueError, match=r"\[1, 2\] different models, settings and checkpoints"):
            fit_many(models, dataset(), settings(), **more)
    with pytest.raises(ValueError, match=r"\[1, 3\] different models"):
        fit_many([model], dataset(), [settings()] * 3)


# --- the step, and chance -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "schedule is 'cosine'.*'step', 'one_cycle'"),
        ({"crafting": "frozen"}, "crafting is 'frozen'.*'train', 'train-frozen', 'eval'"),
        ({"precision": "float16"}, "precision is 'float16'.*'float32', 'bfloat16'"),
        ({"epochs": 0}, "epochs is 0, it must be a whole number from 1 up"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"lr": 0.0}, "lr is 0.0, it must be a number above 0"),
        ({"momentum": None}, "momentum is None"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0, it must be a number in \[0, 1\)"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"compile": "yes"}, "compile is 'yes', it must be True or False"),
        ({"optimizer": "adam"}, "optimizer is 'adam', it must be None or a class"),
        ({"augment": "flip"}, "augment is 'flip'"),
        ({"attack": BIM(0.1, targeted=True)}, "attack is BIM.*it must be untargeted"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


@pytest.mark.parametrize("attack", [PGD, "pgd"])
def test_an_attack_is_an_instance(attack):
    with pytest.raises(TypeError, match=r"attack is a (class PGD|str), it must be an instance of .*Attack"):
        settings(attack=attack)

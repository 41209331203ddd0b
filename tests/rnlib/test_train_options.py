"""Training with optimizers, augmentations and data of one's own."""

import copy

import pytest
import torch
from tiny_training import PGD2, dataset, network, same, settings, stop
from torch import nn
from torch.nn import functional as F

from rnlib import (
    BatchNorm,
    Training,
    fit,
    measure,
    resnet,
)
from rnlib.data import augment, batches, to_float


def test_an_optimizer_of_ones_own_is_told_rate_and_decay():
    model, by_hand, data = network(), network(), dataset()
    training = settings(epochs=1, optimizer=torch.optim.AdamW, weight_decay=0.1, augment=False)
    fit(model, data, training)
    adam = torch.optim.AdamW(
        by_hand.to(memory_format=torch.channels_last).parameters(), lr=0.05, weight_decay=0.1
    )
    for x, y in batches(data, 8, generator=torch.Generator().manual_seed(0)):
        adam.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        adam.step()
    same(model, by_hand)


@pytest.mark.parametrize(
    ("size", "drop_last", "counts"),
    [(8, True, [8, 8]), (8, False, [8, 8, 4]), (10, True, [10, 10])],
)
def test_a_smaller_last_batch_may_be_left_out(size, drop_last, counts):
    model, seen = network(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    options = {"epochs": 1, "batch_size": size, "schedule": "one_cycle"}
    history = fit(model, dataset(), settings(drop_last=drop_last, **options))
    assert seen == counts
    assert history[0]["lr"] < 1e-4  # the schedule knows the number of steps


def test_one_image_left_over_is_an_error_of_batch_norm_that_drop_last_avoids():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), BatchNorm(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="drop_last=True"):
        fit(copy.deepcopy(model), dataset(9), settings(epochs=1))
    assert fit(model, dataset(9), settings(epochs=1, drop_last=True))[0]["train_loss"] > 0


def darker(x):
    return x * torch.rand(len(x), 1, 1, 1)


def test_an_augmentation_of_ones_own_is_given_images_and_repeats_itself(tmp_path):
    shown, models = [], [network(), network(seed=1), network()]

    def noted(x):
        assert 0 <= x.min() <= x.max() <= 1
        shown.append(darker(x))
        return shown[-1]

    models[0].register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    fit(models[0], dataset(), settings(epochs=1, augment=noted))
    assert all(torch.equal(given, seen) for given, seen in zip(shown[::2], shown[1::2], strict=True))
    twice, kept, whole = settings(epochs=2, augment=darker), tmp_path / "checkpoint.pt", network()
    with pytest.raises(KeyboardInterrupt):
        fit(models[2], dataset(), twice, checkpoint=kept, on_epoch=stop)
    fit(models[1], dataset(), twice, checkpoint=kept)
    fit(whole, dataset(), twice)
    same(models[1], whole)


class Pictures(torch.utils.data.Dataset):
    """The images of the tiny data set, as people have theirs."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return to_float(self.data.images[index]), int(self.data.labels[index])


def test_the_batches_of_a_loader_are_trained_on_as_they_come():
    data, model, by_hand = dataset(), network(), network().to(memory_format=torch.channels_last)
    loader = torch.utils.data.DataLoader(Pictures(data), batch_size=6)
    history = fit(model, loader, settings(epochs=2, attack=PGD2), validation=loader)
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.05, 0.9, weight_decay=1e-4)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.05 / 10**epoch
        noise = torch.Generator().manual_seed(epoch + 10**9)
        for x, y in batches(data, 6):
            x = PGD2(by_hand, x, y, generator=noise, update_buffers=True)
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x), y).backward()
            optimizer.step()
    same(model, by_hand)
    assert history[1]["val_accuracy_tracked"] == 100 * measure(by_hand, data, batch_size=6)[0].float().mean()


def test_a_data_set_of_pytorch_is_shuffled_in_an_order_of_the_seed_and_each_image_seen_once():
    data, orders = dataset(), []
    for seed in (0, 0, 1):
        model, seen = network(), []
        model.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        fit(model, Pictures(data), settings(epochs=1, seed=seed))
        assert [len(x) for x in seen] == [8, 8, 4]
        orders.append(
            [(x == to_float(data.images)).flatten(1).all(1).nonzero().item() for x in torch.cat(seen)]
        )
    assert sorted(orders[0]) == list(range(20)) != orders[0] == orders[1] != orders[2]


def test_tensors_are_trained_on_as_the_data_set_that_they_make():
    model, other, data = network(), network(), dataset()
    fit(model, data, settings())
    fit(other, (data.images, data.labels), settings())
    same(model, other)


def test_images_of_a_loader_are_augmented_if_that_is_asked_for():
    data, model, seen = dataset(), network(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    fit(model, [(to_float(data.images), data.labels)], settings(epochs=1, augment=True))
    wanted = augment(data.images, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], to_float(wanted))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": resnet}, TypeError, "model is a function, it must be an instance of .*Module"),
        ({"training": Training}, TypeError, "training is a class Training, it must be an instance of"),
        ({"dataset": "cifar10"}, TypeError, r"is a str.*rnlib\.load"),
        (
            {"dataset": [(torch.full((2, 3, 8, 8), 2.0), torch.tensor([0, 1]))]},
            ValueError,
            r"\[2, 2\].*\[0, 1\]",
        ),
        ({"dataset": iter(())}, ValueError, "too small or without length"),
        ({"dataset": dataset(0)}, ValueError, "'noise' is empty"),
        (
            {"training": settings(batch_size=30, drop_last=True)},
            ValueError,
            "'noise' .* no batch of 30 images",
        ),
        ({"dataset": Pictures(dataset()), "checkpoint": "here.pt"}, ValueError, "on Pictures cannot resume"),
    ],
)
def test_what_cannot_be_trained_is_named(given, error, message):
    with pytest.raises(error, match=message):
        fit(**{"model": network(), "dataset": dataset(), "training": settings(), **given})

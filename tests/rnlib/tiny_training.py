"""A data set, a network and settings that train in a moment."""

import torch

from rnlib import PGD, Dataset, Training, resnet

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


def stop(history):
    raise KeyboardInterrupt

"""Augmentation, batches, the fixed test order and the Dataset itself."""

import pytest
import torch
import torch.nn.functional as F

from rnlib import data


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(n=10, *, channels=3, size=6):
    images = torch.randint(256, (n, channels, size, size), generator=seeded(1), dtype=torch.uint8)
    return data.Dataset("made", images, torch.arange(n) % 3, ("a", "b", "c"))


@pytest.mark.parametrize(("padding", "flip", "channels"), [(4, True, 3), (2, False, 1), (0, True, 3)])
def test_augment_is_crop_and_mirror_of_each_image(padding, flip, channels):
    images = make(40, channels=channels).images
    result = data.augment(images, seeded(), padding=padding, flip=flip)
    generator = seeded()
    rows, columns = torch.randint(2 * padding + 1, (2, 40), generator=generator)
    mirrored = torch.randint(2, (40,), generator=generator) if flip else torch.zeros(40)
    for i, image in enumerate(F.pad(images, (padding,) * 4)):
        expected = image[:, rows[i] : rows[i] + 6, columns[i] : columns[i] + 6]
        expected = expected.flip(2) if mirrored[i] else expected
        assert torch.equal(result[i], expected)
    assert result.dtype == torch.uint8


def test_augment_follows_its_generator_and_leaves_its_input():
    images = make(20).images
    before = images.clone()
    first = data.augment(images, seeded())
    assert torch.equal(first, data.augment(images, seeded()))
    assert not torch.equal(first, data.augment(images, seeded(1)))
    assert torch.equal(images, before)


def test_every_offset_and_mirroring_is_equally_likely():
    n = 16200  # 100 for each of 9 x 9 offsets and 2 orientations
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)  # a pixel tells where it came from
    result = data.augment(ramp.expand(n, 1, 16, 16), seeded()).long()
    centre, right = result[:, 0, 8, 8], result[:, 0, 8, 9]
    mirrored = (right < centre).long()
    row, column = centre // 16 - 4, centre % 16 - 4 + mirrored
    count = torch.bincount((row * 9 + column) * 2 + mirrored, minlength=162)
    assert len(count) == 162
    chi_square = ((count - 100.0) ** 2 / 100).sum().item()
    assert (
        chi_square < 161 + 4 * (2 * 161) ** 0.5
    )  # mean plus 4 standard deviations of chi-square with 161 degrees


def test_to_float_covers_0_to_1():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert data.to_float(images).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert data.to_float(images).dtype == torch.float32


def test_batches_in_order():
    dataset = make()
    found = list(data.batches(dataset, 4))
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in found]), data.to_float(dataset.images))
    assert torch.equal(torch.cat([labels for _, labels in found]), dataset.labels)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
    images, _ = next(data.batches(dataset, 4, channels_last=False))
    assert images.is_contiguous()


@pytest.mark.parametrize(("n", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, [])])
def test_batches_drop_last(n, sizes):
    assert [len(labels) for _, labels in data.batches(make(n), 4, drop_last=True)] == sizes


def test_shuffled_batches_hold_every_image_once_with_its_label():
    dataset = make(10)
    images, labels = zip(*data.batches(dataset, 3, generator=seeded()), strict=True)
    order = torch.randperm(10, generator=seeded())
    assert torch.equal(torch.cat(images), data.to_float(dataset.images[order]))
    assert torch.equal(torch.cat(labels), dataset.labels[order])


def test_augmented_batches_repeat_with_the_same_seed():
    dataset = make(10)
    first, again = (list(data.batches(dataset, 4, generator=seeded(), augmented=True)) for _ in range(2))
    plain = list(data.batches(dataset, 4, generator=seeded()))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], plain[0][0])
    assert torch.equal(first[0][1], plain[0][1])  # augmentation does not change which images are drawn


def test_bad_batches_fail_at_the_call():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.batches(make(), 0)
    with pytest.raises(ValueError, match="pass generator="):
        data.batches(make(), 2, augmented=True)


def test_test_order_is_fixed_and_mixes_classes():
    order = data.test_order(10_000)
    assert torch.equal(order, data.test_order(10_000))
    assert torch.equal(order.sort().values, torch.arange(10_000))
    assert not torch.equal(order, data.test_order(10_000, seed=1))
    classes = (order // 1000).reshape(100, 100)  # batches of 100 of a set ordered by class
    assert min(batch.unique().numel() for batch in classes) >= 9


def test_dataset_subset_and_fingerprint():
    dataset = make()
    part = dataset.subset(torch.tensor([7, 2]))
    assert torch.equal(part.images, dataset.images[[7, 2]])
    assert part.labels.tolist() == [1, 2]
    assert part.classes == dataset.classes
    same = dataset.subset(torch.arange(10))
    assert len(dataset.fingerprint) == 16
    assert dataset.fingerprint == same.fingerprint != part.fingerprint
    relabelled = data.Dataset("made", dataset.images, dataset.labels.flip(0), dataset.classes)
    assert relabelled.fingerprint != dataset.fingerprint
    with pytest.raises(AttributeError):
        dataset.name = "other"


def test_dataset_refuses_wrong_tensors():
    good = make()
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, C, H, W\), got torch.float32"):
        data.Dataset("x", good.images.float(), good.labels, good.classes)
    with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.uint8 \(10, 3, 6\)"):
        data.Dataset("x", good.images[..., 0], good.labels, good.classes)
    with pytest.raises(ValueError, match=r"labels must be int64 \(10,\), got torch.int64 \(9,\)"):
        data.Dataset("x", good.images, good.labels[:9], good.classes)

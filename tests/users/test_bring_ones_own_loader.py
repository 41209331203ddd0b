"""Someone measures and audits with the data sets and loaders of PyTorch that they have already."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from torchvision import datasets, transforms

import rnlib
from rnlib.evaluate import stream
from rnlib.norms import BatchNorm

ATTACK = rnlib.PGD(0.05, steps=3)


class Colours(nn.Module):
    """Class by the channel that is brightest relative to the batch, so that neighbours count."""

    def __init__(self):
        super().__init__()
        self.norm = BatchNorm(3, affine=False)
        self.norm.running_mean.fill_(0.5)
        self.norm.running_var.fill_(0.02)

    def forward(self, x):
        return self.norm(x.mean((2, 3)))


def coloured(n=44):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return rnlib.Dataset("colours", images, torch.randint(3, (n,), generator=generator), ("r", "g", "b"))


DATA = coloured()
FLOAT = DATA.images.float() / 255
OURS = rnlib.measure(Colours(), DATA, ATTACK, statistics="batch", batch_size=10)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(FLOAT, DATA.labels, strict=True)


@pytest.mark.parametrize(
    "given",
    [
        TensorDataset(FLOAT, DATA.labels),
        TensorDataset(DATA.images, DATA.labels.int()),
        Stream(),
        DataLoader(TensorDataset(FLOAT, DATA.labels), batch_size=10),
        DataLoader(Stream(), batch_size=10),
        DataLoader(DATA, batch_size=10),
        [*zip(FLOAT.split(10), DATA.labels.split(10), strict=True)],
        (FLOAT, DATA.labels),
        (FLOAT.double(), DATA.labels),
        (FLOAT.numpy(), DATA.labels.numpy()),
    ],
    ids=[
        "data set",
        "uint8",
        "iterable",
        "loader",
        "iterable's loader",
        "our set's loader",
        "list",
        "tensors",
        "float64",
        "arrays",
    ],
)
def test_what_holds_the_same_batches_gives_the_same_answers(given):
    size = None if isinstance(given, DataLoader | list) else 10
    correct, loss, distance = rnlib.measure(Colours(), given, ATTACK, statistics="batch", batch_size=size)
    assert torch.equal(correct, OURS[0])
    assert loss == pytest.approx(OURS[1], abs=1e-6)
    torch.testing.assert_close(distance, OURS[2], rtol=0, atol=1e-5)


def test_a_loaders_batches_stay_as_they_are():
    loader = DataLoader(TensorDataset(FLOAT, DATA.labels), batch_size=7, drop_last=True)
    correct, _, _ = rnlib.measure(Colours(), loader, statistics="batch")
    with torch.no_grad(), rnlib.use_statistics(model := Colours().eval(), "batch"):
        wanted = torch.cat([model(x).argmax(1) == y for x, y in loader])
    assert len(correct) == 42
    assert torch.equal(correct, wanted)
    for call in (rnlib.measure, lambda *given, **options: list(rnlib.evaluate(*given, {}, **options))):
        with pytest.raises(
            ValueError, match="batch_size is 4, but a DataLoader has its own: leave batch_size"
        ):
            call(Colours(), loader, batch_size=4)


def test_a_loader_that_shuffles_gives_all_attacks_the_same_batches():
    loader = DataLoader(TensorDataset(FLOAT, DATA.labels), batch_size=10, shuffle=True)
    attacks = {"clean": None, "nothing": rnlib.BIM(0.0, steps=1)}
    found = list(rnlib.evaluate(Colours(), loader, attacks))
    assert {one.batches for one in found} == {"as the loader made them"}
    for mode in ("tracked", "batch"):
        clean, nothing = (one.correct for one in found if one.statistics == mode)
        assert torch.equal(clean, nothing)
    (one,) = rnlib.evaluate(Colours(), DATA, {"clean": None}, statistics=["batch"], batch_size=3)
    assert one.batches == "3 images in their order"


def test_an_audit_makes_its_own_batches_of_a_loaders_images():
    loader = DataLoader(TensorDataset(FLOAT, DATA.labels), batch_size=7)
    ours = rnlib.audit_batch_dependence(Colours(), DATA, batch_sizes=[2, 22])
    theirs = rnlib.audit_batch_dependence(Colours(), loader, batch_sizes=[2, 22])
    assert [(r.accuracy, r.changed) for r in theirs.table] == [(r.accuracy, r.changed) for r in ours.table]
    assert max(record.changed for record in theirs.table) > 10


def test_a_folder_of_images_as_torchvision_reads_it(tmp_path):
    for index, image in enumerate(DATA.images[:6]):
        folder = tmp_path / "test" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        transforms.functional.to_pil_image(image).save(folder / f"{index}.png")
    theirs = datasets.ImageFolder(tmp_path / "test", transforms.ToTensor())
    ours = rnlib.load(str(tmp_path), "test")
    found = [rnlib.measure(Colours(), one, statistics="batch", batch_size=6) for one in (ours, theirs)]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)


def rows(n=4):
    return [{"image": image, "label": label} for image, label in zip(FLOAT[:n], DATA.labels, strict=False)]


NORMALISED = (FLOAT - 0.5) / 0.2


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("cifar10", TypeError, r"is a str, .* rnlib.load\(name, 'test'\)"),
        (3, TypeError, "is a int, it must be a Dataset of rnlib or PyTorch, a DataLoader, or a tuple"),
        (
            DataLoader(rows(), 2),
            TypeError,
            r"batch 0 holds dict of \['image', 'label'\]; .* \(\(batch\['image'\], batch\['label'\]\)",
        ),
        (
            [(FLOAT, DATA.labels, DATA.labels)],
            TypeError,
            r"batch 0 holds Tensor, Tensor, Tensor; .*\(x, y\) for x, y, \*_",
        ),
        ([(FLOAT, nn.functional.one_hot(DATA.labels))], ValueError, r"labels must be int64 \(44,\)"),
        ([(FLOAT, DATA.labels.float())], ValueError, r"labels must be int64 \(44,\), got torch.float32"),
        ([(FLOAT.permute(0, 2, 3, 1), DATA.labels)], ValueError, r"\(44, 4, 4, 3\)"),
        ([(NORMALISED, DATA.labels)], ValueError, r"\[-2.5, 2.5\], they must lie in \[0, 1\]; .*Normalize"),
        ((NORMALISED, DATA.labels), ValueError, "they must lie in"),
        ([FLOAT], TypeError, "batch 0 holds Tensor; .* labels are missing"),
        (iter([]), ValueError, "no batch"),
        (TensorDataset(FLOAT[:0], DATA.labels[:0]), ValueError, "no batch"),
    ],
)
def test_what_is_no_batch_of_images_is_named(given, error, message):
    model = rnlib.resnet(8, width=4, num_classes=3)
    with pytest.raises(error, match=message):
        rnlib.measure(model, given)


def test_a_dictionarys_batches_are_made_pairs_as_the_message_says():
    loader = DataLoader(rows(), 2, collate_fn=default_collate)
    correct, _, _ = rnlib.measure(Colours(), ((batch["image"], batch["label"]) for batch in loader))
    assert torch.equal(correct, rnlib.measure(Colours(), (FLOAT[:4], DATA.labels[:4]))[0])


def test_the_number_of_batches_is_known_where_it_can_be():
    assert stream(DATA, 10)[1] == stream(TensorDataset(FLOAT, DATA.labels), 10)[1] == 5
    assert stream(DataLoader(Stream(), 10))[1] == stream(iter([]))[1] == 0

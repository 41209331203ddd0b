"""Every experiment on a tiny run, against the public functions of rnlib that it stands on."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnlib import PGD, Budget, Dataset, Norm, make_norm, measure, paper_eps, resnet, use_statistics
from rnlib.audit import BUDGETS
from rnlib.data import test_order as mixed_order
from study import store, work
from study.experiments import MEASUREMENTS
from study.experiments.along_training import along_training, training_state
from study.experiments.batch import COMPOSITIONS, compose
from study.experiments.channel_statistics import NORMALISERS, activation_spreads
from study.experiments.frozen_statistics import JITTER
from study.experiments.subject import Subject
from study.experiments.transfer import transfer
from study.networks import new_model, trained_model, training_set
from study.runs import make_run

pytestmark = pytest.mark.usefixtures("small_images")
PROFILE = str(Path(__file__).with_name("tiny.yml"))
IMAGES = 60  # of the profile, one batch
EPS = paper_eps("fashion-mnist-sample")


@pytest.fixture(autouse=True)
def shared(trained, monkeypatch):
    """One folder of results for all tests: what is measured once is there for the others."""
    monkeypatch.setenv("RNLIB_RESULTS", str(trained))
    for name in ("book", "five times"):
        monkeypatch.setitem(BUDGETS, name, Budget(steps=2, rounds=1, queries=2))
    monkeypatch.setattr(sys.modules["study.experiments.strongest"], "SINGLE_IMAGES", 5)


@pytest.fixture
def run():
    return make_run(PROFILE)


def measured(run, name):
    table = work.measure_run(run, name)
    return table, store.read_correct(run.directory / f"{name}.npz")


def usual(run, attack, statistics, images=IMAGES):
    dataset = work.test_set(run, images)
    return measure(trained_model(run), dataset, attack, statistics=statistics)[0].numpy()


def subject(run, images=IMAGES):
    return Subject(run, trained_model(run), work.test_set(run, images), "cpu")


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_keeps_rows_and_outcomes(run, name):
    table, outcomes = measured(run, name)
    if "accuracy" not in table:  # rows that are no outcomes of images
        assert not outcomes
        assert name in ("statistics", "landscape", "sharpness", "gradient_sources")
        return
    assert len(table) == len(outcomes) > 1
    for row, correct in zip(table.itertuples(), outcomes.values(), strict=True):
        assert (row.n, row.correct) == (len(correct), correct.sum())
        assert row.accuracy == pytest.approx(100 * correct.mean())


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_the_diagonals_are_the_usual_evaluation(run, statistics):
    wanted = usual(run, PGD(EPS), statistics)
    source = {"tracked": "ema", "batch": "batch"}[statistics]
    for name, key in {
        "transfer": f"pgd_linf/{statistics}/{statistics}",
        "frozen_statistics": f"pgd_linf/{source}",
        "stronger_attacks": f"PGD, 20 steps/{statistics}",
        "square_attack": f"PGD/0.03/{statistics}",
        "transfer_between_seeds": f"0.03/itself/{statistics}",
        "jitter": f"pgd_linf/{statistics}",
        "batch_composition": f"mixed/pgd_linf/{statistics}",
        "released_protocol": f"this book/pgd_linf/{statistics}",
    }.items():
        assert np.array_equal(measured(run, name)[1][key], wanted), name


@pytest.mark.parametrize("statistics", ["tracked", "batch"])
def test_the_sweeps_pass_through_the_usual_evaluation(run, statistics):
    half = usual(run, PGD(EPS), statistics, images=IMAGES // 2)
    assert np.array_equal(measured(run, "eps_sweep")[1][f"pgd_linf/0.03/{statistics}"], half)
    pixels = measured(run, "noise_and_pixel_eps")[1]
    assert np.array_equal(pixels[f"pgd/8/{statistics}"], usual(run, PGD(8 / 255), statistics))


def test_small_batches_classify_differently(run):
    outcomes = measured(run, "batch_size")[1]
    assert np.array_equal(outcomes["clean/100/tracked"], usual(run, None, "tracked"))
    assert np.array_equal(outcomes["clean/20/batch"][:20], usual(run, None, "batch", images=20))
    assert not np.array_equal(outcomes["clean/2/batch"], outcomes["clean/50/batch"])


def test_images_of_the_other_seed_are_crafted_on_its_weights(run):
    """By hand, with the public functions."""
    outcomes = measured(run, "transfer_between_seeds")[1]
    other, data = trained_model(replace(run, seed=1)), work.test_set(run)
    with use_statistics(other, "batch"):
        adv = PGD(EPS)(other, data.images / 255, data.labels, generator=torch.Generator().manual_seed(0))
    with use_statistics(model := trained_model(run), "tracked"), torch.no_grad():
        wanted = model(adv).argmax(1) == data.labels
    assert (outcomes["0.03/batch/tracked"] == wanted.numpy()).mean() > 0.98


def test_reshuffled_images_keep_their_places(run):
    """Images crafted in their batches and tested in others: here by hand, with the public functions."""
    model, data = trained_model(run), work.test_set(run, 200)
    (outcome,) = (
        outcome
        for cell, outcome in transfer(subject(run, 200))
        if cell == {"attack": "grad_sign", "crafted": "tracked", "tested": "reshuffled"}
    )
    x, correct = data.images / 255, torch.zeros(200, dtype=torch.bool)
    attack = subject(run).suite["grad_sign"]
    with use_statistics(model, "tracked"):
        for i, part in enumerate(torch.arange(200).split(100)):
            x[part] = attack(model, x[part], data.labels[part], generator=torch.Generator().manual_seed(i))
    with use_statistics(model, "batch"), torch.no_grad():
        for part in mixed_order(200, 1).split(100):
            correct[part] = model(x[part]).argmax(1) == data.labels[part]
    assert (outcome() == correct).float().mean() > 0.98


def test_the_twin_is_the_clean_batch(run):
    """Statistics frozen at those of the clean batch: clean images are classified as in batch mode."""
    outcomes = measured(run, "frozen_statistics")[1]
    assert (outcomes["clean/twin"] == outcomes["clean/batch"]).mean() > 0.95  # but for unbiased variances


def test_the_strongest_is_on_the_images_of_the_usual_evaluation_and_reshuffling_knows_them(run):
    table, outcomes = measured(run, "strongest")
    whole = table[table.threat == "all attacked"].set_index(["budget", "statistics"])
    assert set(whole.loc["book"].index) == {"batch", "tracked", "plain", "twin"}
    assert not table.attacks.dropna().str.contains("assembled").any()
    more = measured(run, "strongest_five_times")[0]
    assert {*more.threat} == {"all attacked", "reshuffled"}
    assert {*more.budget} == {"five times"}
    assert whole.winners["book", "batch"].endswith(": 1")  # one batch
    # All images are in one batch, whose order does not matter.
    assert np.array_equal(outcomes["all attacked/book/batch"], outcomes["reshuffled/book/batch"])
    alone = outcomes["one attacked/20 steps/batch"]
    assert len(alone) == 5
    for mode in ("batch", "tracked"):
        assert whole.accuracy["book", mode] <= 100 * usual(run, None, mode).mean()
    assert not list(run.directory.glob("checkpoint-*"))


def test_jitter_moves_more_the_larger_it_is(run):
    outcomes = measured(run, "jitter")[1]
    clean = {mode: outcomes[f"clean/{mode}"] for mode in JITTER}
    changed = {mode: (clean[mode] != clean["tracked"]).sum() for mode in JITTER}
    assert 0 <= changed["held"] <= changed["held, 3 x"]
    assert changed["redrawn, 3 x"] > 0


def test_untouched_neighbours_are_clean_images(run):
    table, outcomes = measured(run, "attacks_through_neighbours")
    clean = usual(run, None, "batch")
    for k in (1, 10, 25, 50):
        assert np.array_equal(outcomes[f"{k}/0.0/batch"], clean[k:])
    harmed = table[table.changed == 50].set_index("eps").accuracy
    assert harmed[0.3] <= harmed[0.0]


def test_groups_of_attacked_images_keep_their_places(run):
    """Every image is attacked once for each m, so that outcomes pair with those of whole batches."""
    outcomes = measured(run, "attacked_fraction")[1]
    steps = PGD(EPS, steps=5, step_size=tuple(e / 2 for e in EPS))
    assert np.array_equal(outcomes["100/tracked"], usual(run, steps, "tracked"))
    clean = usual(run, None, "batch")
    for m in (1, 5, 25):
        assert outcomes[f"{m}/batch"].shape == clean.shape
        assert (outcomes[f"{m}/batch"] <= clean).mean() > 0.95  # an attack helps next to no image


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=400), composition=st.sampled_from(COMPOSITIONS)
)
def test_every_image_is_in_one_batch(labels, composition):
    parts = compose(torch.tensor(labels), composition)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))


def test_what_the_compositions_hold():
    labels = torch.arange(1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))] % 10
    held = {name: [labels[part] for part in compose(labels, name)] for name in COMPOSITIONS}
    assert all(len(part) == 100 for parts in held.values() for part in parts)
    assert all(len(part.unique()) == 1 for part in held["single"])
    assert all(part[0] <= part[-1] <= after[0] for part, after in itertools.pairwise(held["sorted"]))
    assert all(part.bincount().max() < 30 for part in held["mixed"])
    assert all(50 <= part.bincount().max() < 70 and len(part.unique()) > 5 for part in held["skewed"])
    assert all(60 < len(part) < 140 for part in compose(torch.arange(10_000) % 10, "single"))


def test_what_depends_on_neighbours_moves_with_them_and_nothing_else(run):
    outcomes = measured(run, "batch_composition")[1]
    for name in COMPOSITIONS:
        assert np.array_equal(outcomes[f"{name}/clean/tracked"], outcomes["mixed/clean/tracked"])
    assert not np.array_equal(outcomes["single/clean/batch"], outcomes["mixed/clean/batch"])


def test_snapshots_are_measured_with_their_own_weights():
    run = make_run(PROFILE, experiment="two_epochs")
    table, outcomes = measured(run, "along_training")
    assert set(table.epoch) == {1, 2}
    data = work.test_set(run)
    for epoch, mode in itertools.product((1, 2), ("tracked", "batch")):
        wanted, _, _ = measure(trained_model(run, epoch), data, statistics=mode)
        assert np.array_equal(outcomes[f"{epoch}/{mode}/clean"], wanted)
        # Precision hardly matters to such a network.
        single, double = (outcomes[f"{epoch}/{mode}/{name}"] for name in ("PGD", "PGD, double precision"))
        assert (single != double).mean() <= 0.1
    state = table[table.attack == "training images"].set_index(["epoch", "statistics"])
    _, loss, _ = measure(trained_model(run), training_set(run), statistics="tracked")
    assert state.loss[2, "tracked"] == pytest.approx(loss, rel=1e-3)
    assert state.confidence.between(0.1, 1).all()
    assert (state.vanished == 0).all()  # nothing is that confident after two epochs


def test_cells_hold_nothing_measured(run):
    for cell, _ in along_training(subject(run)):
        assert list(cell) == ["epoch", "statistics", "attack"]


def test_a_gradient_that_is_zero_is_counted(run):
    """A network so sure of some images that their cross-entropy is 0 in single precision."""
    model = resnet(8, width=2, in_channels=1, num_classes=2)
    with torch.no_grad():
        model(torch.rand(9, 1, 8, 8))
        list(model.modules())[-1].bias.copy_(torch.tensor([200.0, 0.0]))
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    data = Dataset("grey", images, torch.tensor([0] * 7 + [1] * 3), ("a", "b"))
    state, correct = training_state(Subject(run, model.eval(), data, "cpu"), "tracked")
    assert state["confidence"] == 1
    assert state["loss"] == pytest.approx(0.3 * 200, rel=0.05)
    assert correct.sum() == 7
    assert state["vanished"] == pytest.approx(70)


def test_the_released_protocol_repeats_only_what_a_habit_changes(run):
    cells = measured(run, "released_protocol")[0].groupby("habit").attack.agg(set)
    assert cells["noise 0.1"] == {"noise"}
    assert cells["attack in training mode"] == {"grad_sign", "pgd_linf"} == cells["eps in pixels"]
    assert cells["std + eps"] == {"clean", "noise", "grad_sign", "pgd_linf"} == cells["all of its test"]


LAYERS = {
    "batch_norm": ("batch_norm", {}),
    "two_sigma": ("sigma_norm", {"p": 1.0}),
    "mean_range_norm": ("mean_range_norm", {}),
    "robust_norm": ("robust_norm", {"p": 0.2}),
}


def test_spreads_are_those_of_the_layers_themselves(run):
    model, data = new_model(run).eval(), work.test_set(run, 200)
    rows = [(cell, outcome()) for cell, outcome in activation_spreads(Subject(run, model, data, "cpu"))]
    inputs = {name: [] for name, layer in model.named_modules() if isinstance(layer, Norm)}
    for name, layer in model.named_modules():
        if isinstance(layer, Norm):
            assert not layer._forward_pre_hooks  # all taken away
            layer.statistics = "batch"
            layer.register_forward_pre_hook(lambda layer, x, kept=inputs[name]: kept.append(x[0]))
    with torch.no_grad():
        for x in data.images.split(100):
            model(x.float() / 255)
    assert [tuple(cell.values()) for cell, _ in rows] == list(itertools.product(inputs, NORMALISERS))
    for cell, (widths, narrower) in rows:
        name, options = LAYERS[cell["normaliser"]]
        layer = make_norm(name, eps=1e-20, affine=False, **options)
        outputs = [layer(x.shape[1]).double()(x.double()) for x in inputs[cell["layer"]]]
        std = torch.stack([y.std((0, 2, 3), correction=0) for y in outputs])
        assert widths["largest"] == pytest.approx(std.max().item(), rel=1e-4)
        assert widths["std"] == pytest.approx(std.mean(0).median().item(), rel=1e-4)
        if name == "batch_norm":
            assert widths["largest"] == pytest.approx(1)
        else:
            assert torch.equal(narrower, std.mean(0) < 1)
        if name in ("sigma_norm", "mean_range_norm"):
            assert (
                widths["largest"] <= 0.5 + 1e-9
            )  # Eq 13: after Eq 12 none is above 1/2, what 2 sigma leaves

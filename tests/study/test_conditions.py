"""Jitter, compositions, snapshots and the released protocol on tiny runs, against what they are made of."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnlib import PGD, Dataset, measure, paper_eps, resnet, tracked_statistics
from rnlib.jitter import jittered, sampling_noise
from rnlib.norms import BatchNorm
from study import work
from study.experiments.conditions import COMPOSITIONS, JITTER, compose, training_state
from study.experiments.diagnostics import DIAGNOSTICS
from study.report.results import select
from study.runs import PROFILES, chosen_runs, diagnosed, make_run
from rnlib.tracking import batch_statistics, norm_layers

TINY = {"width": 2, "architecture": "resnet8", "train_images": 500, "validation_images": 100}


def network(norm="batch_norm"):
    torch.manual_seed(0)
    model = resnet(8, norm, width=4, in_channels=1).eval()
    for layer in norm_layers(model).values():
        layer.running_statistics[0].normal_()
        layer.running_statistics[1].uniform_(0.5, 2)
    return model


def batches(n=3, size=10):
    return [torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def test_noise_is_the_scatter_of_batch_statistics():
    model = network()
    found = sampling_noise(model, batches())
    for name, (first, second) in found.items():
        kept = [batch_statistics(model, x)[name] for x in batches()]
        assert np.allclose(first, np.std([mean for mean, _ in kept], axis=0, ddof=1), atol=1e-6)
        assert np.allclose(second, np.std(np.log([var for _, var in kept]), axis=0, ddof=1), atol=1e-5)
    same = sampling_noise(model, [batches()[0]] * 3)
    assert all(torch.allclose(value, torch.zeros(())) for pair in same.values() for value in pair)
    with pytest.raises(ValueError, match="images holds 1 batches"):
        sampling_noise(model, batches(1))


@pytest.mark.parametrize("redraw", [False, True])
def test_without_noise_jitter_is_tracked_statistics(redraw):
    model, x = network(), batches()[0]
    noise = sampling_noise(model, [x, x])
    wanted = model(x)
    with jittered(model, noise, torch.Generator(), redraw=redraw):
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
@pytest.mark.parametrize("redraw", [False, True])
def test_jitter_has_the_size_of_the_noise_and_leaves_nothing(norm, redraw):
    model = network(norm)
    before, layers = tracked_statistics(model), norm_layers(model)
    sizes = {name: torch.ones(layer.num_features) for name, layer in layers.items()}
    noise = {name: (0.2 * ones, 0.1 * ones) for name, ones in sizes.items()}
    shifts, logs, answers = [], [], []
    for seed in range(60):
        with jittered(model, noise, torch.Generator().manual_seed(seed), redraw=redraw):
            answers += [model(batches()[0]), model(batches()[0])]
            for name, layer in layers.items():
                shifts.append(layer.running_statistics[0] - before[name][0])
                logs.append((layer.running_statistics[1] / before[name][1]).log())
    assert torch.cat(shifts).std().item() == pytest.approx(0.2, rel=0.1)
    assert torch.cat(logs).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(answers[0], answers[1]) is not redraw
    for name, pair in tracked_statistics(model).items():
        assert all(torch.equal(a, b) for a, b in zip(pair, before[name], strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers.values())


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("wrong", ["missing", "short", "elsewhere"])
def test_noise_that_does_not_fit_leaves_nothing(wrong, redraw):
    model = network()
    before, layers = tracked_statistics(model), norm_layers(model)
    noise, last = sampling_noise(model, batches()), list(layers)[-1]
    good, error, message = noise.pop(last), ValueError, f"does not fit layer '{last}' of 16 channels"
    if wrong == "short":
        noise[last] = (good[0][:-1], good[1])
    if wrong == "elsewhere":
        noise[last], error, message = (good[0], good[1].to("meta")), RuntimeError, "meta"
    with pytest.raises(error, match=message), jittered(model, noise, torch.Generator(), redraw=redraw):
        pass
    for name, pair in tracked_statistics(model).items():
        assert all(torch.equal(a, b) for a, b in zip(pair, before[name], strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers.values())


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
    assert all(part[0] <= part[-1] <= next_part[0] for part, next_part in itertools.pairwise(held["sorted"]))
    assert all(part.bincount().max() < 30 for part in held["mixed"])
    assert all(50 <= part.bincount().max() < 70 and len(part.unique()) > 5 for part in held["skewed"])
    assert all(60 < len(part) < 140 for part in compose(torch.arange(10_000) % 10, "single"))
    with pytest.raises(ValueError, match="composition is 'random', it must be one of"):
        compose(labels, "random")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNLIB_RESULTS", str(tmp_path_factory.mktemp("results")))
        run = make_run("quick", **TINY, epochs=2, snapshots=[1, 2])
        work.train_run(run)
        yield run


def results(run, name, images=100):
    dataset, model = work.test_set(run, images), work.trained_model(run)
    rows = []
    for cell, outcome in DIAGNOSTICS[name](run, model, dataset, "cpu"):
        found = outcome() if callable(outcome) else outcome
        values, correct = found if isinstance(found, tuple) else ({}, found)
        rows.append(cell | values | {"correct": correct.numpy()})
    return dataset, pd.DataFrame(rows)


def outcome(table, **cell):
    return select(table, cell).correct.item()


def test_snapshots_are_measured_with_their_own_weights(trained):
    dataset, table = results(trained, "snapshots")
    assert set(table.epoch) == {1, 2}
    for epoch in (1, 2):
        model = work.trained_model(trained, epoch)
        for mode in ("tracked", "batch"):
            wanted, _, _ = measure(model, dataset, statistics=mode)
            assert np.array_equal(outcome(table, epoch=epoch, statistics=mode, attack="clean"), wanted)
            single, double = (
                outcome(table, epoch=epoch, statistics=mode, attack=attack)
                for attack in ("PGD", "PGD, double precision")
            )
            assert (single != double).mean() <= 0.02  # precision hardly matters to such a network
    state = table[table.attack == "training images"]
    _, loss, _ = measure(work.trained_model(trained), work.training_set(trained), statistics="tracked")
    assert select(state, {"epoch": 2, "statistics": "tracked"}).loss.item() == pytest.approx(loss, rel=1e-3)
    assert state.confidence.between(0.1, 1).all()
    assert (state.vanished == 0).all()  # nothing is that confident after two epochs


def test_the_cells_of_snapshots_hold_nothing_measured(trained):
    dataset, model = work.test_set(trained, 100), work.trained_model(trained)
    for cell, _ in DIAGNOSTICS["snapshots"](trained, model, dataset, "cpu"):
        assert list(cell) == ["epoch", "statistics", "attack"]


def test_a_gradient_that_is_zero_is_counted():
    """A network so sure of some images that their cross-entropy is 0 in single precision."""
    model = resnet(8, width=2, in_channels=1, num_classes=2)
    with torch.no_grad():
        model(torch.rand(9, 1, 8, 8))
        head = list(model.modules())[-1]
        head.bias.copy_(torch.tensor([200.0, 0.0]))
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    data = Dataset("grey", images, torch.tensor([0] * 7 + [1] * 3), ("a", "b"))
    state, correct = training_state(model.eval(), data, "tracked", "cpu")
    assert state["confidence"] == 1
    assert state["loss"] == pytest.approx(0.3 * 200, rel=0.05)
    assert correct.sum() == 7
    assert state["vanished"] == pytest.approx(70)


def test_what_depends_on_neighbours_moves_with_them_and_nothing_else(trained):
    dataset, table = results(trained, "composition", 60)
    clean = {cell: outcome(table, composition=cell[0], statistics=cell[1], attack="clean")
             for cell in itertools.product(COMPOSITIONS, ("tracked", "batch"))}  # fmt: skip
    for name in COMPOSITIONS:
        assert np.array_equal(clean[name, "tracked"], clean["mixed", "tracked"])
    wanted, _, _ = measure(work.trained_model(trained), dataset, statistics="batch")
    assert np.array_equal(clean["mixed", "batch"], wanted)
    assert not np.array_equal(clean["single", "batch"], clean["mixed", "batch"])


def test_jitter_stands_beside_the_usual_evaluation(trained):
    dataset, table = results(trained, "jitter")
    attack = PGD(paper_eps(trained.dataset))
    for mode in ("tracked", "batch"):
        wanted, _, _ = measure(work.trained_model(trained), dataset, attack, statistics=mode)
        assert np.array_equal(outcome(table, attack="pgd_linf", statistics=mode), wanted)
    clean = {mode: outcome(table, attack="clean", statistics=mode) for mode in JITTER}
    changed = {mode: (clean[mode] != clean["tracked"]).sum() for mode in JITTER}
    assert 0 < changed["held"] < changed["held, 3 x"]


def test_the_released_protocol_repeats_only_what_a_habit_changes(trained):
    _, table = results(trained, "code_path", 30)
    cells = table.groupby("habit").attack.agg(set)
    assert cells["noise 0.1"] == {"noise"}
    assert cells["attack in training mode"] == {"grad_sign", "pgd_linf"} == cells["eps in pixels"]
    assert cells["std + eps"] == {"clean", "noise", "grad_sign", "pgd_linf"} == cells["all of its test"]


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_diagnoses_can_be_diagnosed(profile):
    pairs = diagnosed(profile)
    assert pairs
    assert len(set(pairs)) == len(pairs)
    for run, name in pairs:
        assert run.norm in ("batch_norm", "robust_norm")
        assert run.snapshots or name != "snapshots"
        assert run.norm == "batch_norm" or name != "code_path"


def test_runs_are_of_the_headline_unless_an_experiment_is_named():
    assert {run.experiment for run in chosen_runs("laptop", {})} == {"headline"}
    long = chosen_runs("laptop", {"experiment": ["long"], "norm": ["batch_norm"]})
    assert [run.snapshots for run in long] == [(1, 2, 4, 8, 16, 30)]
    assert all(isinstance(layer, BatchNorm) for layer in norm_layers(long[0].new_model()).values())

"""The benchmarks that need a GPU, as far as a CPU can show: steps unrecorded, or recorded by a fake."""

import sys
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import __main__ as command
from benchmarks import gpu, graphs
from benchmarks.subjects import random_images
from rnlib import PGD, Training, fit, resnet

pytestmark = [pytest.mark.xdist_group("benchmarks")]
ATTACK = PGD((0.03, 0.02, 0.01), steps=2, step_size=0.01)
WAY = Training(epochs=3, batch_size=8, lr=0.05, milestones=(1,), attack=ATTACK)
NOISE = random_images(20)  # two whole batches and half a one
DATA = replace(NOISE, images=NOISE.images[:, :, ::4, ::4].contiguous())


def network(norm="batch_norm", seed=0):
    torch.manual_seed(seed)
    return resnet(8, norm, width=4)


@pytest.fixture
def recorded(monkeypatch):
    """Graphs that make the step anew at every replay, and what was done with them."""
    done, member = [], []

    class Graph:
        def register_generator_state(self, generator):
            done.append("generator")

        def replay(self):
            done.append("replay")
            self.member.step(8)

    @contextmanager
    def graph(recorder, stream):
        step = graphs.Member.step
        recorder.member = member[-1]
        monkeypatch.setattr(graphs.Member, "step", lambda member, size: done.append(("recorded", size)))
        yield
        monkeypatch.setattr(graphs.Member, "step", step)

    record = graphs.Member.record
    monkeypatch.setattr(graphs.Member, "record", lambda self: (member.append(self), record(self)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return done


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attack": None, "precision": "bfloat16", "schedule": "one_cycle"},
        {"crafting": "eval", "augment": False, "clip": 0.5, "label_smoothing": 0.1, "channels_last": False},
    ],
)
def test_members_side_by_side_come_to_the_weights_of_fit(options, record, recorded):
    ways = [replace(WAY, seed=seed, **options) for seed in (0, 1)]
    norms = ("batch_norm", "robust_norm")
    members = [graphs.Member(network(norm), DATA, way) for norm, way in zip(norms, ways, strict=True)]
    losses = graphs.train(members, record=record)
    for member, norm, way, found in zip(members, norms, ways, losses, strict=True):
        model = network(norm)
        history = fit(model, DATA, way)
        assert graphs.difference(member.model, model, network(norm)) < 1e-3
        assert found == pytest.approx([epoch["train_loss"] for epoch in history], rel=1e-4)
    once = ["generator", ("recorded", 8)]
    assert recorded == (once * 2 + ["replay"] * 12 if record else [])


def test_the_check_refuses_what_is_not_close(monkeypatch):
    found = list(graphs.checked("cpu", network, DATA, 8))
    assert len(found) == 12
    assert {line.met for line in found} == {"yes"}
    assert max(line.value for line in found) < 1e-2
    monkeypatch.setattr(graphs, "rates", lambda training, steps: [2e-3] * steps)
    with pytest.raises(RuntimeError, match=r"batch_norm, natural, together: .* from fit, at most 0\.1 is"):
        list(graphs.checked("cpu", network, DATA, 8))


def test_nothing_in_a_step_could_stop_a_recording():
    """It neither waits for the device nor brings anything there, after the first step."""
    aten, seen = torch.ops.aten, []
    stops = (aten._local_scalar_dense, aten.nonzero, aten.lift_fresh, aten.randint, aten.randperm)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in stops:
                seen.append(str(function))
            return function(*args, **(kwargs or {}))

    member = graphs.Member(network(), DATA, WAY)
    member.begin(0)
    member.step(8)
    with Watch():
        member.step(8)
        assert seen == []
        member.begin(1)
        assert seen  # it is seen where it is


def test_the_convolutions_alone_are_those_of_the_network():
    model, x = network(), torch.rand(4, 3, 32, 32)
    shapes = []
    run = gpu.convolutions(model, x)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(lambda layer, given: shapes.append(given[0].shape))
    run()
    alone, count = list(shapes), len(shapes)
    model(x)
    assert alone == shapes[count:]
    assert count == sum(isinstance(layer, torch.nn.Conv2d) for layer in model.modules())


def test_without_a_gpu_the_rows_say_so_and_the_usual_ones_do_not_ask_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    path = tmp_path / "results-gpu.csv"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "graphs", "--output", str(path)])
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().out.count("not measured: this row needs a CUDA device") == 2
    assert not path.exists()
    assert not set(command.ROWS) & set(command.GPU_ROWS)


@pytest.mark.slow
def test_every_row_runs_in_a_tiny_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    path = tmp_path / "results-gpu.csv"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "graphs", "--smoke", "--output", str(path)])
    command.main()
    table = pd.read_csv(path)
    assert list(table.row.unique()) == ["gpu", "graphs"]
    assert table[table.unit.isin(["images/s", "s"])].value.gt(0).all()
    kinds = table[table.row == "gpu"].case.str.split(", ").str[0]
    assert set(kinds) == {"natural", "PGD-3", "PGD-20 on 20 images"}
    for how in ("fit_many", "processes side by side"):
        assert table.case.str.endswith(how).sum() == 4  # two kinds of training of one and of two models
    assert not table.case.duplicated().any()

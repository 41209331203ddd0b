"""The benchmarks: every row runs in a tiny configuration, compares equal work, and ends up in the CSV file.

Nothing here looks at how long anything takes.
"""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks import __main__ as command
from benchmarks import attacks, evaluation, measure, memory, norms, profiles, subjects, training
from benchmarks.__main__ import ROWS, measured
from benchmarks.norms import FORMATS
from rnlib.attacks import success
from rnlib.models import resnet
from rnlib.norms import BatchNorm, RobustNorm
from study.runs import ROOT, make_run

pytestmark = [pytest.mark.xdist_group("benchmarks")]  # the rows are measured once


def command_line(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """CSV file of all rows, measured in this process, and the lines of each."""
    path = tmp_path_factory.mktemp("benchmarks") / "results.csv"
    lines = {}
    for row in ROWS:
        lines[row] = measured(row, True)
        measure.write(path, row, lines[row], ROWS)
    return path, lines


# -- rows


@pytest.mark.slow
def test_every_row_gives_finite_positive_ratios_and_no_case_twice(smoke):
    for row, lines in smoke[1].items():
        assert lines, row
        keys = [(line.case, line.quantity) for line in lines]
        assert len(set(keys)) == len(keys), row
        for line in lines:
            if line.met == "not measured":
                assert line.note
                continue
            assert math.isfinite(line.value), line
            assert line.low <= line.value <= line.high, line
            if "attack step" in line.case:  # a difference of two times, which noise can make nothing
                assert line.value >= 0, line
            elif line.quantity in ("ratio", "cost", "speed", "seconds", "ours", "baseline"):
                assert line.value > 0, line


@pytest.mark.slow
def test_every_row_of_the_table_has_a_target(smoke):
    with_target = {row for row, lines in smoke[1].items() if any(line.target for line in lines)}
    assert with_target == set(ROWS) - {"scaling", "profiles"}


@pytest.mark.slow
def test_the_file_is_tidy(smoke):
    table = pd.read_csv(smoke[0])
    columns = "row case quantity value unit low high target met machine torch threads date"
    assert list(table) == columns.split()
    assert list(table.row.unique()) == list(ROWS)
    assert set(table.met.dropna()) <= {"yes", "no", "not measured"}
    assert table[["unit", "machine", "torch", "threads", "date"]].notna().all(axis=None)
    assert (table.met == "not measured").equals(table.value.isna())


# -- the command


def test_an_unknown_row_is_refused_with_the_known_ones():
    done = command_line("norms", "nrom")
    assert done.returncode == 2
    assert "unknown row nrom" in done.stderr
    assert all(row in done.stderr for row in ROWS)


@pytest.mark.slow
def test_the_command_prints_a_table_and_replaces_only_the_rows_that_it_measured(tmp_path):
    path = tmp_path / "results.csv"
    old = [measure.exact("old", "ratio", 1.0, "x", "<= 2"), measure.missing("older", "<= 1", "not installed")]
    for row in ("memory", "grid"):
        measure.write(path, row, old, ROWS)
    before = pd.read_csv(path)
    done = command_line("memory", "--smoke", "--output", path)
    assert done.returncode == 0, done.stderr
    assert "| memory | RobustNorm / nn.BatchNorm2d, layer, 4x16x32x32, contiguous |" in done.stdout
    assert f"torch {torch.__version__}" in done.stdout
    if sys.platform == "linux":
        assert "kept (GLIBC_TUNABLES)" in done.stdout
    after = pd.read_csv(path)
    assert list(after.row.unique()) == ["memory", "grid"]
    assert "old" not in set(after[after.row == "memory"].case)
    pd.testing.assert_frame_equal(
        after[after.row == "grid"].reset_index(drop=True), before[before.row == "grid"].reset_index(drop=True)
    )


def test_a_row_needs_no_package_of_another_row():
    code = """
import sys
sys.modules |= dict.fromkeys(["foolbox", "torchattacks"])  # importing them is an error
from benchmarks.__main__ import measured
lines = measured("attacks", True)
print(*{line.note for line in lines if line.met == "not measured"}, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "pip install foolbox" in done.stdout, done.stderr
    assert "benchmarks/attacks.py" in done.stdout


def test_a_row_whose_images_are_not_there_says_so_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rnlib.data.folders", lambda root: [tmp_path])
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setenv("RNLIB_CACHE", str(tmp_path))
    lines = {
        "evaluation": evaluation.lines,
        "memory": lambda smoke: [measure.exact("case", "ratio", 1, "x", "<= 2")],
    }
    monkeypatch.setattr(command, "measured", lambda row, smoke: list(lines[row](smoke)))
    path = tmp_path / "results.csv"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "evaluation", "memory", "--output", str(path)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "| evaluation | not measured: cifar10-jpeg was not found" in shown
    assert "RNLIB_DATA" in shown
    assert list(pd.read_csv(path).row) == ["memory"]


# -- measuring


def test_rounds_take_turns_in_a_rotating_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = measure.interleaved(functions, seconds=1e-9, least=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 3)


def test_what_is_done_sooner_than_its_turn_is_called_again(monkeypatch):
    clock, calls = [0.0], {"short": 0, "long": 0}
    monkeypatch.setattr(measure, "perf_counter", lambda: clock[0])

    def work(name, seconds):
        calls[name] += 1
        clock[0] += seconds

    functions = {"short": lambda: work("short", 0.25), "long": lambda: work("long", 3.0)}
    times = measure.interleaved(functions, seconds=1, least=2, turn=1)
    assert calls == {"short": 2 + 2 * 4, "long": 2 + 2}  # two calls to warm up and to see how long one takes
    assert {name: list(values) for name, values in times.items()} == {"short": [0.25] * 2, "long": [3.0] * 2}


@pytest.mark.parametrize(
    ("target", "ratio", "met"),
    [
        ("<= 0.9", 0.5, "yes"),
        ("<= 0.4", 0.5, "no"),
        (">= 2", 2.0, "yes"),
        (">= 2.1", 2.0, "no"),
        ("", 0.5, ""),
    ],
)
def test_a_ratio_reads_as_its_target_does(target, ratio, met):
    ours, baseline = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    *sides, line = measure.compare("case", ours, baseline, target, images=6)
    assert (line.value, line.met) == (ratio, met)
    assert [side.value for side in sides] == [3, 1.5]  # images/s at the median round
    assert [side.value for side in measure.compare("case", ours, baseline)[:2]] == [2000, 4000]  # ms


def test_quartiles_are_those_of_the_rounds():
    line = measure.summary("case", "cost", np.array([4.0, 1.0, 2.0, 3.0, 5.0]), "ms")
    assert (line.low, line.value, line.high) == (2, 3, 4)


# -- equal work on both sides


@given(
    name=st.sampled_from(["RobustNorm", "BatchNorm"]),
    memory_format=st.sampled_from(list(FORMATS.values())),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.integers(2, 6)),
    seed=st.integers(0, 1000),
)
def test_the_formulas_do_what_the_layers_do(name, memory_format, sizes, seed):
    ours, formula = {
        "RobustNorm": (RobustNorm, subjects.FormulaRobustNorm),
        "BatchNorm": (BatchNorm, subjects.FormulaBatchNorm),
    }[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes, dtype=torch.float64, generator=generator).contiguous(memory_format=memory_format)
    grad = torch.randn(sizes, dtype=torch.float64, generator=generator)
    found = []
    for make in (ours, formula):
        layer = make(sizes[1]).double()
        nn.init.uniform_(layer.weight, 0.5, 2, generator=torch.Generator().manual_seed(seed))
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], grad)
        found.append([y, *gradients, *layer.running_statistics])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


def test_the_plain_loop_takes_the_steps_of_our_pgd():
    torch.manual_seed(0)
    model = resnet(8, width=4).eval()
    x, y = training.batch(4)
    plain = training.plain_pgd(model, y, 3)
    start = {"rand_like": lambda like: torch.full_like(like, 0.5)}  # the images themselves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", start["rand_like"])
        expected = plain(x)
    pgd = training.PGD(training.EPS, steps=3, step_size=training.STEP_SIZE, random_start=False)
    torch.testing.assert_close(pgd(model, x, y), expected)


def test_fit_and_the_bare_steps_train_as_many_steps():
    dataset = subjects.random_images(12)
    counts = []
    for run in (
        lambda model: training.fitting(model, dataset, batch_size=4),
        lambda model: training.bare_steps(model, *training.batch(4), steps=3),
    ):
        model = resnet(8, width=4)
        run(model)()
        counts.append(int(next(m for m in model.modules() if isinstance(m, BatchNorm)).num_batches_tracked))
    assert counts == [3, 3]


@pytest.mark.parametrize("peer", ["foolbox", "torchattacks"])
def test_a_peer_attacks_the_same_images_with_the_same_result(peer):
    package = attacks.imported(peer)
    if package is None:
        pytest.skip(f"{peer} is not installed")
    torch.manual_seed(0)
    model = resnet(8, width=4).eval()
    x, y = training.batch(6, channels_last=False)
    x = 0.2 + 0.6 * x  # inside of the box: at its walls the packages round differently
    with torch.no_grad():
        model[-1].bias += 1 - model(x).mean(0)  # close to the borders between classes
    y = model(x).argmax(1)
    make = {"foolbox": attacks.foolbox_attacks, "torchattacks": attacks.torchattacks_attacks}[peer]
    theirs = make(package, model, 4)
    for name, ours in attacks.our_attacks(model, 4).items():
        adv, expected = ours(x, y), theirs[name](x, y)
        torch.testing.assert_close(adv, expected, rtol=0, atol=1e-4, msg=name)
        assert success(model, adv, y).any(), name


def test_passes_are_counted():
    model, data = resnet(8, width=4).eval(), subjects.random_images(2)
    suite = evaluation.suite()
    counts = {name: evaluation.count_passes(model, data, attack) for name, attack in suite.items()}
    assert counts["clean"] == counts["noise"] == (1, 0)
    assert counts["grad_sign"] == (2, 1)
    assert counts["pgd_linf"] == (21, 20)
    assert counts["cw_l2"] == (3 * 21 + 1, 3 * 20)
    assert not model._forward_hooks


def test_storages_are_counted_once_however_many_tensors_look_at_them():
    class Shared(nn.Module):
        def forward(self, x):
            return (x * x).exp()  # keeps x twice, and the result of exp

    assert memory.saved_bytes(Shared(), torch.ones(10, requires_grad=True)) == 2 * 10 * 4


def test_every_operator_of_a_layer_has_a_purpose():
    x = torch.randn(4, 32, 4, 4)
    ours, native = (norms.operator_times(layer, x, 2) for layer in (RobustNorm(32), nn.BatchNorm2d(32)))
    assert list(ours) == list(native) == [*norms.PURPOSES, "small calls"]
    assert all(milliseconds > 0 for milliseconds in ours.values())
    assert native["statistics"] == native["finding the extremes"] == 0  # both are inside of its kernel
    assert native["sums of the gradient"] > 0


# -- predictions


def test_a_prediction_grows_with_what_a_run_does():
    costs = {
        "natural float32": 1.0,
        "attack step float32": 1.0,
        "natural bfloat16": 0.5,
        "attack step bfloat16": 0.5,
        "forward": 0.0,
        "gradient": 0.0,
    }
    natural = make_run("paper", train_images=1000)
    hours = profiles.predicted_hours(natural, costs)
    assert hours == pytest.approx(164 * 1000 / 3600)
    adversarial = make_run("paper", train_images=1000, training="adversarial")
    assert profiles.predicted_hours(adversarial, costs) == pytest.approx(11 * hours)
    reduced = make_run("paper", train_images=1000, precision="bfloat16")
    assert profiles.predicted_hours(reduced, costs) == pytest.approx(hours / 2)
    deeper = make_run("paper", train_images=1000, architecture="resnet38")
    assert 1.8 < profiles.predicted_hours(deeper, costs) / hours < 2.1

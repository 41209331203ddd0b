"""The study layer: runs and profiles, the store, parameters, intervals, claims."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import stats

from rnlib import landscape
from rnlib.data import Dataset
from study.report import claims, decision, figures, ledger, pages, results
from study import planes, store, work
from study.report.comparisons import Comparison, in_the_paper
from study.experiments.diagnostics import diagnose_run
from study.parameters import parameters
from study.planes import plane_run
from study.probe import probe_run
from study.runs import PROFILES, ROOT, attack_suite, grid, make_run
from rnlib.tracking import tracked_statistics
from rnlib.train import TrainingDiverged

TINY = {"width": 2, "architecture": "resnet8", "epochs": 1, "train_images": 128, "validation_images": 100}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def one_attack(monkeypatch):
    """The suite cut down to one attack, so that evaluation is quick."""
    monkeypatch.setattr(work, "attack_suite", lambda run: {"grad_sign": attack_suite(run)["grad_sign"]})


# -- runs and profiles


@pytest.mark.parametrize("profile", PROFILES)
def test_every_run_of_a_grid_can_be_built_and_has_a_folder_of_its_own(profile):
    runs = grid(profile)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.profile for run in runs} == {profile}
    for norm in ("batch_norm", "robust_norm") + (("no_norm",) if profile != "gpu" else ()):
        assert {run.training for run in runs if run.norm == norm} == {"natural", "adversarial"}


@pytest.mark.parametrize("profile", PROFILES)
def test_budgets_are_equal_across_norms(profile):
    budgets = {}
    for run in grid(profile):
        budget = (run.epochs, run.batch_size, run.attack_steps, run.schedule, run.precision)
        budgets.setdefault((run.experiment, run.architecture, run.training), set()).add(budget)
    assert all(len(different) == 1 for different in budgets.values())


def test_an_experiment_has_settings_and_a_folder_of_its_own():
    usual, short = make_run("laptop"), make_run("laptop", experiment="short")
    assert (usual.epochs, short.epochs) == (8, 3)
    assert short.name == f"{usual.name}_short"
    assert make_run("laptop", experiment="short", training="adversarial").epochs == 2
    assert make_run("laptop", experiment="short", epochs=5).epochs == 5
    assert set(attack_suite(short)) < set(attack_suite(usual))
    with pytest.raises(ValueError, match=r"experiment is 'shrot', it must be one of headline, .*short"):
        make_run("laptop", experiment="shrot")


def test_the_paper_profile_has_the_papers_settings():
    run = make_run("paper", training="adversarial")
    assert (run.dataset, run.architecture, run.epochs, run.lr, run.milestones) == (
        "cifar10",
        "resnet20",
        164,
        0.1,
        (120,),
    )
    attack = run.settings().attack
    assert attack.steps == 10
    # released code: eps 0.03 after division by std (0.2023, 0.1994, 0.2010), steps of eps / 4
    assert attack.eps == pytest.approx((0.03 * 0.2023, 0.03 * 0.1994, 0.03 * 0.2010))
    assert attack.step_size == pytest.approx(tuple(e / 4 for e in attack.eps))
    assert make_run("paper", norm="no_norm").lr == 0.001
    assert {run.seed for run in grid("paper") if run.architecture == "resnet20"} == {0, 1, 2, 3, 4}


def test_a_changed_setting_changes_the_folder_and_the_profiles_own_value_does_not():
    usual = make_run("quick", norm="robust_norm")
    assert make_run("quick", norm="robust_norm", epochs=usual.epochs).name == usual.name
    assert make_run("quick", norm="robust_norm", epochs=usual.epochs + 1).name != usual.name
    assert make_run("quick", norm="robust_norm", p=0.4).name == usual.name.replace("p0.2", "p0.4")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"nrom": "x"}, "nrom"),
        ({"norm": "x"}, "batch_norm, robust_norm"),
        ({"training": "x"}, "natural"),
        ({"dataset": "x"}, "fashion-mnist-sample"),
        ({"architecture": "resnet21"}, "6n"),
        ({"architecture": "lenet"}, "vgg"),
        ({"schedule": "x"}, "one_cycle"),
        ({"norm": "batch_norm", "p": 0.2}, "does not take"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(chosen, message):
    with pytest.raises(ValueError, match=message):
        make_run("quick", **chosen)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match=r"quick.*laptop.*paper"):
        make_run("huge")


def test_the_weights_of_a_run_come_from_its_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (make_run("quick", seed=seed, **TINY).new_model() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


# -- parameters of notebooks


def test_parameters_refuses_an_unknown_name_and_lists_the_known_ones():
    namespace = {"In": [], "Out": {}, "_": 1, "__name__": "x", "pd": pd, "nrom": "x", "norm": None}
    with pytest.raises(ValueError, match=r"nrom.*norm, seed"):
        parameters(namespace, ["seed", "norm"])
    del namespace["nrom"]
    assert parameters(namespace, ["seed", "norm"]) == {"norm": None}


# -- the store


@given(
    st.dictionaries(
        st.sampled_from(["tracked/clean", "batch/noise", "none/grad"]), st.lists(st.booleans(), max_size=30)
    )
)
def test_outcomes_survive_packing(tmp_path_factory, correct):
    path = tmp_path_factory.mktemp("store") / "correct.npz"
    store.write_correct(path, {key: np.array(value, bool) for key, value in correct.items()})
    assert {key: value.tolist() for key, value in store.read_correct(path).items()} == correct


def test_a_file_is_never_half_written(tmp_path):
    path = tmp_path / "x.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        store.write_json(path, {"a": object()})

    def fails(file: Path):
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write(path, fails)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


# -- work


def test_train_evaluate_probe_write_what_they_should_and_repeat_nothing(one_attack):
    run = make_run("quick", **TINY)
    with pytest.raises(FileNotFoundError, match=r"papermill notebooks/train.ipynb"):
        work.evaluate_run(run)
    history = work.train_run(run)
    config = json.loads((run.directory / store.CONFIG).read_text())
    assert config["settings"]["width"] == 2
    assert config["provenance"]["fingerprint"] == work.training_set(run).fingerprint
    assert not (run.directory / store.CHECKPOINT).exists()
    written = store.read_rows(run.directory / store.HISTORY)
    assert [row["train_loss"] for row in written] == pytest.approx([row["train_loss"] for row in history])

    rows = work.evaluate_run(run)
    assert [(row["statistics"], row["attack"]) for row in rows] == [
        ("tracked", "clean"), ("tracked", "grad_sign"), ("batch", "clean"), ("batch", "grad_sign"),
    ]  # fmt: skip
    correct = store.read_correct(run.directory / store.CORRECT)
    for row in rows:
        outcome = correct[f"{row['statistics']}/{row['attack']}"]
        assert (len(outcome), outcome.sum()) == (row["n"], row["correct"])
        assert row["accuracy"] == pytest.approx(100 * outcome.mean())

    stamps = {path: path.stat().st_mtime_ns for path in run.directory.iterdir()}
    assert work.train_run(run) == written
    assert len(work.evaluate_run(run)) == 4
    assert {path: path.stat().st_mtime_ns for path in run.directory.iterdir()} == stamps


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "no_norm"])
@pytest.mark.parametrize("training", ["natural", "adversarial"])
def test_the_paper_profile_passes_the_same_path_with_its_epochs_cut_to_one_batch(
    norm, training, one_attack, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    fake = Dataset("cifar10", images, torch.arange(16) % 10, tuple("abcdefghij"))
    monkeypatch.setattr(work, "load", lambda name, split: fake)
    run = make_run("paper", norm=norm, training=training, epochs=1)
    assert len(work.train_run(run)) == 1
    rows = work.evaluate_run(run)
    assert len(rows) == (2 if norm == "no_norm" else 4)
    assert {row["n"] for row in rows} == {16}


def test_an_interrupted_evaluation_goes_on_to_the_same_rows(one_attack):
    run = make_run("quick", **TINY)
    work.train_run(run)

    def stop(evaluation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.evaluate_run(run, on_evaluation=stop)
    assert not (run.directory / store.EVALUATIONS).exists()
    seen = []
    resumed = work.evaluate_run(run, on_evaluation=seen.append)
    assert len(seen) == 3
    for file in (store.EVALUATIONS, store.CORRECT):
        (run.directory / file).unlink()
    whole = work.evaluate_run(run)
    assert [row["correct"] for row in resumed] == [row["correct"] for row in whole]


def test_a_folder_with_other_settings_is_refused():
    run = make_run("quick", **TINY)
    store.write_json(run.directory / store.CONFIG, {"settings": asdict(run) | {"lr": 0.5}})
    with pytest.raises(ValueError, match=r"other settings.*lr"):
        work.train_run(run)


def test_an_older_run_without_a_later_setting_is_still_the_same_run():
    run = make_run("quick", **TINY)
    work.train_run(run)
    config = run.directory / store.CONFIG
    old = json.loads(config.read_text())
    del old["settings"]["compile"]
    store.write_json(config, old)
    assert [row["epoch"] for row in work.train_run(run)] == [1]


def test_snapshots_are_the_weights_after_their_epochs(monkeypatch):
    run = make_run("quick", **TINY | {"epochs": 3}, snapshots=[1, 3])
    fit, stopped = work.fit, []

    def killed(model, dataset, settings, *, on_epoch, **options):
        def stop(history):  # the checkpoint is written, the snapshot not yet
            if not stopped:
                stopped.append(True)
                raise KeyboardInterrupt
            on_epoch(history)

        return fit(model, dataset, settings, on_epoch=stop, **options)

    monkeypatch.setattr(work, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        work.train_run(run)
    assert not (run.directory / store.snapshot(1)).exists()
    work.train_run(run)
    last, kept = work.trained_model(run), work.trained_model(run, 3)
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), kept.parameters(), strict=True))
    one_epoch = work.trained_model(run, 1)
    assert one_epoch.state_dict()["1.weight"].shape == last.state_dict()["1.weight"].shape
    assert not torch.equal(one_epoch.state_dict()["1.weight"], last.state_dict()["1.weight"])
    with pytest.raises(ValueError, match=r"epoch is 2, .* keeps snapshots of \(1, 3\)"):
        work.trained_model(run, 2)
    with pytest.raises(ValueError, match=r"snapshots is \(4,\), it must name epochs from 1 to 3"):
        make_run("quick", **TINY | {"epochs": 3}, snapshots=[4])


@pytest.fixture
def diverged_run(monkeypatch):
    """A run of the grid that diverges in its second epoch, whatever its settings."""
    fit = work.fit

    def diverges(model, dataset, settings, **options):
        history = fit(model, dataset.subset(torch.arange(128)), replace(settings, epochs=1), **options)
        raise TrainingDiverged(2, 7, history)

    monkeypatch.setattr(work, "fit", diverges)
    run = grid("quick")[0]
    assert [row["epoch"] for row in work.train_run(run)] == [1]
    return run


def test_a_training_that_diverges_is_a_result_and_not_tried_again(diverged_run, monkeypatch):
    found = json.loads((diverged_run.directory / store.DIVERGED).read_text())
    assert (found["epoch"], found["step"]) == (2, 7)
    assert "lower lr" in found["message"]
    assert found["provenance"]["config_hash"] == diverged_run.hash
    assert not (diverged_run.directory / store.CHECKPOINT).exists()
    assert load_file(diverged_run.directory / store.WEIGHTS) == {}
    monkeypatch.setattr(work, "fit", None)  # would be called
    assert [row["epoch"] for row in work.train_run(diverged_run)] == [1]
    with pytest.raises(ValueError, match=r"diverged, it has no weights: see diverged\.json"):
        work.trained_model(diverged_run)


def test_a_diverged_run_has_nothing_to_measure_and_is_not_pending(diverged_run):
    for measure in (work.evaluate_run, probe_run, plane_run, lambda run: diagnose_run(run, "transfer")):
        assert measure(diverged_run) == []
        assert measure(diverged_run) == []  # from the file that the first wrote
    for name in (store.EVALUATIONS, store.STATISTICS, store.LANDSCAPE, "transfer.csv"):
        assert (diverged_run.directory / name).exists()
    assert results.diverged("quick") == [diverged_run]
    assert diverged_run not in results.pending("quick")
    for table in ("evaluations", "statistics", "transfer"):
        assert results.table("quick", table).empty
    assert list(results.table("quick", "divergence").diverged) == [1, 1]  # of two epochs, the run's outcome
    assert diverged_run.norm in pages.setting("quick").data


def test_a_training_that_diverges_at_once_has_no_history():
    run = make_run("quick", **TINY | {"batch_size": 16, "lr": 1e38, "norm": "no_norm"})
    assert work.train_run(run) == work.train_run(run) == []
    assert json.loads((run.directory / store.DIVERGED).read_text())["epoch"] == 1


def test_probe_of_a_trained_run():
    run = make_run("quick", **TINY)
    work.train_run(run)
    table = pd.DataFrame(probe_run(run))
    channels = sum(len(first) for first, _ in tracked_statistics(work.trained_model(run)).values())
    assert table.condition.value_counts().to_dict() == dict.fromkeys(
        ["start", "train", "clean", "noise", "adversarial"], channels
    )
    assert (table["shift_abs"] + 1e-4 >= table["shift"].abs()).all()
    assert np.isfinite(table.select_dtypes("number")).all().all()
    assert probe_run(run) == store.read_rows(run.directory / store.STATISTICS)


def test_a_landscape_is_of_images_of_all_classes_whatever_their_order(monkeypatch):
    run = make_run("quick", **TINY)
    work.train_run(run)
    found = work.training_set(run)
    by_class = found.subset(found.labels.argsort(stable=True))  # as cifar10-jpeg is stored
    monkeypatch.setattr(planes, "training_set", lambda run: by_class)
    seen = []

    def loss_plane(model, x, y, **options):
        seen.append(y)
        return landscape.loss_plane(model, x, y, **options)

    monkeypatch.setattr(planes, "loss_plane", loss_plane)
    plane_run(run)
    assert seen
    for y in seen:
        assert set(y.tolist()) == set(found.labels.tolist())


# -- intervals


def test_over_seeds_is_the_t_interval():
    values = [48.0, 50.5, 47.0, 52.0, 49.0]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert results.over_seeds(values) == pytest.approx((interval.low, interval.high))


def test_a_paired_difference_against_the_normal_approximation():
    rng = np.random.default_rng(3)
    first, second = 100.0 * (rng.random(4000) < 0.6), 100.0 * (rng.random(4000) < 0.5)
    difference, low, high = results.difference(first, second)
    steps = first - second
    assert difference == pytest.approx(steps.mean())
    half = 1.96 * steps.std(ddof=1) / np.sqrt(len(steps))
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.15)


def test_a_difference_of_other_images_has_the_interval_of_two_samples():
    rng = np.random.default_rng(4)
    first, second = 100.0 * (rng.random(4000) < 0.6), 100.0 * (rng.random(1000) < 0.5)
    difference, low, high = results.difference(first, second)
    assert difference == pytest.approx(first.mean() - second.mean())
    half = 1.96 * np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.3)


def test_a_difference_of_the_same_outcomes_is_certain_and_one_of_single_values_is_not():
    outcome = np.array([100.0, 0.0, 100.0])
    assert results.difference(outcome, outcome) == (0, 0, 0)
    assert results.difference(np.array([3.0]), np.array([1.0])) == (2, -np.inf, np.inf)


# -- claims


def fake_results(profile, accuracy, *, n=1000, shuffled=False):
    """Evaluations of the profile's grid in which each condition has the accuracy that ``accuracy(row)``
    says.
    """
    for run in grid(profile):
        rows, correct = [], {}
        for mode in ("none",) if run.norm == "no_norm" else ("tracked", "batch"):
            for attack in ("clean", "noise", "grad_sign", "bim_linf", "pgd_linf"):
                value = accuracy(run, mode, attack)
                outcome = np.arange(n) < round(n * value / 100)
                if shuffled:
                    outcome = np.random.default_rng(len(run.norm)).permutation(outcome)
                correct[f"{mode}/{attack}"] = outcome
                keys = ("profile", "dataset", "architecture", "norm", "p", "training", "seed", "epochs")
                row = {
                    "run": run.name,
                    **{key: getattr(run, key) for key in keys},
                    "statistics": mode,
                    "attack": attack,
                }
                row |= {
                    "n": n,
                    "correct": int(outcome.sum()),
                    "accuracy": 100 * outcome.mean(),
                    "batch_size": 100,
                }
                rows.append(row | {"fingerprint": "f", "revision": "r", "device": "d"})
        store.write_rows(run.directory / store.EVALUATIONS, rows)
        store.write_correct(run.directory / store.CORRECT, correct)


def as_in_the_paper(run, mode, attack):
    table = results.select(
        results.paper(2), {"training": run.training, "attack": attack, "norm": run.norm, "statistics": mode}
    )
    return float(table.accuracy.iloc[0]) if len(table) else 60.0


def test_the_papers_own_numbers_reproduce_the_papers_table_2():
    fake_results("laptop", as_in_the_paper)
    for claim_id, claim in claims.read_claims().items():
        if claim["page"] == "table2":
            verdict = claims.judge(claim_id, "laptop")
            assert verdict.direction == claims.WORDS[claim.get("kind", "paper")][0], claim_id
            for comparison in verdict.comparisons:
                assert comparison.ours == pytest.approx(comparison.paper, abs=0.11)


def test_the_papers_own_numbers_are_as_its_claims_say_but_for_these():
    agree = {name: in_the_paper(claim) for name, claim in claims.read_claims().items()}
    assert {name: (sum(found), len(found)) for name, found in agree.items() if not all(found)} == {
        "table4-resnet50-robust-norm": (2, 3),
        "table4-vgg11-tracked": (2, 3),
        "table4-adversarial-robust-norm": (10, 12),
        "table4-adversarial-tracked": (9, 12),
        "table5-natural-tracked": (4, 12),
        "table5-adversarial-tracked": (11, 12),
    }
    shown = ledger.verdict("table5-natural-tracked", "laptop").data
    assert "Section 5; the paper's own numbers agree in 4 of 12 comparisons" in shown
    assert "own numbers" not in ledger.verdict("table5-natural-tracking", "laptop").data


def test_a_perturbed_result_changes_the_verdict():
    claim = "table2-natural-attacks"

    def perturbed(attacks):
        return lambda run, mode, attack: (
            20.0 if mode == "batch" and attack in attacks else as_in_the_paper(run, mode, attack)
        )

    fake_results("laptop", perturbed([]))
    assert claims.judge(claim, "laptop").direction == claims.REPRODUCED
    fake_results("laptop", perturbed(["pgd_linf"]))
    assert claims.judge(claim, "laptop").direction == claims.PARTLY
    fake_results("laptop", perturbed(["grad_sign", "bim_linf", "pgd_linf"]))
    verdict = claims.judge(claim, "laptop")
    assert verdict.direction == claims.NOT
    assert {comparison.direction for comparison in verdict.comparisons} == {"opposite"}


def test_equal_accuracies_are_unclear_and_within_a_margin_the_same():
    fake_results("laptop", lambda run, mode, attack: 50.0)
    verdict = claims.judge("table2-natural-attacks", "laptop")
    assert {comparison.direction for comparison in verdict.comparisons} == {"unclear"}
    assert verdict.direction == claims.NOT
    assert claims.judge("table3-tracking-natural", "laptop").direction == claims.REPRODUCED


def test_an_interval_that_holds_both_nothing_and_the_papers_difference_is_inconclusive():
    def noisy(run, mode, attack):
        return {0: 51.0, 1: 50.0, 2: 49.5}[run.seed] if run.norm == "robust_norm" else 50.0

    fake_results("laptop", noisy, shuffled=True)  # unpaired outcomes
    verdict = claims.judge("table3-tracking-natural", "laptop")
    assert verdict.comparisons[0].direction == "unclear"
    assert verdict.direction == claims.INCONCLUSIVE


@pytest.mark.parametrize(("profile", "n"), [("quick", 1000), ("laptop", 200)])
def test_too_little_evidence_supports_no_verdict(profile, n):
    fake_results(profile, as_in_the_paper, n=n)
    assert {claims.judge(claim, profile).direction for claim in claims.read_claims()} == {claims.UNTESTED}


def test_every_claim_names_its_page_and_conditions():
    for claim_id, claim in claims.read_claims().items():
        assert (ROOT / "notebooks" / f"{claim['page']}.py").exists(), claim_id
    with pytest.raises(KeyError, match="table2-natural-attacks"):
        claims.judge("no-such-claim", "laptop")


def test_claims_on_statistics_compare_channels():
    run = next(run for run in grid("laptop") if run.norm == "batch_norm" and run.training == "natural")
    rng = np.random.default_rng(0)
    rows = [
        {
            "condition": condition,
            "layer": "1",
            "channel": channel,
            "shift_abs": size * rng.random(),
            "log_ratio_abs": size * rng.random(),
        }
        for condition, size in (("start", 3.0), ("clean", 1.0))
        for channel in range(200)
    ]
    store.write_rows(run.directory / store.STATISTICS, rows)
    verdict = claims.judge("fig1-start", "laptop")
    assert verdict.direction == claims.REPRODUCED
    shift, ratio = verdict.comparisons
    assert shift.ours == pytest.approx(1.0, abs=0.15)
    # Two columns have two units, and no mean.
    assert f"{shift.ours:+.2f} tracked standard deviations (" in verdict.magnitude
    assert f"{ratio.ours:+.2f} octaves (" in verdict.magnitude
    assert "average" not in verdict.magnitude


CLAIM = {
    "id": "x", "page": "table2", "text": "A.", "where": "here", "table": "probe", "kind": "beyond",
    "shared": {"norm": "batch_norm", "training": "natural", "attack": "pgd"},
    "first": {"statistics": "batch"}, "second": {"statistics": "tracked"},
    "evidence": {"profile": "laptop", "dataset": "cifar10-jpeg", "images": 100, "seeds": 1},
}  # fmt: skip


def judged(monkeypatch, **changes):
    claim = {key: value for key, value in (CLAIM | changes).items() if value is not None}
    claims.check(claim)
    monkeypatch.setattr(claims, "read_claims", lambda: {"x": claim})
    return claims.judge("x", "laptop")


def fake_diagnostic(cells, *, seeds=(0,), n=100, experiment="headline"):
    """Rows of a diagnostic called probe: accuracy in percent by (statistics, attack, epoch)."""
    for seed in seeds:
        run = make_run("laptop", seed=seed, experiment=experiment)
        rows, kept = [], {}
        for (statistics, attack, epoch), accuracy in cells.items():
            outcome = np.arange(n) < round(n * (accuracy + seed) / 100)
            cell = {"statistics": statistics, "attack": attack, "epoch": epoch}
            counts = {"n": n, "correct": int(outcome.sum()), "accuracy": 100 * outcome.mean()}
            rows.append({"run": run.name} | cell | counts)
            kept["/".join(map(str, cell.values()))] = outcome
        store.write_rows(run.directory / "probe.csv", rows)
        store.write_correct(run.directory / "probe.npz", kept)


def test_a_number_of_the_papers_excludes_a_claim_only_where_it_speaks_for_it(monkeypatch):
    # One image of 100: an interval from 0 on. The paper has +18.81.
    fake_diagnostic({("tracked", "pgd_linf", 1): 50, ("batch", "pgd_linf", 1): 51})
    shared = {"norm": "batch_norm", "training": "natural", "attack": "pgd_linf"}
    claim = {"kind": "paper", "paper": {"table": 2, "dataset": "cifar10"}, "shared": shared, "over": None}
    found = judged(monkeypatch, **claim)
    assert [(one.direction, one.paper) for one in found.comparisons] == [("unclear", pytest.approx(18.81))]
    assert found.direction == claims.NOT
    found = judged(monkeypatch, **claim, first=CLAIM["second"], second=CLAIM["first"])
    assert [(one.direction, one.paper) for one in found.comparisons] == [("unclear", pytest.approx(-18.81))]
    assert found.direction == claims.INCONCLUSIVE


def test_a_claim_over_two_columns_compares_each_pair(monkeypatch):
    cells = {("batch", attack, epoch): 60 + epoch for attack in ("pgd", "noise") for epoch in (1, 2)}
    cells |= {("tracked", attack, epoch): 40 for attack in ("pgd", "noise") for epoch in (1, 2)}
    fake_diagnostic(cells)
    over = {"attack": ["pgd", "noise"], "epoch": [1, 2]}
    shared = {"norm": "batch_norm", "training": "natural"}
    found = {c.what: c.ours for c in judged(monkeypatch, over=over, shared=shared).comparisons}
    assert found == pytest.approx({"pgd, 1": 21, "pgd, 2": 22, "noise, 1": 21, "noise, 2": 22})
    del cells["batch", "noise", 2]
    fake_diagnostic(cells)
    assert judged(monkeypatch, over=over, shared=shared).direction == claims.UNTESTED


def test_a_claim_can_be_of_a_diagnostic_and_pairs_its_images(monkeypatch):
    fake_diagnostic({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60, ("batch", "noise", 1): 10})
    verdict = judged(monkeypatch)
    (comparison,) = verdict.comparisons
    assert (verdict.direction, comparison.ours) == (claims.SUPPORTED, pytest.approx(20))
    # The outcomes are nested, so that the paired difference is binomial with a share of 20%.
    half = 1.96 * 100 * np.sqrt(0.2 * 0.8 / 100)
    assert (comparison.low, comparison.high) == pytest.approx((20 - half, 20 + half), abs=1.5)
    assert judged(monkeypatch, evidence=CLAIM["evidence"] | {"images": 101}).direction == claims.UNTESTED
    assert judged(monkeypatch, first=CLAIM["second"], second=CLAIM["first"]).direction == claims.NOT_SUPPORTED
    assert judged(monkeypatch, kind="paper").direction == claims.REPRODUCED


def test_differences_within_a_margin_are_told_by_their_spread_which_a_mean_would_hide(monkeypatch):
    cells = {("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60}
    fake_diagnostic(cells | {("tracked", "noise", 1): 50, ("batch", "noise", 1): 30})
    shared = {"norm": "batch_norm", "training": "natural"}
    verdict = judged(monkeypatch, shared=shared, over={"attack": ["pgd", "noise"]}, margin=50.0)
    assert (verdict.direction, verdict.magnitude) == (claims.SUPPORTED, "-20.0 to +20.0 points")


def test_a_clear_tie_is_not_ahead(monkeypatch):
    fake_diagnostic({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 40})
    assert judged(monkeypatch).direction == claims.NOT_SUPPORTED
    assert judged(monkeypatch, margin=1.0).direction == claims.SUPPORTED


def test_a_ranking_has_to_hold_against_each_side(monkeypatch):
    cells = {("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60, ("none", "pgd", 1): 80}
    fake_diagnostic(cells)
    verdict = judged(monkeypatch, second=[{"statistics": "tracked"}, {"statistics": "none"}])
    assert verdict.direction == claims.PARTLY_SUPPORTED
    assert [c.what for c in verdict.comparisons] == ["against tracked", "against none"]
    assert [c.ours for c in verdict.comparisons] == pytest.approx([20, -20])
    absent = judged(monkeypatch, second=[{"statistics": "tracked"}, {"statistics": "other"}])
    assert absent.direction == claims.UNTESTED


def test_a_gap_can_be_compared_with_the_gap_elsewhere(monkeypatch):
    cells = {("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 45}
    cells |= {("tracked", "pgd", 30): 30, ("batch", "pgd", 30): 60}
    fake_diagnostic(cells)
    shared = CLAIM["shared"] | {"epoch": 30}
    verdict = judged(monkeypatch, shared=shared, gap_at={"epoch": 1})
    assert verdict.comparisons[0].ours == pytest.approx((60 - 30) - (45 - 40))
    assert verdict.direction == claims.SUPPORTED


def test_sides_may_come_from_different_experiments_and_seeds_are_paired(monkeypatch):
    fake_diagnostic({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60}, seeds=(0, 1, 2))
    verdict = judged(monkeypatch)
    assert (verdict.comparisons[0].seeds, verdict.comparisons[0].ours) == (3, pytest.approx(20))
    fake_diagnostic({("tracked", "pgd", 1): 30}, experiment="short")
    verdict = judged(monkeypatch, second={"statistics": "tracked", "experiment": "short"})
    assert (verdict.comparisons[0].seeds, verdict.comparisons[0].ours) == (1, pytest.approx(30))


def test_curves_are_compared_epoch_by_epoch(monkeypatch):
    losses = {"tracked": [2.0, 1.0, 2.5, 0.5, 1.5, 0.7], "batch": [2.0, 1.5, 1.2, 1.0, 0.9, 0.8]}
    run = make_run("laptop")
    rows = [
        {"epoch": epoch + 1, "train_loss": 1.0, "train_accuracy": 50.0}
        | {f"val_loss_{mode}": values[epoch] for mode, values in losses.items()}
        | {f"val_accuracy_{mode}": 50.0 for mode in losses}
        for epoch in range(6)
    ]
    store.write_rows(run.directory / store.HISTORY, rows)
    curves = results.curves("laptop")
    tracked = curves[curves.statistics == "tracked"]
    assert tracked.rise.tolist() == pytest.approx([0, 0, 1.5, 0, 1.0, 0.2])
    sides = {"first": CLAIM["second"], "second": CLAIM["first"]}
    shared = {"norm": "batch_norm", "training": "natural"}
    verdict = judged(monkeypatch, table="curves", value="rise", shared=shared, **sides)
    assert verdict.comparisons[0].ours == pytest.approx(2.7 / 6)  # with batch statistics nothing rises
    assert verdict.direction == claims.SUPPORTED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frist": {}}, r"unknown keys \['frist'\]; known are"),
        ({"first": None}, r"lacks \['first'\]"),
        ({"evidence": {"profile": "laptop"}}, "must say"),
        ({"kind": "guess"}, r"must be one of \['paper', 'beyond'\]"),
        (
            {"over": {"value": ["accuracy"], "epoch": [1]}},
            r"compares several columns \(over: value\) and runs",
        ),
        ({"shared": {"attak": "pgd"}}, "names attak, which probe does not have"),
        ({"value": "acuracy"}, "compares acuracy; compared can be accuracy, "),
        ({"value": "std"}, "names std, which probe does not have"),
    ],
)
def test_a_misspelt_claim_is_refused(monkeypatch, changes, message):
    fake_diagnostic({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    with pytest.raises(ValueError, match=message):
        judged(monkeypatch, **changes)


def test_the_ledger_is_plain_data_and_the_command_prints_it(monkeypatch, capsys):
    fake_diagnostic({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    judged(monkeypatch)
    (entry,) = json.loads(json.dumps(claims.judge_all("laptop"), allow_nan=False))
    assert (entry["verdict"], entry["comparisons"][0]["ours"]) == ("supported", pytest.approx(20))
    monkeypatch.setattr("sys.argv", ["claims"])
    claims.main()
    assert "supported" in capsys.readouterr().out


# -- pages


def test_pages_show_verdicts_pending_runs_and_no_verdict_for_quick():
    assert "Pending" in pages.setting("laptop").data
    assert "untested here" in ledger.table("laptop").data
    fake_results("laptop", as_in_the_paper)
    assert "Pending" not in pages.setting("laptop").data
    assert "1,000 test images" in pages.setting("laptop").data
    assert "✓ Reproduced" in ledger.verdict("table2-natural-attacks", "laptop").data
    table = pages.accuracies("laptop", ["batch_norm"])
    assert table.loc["PGD-l∞", ("natural", "BatchNorm")].startswith("29.7 (")
    fake_results("quick", as_in_the_paper)
    assert "supports no verdict" in pages.setting("quick").data


def test_the_figure_shows_ours_beside_the_papers():
    fake_results("laptop", as_in_the_paper)
    series = [("batch_norm", "tracked"), ("batch_norm", "batch")]
    figure = figures.accuracy_figure("laptop", 2, ["natural"], ["clean", "pgd_linf"], series)
    heights = sorted(line.get_ydata()[0] for line in figure.axes[0].lines if len(line.get_ydata()) == 1)
    papers = [92.05, 89.23, 29.73, 48.54]
    for value in papers:
        assert sum(abs(height - value) < 0.06 for height in heights) >= 2, value  # the paper's dot and ours
    html = pages.show(figure, caption="a < b", alt='"x"', notebook="table2", profile="laptop").data
    assert "a &lt; b" in html
    assert "papermill notebooks/table2.ipynb out.ipynb -p profile laptop" in html


def test_command_of_a_run_makes_that_run():
    run = make_run("laptop", norm="robust_norm", p=0.4, training="adversarial", seed=3)
    words = pages.command(run).split()
    chosen = dict(zip(words[words.index("-p") + 1 :: 3], words[words.index("-p") + 2 :: 3], strict=True))
    assert (
        make_run(chosen.pop("profile"), **chosen | {"seed": int(chosen["seed"]), "p": float(chosen["p"])})
        == run
    )
    run.directory.mkdir(parents=True)
    (run.directory / store.WEIGHTS).touch()
    assert pages.command(run).split()[1] == "notebooks/evaluate.ipynb"


def test_what_is_compared_has_the_names_that_readers_know():
    whats = ("against group_norm, none", "0.3")
    named = tuple(Comparison(what, None, 1.0, 0.5, 1.5, 9, 1, "same") for what in whats)
    assert [ledger.what(one) for one in named] == ["against GroupNorm", "0.3"]
    found = claims.Verdict({"id": "one"}, claims.SUPPORTED, "", named)
    assert ledger.differences(found) == "against GroupNorm +1.0, 0.3: +1.0"
    assert list(ledger.comparisons([found]).index) == [("one", "against GroupNorm"), ("one", "0.3")]


def test_a_claim_that_is_measured_in_part_says_what_is_there(monkeypatch):
    fake_diagnostic({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    monkeypatch.setattr(ledger, "judge", lambda claim_id, profile: found)
    found = judged(monkeypatch, over={"attack": ["pgd", "cw"]})
    assert found.direction == claims.UNTESTED
    assert "So far: pgd +20.0." in ledger.verdict("one", "laptop").data
    found = judged(monkeypatch, over={"attack": ["cw"]})
    assert "So far" not in ledger.verdict("one", "laptop").data
    assert "pending" in ledger.comparisons([found]).data


# -- the decision rule


def verdicts_of(*directions):
    """Verdicts of claims with one comparison each, in the given directions (None: untested)."""
    found = []
    for direction in directions:
        ones = () if direction is None else (Comparison("", None, 1.0, 0.0, 2.0, 100, 1, direction),)
        found.append(claims.Verdict({}, claims.UNTESTED if direction is None else "said", "", ones))
    return tuple(found)


@pytest.mark.parametrize(
    ("directions", "state"),
    [
        (["same", "same"], decision.HOLDS),
        (["same", "opposite"], decision.FAILS),
        (["same", "unclear"], decision.UNCLEAR),
        (["same", None], claims.UNTESTED),
        (["opposite", None], decision.FAILS),
        ([], claims.UNTESTED),
    ],
)
def test_a_condition_holds_only_if_all_of_it_does(monkeypatch, directions, state):
    about = {"decides": "E4", "shared": {"training": "natural"}, "evidence": {"profile": "laptop"}}
    names = {f"c{i}": about for i in range(len(directions))}
    found = dict(zip(names, verdicts_of(*directions), strict=True))
    monkeypatch.setattr(decision, "read_claims", lambda: names)
    monkeypatch.setattr(decision, "judge", lambda claim_id, profile: found[claim_id])
    (condition,) = [c for c in decision.conditions("laptop", "natural") if c.name == "E4"]
    assert condition.state == state
    assert all(c.state == claims.UNTESTED for c in decision.conditions("laptop", "adversarial"))
    assert all(c.state == claims.UNTESTED for c in decision.conditions("laptop", "natural", evidence="gpu"))


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        ([decision.HOLDS, decision.HOLDS], decision.SURVIVES),
        ([decision.HOLDS, decision.FAILS, claims.UNTESTED], decision.REFUTED),
        ([decision.HOLDS, claims.UNTESTED], decision.OPEN),
        ([decision.HOLDS, decision.UNCLEAR], decision.UNDECIDED),
    ],
)
def test_one_failed_condition_refutes_and_all_must_hold_to_survive(states, outcome):
    assert decision.decide([decision.Condition("E1", state, ()) for state in states]) == outcome


def test_the_rule_as_a_sentence_names_the_conditions(monkeypatch):
    states = {"E1": decision.UNCLEAR, "E3": decision.FAILS, "E5": decision.FAILS, "E7": claims.UNTESTED}
    found = [decision.Condition(name, state, ()) for name, state in states.items()]
    lost = [decision.Condition(name, decision.UNCLEAR, ()) for name in ("E1", "E3")]
    both = {False: found, True: found}
    monkeypatch.setattr(decision, "conditions", lambda profile, training, *, lost, evidence: both[lost])
    told = decision.sentence("laptop", "natural")
    assert told.startswith("After 8 epochs of natural training")
    assert "refuted" in told
    assert told.endswith("(E3, E5 contradicted; E1 unclear; E7 untested).")
    both[True] = lost
    assert decision.sentence("laptop", "natural").startswith(told)
    assert decision.sentence("laptop", "natural").endswith("(E1, E3 unclear).")


def test_points_lost_take_the_difference_on_clean_images_away():
    attacked = {"tracked": 40.0, "batch": 37.0, "none": 30.0}
    clean = {"tracked": 85.0, "batch": 75.0, "none": 60.0}
    fake_results("laptop", lambda run, mode, attack: (clean if attack == "clean" else attacked)[mode])
    run = next(run for run in grid("laptop") if run.norm == "batch_norm" and run.training == "natural")
    hits = {mode: np.arange(1000) < 10 * attacked[mode] for mode in ("tracked", "batch")}
    keys = {"attack": "Square", "eps": 0.03, "n": 1000}
    rows = [
        keys | {"statistics": mode, "accuracy": attacked[mode], "correct": hit.sum()}
        for mode, hit in hits.items()
    ]
    store.write_rows(run.directory / "black_box.csv", rows)
    store.write_correct(run.directory / "black_box.npz", hits)
    for lost, state, gap in ((False, decision.FAILS, -3.0), (True, decision.HOLDS, 7.0)):
        found = {one.name: one for one in decision.conditions("laptop", "natural", lost=lost)}
        for name in ("E1", "E7"):  # clean images in the same table, and in another
            assert found[name].state == state
            ours = [one.ours for verdict in found[name].verdicts for one in verdict.comparisons]
            assert ours == pytest.approx([gap] * len(ours))


def test_a_book_shows_the_results_that_its_profile_names_beside_its_own():
    """Those of gpu in the book of laptop, with verdicts of their own; never in that of quick."""
    gap = {"tracked": 30.0, "batch": 50.0, "none": 40.0}
    fake_results("gpu", lambda run, mode, attack: gap[mode], n=2000)
    assert claims.judge("longer-natural-attacks", "laptop").direction == claims.REPRODUCED
    assert claims.judge("longer-natural-attacks", "quick").direction == claims.UNTESTED
    assert claims.judge("table2-natural-attacks", "laptop").direction == claims.UNTESTED
    lines = decision.answer("laptop").splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "- After 100 epochs of natural training", "- After 40 epochs of adversarial training",
        "- After 8 epochs of natural training", "- After 4 epochs of adversarial training",
    ]  # fmt: skip
    assert "E1 met" in lines[0]
    assert "E1, E3, E4, E5, E7, E10 untested" in lines[2]
    assert len(decision.answer("quick").splitlines()) == 2


def test_a_least_difference_has_to_be_exceeded():
    for ahead, direction in ((4.0, claims.NOT), (12.0, claims.REPRODUCED)):
        fake_results("laptop", lambda run, mode, attack, ahead=ahead: 40.0 + ahead * (mode == "batch"))
        assert claims.judge("table2-natural-attacks", "laptop").direction == claims.REPRODUCED
        verdict = claims.judge("table2-natural-twenty", "laptop")
        assert verdict.direction == direction
        told = set(ledger.comparisons([verdict]).direction)
        assert told == {"less than claimed" if direction == claims.NOT else "as claimed"}


def test_measured_hours_are_those_of_the_files():
    run = make_run("quick")
    assert results.hours(run) is None
    run.directory.mkdir(parents=True)
    pd.DataFrame({"epoch": [1, 2], "seconds": [1000, 800]}).to_csv(run.directory / "history.csv", index=False)
    table = pd.DataFrame({"attack": ["clean"], "seconds": [1800], "threads": [2]})
    table.to_csv(run.directory / "evaluations.csv", index=False)
    assert results.hours(run) == pytest.approx(2)

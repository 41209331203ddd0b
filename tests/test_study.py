"""The study layer: runs and profiles, the store, parameters, intervals, claims."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rnlib.data import Dataset
from rnlib.study import claims, figures, pages, results, store, work
from rnlib.study.parameters import parameters
from rnlib.study.probe import probe_run
from rnlib.study.runs import PROFILES, ROOT, attack_suite, grid, make_run
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
    for norm in ("batch_norm", "robust_norm", "no_norm"):
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


def test_a_diverged_run_keeps_its_history_and_leaves_no_weights():
    run = make_run("quick", **TINY | {"epochs": 40, "lr": 1e6, "norm": "no_norm"})
    with pytest.raises(TrainingDiverged, match="lower lr"):
        work.train_run(run)
    assert not (run.directory / store.WEIGHTS).exists()


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


# -- intervals


def test_over_seeds_is_the_t_interval():
    values = [48.0, 50.5, 47.0, 52.0, 49.0]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert results.over_seeds(values) == pytest.approx((interval.low, interval.high))


def test_paired_difference_against_the_normal_approximation():
    rng = np.random.default_rng(3)
    first, second = rng.random(4000) < 0.6, rng.random(4000) < 0.5
    difference, low, high = results.paired_difference(first, second)
    steps = first.astype(float) - second
    assert difference == pytest.approx(100 * steps.mean())
    half = 1.96 * 100 * steps.std(ddof=1) / np.sqrt(len(steps))
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.15)


def test_paired_difference_of_the_same_outcomes_is_certain_and_other_images_are_refused():
    outcome = np.array([True, False, True])
    assert results.paired_difference(outcome, outcome) == (0, 0, 0)
    with pytest.raises(ValueError, match="same images"):
        results.paired_difference(outcome, outcome[:2])


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
            assert verdict.direction == claims.REPRODUCED, claim_id
            for comparison in verdict.comparisons:
                assert comparison.ours == pytest.approx(comparison.paper, abs=0.11)


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
        assert claim["attacks"]
        assert {"profile", "dataset", "images", "seeds"} == set(claim["evidence"])
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
    assert verdict.comparisons[0].ours == pytest.approx(1.0, abs=0.15)


# -- pages


def test_pages_show_verdicts_pending_runs_and_no_verdict_for_quick():
    assert "Pending" in pages.setting("laptop").data
    assert "untested here" in pages.ledger("laptop").data
    fake_results("laptop", as_in_the_paper)
    assert "Pending" not in pages.setting("laptop").data
    assert "1,000 test images" in pages.setting("laptop").data
    assert "✓ Reproduced" in pages.verdict("table2-natural-attacks", "laptop").data
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

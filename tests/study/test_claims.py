"""Verdicts on claims, from results made by hand."""

import json
from itertools import product

import numpy as np
import pytest
import yaml

from study import store
from study.report import claims, comparison, ledger, results, rule
from study.report.claims import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, UNTESTED, judge
from study.report.comparison import LESS, OPPOSITE, SAME, UNCLEAR, make_claim, read_claims
from study.runs import ROOT, make_run, read_profile
from tests.study.report_fakes import PROVENANCE, as_in_the_paper, claim, evaluate, probe

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
SHORT = {"experiment": "eight_epochs", "architecture": "resnet20"}


def judged(**changes):
    (part,) = judge(claim(**changes), "book").parts
    return part


# -- the files


def test_the_claims_are_few_and_each_can_be_judged():
    files = sorted((ROOT / "study" / "claims").glob("*.yml"))
    assert sum(file.stat().st_size for file in files) <= 45_000
    assert len(read_claims()) < 95
    experiments = {"headline"} | set(read_profile("book")["experiments"])
    entries = json.loads(json.dumps(claims.judge_all("book"), allow_nan=False))
    for entry in entries:
        assert entry["verdict"] in {*claims.WORDS[entry["claim"]["kind"]], INCONCLUSIVE, UNTESTED}, entry
        assert entry["claim"]["short"] in experiments
        assert entry["claim"]["decides"] in {None, *rule.CONDITIONS}
        assert entry["claim"]["text"].endswith(".")
        for part in entry["parts"]:
            epochs = {one["epochs"] for one in part["comparisons"]}
            if part["claim"]["budget"] == "matched":  # a verdict rests on long trainings alone
                assert all(
                    number >= {"natural": 100, "adversarial": 40}[part["training"]] for number in epochs
                )
    assert {one.decides for one in read_claims().values()} == {None, *rule.CONDITIONS}
    shown = [one for _, first, _, strong in ledger.MAIN for one in (first, strong)]
    assert set(shown) <= {*read_claims(), None, "", ledger.NOT_RUN}


def test_thresholds_are_words_that_stand_at_one_place():
    texts = [file.read_text() for file in (ROOT / "study" / "claims").glob("*.yml")]
    words = {entry["least"] for text in texts for entry in yaml.safe_load(text)["claims"] if "least" in entry}
    assert words == {"large", "about twenty"} == {word for word in comparison.LEAST if word}
    assert "Table 4 has +31.7" in " ".join(read_claims()["table2-twenty"].where.split())


def test_what_the_paper_has_beyond_thirty_points():
    sides = ({"statistics": "batch"}, {"statistics": "tracked"})
    rows = results.select(results.paper(4), {"norm": "batch_norm", "training": "adversarial"})
    left, right = (
        results.select(rows, side).set_index(["architecture", "attack"]).accuracy for side in sides
    )
    gain = (left - right).loc[:, ["grad_sign", "bim_linf", "pgd_linf"]]
    assert sorted(gain["resnet38"].round(1))[-2:] == [31.7, 32.1]
    assert gain.max() == pytest.approx(47.25)


def test_the_papers_own_numbers_are_as_its_claims_say_but_for_these():
    agree = {name: comparison.paper_agrees(one) for name, one in read_claims().items()}
    assert {name: (sum(found), len(found)) for name, found in agree.items() if not all(found)} == {
        "table4-robust-norm": (11 + 22, 48),
        "table4-tracked": (15 + 20, 48),
    }
    assert len(agree["table4-tracking"]) == 48
    assert len(agree["table4-vgg"]) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frist": {}}, "frist is not known; known are id, page"),
        ({"first": None}, "it must have first"),
        ({"kind": "guess"}, r"kind is 'guess', it must be one of \('paper', 'beyond'\)"),
        ({"budget": "long"}, "budget is 'long'"),
        ({"value": "acuracy"}, r"value is 'acuracy', it must be one of \['accuracy'"),
        ({"least": 12}, "least is 12"),
    ],
)
def test_a_misspelt_claim_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"claim 'x' of page.yml: .*{message}"):
        claim(**changes)


def test_defaults_are_shared_and_an_id_stands_once(tmp_path, monkeypatch):
    defaults = {"shared": {"norm": "batch_norm"}, "first": {"statistics": "batch"}, "where": "Table 9"}
    entry = {"id": "a", "text": "A.", "second": {"statistics": "tracked"}, "shared": {"attack": "pgd"}}
    made = make_claim("page", defaults, entry)
    assert (made.where, made.first, made.page) == ("Table 9", [{"statistics": "batch"}], "page")
    assert made.shared == {"norm": "batch_norm", "attack": "pgd"}
    assert made.parts == [("natural", "cifar10"), ("adversarial", "cifar10")]
    folder = tmp_path / "study" / "claims"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"{name}.yml").write_text(yaml.safe_dump({"defaults": defaults, "claims": [entry]}))
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"claim 'a' is in one.yml and in two.yml"):
        read_claims.__wrapped__()


# -- budgets


@pytest.mark.usefixtures("empty")
def test_the_papers_numbers_reproduce_table_2_and_only_after_trainings_as_long_as_its_own():
    evaluate(as_in_the_paper, **SHORT)
    for name in ("table2-attacks", "table2-twenty", "table2-noise", "table2-clean-cost", "table2-clean-gain"):
        found = judge(name, "book")
        assert found.direction == UNTESTED
        assert all(len(part.short) == part.wanted and not part.comparisons for part in found.parts)
    evaluate(as_in_the_paper, experiment="headline")
    for name, one in read_claims().items():
        if one.page == "table2" and one.kind == "paper":
            found = judge(name, "book")
            natural = found.parts[0]
            assert natural.direction == REPRODUCED, name
            assert {one.epochs for one in natural.comparisons} <= {100, 40}
            for one_of in natural.comparisons:
                assert one_of.ours.mean == pytest.approx(one_of.paper, abs=0.11)


@pytest.mark.usefixtures("empty")
def test_a_headline_run_of_another_schedule_is_not_matched(monkeypatch):
    probe({("batch", "pgd", 1): 60, ("tracked", "pgd", 1): 40})
    assert judged().direction == SUPPORTED
    results._joined.cache_clear()
    monkeypatch.setattr("study.runs.MATCHED_EPOCHS", {"natural": 101, "adversarial": 40})
    assert judged().direction == UNTESTED
    assert judged(budget="short", short="headline").direction == SUPPORTED
    results._joined.cache_clear()


@pytest.mark.usefixtures("empty")
def test_a_claim_about_short_trainings_is_judged_on_them():
    probe({("batch", "pgd", 1): 60, ("tracked", "pgd", 1): 40}, experiment="three_epochs")
    part = judged(budget="short", short="three_epochs")
    assert (part.direction, part.short, part.comparisons[0].epochs) == (SUPPORTED, [], 3)
    assert judged(budget="matched", short="three_epochs").direction == UNTESTED
    assert "says nothing of longer" in ledger._told(part)
    assert "does not depend" in ledger._told(judged(budget="any", short="three_epochs"))
    told = ledger._told(judged(short="three_epochs"))
    assert UNTESTED in told
    assert "After 3 epochs, too short for a verdict: +20.0 points (+13.0 to +28.0)" in told


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(("profile", "n"), [("quick", 1000), ("book", 200)])
def test_too_little_evidence_supports_no_verdict(profile, n):
    evaluate(as_in_the_paper, n=n, profile=profile, norm="batch_norm", seed=0)
    about = [
        name for name, one in read_claims().items() if one.page in ("table2", "table4", "along_training")
    ]
    assert {judge(name, profile).direction for name in about} == {UNTESTED}


# -- verdicts


@pytest.mark.usefixtures("empty")
def test_a_perturbed_result_changes_the_verdict():
    for attacks, verdict in (
        ([], REPRODUCED),
        (["pgd_linf"], PARTLY),
        (["grad_sign", "bim_linf", "pgd_linf"], NOT),
    ):
        evaluate(
            lambda run, mode, attack, attacks=attacks: (
                20.0 if mode == "batch" and attack in attacks else as_in_the_paper(run, mode, attack)
            ),
            experiment="headline",
            norm="batch_norm",
            training="natural",
        )
        found = judge("table2-attacks", "book")
        assert [part.direction for part in found.parts] == [verdict, UNTESTED]
        assert found.direction == verdict
    assert {one.direction for one in found.parts[0].comparisons} == {OPPOSITE}


@pytest.mark.parametrize(
    ("parts", "direction"),
    [
        ([REPRODUCED, REPRODUCED], REPRODUCED),
        ([REPRODUCED, UNTESTED], REPRODUCED),
        ([REPRODUCED, NOT], PARTLY),
        ([PARTLY, INCONCLUSIVE], PARTLY),
        ([NOT, INCONCLUSIVE], NOT),
        ([INCONCLUSIVE, UNTESTED], INCONCLUSIVE),
        ([UNTESTED, UNTESTED], UNTESTED),
    ],
)
def test_a_claim_is_as_its_tested_parts(parts, direction):
    one = claim(kind="paper")
    found = [claims.Part(one, "natural", "cifar10", part, [], [], 1) for part in parts]
    assert claims.Verdict(one, found).direction == direction


@pytest.mark.usefixtures("empty")
def test_images_are_paired():
    probe({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    (one,) = judged().comparisons
    half = 1.96 * 100 * np.sqrt(0.2 * 0.8 / 100)  # outcomes are nested: the difference is binomial
    assert (one.ours.low, one.ours.high) == pytest.approx((20 - half, 20 + half), abs=1.5)
    assert judged(first={"statistics": "tracked"}, second={"statistics": "batch"}).direction == NOT_SUPPORTED
    assert judged(images=101).direction == UNTESTED
    assert judged(kind="paper").direction == REPRODUCED


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("wins", "losses", "p", "verdict"),
    [
        (7, 1, 0.0703125, INCONCLUSIVE),
        (8, 1, 0.0390625, SUPPORTED),
        (1, 8, 0.0390625, NOT_SUPPORTED),
        (0, 0, 1, NOT_SUPPORTED),
    ],
)
def test_few_discordant_images_need_the_exact_test(wins, losses, p, verdict):
    base = np.arange(2000) < 1000
    first, second = base.copy(), base.copy()
    second[:wins], first[-losses or 2000 :], second[-losses or 2000 :] = False, False, True
    probe({("batch", "pgd", 1): first, ("tracked", "pgd", 1): second})
    part = judged()
    assert (part.direction, part.comparisons[0].ours.p) == (verdict, pytest.approx(p))
    assert (f"exact p = {p:.2g}" in claims.magnitude(part.comparisons, 1)) == (
        verdict == INCONCLUSIVE or p == 1
    )


@pytest.mark.parametrize(
    ("low", "high", "changes", "direction"),
    [
        (-0.9, 0.9, {"margin": 1.0}, SAME),
        (-1.8, -0.4, {"margin": 1.0}, UNCLEAR),
        (-1.8, -1.1, {"margin": 1.0}, OPPOSITE),
        (1.1, 3.0, {"margin": 1.0}, OPPOSITE),
        (10.1, 20.0, {"least": "large"}, SAME),
        (5.0, 9.0, {"least": "large"}, LESS),
        (5.0, 12.0, {"least": "large"}, UNCLEAR),
        (14.0, 16.0, {"least": "about twenty"}, UNCLEAR),
        (0.1, 1.0, {}, SAME),
        (-1.0, -0.1, {}, OPPOSITE),
        (-1.0, 0.1, {}, UNCLEAR),
    ],
)
def test_where_an_interval_lies(low, high, changes, direction):
    assert claim(**changes).directed(low, high) == direction


@pytest.mark.usefixtures("empty")
def test_an_interval_that_overlaps_a_margin_is_inconclusive():
    # -1.1 points (-1.8 to -0.4): neither within 1 point nor clearly outside.
    ours = {0: 84.95, 1: 84.9, 2: 84.6}

    def accuracy(run, mode, attack):
        return ours[run.seed] if run.norm == "robust_norm" else 86.0

    evaluate(accuracy, experiment="headline", training="natural")
    (part, _) = judge("table3-tracking-natural", "book").parts
    (one,) = part.comparisons
    assert one.ours.low < -1 < one.ours.high < 0
    assert part.direction == INCONCLUSIVE


@pytest.mark.usefixtures("empty")
def test_a_number_of_the_papers_excludes_a_claim_only_where_it_speaks_for_it():
    rng = np.random.default_rng(0)
    probe({(mode, "pgd_linf", 1): rng.random(400) < 0.5 for mode in ("tracked", "batch")})
    sides = {"shared": {"norm": "batch_norm", "attack": "pgd_linf"}, "kind": "paper", "paper": 2}
    part = judged(**sides)
    assert (part.comparisons[0].paper, part.direction) == (pytest.approx(18.81), NOT)
    assert "the paper's +18.8 lies outside the interval" in claims.magnitude(part.comparisons, 1)
    part = judged(**sides, first={"statistics": "tracked"}, second={"statistics": "batch"})
    assert (part.comparisons[0].paper, part.direction) == (pytest.approx(-18.81), INCONCLUSIVE)


@pytest.mark.usefixtures("empty")
def test_cells_are_counted_and_all_are_needed():
    cells = {("batch", attack, size): 60 + size for attack, size in product(("pgd", "noise"), (1, 2))}
    cells |= {("tracked", attack, size): 40 for attack, size in product(("pgd", "noise"), (1, 2))}
    probe(cells)
    over = {"attack": ["pgd", "noise"], "size": [1, 2]}
    part = judged(over=over, shared={"norm": "batch_norm"})
    found = {one.what: one.ours.mean for one in part.comparisons}
    assert found == pytest.approx({"pgd, 1": 21, "pgd, 2": 22, "Noise, 1": 21, "Noise, 2": 22})
    told = claims.magnitude(part.comparisons, part.wanted)
    assert told == "+21.5 points on average (cells from +21.0 to +22.0), as claimed in 4 of 4"
    del cells["batch", "noise", 2]
    probe(cells)
    part = judged(over=over, shared={"norm": "batch_norm"})
    assert part.direction == UNTESTED
    assert claims.magnitude(part.comparisons, part.wanted).endswith("3 of 3 (1 not measured)")


@pytest.mark.usefixtures("empty")
def test_each_first_side_has_to_be_ahead_of_each_second():
    probe({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60, ("none", "pgd", 1): 80})
    sides = [{"statistics": "tracked"}, {"statistics": "none"}]
    part = judged(second=sides)
    assert part.direction == PARTLY
    assert [one.what for one in part.comparisons] == ["against tracked statistics", "against none"]
    assert [one.ours.mean for one in part.comparisons] == pytest.approx([20, -20])
    assert [one.what for one in judged(first=sides, second={"statistics": "batch"}).comparisons] == [
        "tracked statistics",
        "none",
    ]


@pytest.mark.usefixtures("empty")
def test_a_gap_can_be_compared_with_the_gap_elsewhere():
    cells = {("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 45}
    probe(cells | {("tracked", "pgd", 30): 30, ("batch", "pgd", 30): 60})
    part = judged(shared={"norm": "batch_norm", "attack": "pgd", "size": 30}, gap_at={"size": 1})
    assert (part.comparisons[0].ours.mean, part.direction) == (pytest.approx(25), SUPPORTED)
    probe({("tracked", "pgd", 30): 50, ("batch", "pgd", 30): 50}, experiment="three_epochs")
    other = {"size": 30, "norm": "batch_norm", "attack": "pgd"}
    part = judged(shared=other, gap_at={"experiment": "three_epochs"})
    assert part.comparisons[0].ours.mean == pytest.approx(30)


@pytest.mark.usefixtures("empty")
def test_columns_of_different_units_have_no_mean():
    rng = np.random.default_rng(0)
    rows = [
        {"condition": condition, "layer": 1, "channel": channel, "shift_abs": size * rng.random()}
        | {"log_ratio_abs": size * rng.random()}
        | PROVENANCE
        for condition, size in (("start", 3.0), ("clean", 1.0))
        for channel in range(200)
    ]
    store.keep_rows(make_run("book").directory / "statistics.csv", rows)
    found = judge("fig1-start", "book")
    assert found.direction == REPRODUCED
    shift, ratio = found.parts[0].comparisons
    assert shift.ours.mean == pytest.approx(1.0, abs=0.15)
    told = claims.magnitude(found.parts[0].comparisons, 2)
    assert f"{shift.ours.mean:+.2f} tracked standard deviations (" in told
    assert f"{ratio.ours.mean:+.2f} octaves (" in told
    assert "average" not in told


@pytest.mark.usefixtures("empty")
def test_a_claim_that_names_an_unknown_column_or_id_is_refused():
    probe({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    with pytest.raises(ValueError, match=r"claim 'x' names \['attak'\]; probe has statistics, attack"):
        judged(shared={"attak": "pgd"})
    with pytest.raises(ValueError, match=r"names \['std'\]"):
        judged(value="std")
    with pytest.raises(KeyError, match="no-such-claim"):
        judge("no-such-claim", "book")


@pytest.mark.usefixtures("empty")
def test_the_command_prints_the_ledger(monkeypatch, capsys):
    evaluate(as_in_the_paper, experiment="headline", norm="batch_norm", training="natural", seed=0)
    monkeypatch.setattr("sys.argv", ["claims"])
    claims.main()
    printed = capsys.readouterr().out
    assert "table2-attacks                     reproduced\n" in printed
    assert "natural, cifar10: reproduced: +20.4 points on average" in printed

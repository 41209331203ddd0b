"""Verdicts on claims, the rule and the ledger, from results made by hand."""

import json
from itertools import product

import numpy as np
import pytest
import yaml

from study import store
from study.report import claims, comparison, dial, ledger, predictions, results, rule
from study.report.claims import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, UNTESTED, judge
from study.report.comparison import LESS, OPPOSITE, SAME, UNCLEAR, make_claim, read_claims
from study.runs import ROOT, grid, make_run, read_profile
from tests.study.report_fakes import PROVENANCE, evaluate, probe, write

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
SHORT = {"experiment": "eight_epochs", "architecture": "resnet20"}


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))


def claim(**changes):
    """A claim that batch statistics are ahead of tracked ones in the measurement probe."""
    base = {
        "id": "x",
        "text": "A.",
        "where": "here",
        "kind": "beyond",
        "table": "probe",
        "training": "natural",
    }
    base |= {"shared": {"norm": "batch_norm", "attack": "pgd"}, "images": 100}
    base |= {"first": {"statistics": "batch"}, "second": {"statistics": "tracked"}}
    entry = {key: value for key, value in (base | changes).items() if value is not None}
    return make_claim("page", {}, entry)


def judged(**changes):
    (part,) = judge(claim(**changes), "book").parts
    return part


def as_in_the_paper(run, mode, attack):
    where = {"training": run.training, "attack": attack, "norm": run.norm, "statistics": mode}
    table = results.select(results.paper(2), where)
    return float(table.accuracy.iloc[0]) if len(table) else 60.0


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
    shown = [one for _, one, _, strong in ledger.MAIN for one in (one, strong) if one]
    assert set(shown) <= set(read_claims())


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


@pytest.mark.usefixtures("own_results")
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


@pytest.mark.usefixtures("own_results")
def test_a_headline_run_of_another_schedule_is_not_matched(monkeypatch):
    probe({("batch", "pgd", 1): 60, ("tracked", "pgd", 1): 40})
    assert judged().direction == SUPPORTED
    results._joined.cache_clear()
    monkeypatch.setattr("study.runs.MATCHED_EPOCHS", {"natural": 101, "adversarial": 40})
    assert judged().direction == UNTESTED
    assert judged(budget="short", short="headline").direction == SUPPORTED
    results._joined.cache_clear()


@pytest.mark.usefixtures("own_results")
def test_a_claim_about_short_trainings_is_judged_on_them():
    probe({("batch", "pgd", 1): 60, ("tracked", "pgd", 1): 40}, experiment="three_epochs")
    part = judged(budget="short", short="three_epochs")
    assert (part.direction, part.short, part.comparisons[0].epochs) == (SUPPORTED, [], 3)
    assert judged(budget="matched", short="three_epochs").direction == UNTESTED
    assert "says nothing of longer" in ledger._told(part)
    assert "does not depend" in ledger._told(judged(budget="any", short="three_epochs"))
    told = ledger._told(judged(short="three_epochs"))
    assert UNTESTED in told
    assert "After 3 epochs: +20.0 points (+13.0 to +28.0); this is no verdict" in told


@pytest.mark.usefixtures("own_results")
@pytest.mark.parametrize(("profile", "n"), [("quick", 1000), ("book", 200)])
def test_too_little_evidence_supports_no_verdict(profile, n):
    evaluate(as_in_the_paper, n=n, profile=profile, norm="batch_norm", seed=0)
    about = [
        name for name, one in read_claims().items() if one.page in ("table2", "table4", "along_training")
    ]
    assert {judge(name, profile).direction for name in about} == {UNTESTED}


# -- verdicts


@pytest.mark.usefixtures("own_results")
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


@pytest.mark.usefixtures("own_results")
def test_images_are_paired():
    probe({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    (one,) = judged().comparisons
    half = 1.96 * 100 * np.sqrt(0.2 * 0.8 / 100)  # outcomes are nested: the difference is binomial
    assert (one.ours.low, one.ours.high) == pytest.approx((20 - half, 20 + half), abs=1.5)
    assert judged(first={"statistics": "tracked"}, second={"statistics": "batch"}).direction == NOT_SUPPORTED
    assert judged(images=101).direction == UNTESTED
    assert judged(kind="paper").direction == REPRODUCED


@pytest.mark.usefixtures("own_results")
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


@pytest.mark.usefixtures("own_results")
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


@pytest.mark.usefixtures("own_results")
def test_a_number_of_the_papers_excludes_a_claim_only_where_it_speaks_for_it():
    rng = np.random.default_rng(0)
    probe({(mode, "pgd_linf", 1): rng.random(400) < 0.5 for mode in ("tracked", "batch")})
    sides = {"shared": {"norm": "batch_norm", "attack": "pgd_linf"}, "kind": "paper", "paper": 2}
    part = judged(**sides)
    assert (part.comparisons[0].paper, part.direction) == (pytest.approx(18.81), NOT)
    assert "the paper's +18.8 lies outside the interval" in claims.magnitude(part.comparisons, 1)
    part = judged(**sides, first={"statistics": "tracked"}, second={"statistics": "batch"})
    assert (part.comparisons[0].paper, part.direction) == (pytest.approx(-18.81), INCONCLUSIVE)


@pytest.mark.usefixtures("own_results")
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
    assert claims.magnitude(part.comparisons, part.wanted).endswith("3 of 4 (1 not measured)")


@pytest.mark.usefixtures("own_results")
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


@pytest.mark.usefixtures("own_results")
def test_a_gap_can_be_compared_with_the_gap_elsewhere():
    cells = {("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 45}
    probe(cells | {("tracked", "pgd", 30): 30, ("batch", "pgd", 30): 60})
    part = judged(shared={"norm": "batch_norm", "attack": "pgd", "size": 30}, gap_at={"size": 1})
    assert (part.comparisons[0].ours.mean, part.direction) == (pytest.approx(25), SUPPORTED)
    probe({("tracked", "pgd", 30): 50, ("batch", "pgd", 30): 50}, experiment="three_epochs")
    other = {"size": 30, "norm": "batch_norm", "attack": "pgd"}
    part = judged(shared=other, gap_at={"experiment": "three_epochs"})
    assert part.comparisons[0].ours.mean == pytest.approx(30)


@pytest.mark.usefixtures("own_results")
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


@pytest.mark.usefixtures("own_results")
def test_a_claim_that_names_an_unknown_column_or_id_is_refused():
    probe({("tracked", "pgd", 1): 40, ("batch", "pgd", 1): 60})
    with pytest.raises(ValueError, match=r"claim 'x' names \['attak'\]; probe has statistics, attack"):
        judged(shared={"attak": "pgd"})
    with pytest.raises(ValueError, match=r"names \['std'\]"):
        judged(value="std")
    with pytest.raises(KeyError, match="no-such-claim"):
        judge("no-such-claim", "book")


@pytest.mark.usefixtures("own_results")
def test_the_command_prints_the_ledger(monkeypatch, capsys):
    evaluate(as_in_the_paper, experiment="headline", norm="batch_norm", training="natural", seed=0)
    monkeypatch.setattr("sys.argv", ["claims"])
    claims.main()
    printed = capsys.readouterr().out
    assert "table2-attacks                     reproduced\n" in printed
    assert "natural, cifar10: reproduced: +20.4 points on average" in printed


# -- the rule


@pytest.mark.parametrize(
    ("directions", "state"),
    [
        ([[SAME], [SAME]], rule.HOLDS),
        ([[SAME], [OPPOSITE]], rule.FAILS),
        ([[SAME, OPPOSITE]], rule.UNCLEAR),
        ([[SAME], [UNCLEAR]], rule.UNCLEAR),
        ([[SAME], []], UNTESTED),
        ([[OPPOSITE, UNCLEAR], []], rule.FAILS),
        ([], UNTESTED),
    ],
)
def test_a_condition_is_met_only_if_all_of_it_is(monkeypatch, directions, state):
    ours = results.Difference(1.0, 0.0, 2.0, 100, 1)
    verdicts = {}
    for number, found in enumerate(directions):
        one = claim(id=f"c{number}", decides="no gradient")
        comparisons = [comparison.Comparison("", None, ours, "points", how, 100, 3) for how in found]
        part = claims.Part(one, "natural", "cifar10", "said" if found else UNTESTED, comparisons, [], 1)
        verdicts[one.id] = claims.Verdict(one, [part])
    monkeypatch.setattr(rule, "read_claims", lambda: {key: one.claim for key, one in verdicts.items()})
    monkeypatch.setattr(rule, "judge", lambda claim_id, profile: verdicts[claim_id])
    assert rule.conditions("book", "natural")["no gradient"][0] == state
    assert {how for how, _ in rule.conditions("book", "adversarial").values()} == {UNTESTED}
    told = rule.sentence("book", "natural")
    assert told.startswith("Natural training: that tracking is the cause **is ")
    assert ("contradicted: no gradient" in told) == (state == rule.FAILS)


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        ([rule.HOLDS, rule.HOLDS], rule.SURVIVES),
        ([rule.HOLDS, rule.FAILS, UNTESTED], rule.REFUTED),
        ([rule.HOLDS, UNTESTED, rule.UNCLEAR], rule.OPEN),
        ([rule.HOLDS, rule.UNCLEAR], rule.UNDECIDED),
        ([rule.FAILS, rule.FAILS, UNTESTED], rule.NO_GAP),
    ],
)
def test_one_contradiction_refutes_and_all_must_hold_to_survive(states, outcome):
    assert rule.decide(states) == outcome


# -- the ledger


@pytest.mark.usefixtures("own_results")
def test_the_ledger_shows_what_there_is_and_what_there_is_not():
    assert "Nothing measured yet" in ledger.comparisons("table2", "book").data
    assert f"○ {UNTESTED}" in ledger.table("book").data
    assert ledger.number("table2-attacks", "book", "natural") == "not measured yet"
    evaluate(as_in_the_paper, norm="batch_norm", training="natural", architecture="resnet20")
    box = ledger.verdict("table2-attacks", "book").data
    assert box.startswith(":::{admonition} ✓ Reproduced: The same BatchNorm network")
    assert "\n:class: tip dropdown\n:name: claim-table2-attacks\n" in box
    assert "- Natural training: **reproduced**. After 100 epochs (the paper: 164): +20.4 points" in box
    assert "After 8 epochs: +20.4 points on average" in box
    assert f"- Adversarial training: **{UNTESTED}**." in box
    assert ledger.NOISE in ledger.verdict("table2-noise", "book").data
    assert ledger.NOISE not in box
    page = ledger.verdicts("table2", "book").data
    names = [one.id for one in read_claims().values() if one.page == "table2"]
    assert [page.count(f":name: {ledger.anchor(name)}\n") for name in names] == [1] * len(names)
    assert ledger.number("table2-attacks", "book", "natural") == "+20.4"
    assert ledger.number("table2-attacks", "book", "natural", paper=True) == "+20.4"
    assert ledger.said("table2-clean-cost", "book", "natural").startswith("+2.8 points (")
    table = ledger.comparisons("table2", "book")
    row = table.loc["table2-attacks", "Natural training, PGD"].iloc[0]
    assert (row.ours, row.paper, row.epochs, row.n, row.direction) == ("+18.8", "+18.8", 100, 1000, SAME)
    assert "p" not in table
    table = ledger.table("book").data
    assert "{ref}`The same BatchNorm network" in table
    assert f"Of {sum(one.kind == 'paper' for one in read_claims().values())} claims: " in table
    assert "the paper's own numbers agree in 33 of 48" in ledger.verdict("table4-robust-norm", "book").data


@pytest.mark.usefixtures("own_results")
def test_the_front_page_has_eight_claims_and_the_rule_its_conditions():
    evaluate(as_in_the_paper, experiment="headline", norm="batch_norm", training="natural")
    cells = {("all attacked", "book", mode): np.arange(500) < 150 for mode in ("tracked", "batch")}
    write(make_run("book"), "strongest", cells, ("threat", "budget", "statistics"))
    lines = ledger.main_claims("book").data.splitlines()[2:]
    assert len(lines) == 8
    first = [cell.strip() for cell in lines[0].split("|")][2:-1]
    assert first == ["{bdg-success}`✓ reproduced`", "+20.4", "+20.4", "+0.0"]
    assert rule.OPEN in lines[1]
    table = ledger.conditions("book").data
    assert "met: {ref}`table2-attacks <claim-table2-attacks>`" in table
    assert table.count("tracking is the cause **is open") == 2
    assert len(grid("book")) > 60


# -- the predictions of the mechanism


def test_predictions_have_a_claim_a_refuter_and_a_place_in_the_ledger():
    entries = predictions.read_predictions()
    letters = {letter for entry in entries for letter in entry["letter"]}
    assert letters == set("abcdefgh")
    assert all(entry["text"].endswith(".") and entry["refuted"].endswith(".") for entry in entries)
    pages = {"temperature", "whose_gradient"}
    of_pages = {one.id for one in read_claims().values() if one.page in pages}
    assert of_pages <= {entry["claim"].id for entry in entries}
    assert all(entry["claim"].kind == "beyond" and len(entry["claim"].parts) == 1 for entry in entries)


def dial_results(lead_at, seeds):
    """Temperature of the long-trained networks, where batch statistics lead by so much at each factor."""
    for seed in seeds:
        cells = {
            ("cross_entropy", factor, mode): np.arange(1000) < 300 + 10 * lead * (mode == "batch") + seed
            for factor, lead in lead_at.items()
            for mode in ("tracked", "batch")
        }
        cells |= {("equal_weight", 1.0, mode): np.arange(1000) < 300 for mode in ("tracked", "batch")}
        cells["statistics as given", 1.0, "batch"] = np.arange(500) < 220  # of images of which 300 are right
        write(make_run("book", seed=seed), "temperature", cells, ("loss", "factor", "statistics"))


@pytest.mark.usefixtures("own_results")
def test_a_prediction_is_told_with_and_without_the_seed_that_suggested_it():
    assert predictions.table("book").data.count("not measured yet") == 2 * len(predictions.read_predictions())
    dial_results({0.2: -5, 1.0: 20, 4.0: 30}, (0, 1, 2))
    (line,) = [line for line in predictions.table("book").data.splitlines() if "claim-dial-down" in line]
    assert line.startswith("| g | {ref}`After 100 epochs outputs times 0.2 turn the gap <claim-dial-down>`")
    assert "supported` | +5.0 points (+5.0 to +5.0); n 1,000, 3 seeds | +5.0 points" in line
    assert line.endswith("n 1,000, 2 seeds |")


@pytest.mark.usefixtures("own_results")
def test_the_lead_of_an_attack_with_statistics_as_given_is_over_the_usual_attack_on_tracked_ones():
    assert dial.lead(dial.leads("book"), "cross_entropy") == "(not measured yet)"
    dial_results({1.0: 20}, (0,))
    leads = dial.leads("book")
    assert list(leads.network.unique()) == ["BatchNorm, 100 epochs"]
    found = {loss: dial.lead(leads, loss) for loss in ("cross_entropy", "equal_weight", dial.GIVEN)}
    assert found == {"cross_entropy": "+20.0", "equal_weight": "+0.0", dial.GIVEN: "-16.0"}
    assert dial.lead(leads, "cross_entropy", norm="robust_norm") == "(not measured yet)"
    chart = dial.explorable("book").data
    assert '"network":"BatchNorm, 100 epochs"' in chart
    assert "<noscript><figure>" in chart

"""The rule, the ledger and the predictions of the mechanism, from results made by hand."""

import numpy as np
import pytest

from study.report import claims, comparison, dial, ledger, predictions, results, rule
from study.report.claims import UNTESTED
from study.report.comparison import OPPOSITE, SAME, UNCLEAR, read_claims
from study.runs import grid, make_run
from tests.study.report_fakes import as_in_the_paper, claim, evaluate, write

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
SHORT = {"experiment": "eight_epochs", "architecture": "resnet20"}


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
    assert told.startswith("Natural training: the explanation by tracking **is ")
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


@pytest.mark.usefixtures("empty")
def test_the_ledger_shows_what_there_is_and_what_there_is_not():
    assert "Nothing measured yet" in ledger.comparisons("table2", "book").data
    assert f"○ {UNTESTED}" in ledger.table("book").data
    assert ledger.number("table2-attacks", "book", "natural") == "not measured yet"
    evaluate(as_in_the_paper, norm="batch_norm", training="natural", architecture="resnet20")
    box = ledger.verdict("table2-attacks", "book").data
    assert box.startswith(":::{admonition} ✓ Reproduced: The same BatchNorm network")
    assert "\n:class: tip dropdown\n:name: claim-table2-attacks\n" in box
    assert "- Natural training: **reproduced**. After 100 epochs (the paper: 164): +20.4 points" in box
    assert "After 8 epochs, too short for a verdict: +20.4 points on average" in box
    assert f"- Adversarial training: **{UNTESTED}**." in box
    assert ledger.NOISE in ledger.verdict("table2-noise", "book").data
    assert ledger.NOISE not in box
    page = ledger.verdicts("table2", "book").data
    names = [one.id for one in read_claims().values() if one.page == "table2"]
    assert [page.count(f":name: {ledger.anchor(name)}\n") for name in names] == [1] * len(names)
    assert ledger.number("table2-attacks", "book", "natural") == "+20.4"
    assert ledger.number("table2-attacks", "book", "natural", paper=True) == "+20.4"
    assert ledger.said("table2-clean-cost", "book", "natural").startswith("+2.8 points (")
    assert "as claimed" not in ledger.said("table2-attacks", "book", "natural")
    words = "yes", "in part", "no", "unclear", "untested"
    assert ledger.tell("table2-attacks", "book", "natural", *words) == "yes"
    assert ledger.tell("table2-attacks", "book", "adversarial", *words) == "untested"
    table = ledger.comparisons("table2", "book")
    row = table.loc["table2-attacks", "Natural training, PGD"].iloc[0]
    assert (row.ours, row.paper, row.epochs, row.n, row.direction) == ("+18.8", "+18.8", 100, 1000, SAME)
    assert "p" not in table
    table = ledger.table("book").data
    assert "{ref}`The same BatchNorm network" in table
    assert f"Of {sum(one.kind == 'paper' for one in read_claims().values())} claims: " in table
    assert "the paper's own numbers agree in 33 of 48" in ledger.verdict("table4-robust-norm", "book").data


@pytest.mark.usefixtures("empty")
def test_the_front_page_has_eight_claims_and_the_rule_its_conditions():
    evaluate(as_in_the_paper, experiment="headline", norm="batch_norm", training="natural")
    cells = {("all attacked", "book", mode): np.arange(500) < 150 for mode in ("tracked", "batch")}
    write(make_run("book"), "strongest", cells, ("threat", "budget", "statistics"))
    lines = ledger.main_claims("book").data.splitlines()[2:]
    assert len(lines) == 8
    first = [cell.strip() for cell in lines[0].split("|")][2:-1]
    assert first == ["{bdg-success}`✓ reproduced`", "+20.4", "+20.4", "+0.0"]
    assert "{bdg-light}`○ open`" in lines[1]
    table = ledger.conditions("book").data
    assert "met: {ref}`+20.4 <claim-table2-attacks>`" in table
    assert table.count("the explanation by tracking **is open") == 2
    assert len(grid("book")) > 60


# -- the predictions of the mechanism


def test_predictions_have_a_claim_a_refuter_and_a_place_in_the_ledger():
    entries = predictions.read_predictions()
    letters = {entry["letter"][0] for entry in entries}
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


@pytest.mark.usefixtures("empty")
def test_a_prediction_is_told_with_and_without_the_seed_that_suggested_it():
    assert predictions.table("book").data.count("not measured yet") == 2 * len(predictions.read_predictions())
    dial_results({0.2: -5, 1.0: 20, 4.0: 30}, (0, 1, 2))
    (line,) = [line for line in predictions.table("book").data.splitlines() if "claim-dial-down" in line]
    assert line.startswith("| g2 | {ref}`After 100 epochs outputs times 0.2 turn the gap <claim-dial-down>`")
    assert "supported` | +5.0 points (+5.0 to +5.0); n 1,000, 3 seeds | +5.0 points" in line
    assert line.endswith("n 1,000, 2 seeds |")


@pytest.mark.usefixtures("empty")
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

"""A report on many results, and on results from strangers."""

import cProfile
import shutil
from pathlib import Path

import pytest
from harness import CASES, PROFILE, refusal

from study import store
from study.report import results as report
from study.runs import grid, make_run


def calls(action):
    """How many functions are called, which does not depend on the machine."""
    profile = cProfile.Profile()
    profile.runcall(action)
    profile.create_stats()
    return sum(entry[1] for entry in profile.stats.values())


def test_the_time_of_a_report_grows_with_the_results(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    source = finished / "tiny" / make_run(PROFILE, experiment="two_epochs").name
    counts = []
    for seeds in (5, 50):
        path = tmp_path / f"seeds{seeds}.yml"
        head, _, rest = Path(PROFILE).read_text().partition("grid:\n")
        one = f"  - {{norm: batch_norm, training: natural, seed: {[*range(seeds)]}}}\n"
        path.write_text(f"{head}grid:\n{one}{rest}")
        for run in grid(str(path)):
            shutil.copytree(source, run.directory)

        def tables(profile=str(path)):
            rows = report.table(profile, "evaluations")
            report.intervals(rows, ["attack", "statistics"])
            return [report.outcomes(profile, "evaluations", row) for _, row in rows.iterrows()]

        assert len(tables()) >= 4 * seeds
        report._joined.cache_clear()
        report._outcomes.cache_clear()
        counts.append(calls(tables))
    assert counts[1] < 12 * counts[0], counts


@pytest.mark.parametrize("column", ["attack", "statistics"])
@pytest.mark.parametrize("word", CASES["cells"])
def test_words_of_a_table_are_no_page_and_no_formula(finished, tmp_path, monkeypatch, word, column):
    """Also in a table whose checksum is right: a stranger can make one."""
    shutil.copytree(finished, tmp_path / "results")
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path / "results"))
    path = make_run(PROFILE, experiment="two_epochs").directory / "evaluations.csv"
    rows = store.read_table(path)
    rows[column] = [word, *rows[column][1:]]
    store.keep_rows(path, rows.to_dict("records"))
    refusal(lambda: report.table(PROFILE, "evaluations", "two_epochs"), "evaluations.csv", "page")

"""The README keeps its promises: its code runs, its commands exist, its links lead somewhere."""

import re
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line.split("#")[0].split() for kind, text in BLOCKS if not kind for line in text.splitlines()]


def test_the_python_example_runs_and_reports_both_statistics_modes(capsys):
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tracked", "batch"]
    assert all(0 <= float(line.split()[-1]) <= 1 for line in lines)


def test_the_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {words[1] for words in COMMANDS if words[0] == "make"} == {"book", "test"} <= set(targets)


def test_the_papermill_example_names_a_notebook_and_parameters_that_it_has():
    (words,) = [words for words in COMMANDS if words[0] == "papermill"]
    notebook = nbformat.read(ROOT / words[1], as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    assert names
    assert all(re.search(rf"^{name} = ", cell.source, re.MULTILINE) for name in names)


def test_the_snakemake_example_names_a_profile():
    (words,) = [words for words in COMMANDS if words[0] == "snakemake"]
    profile = words[-1].removeprefix("profile=")
    assert yaml.safe_load((ROOT / "profiles" / f"{profile}.yml").read_text())["grid"]


def test_every_link_and_image_leads_to_a_file():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_it_fits_one_screen():
    assert len(README.splitlines()) <= 65

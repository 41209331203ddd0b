"""What is around the code agrees with it: imports, packaging, set-up, commands, workflows, README, numbers.

``python tests/test_project.py`` draws the picture of the imports in CONTRIBUTING.md again.
"""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rnlib
from study.report import results

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line.split("#")[0].split() for kind, text in BLOCKS if not kind for line in text.splitlines()]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*.yml")}
WITHOUT_TORCH = (
    "study.report",
    "study.runs",
    "study.store",
    "study.book",
    "study.parameters",
)
PICTURE = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.DOTALL)


def run(*command, cwd=ROOT, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | variables
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


# -- imports


def imports(path):
    """What a module or notebook imports anywhere in it, by dotted name, also `from package import module`."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = {name for name in inside if (ROOT / f"{name.replace('.', '/')}.py").exists()}
            found |= modules | ({node.module} if len(modules) < len(inside) else set())
    return found


def modules():
    """The modules of both packages, by dotted name."""
    paths = [path for package in ("rnlib", "study") for path in (ROOT / package).rglob("*.py")]
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def picture():
    """Mermaid flowchart of the modules, the packages of study and the folders of notebooks."""

    def room(name):
        return ".".join(name.split(".")[:2])

    direct = {}
    for name, path in modules().items():
        if name not in ("rnlib", "study"):  # these hold nothing of their own
            direct.setdefault(room(name), set()).update(map(room, imports(path)))
    for path in ROOT.glob("notebooks/*/*.ipynb"):
        direct.setdefault(f"notebooks.{path.parent.name}", set()).update(map(room, imports(path)))
    direct = {name: {other for other in found if other in direct} - {name} for name, found in direct.items()}

    def reached(name):
        return direct[name].union(*map(reached, direct[name]))

    lines = ["flowchart LR"]
    for name, found in sorted(direct.items()):
        if near := sorted(found - set().union(*map(reached, found))):
            lines.append(f"  {name} --> {' & '.join(near)}")
    return "\n".join([*lines, ""])


def test_rnlib_never_imports_the_study():
    library = {name: path for name, path in modules().items() if name.split(".")[0] == "rnlib"}
    assert len(library) > 10
    assert not [
        name for name, path in library.items() if {found.split(".")[0] for found in imports(path)} & {"study"}
    ]


def test_what_shows_results_never_imports_torch():
    showing = {name: path for name, path in modules().items() if name.startswith(WITHOUT_TORCH)}
    for name, path in showing.items():
        assert not {found.split(".")[0] for found in imports(path)} & {"torch", "torchvision", "rnlib"}, name
    code = f"import sys, {', '.join(showing)}; print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code).stdout.split() == ["False"]


def test_the_library_does_without_what_only_the_study_needs():
    only = {"pandas", "matplotlib", "scipy", "papermill", "nbformat", "yaml"}
    done = run(sys.executable, "-c", f"import sys, rnlib; print(*{only} & sys.modules.keys())")
    assert done.returncode == 0
    assert done.stdout.split() == []


def test_the_picture_in_contributing_is_that_of_the_imports():
    (drawn,) = PICTURE.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert drawn == picture(), "draw it again: python tests/test_project.py"


# -- packaging and set-up


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a wheel and an editable installation are made from."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("rnlib", "study"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def made(checkout, kind):
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(checkout / kind)!r})"
    done = run(sys.executable, "-c", code, cwd=checkout)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (checkout / kind).glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_rnlib_alone_and_works_by_itself(checkout, tmp_path):
    wheel = made(checkout, "wheel")
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert sorted(files) == sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "rnlib").glob("*.*"))
    wheel.extractall(tmp_path)
    code = "import rnlib; print(rnlib.__file__, rnlib.__version__)"
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == [str(tmp_path / "rnlib" / "__init__.py"), rnlib.__version__], done.stderr


def test_an_editable_checkout_has_the_study_too_wherever_python_starts(checkout, tmp_path):
    made(checkout, "editable").extractall(tmp_path)
    code = f"import site; site.addsitedir({str(tmp_path)!r}); import study.runs, importlib.util as u; "
    code += "print(study.runs.__file__, u.find_spec('rnlib').origin)"
    done = run(
        sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path}; {code}", cwd="/", PYTHONPATH=""
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.pth")
    assert path.read_text().strip() == str(checkout)


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_floor_and_one_tested_pin_within_its_bounds(requirement):
    assert ">=" in {bound.operator for bound in requirement.specifier}
    (pin,) = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    (bound,) = pin.specifier
    assert bound.operator == "=="
    assert bound.version in requirement.specifier
    assert requirement.specifier.contains(version(requirement.name)), "the environment at hand does not fit"


def test_the_pins_are_exact_and_leave_the_cuda_packages_to_pytorch():
    names = [canonicalize_name(pin.name) for pin in PINS]
    assert all([bound.operator for bound in pin.specifier] == ["=="] for pin in PINS)
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_library_needs_five_packages():
    needed = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert needed == {"torch", "torchvision", "numpy", "safetensors", "tqdm"}


def test_conda_and_readme_and_make_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, *_, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert python == f"python{PROJECT['requires-python']}"
    everything = ",".join(EXTRAS)
    assert pip == {"pip": ["--constraint constraints.txt", f"--editable .[{everything}]"]}
    assert f'pip install --constraint constraints.txt --editable ".[{everything}]"' in README
    recipe = run("make", "--dry-run", "--always-make", "lint").stdout
    assert re.search(rf"--constraint constraints\.txt --editable '\.\[{everything}\]'", recipe)
    assert "--editable '.[study]'" in run("make", "--dry-run", "--always-make", "book").stdout


def test_the_version_is_the_same_everywhere():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cff["version"] == rnlib.__version__ == heads[0]


# -- commands


def test_make_alone_lists_the_targets():
    done = run("make", "--no-print-directory")
    assert done.returncode == 0
    listed = re.findall(r"^  make ([\w-]+)", done.stdout, re.MULTILINE)
    assert listed == ["help", "book", "pdf", "test", "test-fast", "faults", "lint", "clean"]


def test_only_the_small_profile_is_trained_by_make_book():
    assert "--train" in run("make", "--dry-run", "book", "PROFILE=quick").stdout
    assert "--train" not in run("make", "--dry-run", "book").stdout


@pytest.mark.skipif(not shutil.which("sh"), reason="the stand-in for a Python is a shell script")
def test_an_old_python_is_an_error_that_says_what_to_do(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = run("make", "lint", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert all(text in done.stderr for text in ("Python 3.11 or newer", "Python 3.9.2", "make PYTHON="))
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(not shutil.which("sh"), reason="the stand-in for a Python is a shell script")
def test_a_set_up_is_one_line_and_one_that_fails_shows_the_end_of_its_log(tmp_path):
    python, venv, log = tmp_path / "python3", tmp_path / "venv", tmp_path / "setup.log"
    lines = ["#!/bin/sh", '[ "$1" = -c ] && exit 0', f"mkdir -p {venv}/bin", f"cp $0 {venv}/bin/python"]
    python.write_text("\n".join([*lines, "seq 50", "exit $CODE"]))
    python.chmod(0o755)
    (tmp_path / "bin").mkdir()
    command = [
        "make",
        "--no-print-directory",
        f"{venv}/.ready-study",
        f"PYTHON={python}",
        f"VENV={venv}",
        f"LOG={log}",
    ]
    failed = run(*command, CODE="1")
    assert failed.returncode != 0
    assert failed.stdout.splitlines()[1:] == [str(number) for number in range(21, 51)]
    assert str(log) in failed.stdout.splitlines()[0]
    assert not (venv / ".ready-study").exists()
    done = run(*command, CODE="0")
    assert re.fullmatch(rf"Setting up {venv}, .* \d+ s\n", done.stdout)
    assert (venv / ".ready-study").exists()


def test_continuous_integration_runs_the_test_target_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1] == "exec make test"


def test_workflows_run_these_commands_pin_their_actions_and_may_only_read():
    steps = {
        name: [step for job in flow["jobs"].values() for step in job["steps"]]
        for name, flow in WORKFLOWS.items()
    }
    commands = {name: [step["run"] for step in found if "run" in step] for name, found in steps.items()}
    assert commands == {"test": [".ci/run"], "nightly": ["make book PROFILE=quick"], "pages": ["make book"]}
    actions = [step["uses"] for found in steps.values() for step in found if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in actions)
    assert all(flow["permissions"] == {"contents": "read"} for flow in WORKFLOWS.values())
    more = [name for name, flow in WORKFLOWS.items() for job in flow["jobs"].values() if "permissions" in job]
    assert more == ["pages"]


def test_the_hooks_before_a_commit_are_tools_of_the_environment():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].split()[0] in {requirement.name for requirement in DIRECT}


# -- notebooks, README and the card of the networks


NOTEBOOKS = [path for part in ("index", "*/*") for path in ROOT.glob(f"notebooks/{part}.*")]


@pytest.mark.parametrize(
    "path", sorted({path.with_suffix("") for path in NOTEBOOKS}), ids=lambda path: path.name
)
def test_a_notebook_is_a_pair_that_says_the_same_has_no_outputs_and_takes_a_profile(path):
    notebook, text = jupytext.read(f"{path}.ipynb"), jupytext.read(f"{path}.md")
    assert notebook.metadata.jupytext.formats == text.metadata.jupytext.formats == "ipynb,md:myst"
    sides = [[(cell.source, cell.metadata.get("tags", [])) for cell in one.cells] for one in (notebook, text)]
    assert sides[0] == sides[1], f"jupytext --sync {path.relative_to(ROOT)}.md"
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert re.search(r"^profile\b.* = ", cell.source, re.MULTILINE)


def test_the_python_example_runs_and_reports_both_statistics_modes(capsys):
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tracked", "batch"]
    assert all(0 <= float(line.split()[-1]) <= 1 for line in lines)


def test_the_commands_of_the_readme_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {words[1] for words in COMMANDS if words[0] == "make"} == {"book", "test"} <= set(targets)
    (words,) = [words for words in COMMANDS if words[0] == "snakemake"]
    profile = words[-1].removeprefix("profile=")
    assert yaml.safe_load((ROOT / "study" / "profiles" / f"{profile}.yml").read_text())["grid"]
    assert ["python", "-m", "study.book"] in COMMANDS


def test_the_papermill_example_names_a_notebook_and_parameters_that_it_has():
    (words,) = [words for words in COMMANDS if words[0] == "papermill"]
    cells = json.loads((ROOT / words[1]).read_text())["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    names = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    assert names
    assert all(re.search(rf"^{name}\b.* = ", "".join(cell["source"]), re.MULTILINE) for name in names)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "data/README.md"]
)
def test_every_link_and_image_leads_to_a_file(name):
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text())
    assert [target for target in targets if not (ROOT / name).parent.joinpath(target).exists()] == []


def test_the_readme_fits_one_screen():
    assert len(README.splitlines()) <= 65


def rows(run, table):
    with (ROOT / "results" / "book" / run / table).open() as file:
        return list(csv.DictReader(file))


def accuracy(run, table, **where):
    found = [row for row in rows(run, table) if all(row[key] == value for key, value in where.items())]
    (row,) = found
    return float(row["accuracy"])


def test_the_numbers_of_the_readme_are_those_of_the_results():
    bn = {"norm": "batch_norm", "training": "natural", "architecture": "resnet20"}
    pgd = results.table("book", "evaluations", attack="pgd_linf", **bn)
    dial = results.table("book", "temperature", factor=1.0, loss="equal_weight", **bn)
    both = [rows.groupby("statistics").accuracy.mean() for rows in (pgd, dial)]
    kept = [rows[mode] for rows in both for mode in ("tracked", "batch")]
    assert [float(number) for number in re.findall(r"(\d+)%", README)] == [round(value) for value in kept]
    rows = results.table("book", "temperature", loss="cross_entropy", **bn)
    rows = rows.pivot_table(index="factor", columns="statistics", values="accuracy")
    leads = (rows.batch - rows.tracked)[[0.2, 4.0]]
    told = re.search(r"fall (\d+) points \*behind\*.*?lead by (\d+)", README, re.DOTALL)
    assert [-float(told[1]), float(told[2])] == [round(value) for value in leads]


def test_the_numbers_of_the_card_are_those_of_the_results():
    card = (ROOT / "results" / "README.md").read_text()
    lines = re.findall(r"^\| `(\S+_seed\d)` \| (.+) / (.+) \| (.+) / (.+) \|$", card, re.MULTILINE)
    assert len(lines) >= 4
    for run, *said in lines:
        keys = [(mode, attack) for attack in ("clean", "pgd_linf") for mode in ("tracked", "batch")]
        found = [accuracy(run, "evaluations.csv", statistics=mode, attack=attack) for mode, attack in keys]
        assert [float(number) for number in said] == found


if __name__ == "__main__":
    page = ROOT / "CONTRIBUTING.md"
    page.write_text(PICTURE.sub(lambda _: picture(), page.read_text()))

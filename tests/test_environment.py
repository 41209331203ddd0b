"""The ways to set the project up agree: pyproject, constraints, conda environment, make and .ci/run."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]


def make(*arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | variables
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_core_needs_no_more_than_the_networks_do():
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert core == {"torch", "torchvision", "numpy", "safetensors"}
    study_only = "pandas", "matplotlib", "seaborn", "papermill", "nbformat", "yaml"
    code = f"import sys, rnlib; print(*[name for name in {study_only} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_torchvision_is_imported_by_what_needs_it_only():
    """It takes as long to import as torch itself, and a job of the grid needs the packaged files alone."""
    code = """
import sys, torch, rnlib, study.work
rnlib.load("fashion-mnist-sample", "test"), rnlib.resnet(8)
print("torchvision" in sys.modules)
rnlib.sources.jpeg(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_training_job_does_without_the_packages_that_are_slow_to_import():
    slow = "scipy.stats", "seaborn", "torchvision", "loss_landscapes"
    cells = jupytext.read(ROOT / "notebooks" / "train.py").cells
    lines = [line for cell in cells for line in cell.source.splitlines()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert any("study.work" in line for line in imports)
    code = [*imports, f"import sys; print(*[name for name in {slow} if name in sys.modules])"]
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


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


def test_jupyterlab_is_current():
    assert int(version("jupyterlab").split(".")[0]) >= 4


def test_conda_users_get_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, *_, pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert "pip" in environment["dependencies"]
    assert pip == {"pip": ["--constraint constraints.txt", f"--editable .[{','.join(EXTRAS)}]"]}
    assert environment["name"] == PROJECT["name"]


def test_make_installs_the_same_requirements():
    recipe = (ROOT / "Makefile").read_text()
    assert f"--constraint constraints.txt --editable '.[{','.join(EXTRAS)}]'" in recipe


def test_make_alone_lists_the_targets():
    done = make()
    assert done.returncode == 0
    listed = re.findall(r"^  make (\w+)", done.stdout, re.MULTILINE)
    assert set(listed) == {"help", "book", "test", "lint", "clean"}


@pytest.mark.skipif(not shutil.which("sh"), reason="the stand-in for an old Python is a shell script")
def test_an_old_python_is_an_error_that_says_what_to_do(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = make("lint", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_runs_the_test_target_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1] == "exec make test"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make book"]

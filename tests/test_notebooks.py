"""Every notebook through papermill: the workers one after another on the embedded sample, the chapters on
what they left.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
WORKERS = ["train", "evaluate", "probe", "diagnose", "landscape"]
TINY = {"architecture": "resnet8", "width": 2, "train_images": 128, "validation_images": 100, "epochs": 1}


def papermill(name, out, results, **parameters):
    """Run a notebook in a process of its own; returns the finished process."""
    options = [str(part) for key, value in parameters.items() for part in ("-p", key, value)]
    command = [
        str(Path(sys.executable).with_name("papermill")),
        "--no-progress-bar",
        str(ROOT / "notebooks" / f"{name}.ipynb"),
        str(out),
    ]
    env = os.environ | {"RNLIB_RESULTS": str(results), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], env=env, capture_output=True, text=True, cwd=out.parent)


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def test_the_workers_train_evaluate_probe_and_diagnose_a_run(tmp_path):
    results = tmp_path / "results"
    for name in WORKERS:
        done = papermill(
            name, tmp_path / f"{name}.ipynb", results, **TINY, norm="robust_norm", training="adversarial"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        shown = outputs(tmp_path / f"{name}.ipynb")
        text = str(shown)
        assert "step 1" not in text  # what showed the progress is gone
        assert "stderr" not in {output.get("name") for output in shown}, text[-2000:]
    (folder,) = (results / "quick").iterdir()
    made = "config.json history.csv weights.safetensors evaluations.csv correct.npz statistics.csv"
    made += " transfer.csv transfer.npz landscape.csv sharpness.csv"
    assert {path.name for path in folder.iterdir()} == set(made.split())
    assert any("image/png" in output.get("data", {}) for output in outputs(tmp_path / "train.ipynb"))


def test_papermill_ends_with_the_error_about_an_unknown_parameter(tmp_path):
    done = papermill("train", tmp_path / "out.ipynb", tmp_path, nrom="x")
    assert done.returncode != 0
    assert "unknown parameter nrom" in done.stderr
    assert "profile" in done.stderr


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_unknown_parameter_is_an_error_that_names_it_and_the_known_ones(name):
    """The first cells, as papermill runs them, without a kernel for each notebook: that takes ten seconds."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    first, *others = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in first.metadata["tags"]
    namespace = {}
    exec(first.source + '\nnrom = "x"', namespace)
    with pytest.raises(ValueError, match=r"unknown parameter nrom.*profile"):
        exec(others[0].source, namespace)


@pytest.fixture(scope="module")
def shell():
    """What a kernel is around: without a process for each notebook, whose start is most of such a run."""
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    yield shell
    shell.restore_sys_module_state()


# The audit reads no result: who runs it for the book runs it like this.
@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in [*WORKERS, "audit"]])
def test_a_chapter_runs_with_nothing_measured(tmp_path, monkeypatch, shell, name):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shell.reset()
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
            if "parameters" in cell.metadata.get("tags", []):
                shell.run_cell("profile = 'paper'").raise_error()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_paired_clean_and_takes_a_profile(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    script = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    assert [(c.cell_type, c.source) for c in script.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ], f"run: jupytext --update --to ipynb notebooks/{name}.py"
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [target.id for node in ast.parse(cell.source).body for target in node.targets]
    assert "profile" in names

"""The notebooks as files, and the workers at work: pairs that are equal, parameters that are checked."""

import ast
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from study import store
from study.runs import ROOT, make_run

PROFILE = str(Path(__file__).with_name("tiny.yml"))
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.md"))
WORKERS = sorted((ROOT / "notebooks" / "workers").glob("*.ipynb"))
# Those that show results; the others run networks.
CHAPTERS = sorted(
    path for folder in ("paper", "why") for path in (ROOT / "notebooks" / folder).glob("*.ipynb")
)
named = {"ids": lambda path: path.stem}


def papermill(worker, out, env, **parameters):
    """Run a worker in a process of its own and in another folder; returns the finished process."""
    options = [str(part) for key, value in parameters.items() for part in ("-p", key, value)]
    program = Path(sys.executable).with_name("papermill")
    command = [
        program,
        "--no-progress-bar",
        ROOT / "notebooks" / "workers" / f"{worker}.ipynb",
        out,
        *options,
    ]
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, cwd=out.parent)


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def code(path):
    """Its cell of parameters, and the sources of the code cells behind."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata.tags
    return cells[0].source, [cell.source for cell in cells[1:]]


@pytest.mark.parametrize("path", NOTEBOOKS, **named)
def test_a_notebook_and_its_text_are_equal_and_hold_no_outputs(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)

    def cells(of):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in of.cells]

    assert cells(text) == cells(notebook), f"run: jupytext --update --to ipynb {path.relative_to(ROOT)}"
    assert text.metadata.jupytext.formats == notebook.metadata.jupytext.formats == "ipynb,md:myst"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("path", WORKERS, **named)
def test_parameters_have_a_type_and_a_comment(path):
    source, _ = code(path)
    names = [statement.target.id for statement in ast.parse(source).body]
    assert names[0] == "profile"
    assert {"norm", "training", "seed", "epochs", "device"} <= set(names)
    assert all(": " in line and " = " in line and "  # " in line for line in source.splitlines())


@pytest.mark.parametrize("path", WORKERS, **named)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('nrom = "x"', r"unknown parameter nrom; this notebook takes .*device.*profile"),
        ('seed = "zero"', "seed is 'zero', it must be a whole number from 0 up"),
        ("seed = 0.5", "seed is 0.5, it must be a whole number from 0 up"),
        ("seed = True", "seed is True, it must be a whole number from 0 up"),
        ("seed = -1", "seed is -1, it must be a whole number from 0 up"),
        ("epochs = 2.5", "epochs is 2.5, it must be a whole number from 1 up"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_is_allowed(path, given, message):
    source, others = code(path)
    namespace = {}
    exec(f"{source}\n{given}", namespace)
    with pytest.raises(ValueError, match=message):
        exec(others[0], namespace)


def test_papermill_trains_from_any_folder_shows_curves_and_ends_with_an_error(tmp_path, processes):
    done = papermill("train", tmp_path / "out.ipynb", processes, profile=PROFILE, norm="robust_norm")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"tiny"}
    shown = outputs(tmp_path / "out.ipynb")
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "step 1" not in str(shown)  # what showed the progress is gone
    assert "stderr" not in {output.get("name") for output in shown}
    done = papermill("train", tmp_path / "out.ipynb", processes, profile=PROFILE, seed="zero")
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith("seed is 'zero', it must be a whole number from 0 up")


@pytest.fixture(scope="module")
def shell():
    """What a kernel is around: without a process for each notebook, whose start is most of such a run."""
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    yield shell
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


MADE = {
    "train": {"config.json", "history.csv", "weights.safetensors", "files.json"},
    "evaluate": {"evaluations.csv", "evaluations.npz"},
    "probe": {"statistics.csv"},
    "measure": {"transfer.csv", "transfer.npz"},
    "landscape": {"landscape.csv", "sharpness.csv"},
}


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("path", WORKERS, **named)
def test_a_worker_leaves_its_files_and_is_not_repeated(path, results, shell, capsys):
    source, others = code(path)
    for _ in range(2):
        shell.reset()
        for cell in (source, f"profile = {PROFILE!r}", *others):
            shell.run_cell(cell).raise_error()
        names = {file.name for file in make_run(PROFILE).directory.iterdir()}
        assert names == MADE["train"] | MADE[path.stem]
    assert "Error" not in capsys.readouterr().err


@pytest.mark.parametrize("path", WORKERS, **named)
def test_a_worker_ends_well_where_training_diverged(path, empty, shell):
    run = make_run(PROFILE)
    store.keep(run.directory / store.DIVERGED, store.as_json({}))
    store.keep_rows(run.directory / store.HISTORY, [])
    source, others = code(path)
    shell.reset()
    for cell in (source, f"profile = {PROFILE!r}", *others):
        shell.run_cell(cell).raise_error()


@pytest.mark.parametrize("path", CHAPTERS, **named)
def test_a_chapter_runs_with_nothing_measured(path, empty, shell):
    source, others = code(path)
    shell.reset()
    for cell in (source, "profile = 'paper'", *others):
        shell.run_cell(cell).raise_error()


@pytest.mark.parametrize("path", CHAPTERS, **named)
def test_a_chapter_refuses_a_parameter_that_it_does_not_know(path):
    source, others = code(path)
    namespace = {}
    exec(f"{source}\nnrom = 'x'", namespace)
    with pytest.raises(ValueError, match=r"unknown parameter nrom.*profile"):
        exec(others[0], namespace)

"""Build the book: execute its chapters, check them, put the pages together, render them.

``python -m study.book`` writes to ``_build`` only and ends with ``_build/html/index.html``. A chapter shows
what ``papermill notebooks/<chapter>.ipynb out.ipynb -p profile book`` would, but a few kernels take one after
another, and one whose notebook, results and code are as they were is not executed again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import nbformat
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from sphinx_external_toc.parsing import parse_toc_yaml

from study import api_pages
from study.report import results
from study.report.claims import judge_all
from study.report.comparison import read_claims
from study.report.ledger import anchor
from study.runs import ROOT, read_profile, results_folder

BUILD = ROOT / "_build"
PACKAGES = ("rnlib", "torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "jupyter-book")
VERSIONS = {"Python": python_version()} | {package: version(package) for package in PACKAGES}
SHOWN = (
    "rnlib",
    "study",
    "benchmarks",
    "data/paper",
    "data/fashion-mnist-sample",
)  # by chapters, with the results
# Makes a used kernel a new one: no variables, nothing that was changed in our modules or in how figures look.
FRESH = """
shell.reset()
shell.execution_count = 1
import sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("rnlib", "study")]:
    del sys.modules[name]
if "matplotlib.pyplot" in sys.modules:
    import matplotlib.pyplot as plt
    from matplotlib_inline.backend_inline import set_matplotlib_formats
    plt.close("all")
    plt.rcdefaults()
    set_matplotlib_formats("png")
"""
QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # a kernel has no warning at its start
PROGRESS = re.compile(r".*\[ *\d+%\](?= )|.*\(\d+%\) done")  # of Sphinx, of Snakemake
Show = Callable[[str], None]


@contextmanager
def stage(what: str) -> Iterator[Show]:
    """One line of the console: what is done, on a terminal how far it is, and in the end how long it took."""
    start, line = time.monotonic(), f"{what} ... "
    back = f"\r\033[K{line}" if sys.stdout.isatty() else ""
    print(line, end="", flush=True)
    end = "failed after "
    try:
        yield lambda progress: print(f"{back}{progress}" if back else "", end="", flush=True)
        end = ""
    finally:
        print(f"{back}{end}{time.monotonic() - start:.0f} s", flush=True)


def failure(what: str, log: Path) -> RuntimeError:
    """What to raise if something failed: its message ends with the last 30 lines of the log."""
    lines = log.read_text().splitlines()[-30:]
    return RuntimeError("\n".join([f"{what} failed. The end of {os.path.relpath(log)}:", *lines]))


def run(program: str, *arguments: object, log: Path, show: Show) -> None:
    """Run a program of the environment with its output in a log, and its progress on the console.

    Raises:
        RuntimeError: it failed; the message has the end of the log.
    """
    command = [shutil.which(program, path=str(Path(sys.executable).parent)) or program, *map(str, arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=both, encoding="utf-8") as process,
        log.open("w") as file,
    ):
        for line in process.stdout or ():
            if found := PROGRESS.search(line):
                show(found[0])
            else:
                file.write(line)
    if process.returncode:
        raise failure(program, log)


def chapters() -> list[str]:
    """The entries of ``book/_toc.yml`` that are notebooks, in order, such as ``paper/table2``."""
    entries = parse_toc_yaml(ROOT / "book" / "_toc.yml")
    return [name for name in entries if (ROOT / "notebooks" / f"{name}.ipynb").exists()]


def outdated(profile: str, executed: Path) -> dict[str, str]:
    """The chapters to execute: those that were not executed as they are now, each with its fingerprint.

    That is a hash of everything that a chapter may show: itself, results, code, claims, data, versions.
    """
    digest = hashlib.sha256(json.dumps(VERSIONS).encode())
    for folder in (results_folder(Path(profile).stem), *(ROOT / name for name in SHOWN)):
        for path in sorted(path for path in folder.rglob("[!.]*.*") if path.is_file()):
            if path.suffix != ".pyc" and not path.name.startswith("checkpoint"):
                digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
                digest.update(path.read_bytes())
    found = {}
    for name in chapters():
        own, path = (ROOT / "notebooks" / f"{name}.ipynb").read_bytes(), executed / f"{name}.ipynb"
        found[name] = hashlib.sha256(digest.digest() + own).hexdigest()
        if path.exists() and json.loads(path.read_text())["metadata"]["fingerprint"] == found[name]:
            del found[name]
    return found


@contextmanager
def kernel(log: Path) -> Iterator[Callable[[nbformat.NotebookNode], None]]:
    """A kernel, as a function that executes the cells of a notebook in it, one notebook after another."""
    manager = AsyncKernelManager(kernel_name="python3")
    with log.open("w") as out:
        run_sync(manager.start_kernel)(stdout=out, stderr=out, env=QUIET | os.environ)
        client = manager.client()
        client.start_channels()

        def run_cells(notebook: nbformat.NotebookNode) -> None:
            runner = NotebookClient(notebook, km=manager, raise_on_iopub_timeout=True)
            runner.kc = client
            for index, cell in enumerate(notebook.cells):
                runner.execute_cell(cell, index)

        try:
            run_sync(client.wait_for_ready)(timeout=60)
            yield run_cells
        finally:
            client.stop_channels()
            run_sync(manager.shutdown_kernel)(now=True)


def execute(todo: Mapping[str, str], profile: str, *, executed: Path, jobs: int, show: Show) -> None:
    """Execute chapters, given with their fingerprints, into a folder; ``jobs`` kernels share them.

    Raises:
        RuntimeError: a chapter failed; the message has the end of the traceback.
    """
    waiting, logs = list(enumerate(todo, 1)), BUILD / "logs"
    queue = iter(waiting)  # each kernel takes the next
    logs.mkdir(parents=True, exist_ok=True)

    def work(number: int) -> None:
        try:
            with kernel(logs / f"kernel{number}.log") as run_cells:
                for count, name in queue:
                    show(f"{count} of {len(todo)}: {name}")
                    execute_one(name, todo[name], profile, executed / f"{name}.ipynb", run_cells)
        finally:
            waiting.clear()  # nothing is left, or something failed

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work, number) for number in range(min(jobs, len(waiting)))]:
            future.result()


def execute_one(name: str, fingerprint: str, profile: str, path: Path, run_cells: Callable) -> None:
    """Execute a chapter as papermill does, and write it without the cells that were put in for that."""
    notebook = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
    given = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    # A page may train in a reader's Jupyter; in the book it takes stored weights.
    training = {"train": "none"} if any("\ntrain:" in source for source in given) else {}
    notebook = parameterize_notebook(notebook, {"profile": profile} | training)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"exec({FRESH!r}, {{'shell': get_ipython()}})"))
    start = time.time()
    try:
        run_cells(notebook)
    except (CellExecutionError, DeadKernelError) as error:
        log = BUILD / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(re.sub(r"\033\[[\d;]*m", "", f"{error}\n"))
        raise failure(f"notebooks/{name}.ipynb", log) from None
    record = {"fingerprint": fingerprint, "start": f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M}"}
    notebook.metadata = (
        {"kernelspec": notebook.metadata.kernelspec} | record | {"seconds": time.time() - start}
    )
    notebook.cells = [
        c for c in notebook.cells[1:] if "injected-parameters" not in c.metadata.get("tags", [])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def check_claims(notebooks: Mapping[str, nbformat.NotebookNode]) -> None:
    """Raise ``RuntimeError`` for claims that their page does not show, or whose page is not in the book."""
    shown = {Path(name).name: json.dumps(notebook.cells) for name, notebook in notebooks.items()}
    pages = {key: claim.page for key, claim in read_claims().items()}
    lost = [key for key, page in pages.items() if f":name: {anchor(key)}\\n" not in shown.get(page, "")]
    if lost:
        where = ", ".join(f"{key} (page {pages[key]})" for key in lost)
        raise RuntimeError(f"Claims that no page of the book shows: {where}; see ledger.verdict.")


def status_page(notebooks: Mapping[str, nbformat.NotebookNode], profile: str) -> str:
    """MyST page that says which notebooks this copy of the book was made from, when and with what."""
    git = ["git", "describe", "--always", "--dirty"]
    revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    lines = ["# How this copy was made", "", f"Profile `{profile}`, revision `{revision}`.", ""]
    lines += ["| Notebook | Executed (UTC) | Seconds |", "|---|---|---:|"]
    for name, notebook in notebooks.items():
        lines.append(f"| {{doc}}`/{name}` | {notebook.metadata.start} | {notebook.metadata.seconds:.1f} |")
    lines += ["", "| Package | Version |", "|---|---|"]
    return "\n".join([*lines, *(f"| {package} | {number} |" for package, number in VERSIONS.items()), ""])


def assemble(profile: str, *, executed: Path, source: Path) -> None:
    """Fill the folder ``source``, made anew, with everything that the book is rendered from."""
    notebooks = {name: nbformat.read(executed / f"{name}.ipynb", as_version=4) for name in chapters()}
    check_claims(notebooks)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book", source)
    shutil.copy(ROOT / "_config.yml", source)
    for name in notebooks:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(executed / f"{name}.ipynb", source / f"{name}.ipynb")
    api_pages.write(source / "api")
    (source / "status.md").write_text(status_page(notebooks, profile))
    (source / "_static" / "claims.json").write_text(json.dumps(judge_all(profile), indent=1))
    results.table(profile, "evaluations", None).to_csv(source / "_static" / "results.csv", index=False)


def render(source: Path, output: Path, *, show: Show) -> None:
    """Render the pages to HTML. Every warning is an error, a ``RuntimeError`` with the end of the log."""
    run("jupyter-book", "config", "sphinx", source, log=BUILD / "logs" / "config.log", show=show)
    # From nothing: a page that Sphinx read before and skips now would keep its warnings to itself.
    shutil.rmtree(output, ignore_errors=True)
    strict = [
        "--fail-on-warning",
        "--keep-going",
        "--nitpicky",
        "--fresh-env",
        "-d",
        source.parent / "doctrees",
    ]
    run("sphinx-build", *strict, source, output, log=BUILD / "logs" / "render.log", show=show)


def build(profile: str, *, jobs: int, train: bool) -> Path:
    """All stages; returns the front page."""
    executed, last = BUILD / "chapters" / Path(profile).stem, 3 + train
    if train:
        with stage(f"[1/{last}] training and measuring what is missing") as show:
            options = ["--jobs", jobs, "--keep-going", "--rerun-incomplete", "--omit-from", "book"]
            config = ["--config", f"profile={profile}"]
            run("snakemake", *options, *config, log=BUILD / "logs" / "snakemake.log", show=show)
    todo = outdated(profile, executed)
    with stage(f"[{last - 2}/{last}] executing {len(todo)} of {len(chapters())} chapters") as show:
        execute(todo, profile, executed=executed, jobs=jobs, show=show)
    with stage(f"[{last - 1}/{last}] checking the claims, putting the pages together"):
        assemble(profile, executed=executed, source=BUILD / "source")
    with stage(f"[{last}/{last}] rendering") as show:
        render(BUILD / "source", BUILD / "html", show=show)
    return BUILD / "html" / "index.html"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the book from the results of a profile.")
    parser.add_argument("--profile", default="book", help="quick, book, paper, or the path of a .yml file")
    parser.add_argument("--jobs", default=2, type=int, help="kernels, and processes of training")
    parser.add_argument("--train", action="store_true", help="first train and measure what is missing")
    options = parser.parse_args()
    try:
        read_profile(options.profile)
    except ValueError as error:
        parser.error(str(error))
    try:
        page = build(**vars(options))
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"Open {os.path.relpath(page)} in a browser.")


if __name__ == "__main__":
    main()

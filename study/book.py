"""Build the book: execute its chapters, check them, put the pages together, render them.

``python -m study.book`` writes to ``_build`` only and ends with ``_build/html/index.html``. A chapter shows
what ``papermill notebooks/<chapter>.ipynb out.ipynb -p profile book`` would, but a few kernels take one after
another, without a start for each.
"""

import argparse
import base64
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
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from sphinx_external_toc.parsing import MalformedError, parse_toc_data

from study import store
from study.plain import read_yaml
from study.report import results
from study.report.claims import judge_all
from study.report.comparison import read_claims
from study.report.ledger import anchor
from study.runs import ROOT, read_profile, tables
from study.whole import alone

BUILD = ROOT / "_build"
PACKAGES = ("rnlib", "torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "jupyter-book")
# Makes a used kernel a new one: no variables, nothing that was changed in our modules or in how figures look.
FRESH = """
import os
os.environ["JPY_SESSION_NAME"] = name  # as Jupyter does
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
FILE = re.compile(r'href="(data:[^"]*;base64,([^"]*))" download="([^"]*)"')  # below a figure
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


def run(program: str, *arguments: object, log: str, show: Show) -> None:
    """Run a program of the environment with its output in a log, and its progress on the console.

    RuntimeError if it failed; the message has the end of the log.
    """
    command = [shutil.which(program, path=str(Path(sys.executable).parent)) or program, *map(str, arguments)]
    path, pipe, both = BUILD / "logs" / log, subprocess.PIPE, subprocess.STDOUT
    path.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=both, encoding="utf-8")
    with process, path.open("w") as file:
        for line in process.stdout or ():
            if found := PROGRESS.search(line):
                show(found[0])
            else:
                file.write(line)
    if process.returncode:
        raise failure(program, path)


def chapters() -> list[str]:
    """The entries of ``book/_toc.yml`` that are notebooks, in order, such as ``paper/table2``.

    ValueError where it is no table of contents, or names a page that is not there.
    """
    path = ROOT / "book" / "_toc.yml"
    try:
        entries = [*parse_toc_data(read_yaml(path))]
    except MalformedError as error:
        raise ValueError(f"{path} is no table of contents: mend it ({error})") from error
    found = {name: (ROOT / "notebooks" / f"{name}.ipynb").exists() for name in entries}
    words = [name for name in entries if not found[name] and not name.startswith(("status", "api/"))]
    if lost := [name for name in words if not (ROOT / "book" / f"{name}.md").exists()]:
        raise ValueError(f"{path} names {', '.join(lost)}: there must be such a page in notebooks/ or book/")
    return [name for name in entries if found[name]]


def execute(names: list[str], profile: str, *, executed: Path, jobs: int, show: Show) -> None:
    """Execute chapters into a folder; ``jobs`` kernels share them. RuntimeError if one failed."""
    waiting, logs = list(enumerate(names, 1)), BUILD / "logs"
    queue = iter(waiting)  # each kernel takes the next
    logs.mkdir(parents=True, exist_ok=True)

    def work(number: int) -> None:
        kernel, cell = AsyncKernelManager(), new_code_cell()
        fresh = NotebookClient(new_notebook(cells=[cell]), km=kernel)
        with (logs / f"kernel{number}.log").open("w") as log:
            try:
                for count, name in queue:
                    show(f"{count} of {len(names)}: {name}")
                    cell.source = f"exec({FRESH!r}, {{'shell': get_ipython(), 'name': {name!r}}})"
                    fresh.execute(stdout=log, stderr=log, env=QUIET | os.environ)
                    execute_one(name, profile, executed / f"{name}.ipynb", fresh)
            finally:
                waiting.clear()  # nothing is left, or something failed
                run_sync(kernel.shutdown_kernel)(now=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work, number) for number in range(jobs)]:
            future.result()


def execute_one(name: str, profile: str, path: Path, kernel: NotebookClient) -> None:
    """Execute a chapter in a kernel as papermill does, and write it without the cell put in for that."""
    notebook = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
    given = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    # A page may train in a reader's Jupyter; in the book it takes stored weights.
    training = {"train": "none"} if any("\ntrain:" in source for source in given) else {}
    notebook = parameterize_notebook(notebook, {"profile": profile} | training)
    start = time.time()
    try:
        client = NotebookClient(notebook, km=kernel.km, raise_on_iopub_timeout=True)
        client.kc = kernel.kc
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        log = BUILD / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(re.sub(r"\033\[[\d;]*m", "", f"{error}\n"))
        raise failure(f"notebooks/{name}.ipynb", log) from None
    took = {"start": f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M}", "seconds": time.time() - start}
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec} | took
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
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
    made = {name: notebook.metadata for name, notebook in notebooks.items()}
    lines += [f"| {{doc}}`/{name}` | {one.start} | {one.seconds:.1f} |" for name, one in made.items()]
    if (path := ROOT / "results" / "faults.csv").exists():
        faults = [line.split(",") for line in path.read_text().splitlines()]
        seed = faults[1][faults[0].index("seed")]
        lines += [
            "",
            f"Faults put into the programs by `make faults FAULTS_SEED={seed}`, and how they ended:",
            "",
        ]
        lines += [f"| {' | '.join(one[:-1])} |" for one in (faults[0], ["---"] * len(faults[0]), *faults[1:])]
    versions = {"Python": python_version()} | {package: version(package) for package in PACKAGES}
    lines += ["", "| Package | Version |", "|---|---|"]
    return "\n".join([*lines, *(f"| {one} | {number} |" for one, number in versions.items()), ""])


def assemble(profile: str, *, executed: Path, source: Path) -> None:
    """Fill the folder ``source``, made anew, with everything that the book is rendered from."""
    notebooks = {name: nbformat.read(executed / f"{name}.ipynb", as_version=4) for name in chapters()}
    check_claims(notebooks)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book", source)
    shutil.copytree(executed, source, dirs_exist_ok=True)
    shutil.copy(ROOT / "_config.yml", source)
    for module in sorted(ROOT.glob("rnlib/[!_]*.py")):
        page = f"# rnlib.{module.stem}\n\n```{{eval-rst}}\n.. automodule:: rnlib.{module.stem}\n```\n"
        (source / "api" / f"rnlib.{module.stem}.md").write_text(page)
    (source / "status.md").write_text(status_page(notebooks, profile))
    (source / "_static" / "claims.json").write_text(json.dumps(judge_all(profile), indent=1))
    results.table(profile, "evaluations", None).to_csv(source / "_static" / "results.csv", index=False)


def render(source: Path, output: Path, *, show: Show) -> None:
    """Render the pages to HTML. Every warning is an error, a ``RuntimeError`` with the end of the log."""
    run("jupyter-book", "config", "sphinx", source, log="config.log", show=show)
    # From nothing: a page that Sphinx read before and skips now would keep its warnings to itself.
    shutil.rmtree(output, ignore_errors=True)
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env"]
    options += ["-d", str(source.parent / "doctrees")]
    run("sphinx-build", *options, source, output, log="render.log", show=show)


def slim(output: Path) -> None:
    """Leave out of a site what no page loads; the notebooks that readers download are without outputs."""
    mathjax = output / "_static" / "mathjax"
    unused = [path for path in mathjax.glob("*.js") if path.name != "tex-chtml.js"]
    unused += [path for path in mathjax.glob("sre/mathmaps/*") if path.stem not in ("base", "en")]
    for path in [*unused, *mathjax.glob("output/svg/**/*.js"), *output.glob("_static/**/*.map")]:
        path.unlink()
    for path in (output / "_sources").rglob("*.ipynb"):
        shutil.copy(ROOT / "notebooks" / path.relative_to(output / "_sources"), path)


def unpack(output: Path) -> None:
    """What the figures of a site offer as files, and carry within them, become files."""
    folder = output / "_static" / "figures"
    folder.mkdir()
    for page in output.rglob("*.html"):
        text = page.read_text()
        for uri, content, name in FILE.findall(text):
            (folder / name).write_bytes(base64.b64decode(content))
            text = text.replace(uri, os.path.relpath(folder / name, page.parent))
        page.write_text(text)


def build(profile: str, *, jobs: int, train: bool) -> Path:
    """All stages, by one process at a time; returns the front page."""
    with alone(BUILD.resolve() / "html"):
        return _build(profile, jobs=jobs, train=train)


def _build(profile: str, *, jobs: int, train: bool) -> Path:
    executed, last = BUILD / "chapters" / Path(profile).stem, 3 + train
    shutil.rmtree(executed, ignore_errors=True)
    if train:
        with stage(f"[1/{last}] training and measuring what is missing") as show:
            options = ["--jobs", jobs, "--keep-going", "--rerun-incomplete", "--omit-from", "book"]
            run("snakemake", *options, "--config", f"profile={profile}", log="snakemake.log", show=show)
            if lacks := [
                (one.directory, table) for one, table in tables(profile) if not store.done(one, table)
            ]:
                folder, table = lacks[0]
                what = f"{len(lacks)} tables are still missing, such as {folder / table}.csv: start again"
                raise RuntimeError(f"snakemake ended without an error, but {what}")
    with stage(f"[{last - 2}/{last}] executing {len(chapters())} chapters") as show:
        execute(chapters(), profile, executed=executed, jobs=jobs, show=show)
    with stage(f"[{last - 1}/{last}] checking the claims, putting the pages together"):
        assemble(profile, executed=executed, source=BUILD / "source")
    with stage(f"[{last}/{last}] rendering") as show:
        render(BUILD / "source", BUILD / "html", show=show)
        slim(BUILD / "html")
        unpack(BUILD / "html")
    return BUILD / "html" / "index.html"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the book from the results of a profile.")
    parser.add_argument("--profile", default="book", help="quick, book, paper, or the path of a .yml file")
    parser.add_argument(
        "--jobs",
        default=2,
        type=int,
        choices=range(1, 1000),
        metavar="N",
        help="kernels, and processes of training",
    )
    parser.add_argument("--train", action="store_true", help="first train and measure what is missing")
    options = parser.parse_args()
    try:
        read_profile(options.profile)
    except ValueError as error:
        parser.error(str(error))
    try:
        page = build(**vars(options))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
    print(f"Open {os.path.relpath(page)} in a browser.")


if __name__ == "__main__":
    main()

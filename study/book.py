"""Put the book together and render it: its pages, the executed chapters, the API, and how it was made.

``python -m study.book --profile laptop`` takes the notebooks that papermill left in
``_build/chapters/laptop``, gathers everything in ``_build/source`` and renders it to ``_build/html``.
Only files under ``_build`` are written.
"""

import argparse
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import nbformat
import pandas as pd
from sphinx_external_toc.parsing import parse_toc_yaml

import rnlib
from study.report import results
from study.report.claims import judge_all, read_claims
from study.report.ledger import anchor
from study.api_pages import module_page, modules, overview
from study.runs import ROOT, shown

BUILD = ROOT / "_build"
VERSIONS = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "snakemake", "jupyter-book")


def page(notebook: str) -> str:
    """Where an executed notebook stands in the book: ``index`` in front, the others under ``chapters/``."""
    return notebook if notebook == "index" else f"chapters/{notebook}"


def chapters() -> list[str]:
    """Names of the notebooks in the book, in order: ``index``, ``chapters/<name>`` of ``book/_toc.yml``."""
    entries = parse_toc_yaml(ROOT / "book" / "_toc.yml")
    return [name for entry in entries if page(name := entry.removeprefix("chapters/")) == entry]


def read_chapter(path: Path) -> nbformat.NotebookNode:
    """An executed notebook, without the cell in which papermill put the parameters.

    Raises:
        FileNotFoundError: it was not executed; the message holds the command that does.
        RuntimeError: its execution failed, or did not end.
    """
    if not path.exists():
        command = f"papermill notebooks/{path.name} {path}"
        raise FileNotFoundError(f"{path} is missing: run `{command}`, or `make book`")
    notebook = nbformat.read(path, as_version=4)
    record = notebook.metadata.get("papermill", {})
    if record.get("exception") or not record.get("end_time"):
        raise RuntimeError(f"{path} is not a finished execution: mend the error in it and execute it again")
    cells = notebook.cells
    notebook.cells = [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return notebook


def check_claims(notebooks: dict[str, nbformat.NotebookNode]) -> None:
    """Raise ``RuntimeError`` for claims that their page does not show, or whose page is not in the book."""
    lost = []
    for claim_id, claim in read_claims().items():
        cells = notebooks[claim["page"]].cells if claim["page"] in notebooks else []
        shown = "".join(str(output.get("data", "")) for cell in cells for output in cell.get("outputs", []))
        if f":name: {anchor(claim_id)}\\n" not in shown:
            lost.append(f"{claim_id} (page {claim['page']})")
    if lost:
        raise RuntimeError(f"claims that no page of the book shows: {', '.join(lost)}; see ledger.verdict")


def status_page(notebooks: dict[str, nbformat.NotebookNode], profile: str) -> str:
    """MyST page that says which notebooks this copy of the book was made from, when and with what."""
    git = ["git", "describe", "--always", "--dirty"]
    revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    lines = [
        "# How this copy was made",
        "",
        f"Profile `{profile}`, revision `{revision}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "A notebook that fails, or a reference that leads nowhere, stops the build.",
        "",
        "| Notebook | Executed (UTC) | Seconds |",
        "|---|---|---:|",
    ]
    for name, notebook in notebooks.items():
        record = notebook.metadata.papermill
        when = record.end_time[:16].replace("T", " ")
        lines.append(f"| {{doc}}`{page(name)}` | {when} | {record.duration:.1f} |")
    versions = {"Python": python_version(), "rnlib": rnlib.__version__}
    versions |= {package: version(package) for package in VERSIONS}
    lines += ["", "| Package | Version |", "|---|---|"]
    return "\n".join([*lines, *(f"| {package} | {number} |" for package, number in versions.items()), ""])


def assemble(profile: str, *, executed: Path, source: Path) -> None:
    """Fill the folder ``source``, made anew, with everything that the book is rendered from.

    Args:
        executed: folder of the notebooks that papermill executed, ``<name>.ipynb``.
    """
    notebooks = {name: read_chapter(executed / f"{name}.ipynb") for name in chapters()}
    check_claims(notebooks)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book", source)
    (source / "chapters").mkdir(exist_ok=True)
    for name, notebook in notebooks.items():
        nbformat.write(notebook, source / f"{page(name)}.ipynb")
    for name in modules():
        (source / "api" / f"{name}.md").write_text(module_page(import_module(name)))
    with (source / "api" / "index.md").open("a") as index:
        index.write(overview())
    (source / "status.md").write_text(status_page(notebooks, profile))
    (source / "_static" / "claims.json").write_text(json.dumps(judge_all(profile), indent=1))
    accuracies = [results.table(name, "evaluations") for name in shown(profile)]
    accuracies = [table for table in accuracies if len(table)] or accuracies[:1]
    pd.concat(accuracies).to_csv(source / "_static" / "results.csv", index=False)


def render(source: Path, output: Path) -> None:
    """Render the book to ``output/_build/html``; every warning is an error.

    Raises:
        RuntimeError: there were warnings, or the build failed; both are on the standard error.
    """
    # From nothing: a page that Sphinx read before and skips now would keep its warnings to itself.
    for stale in ("html", ".doctrees"):
        shutil.rmtree(output / "_build" / stale, ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    paths = [source, "--config", ROOT / "_config.yml", "--path-output", output]
    strict = ["--warningiserror", "--nitpick", "--keep-going", "-q"]
    command = [str(part) for part in (program, "build", *paths, *strict)]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError("the book was not built: mend what the warnings above say")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Assemble and render the book.")
    parser.add_argument("--profile", default="laptop", help="profile the chapters were executed with")
    profile = parser.parse_args().profile
    try:
        assemble(profile, executed=BUILD / "chapters" / profile, source=BUILD / "source")
        render(BUILD / "source", BUILD.parent)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"The book is at {BUILD / 'html' / 'index.html'}")


if __name__ == "__main__":
    main()

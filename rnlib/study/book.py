"""Put the book together: its pages, the executed chapters, the API reference and a page on how it was made; then render it.

``python -m rnlib.study.book --profile laptop`` takes the notebooks that papermill left in ``_build/chapters/laptop``,
gathers everything in ``_build/source`` and renders it to ``_build/html``. Only files under ``_build`` are written.
"""

import argparse
import inspect
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from types import ModuleType

import nbformat
import yaml

import rnlib
from rnlib.study.runs import ROOT

BUILD = ROOT / "_build"
VERSIONS = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "snakemake", "jupyter-book", "jupyterlab")


def chapters() -> list[str]:
    """Names of the notebooks in the book, in its order: the entries ``chapters/<name>`` of ``book/_toc.yml``."""

    def files(entry: object) -> list[str]:
        if isinstance(entry, dict):
            return [entry["file"]] * ("file" in entry) + [f for value in entry.values() for f in files(value)]
        return [f for value in entry for f in files(value)] if isinstance(entry, list) else []

    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    return [file.removeprefix("chapters/") for file in files(toc) if file.startswith("chapters/")]


def modules() -> list[str]:
    """Dotted names of the modules of rnlib that the reference has a page for, sorted."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "rnlib").rglob("[!_]*.py"))
    return sorted(".".join(path.parts) for path in paths)


def api_page(module: ModuleType) -> str:
    """MyST page of a module: its docstring, then everything public, under the name that one imports it by."""
    lines = [f"# {module.__name__}", "", "```{eval-rst}", f".. automodule:: {module.__name__}", "   :no-members:", ""]
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        package = "rnlib" if getattr(rnlib, name, None) is member else module.__name__
        if inspect.isclass(member):
            lines.append(f".. autoclass:: {package}.{name}")
        elif inspect.isfunction(member):
            lines.append(f".. autofunction:: {package}.{name}")
    return "\n".join([*lines, "```", ""])


def read_chapter(path: Path) -> nbformat.NotebookNode:
    """An executed notebook, without the cell in which papermill put the parameters.

    Raises:
        FileNotFoundError: it was not executed; the message holds the command that does.
        RuntimeError: its execution failed, or did not end.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `papermill notebooks/{path.name} {path}`, or `make book`")
    notebook = nbformat.read(path, as_version=4)
    record = notebook.metadata.get("papermill", {})
    if record.get("exception") or not record.get("end_time"):
        raise RuntimeError(f"{path} is not a finished execution: see the error in it, mend it and execute it again")
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return notebook


def status_page(notebooks: dict[str, nbformat.NotebookNode], profile: str) -> str:
    """MyST page that says which notebooks this copy of the book was made from, when, how long they took, and with what."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    lines = [
        "# How this copy was made",
        "",
        f"Profile `{profile}`, revision `{git.stdout.strip() or 'unknown'}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "A notebook that fails, or a cross-reference that leads nowhere, stops the build: this page exists because all passed.",
        "",
        "| Notebook | Executed (UTC) | Seconds |",
        "|---|---|---:|",
    ]
    for name, notebook in notebooks.items():
        record = notebook.metadata.papermill
        lines.append(f"| {{doc}}`chapters/{name}` | {record.end_time[:16].replace('T', ' ')} | {record.duration:.1f} |")
    lines += ["", "| Package | Version |", "|---|---|", f"| Python | {python_version()} |", f"| rnlib | {rnlib.__version__} |"]
    return "\n".join([*lines, *(f"| {package} | {version(package)} |" for package in VERSIONS), ""])


def assemble(profile: str, *, executed: Path, source: Path) -> None:
    """Fill the folder ``source``, made anew, with everything that the book is rendered from.

    Args:
        executed: folder of the notebooks that papermill executed, ``<name>.ipynb``.
    """
    notebooks = {name: read_chapter(executed / f"{name}.ipynb") for name in chapters()}
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "book", source)
    (source / "chapters").mkdir(exist_ok=True)
    for name, notebook in notebooks.items():
        nbformat.write(notebook, source / "chapters" / f"{name}.ipynb")
    for name in modules():
        (source / "api" / f"{name}.md").write_text(api_page(import_module(name)))
    (source / "status.md").write_text(status_page(notebooks, profile))


def render(source: Path, output: Path) -> None:
    """Render the book to ``output/_build/html``; every warning is an error.

    Raises:
        subprocess.CalledProcessError: there were warnings, or the build failed; both are on the standard error.
    """
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--config", ROOT / "_config.yml", "--path-output", output, "--warningiserror", "--nitpick", "--keep-going"]
    subprocess.run([program, "build", source, *options, "-q"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help="profile the chapters were executed with")
    profile = parser.parse_args().profile
    assemble(profile, executed=BUILD / "chapters" / profile, source=BUILD / "source")
    render(BUILD / "source", BUILD.parent)
    print(f"The book is at {BUILD / 'html' / 'index.html'}")


if __name__ == "__main__":
    main()

"""The pages of the book that describe the library: read from its code, which Sphinx alone imports."""

import ast
from functools import cache
from pathlib import Path

from study.runs import ROOT

LIBRARY = ROOT / "rnlib"


@cache
def definitions(module: str) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """The public classes and functions of a module of rnlib, by name, in its order."""
    body = ast.parse((LIBRARY / f"{module}.py").read_text()).body
    found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {node.name: node for node in found if not node.name.startswith("_")}


def modules() -> list[str]:
    """The modules of rnlib that the reference has a page for, sorted."""
    return sorted(path.stem for path in LIBRARY.glob("[!_]*.py"))


def exported() -> dict[str, str]:
    """The classes and functions that ``import rnlib`` offers, each with the module that defines it."""
    body = ast.parse((LIBRARY / "__init__.py").read_text()).body
    names = {alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {name: module for module in modules() for name in definitions(module) if name in names}


def module_page(module: str) -> str:
    """MyST page of a module: its docstring, then what it defines, under both of the names that lead to it."""
    lines = [f"# rnlib.{module}", "", "```{eval-rst}", f".. automodule:: rnlib.{module}", "   :no-members:"]
    if module in exported():
        lines.append("   :no-index:")  # rnlib.evaluate is also a function, and the name can lead to one only
    for name, node in definitions(module).items():
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        if exported().get(name) == module:
            lines += ["", ".. py:currentmodule:: rnlib", "", f".. py:{kind}:: {name}"]
            lines += ["   :no-typesetting:", "   :no-index-entry:"]
        lines += ["", f".. auto{kind}:: rnlib.{module}.{name}"]
    return "\n".join([*lines, "```", ""])


def write(folder: Path) -> None:
    """Write a page for each module, and append what ``import rnlib`` offers to the index."""
    for module in modules():
        (folder / f"rnlib.{module}.md").write_text(module_page(module))
    items = ["", "```{eval-rst}"]
    for name, module in sorted(exported().items()):
        summary = (ast.get_docstring(definitions(module)[name]) or "").partition("\n\n")[0]
        items.append(f"- :py:obj:`rnlib.{name}`: {' '.join(summary.split())}")
    with (folder / "index.md").open("a") as index:
        index.write("\n".join([*items, "```", ""]))

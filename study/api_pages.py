"""The pages of the book that describe the library, made from its docstrings with Sphinx's autodoc."""

import inspect
from types import ModuleType

import rnlib
from study.runs import ROOT


def modules() -> list[str]:
    """Dotted names of the modules of rnlib that the reference has a page for, sorted."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "rnlib").rglob("[!_]*.py"))
    return sorted(".".join(path.parts) for path in paths)


def documented(module: ModuleType) -> dict[str, str]:
    """Public functions and classes of rnlib in a module, by name: ``function`` or ``class``."""
    found = {}
    for name, member in vars(module).items():
        kind = "class" if inspect.isclass(member) else "function" if inspect.isfunction(member) else ""
        if kind and not name.startswith("_") and member.__module__.startswith("rnlib."):
            found[name] = kind
    return found


def module_page(module: ModuleType) -> str:
    """MyST page of a module: its docstring, then what it defines, under both of the names that lead to it."""
    name = module.__name__
    lines = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:"]
    if getattr(rnlib, name.removeprefix("rnlib."), module) is not module:
        lines.append("   :no-index:")  # rnlib.evaluate is also a function, and the name can lead to one only
    for key, kind in documented(module).items():
        member = getattr(module, key)
        if member.__module__ != name:
            continue
        if getattr(rnlib, key, None) is member:
            lines += ["", ".. py:currentmodule:: rnlib", "", f".. py:{kind}:: {key}"]
            lines += ["   :no-typesetting:", "   :no-index-entry:"]
        lines += ["", f".. auto{kind}:: {name}.{key}"]
    return "\n".join([*lines, "```", ""])


def overview() -> str:
    """MyST list of what ``import rnlib`` offers, each with the first sentence of its docstring."""
    items = [f"- :py:obj:`rnlib.{name}`: {_summary(getattr(rnlib, name))}" for name in documented(rnlib)]
    return "\n".join(["", "```{eval-rst}", *items, "```", ""])


def _summary(member: object) -> str:
    return " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())

"""A Sphinx extension: links that pages do not write.

The first mention of each term of the glossary on a page leads to the glossary, and shows its definition when
the pointer rests on it. ``rnlib.RobustNorm`` leads to where its module documents it. On a book that GitHub
publishes, each notebook has a button that opens it on Binder.
"""

import os
import re
from typing import Any

from docutils import nodes

import rnlib

PAGE = "glossary"
PROSE = (nodes.paragraph, nodes.strong, nodes.emphasis)


def definitions(page: nodes.document) -> dict[str, tuple[str, str]]:
    """By term: its definition, and its anchor on the page of the glossary."""
    found = {}
    for item in page.findall(nodes.definition_list_item):
        told = " ".join(item[-1].astext().split())
        for term in item.findall(nodes.term):
            found[term[0].astext()] = told, term["ids"][0]
    return found


def link_terms(app: Any, page: nodes.document, name: str) -> None:
    """Link the first mention of each term on a page, in prose alone."""
    if name == PAGE or PAGE not in app.env.all_docs:
        return
    address = app.builder.get_relative_uri(name, PAGE)
    terms = definitions(app.env.get_doctree(PAGE)).items()
    # Also at the start of a sentence.
    left = {f"[{term[0]}{term[0].upper()}]{re.escape(term[1:])}": told for term, told in terms}
    for text in list(page.findall(nodes.Text)):
        rest, pieces = text.astext() if isinstance(text.parent, PROSE) else "", []
        while left and (found := re.search(rf"\b({'|'.join(sorted(left, key=len, reverse=True))})\b", rest)):
            told, anchor = left.pop(next(one for one in left if re.fullmatch(one, found[0])))
            link = nodes.reference("", found[0], refuri=f"{address}#{anchor}", reftitle=told, internal=True)
            link["classes"] = ["term"]
            pieces += [nodes.Text(rest[: found.start()]), link]
            rest = rest[found.end() :]
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(rest)])


def link_names(app: Any, env: Any, node: Any, content: nodes.Element) -> Any:
    """The reference to what ``import rnlib`` offers, None for others."""
    found: Any = getattr(rnlib, node["reftarget"].removeprefix("rnlib."), None)
    if node.get("refdomain") != "py" or not hasattr(found, "__qualname__"):
        return None
    kind, name = node["reftype"], f"{found.__module__}.{found.__qualname__}"
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, kind, name, node, content)


def add_buttons(app: Any, config: Any) -> None:
    """Say where the notebooks of the book can be run, if GitHub says in which repository they are."""
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        config.html_theme_options |= {
            "repository_url": f"https://github.com/{repository}",
            "repository_branch": "main",
            "path_to_docs": "notebooks",
            "launch_buttons": {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"},
        }


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", add_buttons)
    app.connect("doctree-resolved", link_terms)
    app.connect("missing-reference", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""A Sphinx extension: the first mention of each term of the glossary on a page carries its definition.

The term becomes a link to the glossary, whose title, which browsers show on hovering, is the definition.
"""

import re
from typing import Any

from docutils import nodes

PAGE = "glossary"
# Text in these is not read as prose.
LEAVE = (nodes.reference, nodes.literal, nodes.literal_block, nodes.title, nodes.math, nodes.term, nodes.raw)


def definitions(page: nodes.document) -> dict[str, tuple[str, str]]:
    """By term: its definition, and its anchor on the page of the glossary."""
    found = {}
    for item in page.findall(nodes.definition_list_item):
        told = " ".join(item[-1].astext().split())
        for term in (part for part in item if isinstance(part, nodes.term)):
            found[term[0].astext()] = told, term["ids"][0]
    return found


def link_terms(app: Any, page: nodes.document, name: str) -> None:
    """Link the first mention of each term on a page, in prose alone."""
    if name == PAGE or PAGE not in app.env.all_docs:
        return
    left = {_pattern(term): told for term, told in definitions(app.env.get_doctree(PAGE)).items()}
    for text in list(page.findall(nodes.Text)):
        if any(isinstance(parent, LEAVE) for parent in _parents(text)) or not left:
            continue
        pieces: list[nodes.Node] = []
        rest = text.astext()
        while left and (found := re.search(rf"\b({'|'.join(sorted(left, key=len, reverse=True))})\b", rest)):
            told, anchor = left.pop(next(one for one in left if re.fullmatch(one, found[0])))
            target = f"{app.builder.get_relative_uri(name, PAGE)}#{anchor}"
            link = nodes.reference(
                "", found[0], refuri=target, reftitle=told, internal=True, classes=["term"]
            )
            pieces += [nodes.Text(rest[: found.start()]), link]
            rest = rest[found.end() :]
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(rest)])


def _pattern(term: str) -> str:
    """Names as they are written; other terms also at the start of a sentence."""
    first = f"[{term[0]}{term[0].upper()}]" if term[0].islower() else re.escape(term[0])
    return first + re.escape(term[1:])


def _parents(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

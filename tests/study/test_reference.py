"""The pages that describe the library: all that is public, nothing else, under every name one may use."""

import re
import sys
from types import ModuleType

import rnlib
from study import api_pages as reference
from study.api_pages import module_page, modules, overview


def test_the_reference_has_every_module_and_knows_things_by_both_their_names():
    assert {"rnlib.norms", "rnlib.attacks", "rnlib.data", "study.api_pages"} <= set(modules())
    page = module_page(sys.modules["rnlib.norms"])
    assert ".. autoclass:: rnlib.norms.RobustNorm" in page
    assert ".. py:currentmodule:: rnlib\n\n.. py:class:: RobustNorm\n   :no-typesetting:" in page
    assert ":no-index:" not in page
    assert ":no-index:" in module_page(sys.modules["rnlib.evaluate"])  # a function has this name too
    assert "rnlib.overview" not in module_page(reference)


def test_the_reference_leaves_out_what_is_private_imported_or_no_code():
    module = ModuleType("study.example")
    source = "from os.path import join\ndef shown(): ...\ndef _hidden(): ...\nclass Kept: ...\nVALUE = 1\n"
    exec(compile(source, "example", "exec"), module.__dict__)
    directives = re.findall(r"\.\. (\S+:: \S+)", module_page(module))
    here = "study.example"
    assert directives == [f"automodule:: {here}", f"autofunction:: {here}.shown", f"autoclass:: {here}.Kept"]


def test_the_overview_lists_what_import_rnlib_offers():
    listed = re.findall(r"^- :py:obj:`rnlib\.(\w+)`: \S", overview(), re.MULTILINE)
    assert {name for name in rnlib.__all__ if callable(getattr(rnlib, name))} == set(listed)

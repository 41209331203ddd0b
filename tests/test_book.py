"""The book: pages render without a warning, links lead somewhere, nothing is fetched from another site."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import nbformat
import pytest

from study import book
from study.report.claims import read_claims
from study.api_pages import modules

pytestmark = [pytest.mark.xdist_group("book")]  # the site is made once
LOADED = {"link": "href", "object": "data"} | dict.fromkeys(("script", "img", "iframe", "video"), "src")


class Page(HTMLParser):
    """What a page links to, loads at once, and can be linked at."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif found.get(LOADED.get(tag, "")):
            self.loads.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Folder of the chapters, executed on the committed results alone, as who builds the book has no data."""
    folder = tmp_path_factory.mktemp("chapters")
    env = os.environ | {"RNLIB_DATA": str(tmp_path_factory.mktemp("no_data"))}
    program = str(Path(sys.executable).with_name("papermill"))
    for name in book.chapters():
        paths = [f"notebooks/{name}.ipynb", str(folder / f"{name}.ipynb")]
        command = [program, "--no-progress-bar", *paths, "-p", "profile", "laptop"]
        done = subprocess.run(command, cwd=book.ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def site(executed, tmp_path_factory):
    """Root of the built book; the build itself fails on any warning."""
    folder = tmp_path_factory.mktemp("book")
    book.assemble("laptop", executed=executed, source=folder / "source")
    book.render(folder / "source", folder)
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def pages(site):
    """All pages by their path; the theme's templates among its static files are none."""
    paths = (path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts)
    return {path: Page(path) for path in paths}


@pytest.mark.slow
def test_the_front_page_and_a_page_for_each_chapter_and_module_are_there(site):
    expected = ["index", "status", *map(book.page, book.chapters())]
    for name in [*expected, *(f"api/{module}" for module in modules())]:
        assert (site / f"{name}.html").exists(), name


@pytest.mark.slow
def test_no_page_loads_anything_from_another_site(site, pages):
    loads = [(path.name, load) for path, page in pages.items() for load in page.loads]
    foreign = [(name, load) for name, load in loads if urlsplit(load).netloc]
    styles = {path.name: path.read_text() for path in site.rglob("*.css")}
    fetched = re.compile(r"""(?:url\(|@import)\s*["']?\s*(?:https?:)?//[^)"']+""")
    foreign += [(name, match) for name, text in styles.items() for match in fetched.findall(text)]
    assert foreign == []


@pytest.mark.slow
def test_every_link_within_the_book_leads_to_a_page_and_a_place_on_it(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.exists() or (target in pages and place not in pages[target].anchors):
                broken.append((path.name, link))
    assert broken == []


@pytest.mark.slow
def test_no_chapter_shows_a_warning_of_the_code_that_it_ran_or_an_object_without_a_look(executed):
    for name in book.chapters():
        for cell in nbformat.read(executed / f"{name}.ipynb", as_version=4).cells:
            errors = [out.text for out in cell.get("outputs", []) if out.get("name") == "stderr"]
            assert errors == [], f"{name}: {cell.source}"
            shown = [out["data"] for out in cell.get("outputs", []) if "data" in out]
            bare = [data["text/plain"] for data in shown if set(data) == {"text/plain"}]
            assert not [text for text in bare if text.startswith("<")], f"{name}: {cell.source}"


@pytest.mark.slow
@pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium, which is not on this machine")
def test_a_browser_has_no_complaint_about_any_page_and_asks_no_other_site(site, pages):
    """At the width of a phone, to which every page must fit: what is wider scrolls by itself."""
    complaints, wide = {}, {}
    with browser.served(site) as address, browser.browser() as tab:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **phone)
        for path in [path.relative_to(site).as_posix() for path in pages if "_modules" not in path.parts]:
            complaints[path] = tab.visit(f"{address}/{path}")
            wide[path] = tab.call("Runtime.evaluate", expression="document.documentElement.scrollWidth")
    assert {path: found for path, found in complaints.items() if found} == {}
    assert {path: found for path, found in wide.items() if found["result"]["value"] > 390} == {}


def executed_notebook(path, **record):
    notebook = nbformat.v4.new_notebook(metadata={"papermill": record})
    tags = {"tags": ["injected-parameters"]}
    notebook.cells.append(nbformat.v4.new_code_cell("profile = 'quick'", metadata=tags))
    notebook.cells.append(nbformat.v4.new_code_cell("1 + 1"))
    nbformat.write(notebook, path)
    return path


def test_a_chapter_comes_without_the_cell_that_papermill_put_in(tmp_path):
    path = executed_notebook(tmp_path / "a.ipynb", end_time="2026-01-01T10:00:00", duration=1.5)
    assert [cell.source for cell in book.read_chapter(path).cells] == ["1 + 1"]


def test_a_chapter_that_was_not_executed_is_an_error_with_the_command_that_does(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"papermill notebooks/a\.ipynb"):
        book.read_chapter(tmp_path / "a.ipynb")


@pytest.mark.parametrize("record", [{}, {"exception": True, "end_time": "2026-01-01T10:00:00"}])
def test_a_chapter_that_failed_or_was_cut_off_is_an_error(tmp_path, record):
    with pytest.raises(RuntimeError, match="not a finished execution"):
        book.read_chapter(executed_notebook(tmp_path / "a.ipynb", **record))


def test_the_status_page_lists_the_notebooks_and_the_versions(tmp_path):
    path = executed_notebook(tmp_path / "a.ipynb", end_time="2026-01-01T10:00:00.123", duration=1.53)
    page = book.status_page({"a": book.read_chapter(path)}, "quick")
    assert "| {doc}`chapters/a` | 2026-01-01 10:00 | 1.5 |" in page
    assert "Profile `quick`" in page
    assert re.search(r"^\| torch \| \d", page, re.MULTILINE)


def showing(name, without=""):
    """A page with the verdicts on its claims."""
    outputs = [
        nbformat.v4.new_output("display_data", {"text/markdown": f":::\n:name: claim-{claim_id}\n:::"})
        for claim_id, claim in read_claims().items()
        if claim["page"] == name and claim_id != without
    ]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])


def test_a_claim_that_its_page_does_not_show_fails_the_build(tmp_path):
    """Removing a page, or a verdict from it, is noticed before anything is rendered."""
    pages = {claim["page"] for claim in read_claims().values()}
    book.check_claims({name: showing(name) for name in pages})
    with pytest.raises(RuntimeError, match=r"fig1-start \(page fig1\)"):
        book.check_claims({name: showing(name) for name in pages - {"fig1"}})
    with pytest.raises(RuntimeError, match=r"shows: table2-natural-noise \(page table2\)"):
        book.check_claims({name: showing(name, "table2-natural-noise") for name in pages})


def test_a_page_that_leaves_the_table_of_contents_fails_the_build(tmp_path, monkeypatch):
    chapters = [name for name in book.chapters() if name != "fig5"]
    monkeypatch.setattr(book, "chapters", lambda: chapters)
    for name in chapters:
        notebook = showing(name)
        notebook.metadata.papermill = {"end_time": "2026-01-01T10:00:00", "duration": 1.0}
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    with pytest.raises(RuntimeError, match=r"shows: fig5-fails-batch-norm \(page fig5\)"):
        book.assemble("laptop", executed=tmp_path, source=tmp_path / "source")
    assert not (tmp_path / "source").exists()


def test_a_warning_fails_the_build(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (source / "references.bib").write_text("")
    shutil.copytree(book.ROOT / "book" / "_static", source / "_static")
    (source / "index.md").write_text("# A page\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(RuntimeError, match="not built"):
        book.render(source, tmp_path)


def test_the_command_ends_with_the_reason_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "BUILD", tmp_path)
    monkeypatch.setattr(book, "chapters", lambda: ["absent"])
    monkeypatch.setattr(sys, "argv", ["book", "--profile", "laptop"])
    with pytest.raises(SystemExit, match=re.escape(os.path.join("laptop", "absent.ipynb"))):
        book.main()

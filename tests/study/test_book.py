"""The book: chapters are as papermill makes them, links lead somewhere, nothing comes from another site."""

import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import browser
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import rnlib
from study import book, pdf, store
from study.report import figures

pytestmark = pytest.mark.xdist_group("book")  # each site is made once
ROOT = book.ROOT
TOC = """
format: jb-book
root: index
chapters:
- {file: paper/one}
- {file: why/two}
- {file: words}
- {file: status}
"""
MODULES = [path.stem for path in ROOT.glob("rnlib/[!_]*.py")]
CLAIM = ":::{admonition} Supported\n:name: claim-first\nYes.\n:::"
ONE = [
    f"from IPython.display import Markdown\nMarkdown({CLAIM!r})",
    "import matplotlib.pyplot as plt\nplt.rcParams['lines.linewidth'] = 9\nplt.plot([1, 2]);",
    "import study.runs\nstudy.runs.LEFT = 1\nleft = profile\nprint(left)",
]
TWO = [
    "import matplotlib.pyplot as plt\nimport study.runs",
    "assert plt.rcParams['lines.linewidth'] == 1.5 and not plt.get_fignums()",
    "assert not hasattr(study.runs, 'LEFT') and 'left' not in globals()",
    "len(In)",
]


def write_notebook(path, title, *cells):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(metadata={"kernelspec": kernel})
    parameters = new_code_cell('profile = "book"', metadata={"tags": ["parameters", "remove-cell"]})
    notebook.cells = [new_markdown_cell(title), parameters, *map(new_code_cell, cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A project with three chapters, one claim and no results."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    for name in ("_config.yml", "book/references.bib"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "book" / "_toc.yml").write_text(TOC)
    (folder / "book" / "words.md").write_text(
        "# Words\n\nSee {doc}`/paper/one` and {ref}`the claim <claim-first>`.\n"
    )
    write_notebook(folder / "notebooks" / "index.ipynb", "# A book")
    write_notebook(folder / "notebooks" / "paper" / "one.ipynb", "# One", *ONE)
    write_notebook(folder / "notebooks" / "why" / "two.ipynb", "# Two", *TWO)
    return folder


def in_place(patch, folder):
    """Make a small project the one that the book is built from, as GitHub would."""
    patch.setenv("GITHUB_REPOSITORY", "someone/rnlib")
    patch.setenv("RNLIB_RESULTS", str(folder / "results"))
    patch.setattr(book, "ROOT", folder)
    patch.setattr(book, "BUILD", folder / "_build")
    patch.setattr(book, "read_claims", lambda: {"first": SimpleNamespace(page="one")})
    patch.setattr(book, "judge_all", lambda profile: [])


@pytest.fixture
def project(small, monkeypatch):
    """The small project, in place during a test."""
    in_place(monkeypatch, small)
    return small


@pytest.fixture(scope="module")
def built(small):
    """What building the small project printed. One kernel, so that it executes all chapters."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        in_place(patch, small)
        book.build("quick", jobs=1, train=False)
    return printed.getvalue()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder of the real book, built from the committed results alone: who builds it has no other data."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNLIB_DATA", str(folder / "no_data"))
        patch.delenv("GITHUB_REPOSITORY", raising=False)
        patch.setattr(book, "BUILD", folder)
        book.build("book", jobs=2, train=False)
    return folder


@pytest.fixture(scope="module", params=["small", "real"])
def site(request):
    """Root of a rendered book; the rendering itself fails on any warning."""
    if request.param == "real":
        return request.getfixturevalue("real") / "html"
    request.getfixturevalue("built")
    return request.getfixturevalue("small") / "_build" / "html"


@pytest.fixture(scope="module")
def pages(site):
    """All pages by their path; the theme's templates among its static files are none."""
    paths = (path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts)
    return {path: browser.Links(path) for path in paths}


# -- the rendered book


@pytest.mark.slow
def test_a_page_for_each_chapter_and_module_is_there(real):
    for name in ["index", "status", *book.chapters(), *(f"api/rnlib.{name}" for name in MODULES)]:
        assert (real / "html" / f"{name}.html").exists(), name


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
@pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium, which is not on this machine")
def test_a_browser_has_no_complaint_about_any_page_and_everybody_can_use_it(site, pages):
    """On a phone, to whose width every page fits (what is wider scrolls by itself), and by WCAG A and AA."""
    complaints, wide, barriers = {}, {}, {}
    phone = {"width": 390, "height": 844}
    with browser.served(site) as address, browser.browser(viewport=phone) as tab:
        for path in [path.relative_to(site).as_posix() for path in pages if "_modules" not in path.parts]:
            complaints[path] = browser.visit(tab, f"{address}/{path}")
            wide[path] = max(390, tab.evaluate("document.documentElement.scrollWidth"))
            barriers[path] = browser.barriers(tab, "light")
            if not path.startswith("api/"):  # takes a second, and these pages have no colours of their own
                barriers[path] += browser.barriers(tab, "dark")
    assert {path: found for path, found in complaints.items() if found} == {}
    assert {path: found for path, found in wide.items() if found > 390} == {}
    assert {path: found for path, found in barriers.items() if found} == {}


@pytest.mark.slow
def test_every_figure_of_the_book_has_its_files_and_says_how_it_was_made(real):
    for name in book.chapters():
        text = (real / "html" / f"{name}.html").read_text()
        count = text.count("<figcaption>") - text.count("statistics</figcaption></figure>")  # the slider's
        assert text.count('.svg">SVG</a>') == count, name
        assert text.count(f"papermill notebooks/{name}.ipynb out.ipynb</code></details>") == count, name
    assert len(list(real.glob("html/_static/figures/*.csv"))) > 50


@pytest.mark.slow
def test_no_chapter_shows_a_warning_of_the_code_that_it_ran_or_an_object_without_a_look(real):
    for name in book.chapters():
        for cell in nbformat.read(real / "chapters" / "book" / f"{name}.ipynb", as_version=4).cells:
            errors = [out.text for out in cell.get("outputs", []) if out.get("name") == "stderr"]
            assert errors == [], f"{name}: {cell.source}"
            shown = [out["data"] for out in cell.get("outputs", []) if "data" in out]
            bare = [data["text/plain"] for data in shown if set(data) == {"text/plain"}]
            assert not [text for text in bare if text.startswith("<")], f"{name}: {cell.source}"


def test_every_notebook_but_the_workers_is_in_the_table_of_contents():
    folder = ROOT / "notebooks"
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.ipynb")}
    names = {name for name in names if not name.startswith("workers/")}
    assert set(book.chapters()) == names


# -- its stages


@pytest.mark.slow
def test_the_console_has_a_line_a_stage_and_no_path(built):
    first, second, third = built.splitlines()
    assert re.fullmatch(r"\[1/3\] executing 3 chapters \.\.\. \d+ s", first)
    assert re.fullmatch(r"\[2/3\] checking the claims, putting the pages together \.\.\. \d+ s", second)
    assert re.fullmatch(r"\[3/3\] rendering \.\.\. \d+ s", third)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper/one", "why/two"])
def test_a_chapter_is_what_papermill_alone_makes_of_it(built, small, tmp_path, name):
    """The second one also fails if the first, executed before in the same kernel, left anything to it."""
    command = [Path(sys.executable).with_name("papermill"), "--no-progress-bar", "-p", "profile", "quick"]
    out = tmp_path / "out.ipynb"
    subprocess.run([*command, small / "notebooks" / f"{name}.ipynb", out], check=True, capture_output=True)
    alone, ours = (
        [
            {key: cell.get(key) for key in ("source", "outputs", "execution_count")}
            for cell in nbformat.read(path, as_version=4).cells
            if "injected-parameters" not in cell.metadata.get("tags", [])
        ]
        for path in (out, small / "_build" / "chapters" / "quick" / f"{name}.ipynb")
    )
    assert alone == ours
    assert all("injected-parameters" not in text for text in map(str, ours))


@pytest.mark.slow
def test_where_the_book_is_published_each_notebook_has_a_button_that_opens_it(built, small):
    page = (small / "_build" / "html" / "paper" / "one.html").read_text()
    (opened,) = re.findall(r'href="(https://mybinder[^"]+)"', page)
    start = "https://mybinder.org/v2/gh/someone/rnlib/main?urlpath=lab/tree/"
    assert opened.startswith(start)
    assert (small / opened.removeprefix(start)).exists()


@pytest.mark.slow
def test_the_status_page_lists_the_notebooks_and_the_versions(built, small):
    page = (small / "_build" / "source" / "status.md").read_text()
    assert re.search(
        r"^\| \{doc\}`/paper/one` \| 20\d\d-\d\d-\d\d \d\d:\d\d \| \d+\.\d \|$", page, re.MULTILINE
    )
    assert "Profile `quick`" in page
    assert re.search(r"^\| torch \| \d", page, re.MULTILINE)


def test_a_chapter_that_fails_ends_the_build_with_the_end_of_its_log(project, monkeypatch, tmp_path):
    monkeypatch.setattr(book, "BUILD", tmp_path)
    for name in ("good", "bad"):
        write_notebook(
            project / "notebooks" / f"{name}.ipynb", name, f"assert '{name}' == 'good', 'a reason'"
        )
    with pytest.raises(
        RuntimeError, match=r"bad\.ipynb failed\. The end of .*bad\.log:[\s\S]*a reason$"
    ) as caught:
        book.execute(["bad", "good"], "quick", executed=tmp_path, jobs=1, show=print)
    assert "\033" not in str(caught.value)
    assert not list(tmp_path.glob("*.ipynb")), "nothing that looks finished is left"


@pytest.mark.slow
def test_a_warning_fails_the_rendering(small, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(small / "book" / "_static", source / "_static")
    for name in ("_config.yml", "book/references.bib"):
        shutil.copy(small / name, source)
    (source / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (source / "index.md").write_text("# A page\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(RuntimeError, match=r"sphinx-build failed\. The end of .*render\.log:[\s\S]*nowhere"):
        book.render(source, tmp_path / "html", show=lambda progress: None)


def test_what_figures_offer_becomes_files_of_the_site(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "why").mkdir()
    page = tmp_path / "why" / "one.html"
    html = figures.show(plt.figure(), caption="", alt="", data=pd.DataFrame({"a": [1]})).data
    page.write_text(html)
    book.unpack(tmp_path)
    assert "base64" not in page.read_text()
    image, svg, csv = re.findall(r'(?:src|href)="([^"]*)"', page.read_text())
    assert image == svg
    assert (page.parent / csv).read_text() == "a\n1\n"
    assert (page.parent / svg).read_text().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium, which is not on this machine")
def test_the_book_is_printed_as_one_file_with_at_least_a_page_for_each_of_its_pages(built, project, capsys):
    pdf.main()
    printed = (project / "_build" / "book.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", printed)) >= 5
    assert "Open " in capsys.readouterr().out


def test_who_prints_before_there_is_a_book_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(book, "BUILD", tmp_path)
    with pytest.raises(SystemExit, match="make book"):
        pdf.main()


def test_claims_that_their_page_does_not_show_fail_the_build(monkeypatch):
    monkeypatch.setattr(book, "read_claims", lambda: dict.fromkeys(("a", "ab"), SimpleNamespace(page="one")))

    def showing(*claims):
        marks = [{"text/markdown": f":::\n:name: claim-{claim}\n:::"} for claim in claims]
        outputs = [new_output("display_data", mark) for mark in marks]
        return new_notebook(cells=[new_code_cell("", outputs=outputs)])

    book.check_claims({"paper/one": showing("a", "ab")})
    with pytest.raises(RuntimeError, match=r"shows: a \(page one\);"):
        book.check_claims({"paper/one": showing("ab")})
    with pytest.raises(RuntimeError, match=r"shows: a \(page one\), ab \(page one\);"):
        book.check_claims({"paper/two": showing("a", "ab")})


def test_training_comes_first_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(book, "run", lambda *command, log, show: commands.append(command))
    for name in ("execute", "assemble", "unpack"):
        monkeypatch.setattr(book, name, lambda *arguments, **options: None)
    monkeypatch.setattr(book, "render", lambda *arguments, **options: None)
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"ended without an error, but \d+ tables are still missing, such"):
        book.build("quick", jobs=3, train=True)
    capsys.readouterr()
    monkeypatch.setattr(store, "done", lambda run, table: True)
    book.build("quick", jobs=3, train=True)
    assert commands[0][:3] == ("snakemake", "--jobs", 3)
    assert commands[0][-4:] == ("--omit-from", "book", "--config", "profile=quick")
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == [f"[{i}/4]" for i in range(1, 5)]


def test_a_program_shows_its_progress_and_logs_the_rest(tmp_path, monkeypatch):
    shown, log = [], tmp_path / "logs" / "a.log"
    monkeypatch.setattr(book, "BUILD", tmp_path)
    lines = ["reading sources... [ 50%] index", "a warning of 50% of it", "3 of 4 steps (75%) done"]
    book.run("python", "-c", f"print(*{lines}, sep='\\n')", log="a.log", show=shown.append)
    assert shown == ["reading sources... [ 50%]", "3 of 4 steps (75%) done"]
    assert log.read_text() == "a warning of 50% of it\n"
    with pytest.raises(RuntimeError, match=r"python failed\. The end of .*a\.log:\n20\n(\d+\n)*49$"):
        book.run("python", "-c", "print(*range(50), sep='\\n'); exit(1)", log="a.log", show=shown.append)


def test_a_terminal_sees_how_far_a_stage_is(monkeypatch):
    for terminal, expected in (
        (True, "a ... \r\033[Ka ... 1 of 2\r\033[Ka ... 0 s\n"),
        (False, "a ... 0 s\n"),
    ):
        printed = StringIO()
        printed.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stdout", printed)
        with book.stage("a") as show:
            show("1 of 2")
        assert printed.getvalue() == expected
    with pytest.raises(RuntimeError), book.stage("a"):
        raise RuntimeError
    assert printed.getvalue().endswith("a ... failed after 0 s\n")


def test_the_command_ends_with_the_reason_and_not_a_traceback(monkeypatch, capsys):
    def fail(profile, **options):
        raise RuntimeError(f"no {profile} today")

    monkeypatch.setattr(book, "build", fail)
    monkeypatch.setattr(sys, "argv", ["book"])
    with pytest.raises(SystemExit, match="no book today"):
        book.main()
    monkeypatch.setattr(sys, "argv", ["book", "--profile", "laptop"])
    with pytest.raises(SystemExit):
        book.main()
    assert "profile is 'laptop', it must be one of" in capsys.readouterr().err


def test_the_command_says_what_to_open(monkeypatch, capsys):
    monkeypatch.setattr(book, "build", lambda profile, **options: Path("_build/html/index.html"))
    monkeypatch.setattr(sys, "argv", ["book", "--profile", "quick"])
    book.main()
    assert capsys.readouterr().out == "Open _build/html/index.html in a browser.\n"


# -- the reference


def test_the_index_of_the_reference_has_what_import_rnlib_offers():
    listed = re.findall(r"^   rnlib\.(\w+)$", (ROOT / "book" / "api" / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(rnlib.__all__)


@pytest.mark.slow
def test_the_index_of_the_reference_leads_to_where_each_name_is_documented(real):
    page = browser.Links(real / "html" / "api" / "index.html")
    classes = [getattr(rnlib, name) for name in rnlib.__all__ if isinstance(getattr(rnlib, name), type)]
    assert {f"{one.__module__}.html#{one.__module__}.{one.__name__}" for one in classes} <= set(page.links)

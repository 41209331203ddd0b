"""What a person types: parameters of workers, profiles, claims, the table of contents, a command line.

Text has no checksum: one that is cut where it is still a whole, smaller text cannot be told from it.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest
from harness import CASES, PROFILE, ROOT, refusal, state

from study import book, runs, work
from study.parameters import chosen_run
from study.report import claims, comparison

SECTIONS = runs.read_profile(PROFILE)
LAUGHS = "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9 if i else 'xx')}]" for i in range(12))
WRONG = [(name, value) for name, values in CASES["parameters"].items() for value in values]


def versions(kind, path, cuts):
    """(name, bytes) of files that are none of a kind: others, edited ones, cut ones, in another encoding."""
    text = path.read_text()
    yield from CASES["files"].items()
    for name, (old, new) in CASES["edits"][kind].items():
        yield name, text.replace(old, new, 1 if kind == "claims" else -1)
    for tenth in cuts:
        yield f"cut after {tenth} tenths", text[: len(text) * tenth // 10]
    yield "utf-16", text.encode("utf-16")
    yield "zeros", bytes(300)
    yield "aliases without end", f"{LAUGHS}\n{text.replace('lr: 0.1', 'lr: *a11')}"
    for section in SECTIONS if kind == "profile" else ():
        pattern = rf"(?m)^{section}:.*\n(^[ -].*\n)*"
        yield f"without {section}", re.sub(pattern, "", text)


def every(kind, path, cuts):
    """The cases of a kind, as pytest takes them."""
    made = [(name, one if isinstance(one, bytes) else one.encode(errors="surrogateescape"))
            for name, one in versions(kind, path, cuts)]  # fmt: skip
    return pytest.mark.parametrize("content", [one for _, one in made], ids=[name for name, _ in made])


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_parameter(name, value, tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    monkeypatch.setattr("rnlib.train._schedule", lambda *what: pytest.fail("work was done"))

    def worker():
        run, options = chosen_run({"profile": PROFILE, name: value}, "device")
        work.train_run(run, **options)

    refusal(worker, rf"\b{name}\b")
    assert not state(tmp_path)


@pytest.mark.parametrize("name", ["sede", "profil", "eval", "Epochs", "batch-size"])
def test_an_unknown_parameter(name):
    refusal(lambda: chosen_run({"profile": PROFILE, name: 1}), name, "epochs", "takes")


@every("profile", Path(PROFILE), range(1, 10))
def test_a_wrong_profile(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yml"
    path.write_bytes(content)
    refusal(lambda: runs.tables(str(path)), r"mine\.yml|epochs|lr|runs", "must|mend|known")
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yml"]


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("defaults", "\ufeffdefaults"), ("# ", "# Ünï ")])
def test_a_profile_of_another_editor_is_read_rightly(change, tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_bytes(Path(PROFILE).read_text().partition("\n")[2].replace(*change).encode())
    assert [run.name for run in runs.grid(str(path))] == [run.name for run in runs.grid(PROFILE)]


@every("claims", ROOT / "study" / "claims" / "fig4.yml", (1, 2, 4, 7, 8))
def test_wrong_claims(content, tmp_path, monkeypatch):
    folder = tmp_path / "study" / "claims"
    folder.mkdir(parents=True)
    (folder / "mine.yml").write_bytes(content)
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    comparison.read_claims.cache_clear()
    try:
        refusal(comparison.read_claims, r"mine\.yml", "must|mend|known|once")
    finally:
        comparison.read_claims.cache_clear()
    assert not (tmp_path / "executed").exists()


@every("toc", ROOT / "book" / "_toc.yml", ())
def test_a_wrong_table_of_contents(content, tmp_path, monkeypatch):
    for folder in ("notebooks", "book"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "book" / "_toc.yml").write_bytes(content)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    refusal(book.chapters, r"_toc\.yml", "must|mend")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("words", "said"), CASES["commands"].items())
def test_a_wrong_command(words, said, monkeypatch, capsys):
    monkeypatch.setattr(book, "build", lambda *what, **how: pytest.fail("work was done"))
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit) as ended:
        (book if words.startswith("book") else claims).main()
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)

"""What a person types: parameters of workers, profiles, claims, the table of contents, words of a command line."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from harness import OTHERS, PROFILE, ROOT, refusal, state

from study import book, runs, work
from study.parameters import chosen_run
from study.report import comparison

NAN, INF = float("nan"), float("inf")
WRONG = {
    "seed": ["8", "zero", 0.5, True, -1, [0], NAN, 2**64],
    "epochs": ["8", 2.5, 0, -1, [1], False],
    "batch_size": ["128", 0, 1.5],
    "lr": ["1e-4", 0, -0.1, NAN, INF, True],
    "momentum": [1.5, -1, NAN],
    "weight_decay": [-1, NAN, "0"],
    "schedule": ["cosine", 3],
    "crafting": ["test", ["train"]],
    "precision": ["fp16"],
    "attack_steps": [0, 2.5],
    "attack_step": [0, -1, NAN],
    "eps": [300, -0.1, NAN, "8/255"],
    "clip": [0, -1, NAN],
    "label_smoothing": [1, -0.1, NAN],
    "p": [2, -1, NAN, "0.2"],
    "width": [0, "4", 2.5],
    "train_images": [0, 10**9, "all"],
    "validation_images": [0, 10**9],
    "milestones": [[-1], [0], ["x"], 3, "73"],
    "snapshots": [[4], [0], "1"],
    "compile": ["yes", 1],
    "channels_last": [1],
    "augment": ["no"],
    "norm": [3, "batchnorm", "../../x", "a\nb", ["batch_norm"]],
    "dataset": ["mnist", "../x", 10],
    "architecture": ["resnet21", "resnet", "vgg12", "../../x", "resnet20; touch x"],
    "training": ["nat", True],
    "experiment": ["nope", "../x"],
    "profile": ["huge", 3, "nothing.yml", "study/profiles", "a;touch b.yml"],
    "device": ["gpu", 3, "cuda:99", "cpu:x"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_parameter(name, value, tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    monkeypatch.setattr("rnlib.train._epoch", lambda *what: pytest.fail("work was done"))
    schedule = {"schedule": "step"} if name == "milestones" else {}

    def worker():
        given = {"profile": PROFILE} | schedule | {name: value}
        run, options = chosen_run({key: one for key, one in given.items() if one is not None}, "device")
        work.train_run(run, **options)

    refusal(worker, rf"\b{name}\b")
    assert not state(tmp_path)


@pytest.mark.parametrize("name", ["sede", "profil", "eval", "Epochs", "batch-size"])
def test_an_unknown_parameter(name):
    refusal(lambda: chosen_run({"profile": PROFILE, name: 1}), name, "epochs", "takes")


TINY = Path(PROFILE).read_text()
SECTIONS = (
    "defaults",
    "natural",
    "adversarial",
    "norms",
    "grid",
    "evaluation",
    "measurements",
    "statistics",
    "landscape",
)
LAUGHS = "\n".join(
    ["a0: &a0 [x,x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)


def without(section):
    return yaml.safe_dump({key: value for key, value in yaml.safe_load(TINY).items() if key != section})


PROFILES = {
    "empty": "",
    "null": "null\n",
    "a list": "- 1\n- 2\n",
    "a number": "3\n",
    **{name: content.decode() for name, content in OTHERS.items()},
    **{f"cut after {tenth} tenths": TINY[: len(TINY) * tenth // 10] for tenth in range(1, 10)},
    **{f"without {section}": without(section) for section in SECTIONS},
    "utf-16": TINY.encode("utf-16"),
    "latin-1": b"# \xfcber\n" + TINY.encode(),
    "zeros": bytes(300),
    "tabs": TINY.replace("  ", "\t"),
    "a key twice": TINY + "natural: {epochs: 3}\n",
    "a setting twice": TINY.replace("  lr: 0.1\n", "  lr: 0.1\n  lr: 0.2\n"),
    "a section too many": TINY + "evaluations: {images: 3}\n",
    "a misspelt setting": TINY.replace("batch_size: 100", "batchsize: 100"),
    "a misspelt setting of a training": TINY.replace("natural: {epochs: 1}", "natural: {epoch: 1}"),
    "a misspelt setting of a norm": TINY.replace("{p: 0.2}", "{power: 0.2}"),
    "a misspelt setting of an experiment": TINY.replace("snapshots: [1", "snapshot: [1"),
    "a misspelt setting of the grid": TINY.replace("seed: [0, 1]", "seeds: [0, 1]"),
    "a list for a section": TINY.replace("natural: {epochs: 1}", "natural: [1]"),
    "a dictionary for the grid": TINY.replace(
        "  - {norm: batch_norm, training: natural, seed: [0, 1]}", "  norm: x"
    )
    .replace("  - {norm: no_norm, training: natural, seed: 0}\n", "")
    .replace("  - {norm: robust_norm, training: adversarial, seed: 0}\n", "")
    .replace("  - {experiment: two_epochs, norm: batch_norm, training: natural, seed: 0}\n", ""),
    "half an epoch": TINY.replace("natural: {epochs: 1}", "natural: {epochs: 0.5}"),
    "a negative number of images": TINY.replace("images: 60", "images: -60"),
    "words for images": TINY.replace("images: 60", "images: sixty"),
    "no number of points": TINY.replace("points: 3", "points: .nan"),
    "a tag of Python": TINY + "experiments: !!python/object/apply:os.system ['touch executed']\n",
    "a tag in a value": TINY.replace("lr: 0.1", "lr: !!python/name:os.system"),
    "aliases without end": TINY.replace("lr: 0.1", "lr: *a11") + "\n" + LAUGHS,
    "aliases in a setting": LAUGHS + "\n" + TINY.replace("lr: 0.1", "lr: *a11"),
    "brackets without end": "[" * 5000,
    "runs that are none": TINY.replace("{norm: batch_norm, seed: 0}", "{norm: batchnorm, seed: 0}"),
    "a name of a folder elsewhere": TINY.replace("two_epochs", "../two_epochs"),
}


@pytest.mark.parametrize("what", PROFILES)
def test_a_wrong_profile(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = PROFILES[what]
    path = tmp_path / "mine.yml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    refusal(lambda: runs.tables(str(path)), r"mine\.yml|epochs|lr|runs", "must|mend|known")
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yml"]


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("defaults", "\ufeffdefaults"), ("# ", "# Ünï ")])
def test_a_profile_of_another_editor_is_read_rightly(change, tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_bytes(TINY.partition("\n")[2].replace(*change).encode())
    assert [run.name for run in runs.grid(str(path))] == [run.name for run in runs.grid(PROFILE)]


CLAIM = (ROOT / "study" / "claims" / "fig4.yml").read_text()
CLAIMS = {
    "empty": "",
    "a list": "- 1\n",
    "no claims": "defaults: {}\n",
    "no list of claims": "claims: {id: x}\n",
    "a claim of one word": "claims: [x]\n",
    "a claim without text": "claims: [{id: x}]\n",
    "html": OTHERS["html"].decode(),
    "utf-16": CLAIM.encode("utf-16"),
    "a tag of Python": "claims: !!python/object/apply:os.system ['touch executed']\n",
    "a key twice": CLAIM.replace("claims:", "claims: []\nclaims:"),
    "a misspelt key": CLAIM.replace("text:", "txet:", 1),
    "an unknown value": CLAIM.replace("text:", "value: accurracy\n    text:", 1),
    "an unknown kind": CLAIM.replace("text:", "kind: hope\n    text:", 1),
    "an unknown budget": CLAIM.replace("text:", "budget: large\n    text:", 1),
    "an unknown least": CLAIM.replace("text:", "least: enormous\n    text:", 1),
    "the same claim twice": CLAIM + "\n" + CLAIM.partition("claims:\n")[2],
    **{f"cut after {tenth} tenths": CLAIM[: len(CLAIM) * tenth // 10] for tenth in (1, 2, 4, 7, 8)},
}


@pytest.mark.parametrize("what", CLAIMS)
def test_wrong_claims(what, tmp_path, monkeypatch):
    folder = tmp_path / "study" / "claims"
    folder.mkdir(parents=True)
    content = CLAIMS[what]
    (folder / "mine.yml").write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    comparison.read_claims.cache_clear()
    try:
        refusal(comparison.read_claims, r"mine\.yml", "must|mend|known|once")
    finally:
        comparison.read_claims.cache_clear()
    assert not (tmp_path / "executed").exists()


TOC = (ROOT / "book" / "_toc.yml").read_text()
TOCS = {
    "empty": "",
    "a list": "- 1\n",
    "html": OTHERS["html"].decode(),
    "no root": "format: jb-book\n",
    "utf-16": TOC.encode("utf-16"),
    "a page that is not there": TOC.replace("paper/table2", "paper/table9"),
    "a page elsewhere": TOC.replace("paper/table2", "../../../etc/passwd"),
    "a tag of Python": "format: !!python/object/apply:os.system ['touch executed']\n",
    "a page twice": TOC.replace("paper/table2", "paper/table3"),
    "parts without chapters": TOC.replace("chapters:", "chaptres:", 1),
}


@pytest.mark.parametrize("what", TOCS)
def test_a_wrong_table_of_contents(what, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(ROOT / "book", tmp_path / "book")
    content = TOCS[what]
    (tmp_path / "book" / "_toc.yml").write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    refusal(book.chapters, r"_toc\.yml", "must|mend|known|once")
    assert not (tmp_path / "executed").exists()


COMMANDS = {
    "book --profile huge": "profile is 'huge'.*must be",
    "book --profile": "expected one argument",
    "book --profile nothing.yml": "profile is 'nothing.yml'.*must be",
    "book --jobs 0": "jobs.*invalid choice: 0",
    "book --jobs -1": "jobs.*invalid choice: -1",
    "book --jobs two": "jobs.*invalid",
    "book --trian": "unrecognized arguments: --trian",
    "report.claims --profile huge": "invalid choice: 'huge'",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_wrong_command(words, tmp_path, monkeypatch, capsys):
    module, *arguments = words.split()
    monkeypatch.setattr(book, "build", lambda *what, **how: pytest.fail("work was done"))
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    main = {"book": book.main}.get(module)
    if main is None:
        from study.report import claims

        main = claims.main
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    import re

    assert re.search(COMMANDS[words], capsys.readouterr().err)

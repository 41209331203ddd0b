"""Someone has the official CIFAR-10 and measures on it what the book measured on its JPEG copy."""

from pathlib import Path

import nbformat
import pytest
import torch

from rnlib import Dataset
from study import networks
from study.report import results
from study.runs import ROOT, grid, make_run
from study.work import train_run

TINY = str(ROOT / "tests" / "study" / "tiny.yml")
WORKERS = sorted((ROOT / "notebooks" / "workers").glob("*.ipynb"))
JPEG = "dataset: cifar10-jpeg"


@pytest.mark.parametrize("path", WORKERS, ids=lambda path: path.stem)
def test_every_worker_takes_the_data_set_as_a_parameter(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    namespace = {}
    exec(f"{cells[0]}\nprofile = 'book'\ndataset = 'cifar10'\n", namespace)
    exec(cells[1], namespace)
    run, jpeg = namespace["run"], make_run("book")
    assert (run.dataset, run.epochs, run.experiment) == ("cifar10", jpeg.epochs, jpeg.experiment)
    assert run.directory != jpeg.directory
    assert run.directory.name == "cifar10_resnet20_batch_norm_natural_seed0"


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Noise in place of both sets, another for each; what reads the official files has tests of its own."""

    def load(name, split):
        generator = torch.Generator().manual_seed(len(name))
        images = torch.randint(256, (200, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return Dataset(name, images, torch.arange(200) % 10, ())

    monkeypatch.setattr(networks, "load", load)
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    return tmp_path


def profile(folder, dataset):
    text = Path(TINY).read_text().replace("dataset: fashion-mnist-sample", f"dataset: {dataset}")
    (path := folder / f"{dataset}.yml").write_text(text)
    return str(path)


def test_results_of_the_two_sets_keep_apart(stand_ins):
    runs = [
        make_run(profile(stand_ins, "cifar10-jpeg"), dataset=name) for name in ("cifar10", "cifar10-jpeg")
    ]
    for run in runs:
        train_run(run)
    names = [path.name.split("_")[0] for path in sorted((stand_ins / "cifar10-jpeg").iterdir())]
    assert names == ["cifar10-jpeg", "cifar10"]
    histories = [(run.directory / "history.csv").read_text() for run in runs]
    assert histories[0] != histories[1]


def test_a_profile_of_the_official_set_is_a_copy_with_one_word_changed(tmp_path):
    """As ``run_again`` says, and a page then shows its results: no run is the book's."""
    text = (ROOT / "study" / "profiles" / "book.yml").read_text()
    assert text.count(JPEG) == 1
    assert f"s/{JPEG}/dataset: cifar10/" in (ROOT / "book" / "run_again.md").read_text()
    (path := tmp_path / "official.yml").write_text(text.replace(JPEG, "dataset: cifar10"))
    official, book = grid(str(path)), grid("book")
    assert len(official) == len(book)
    assert {run.dataset for run in official} == {run.dataset.removesuffix("-jpeg") for run in book}
    assert not {run.directory for run in official} & {run.directory for run in book}
    assert results.table(str(path), "evaluations").empty

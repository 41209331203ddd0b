"""The files of a run: whole, listed with checksum and provenance, and refused when they are another's."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import store, whole
from study.runs import ROOT, make_run

PROFILE = str(Path(__file__).with_name("tiny.yml"))
ORIGIN = dict(zip(store.PROVENANCE, ("0123", "abc", "0.1", "r", "2", "cpu", 1), strict=True))


@given(
    st.dictionaries(
        st.sampled_from(["tracked/clean", "batch/noise", "none/grad"]), st.lists(st.booleans(), max_size=30)
    )
)
def test_outcomes_survive_packing(tmp_path_factory, correct):
    path = tmp_path_factory.mktemp("store") / "outcomes.npz"
    store.keep(path, store.pack({key: np.array(value, bool) for key, value in correct.items()}))
    assert {key: value.tolist() for key, value in store.read_correct(path).items()} == correct


def test_outcomes_that_are_not_there_are_none(tmp_path):
    assert store.read_correct(tmp_path / "outcomes.npz") == {}


def test_a_file_is_never_half_written(tmp_path):
    path = tmp_path / "x.json"
    store.keep(path, store.as_json({"a": 1}))

    def fails(file):
        file.write_text("half")
        raise OSError("disk full")

    for write in (whole.write, store.keep):
        with pytest.raises(OSError, match="disk full"):
            write(path, fails)
        with pytest.raises(TypeError):
            write(path, store.as_json({"a": object()}))
    assert json.loads(path.read_text()) == {"a": 1}
    assert store.check(path) == {}
    assert {file.name for file in tmp_path.iterdir()} == {"x.json", store.FILES}


def test_files_have_the_rights_of_new_files_whoever_writes_them(tmp_path):
    def secret(file):
        file.touch(0o600)

    before = os.umask(0o027)
    try:
        whole.write(tmp_path / "x", secret)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_kept_file_can_be_traced_and_a_changed_one_is_refused(tmp_path):
    path = tmp_path / "x.json"
    store.keep(path, store.as_json({"a": 1}), ORIGIN)
    assert store.check(path) == ORIGIN
    path.write_text('{"a": 2}\n')
    with pytest.raises(store.DamagedFile, match=r"x.json was changed or damaged: .*git checkout"):
        store.check(path)
    store.keep(path, store.as_json({"a": 2}))
    assert store.check(path) == {}
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(store.DamagedFile, match=r"y.json is not listed in files.json beside it: .*remove"):
        store.check(tmp_path / "y.json")
    (tmp_path / store.FILES).write_text("{")
    with pytest.raises(store.DamagedFile, match=r"files.json was changed or damaged .*git checkout"):
        store.check(path)


def test_writers_side_by_side_lose_no_note(tmp_path):
    names = [f"{i}.json" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.keep(tmp_path / name, store.as_json(name), {"of": name}), names))
    assert [store.check(tmp_path / name) for name in names] == [{"of": name} for name in names]


def test_a_table_has_its_provenance_as_columns_whether_it_is_the_same_in_all_rows_or_not(tmp_path):
    path = tmp_path / "x.csv"
    rows = [{"attack": name, "n": 3} | ORIGIN | {"revision": name} for name in ("a", "b")]
    store.keep_rows(path, rows)
    assert list(pd.read_csv(path)) == ["attack", "n", "revision"]  # what is shared is in files.json
    assert "revision" not in store.check(path)
    found = store.read_table(path)
    assert found[list(rows[0])].to_dict("records") == rows
    store.keep_rows(path, [])
    assert store.read_table(path).empty


def test_a_folder_with_the_settings_of_another_run_is_refused(empty):
    run = make_run(PROFILE)
    assert store.read_config(run) == {}
    store.keep(run.directory / store.CONFIG, store.as_json({"settings": asdict(run) | {"lr": 0.5}}))
    message = r"other settings \(there, here\): {'lr': \(0.5, 0.1\)}; set these back, or remove or rename"
    for read in (store.read_config, partial(store.finished, path=run.directory / "transfer.csv")):
        with pytest.raises(ValueError, match=message):
            read(run)


def test_how_a_run_was_computed_and_settings_that_came_later_make_no_other_run(empty):
    run = make_run(PROFILE)
    settings = asdict(run) | {"precision": "bfloat16", "compile": True, "snapshots": [1]}
    del settings["label_smoothing"]
    store.keep(run.directory / store.CONFIG, store.as_json({"settings": settings}))
    assert store.read_config(run)["settings"]["compile"] is True
    settings["label_smoothing"] = 0.5
    store.keep(run.directory / store.CONFIG, store.as_json({"settings": settings}))
    with pytest.raises(ValueError, match="label_smoothing"):
        store.read_config(run)


def test_a_table_of_a_run_that_diverged_is_there_and_empty(empty):
    run = make_run(PROFILE)
    path = run.directory / "transfer.csv"
    assert store.finished(run, path) is None
    store.keep(run.directory / store.DIVERGED, store.as_json({}))
    assert store.finished(run, path).empty
    assert path.exists()


FOLDERS = sorted(path.parent for path in (ROOT / "results").rglob(store.FILES))


def test_the_published_files_are_what_was_written():
    for folder in FOLDERS:
        listed = set(json.loads((folder / store.FILES).read_text()))
        assert listed <= {path.name for path in folder.iterdir()}
        for path in folder.iterdir():
            assert path.name == store.FILES or store.check(path) is not None


def test_the_published_outcomes_are_those_that_the_tables_count():
    for path in (path for folder in FOLDERS for path in folder.glob("*.npz")):
        kept = [(len(hits), hits.sum()) for hits in store.read_correct(path).values()]
        table = store.read_table(path.with_suffix(".csv"))
        assert sorted(kept) == sorted(zip(table.n, table.correct, strict=True)), path

"""Sets a rerun beside the published results: ``python -m study.compare results/quick``.

Runs are matched by names of folders, rows by what was measured, images by their place in order. A difference
is allowed what seeds and images leave open, at 95%: of 100 rows that differ by chance alone, five are called
otherwise. How far two trainings lie apart is taken from the seeds of the same training where there are three,
else from all trainings for the same row, else from all rows. Of the same weights, images are left.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from pandas.api.types import is_float_dtype

from study import store
from study.runs import COMPUTATION, DEFAULTS, ROOT

MEASURED = {"n", "correct", "accuracy", "distance", "seconds", "confidence", "vanished", "winners", "attacks"}
MEASURED |= {"std", "largest", *store.PROVENANCE}
KEYS = ["run", "table", "cell"]


def read(folder: Path) -> pd.DataFrame:
    """Every accuracy in the folders of runs: KEYS, the training without its seed, which images were right."""
    found = []
    for path in sorted(folder.glob("*/*.csv")):
        rows, outcomes = store.read_table(path), store.read_correct(path.with_suffix(".npz"))
        if "accuracy" not in rows or not outcomes:
            continue
        measured = MEASURED | ({"loss"} if is_float_dtype(rows.get("loss")) else set())
        varied = sorted(set(rows) - measured)
        for index, row in enumerate(rows.to_dict("records")):
            by_name = path.stem == "evaluations"  # whose outcomes have another order than its rows
            name = f"{row['statistics']}/{row['attack']}" if by_name else list(outcomes)[index]
            cell = ", ".join(f"{key} {row[key]}" for key in varied if row[key] == row[key])
            found.append((path.parent.name, path.stem, cell, path.parent, outcomes[name]))
    if not found:
        raise SystemExit(
            f"{folder} has no accuracies of images in <run>/<table>.csv: name the folder of a profile"
        )
    rows = pd.DataFrame(found, columns=[*KEYS, "folder", "right"])
    percent = [100 * float(right.mean()) for right in rows.right]
    return rows.assign(training=rows.run.str.replace(r"_seed\d+", "", regex=True), percent=percent)


def trained(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The settings that decide on a training, and the checksum of its weights."""
    told = DEFAULTS | json.loads((folder / store.CONFIG).read_text())["settings"]
    left_out = {*COMPUTATION, "profile", "validation_images"}
    left_out |= {"crafting", "attack_steps", "attack_step", "eps"} if told["training"] == "natural" else set()
    notes = json.loads((folder / store.FILES).read_text())
    return {key: told[key] for key in told.keys() - left_out}, notes.get(store.WEIGHTS, {}).get("sha256")


def seeds_apart(known: pd.DataFrame, row: pd.Series) -> float:
    """Half the 95% interval of the difference of two trainings, in percent; 0 if no seeds are known."""
    alike = known[(known.table == row.table) & (known.cell == row.cell)]
    for rows in (alike[alike.training.isin([row.training, f"{row.training} again"])], alike, known):
        groups = rows.groupby(["training", "table", "cell"]).percent
        freedom = int((groups.count() - 1).sum())
        if freedom >= 2:
            squares = float((groups.var(ddof=0) * groups.count()).sum())
            return float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(2 * squares / freedom))
    return 0.0


def compare(fresh: Path, book: Path) -> pd.DataFrame:
    """A row for each accuracy that both have: in percent of the images that both measured, and a verdict."""
    old, new = read(book), read(fresh)
    both, found = old.merge(new, on=KEYS, suffixes=("", "_again"), validate="one_to_one"), []
    known = pd.concat(
        (old, new.assign(training=new.training + " again"))
    )  # each side's seeds among themselves
    for _, row in both.iterrows():
        (settings, weights), (settings_again, weights_again) = trained(row.folder), trained(row.folder_again)
        n = min(len(row.right), len(row.right_again))
        was, now = (100 * right[:n].astype(float) for right in (row.right, row.right_again))
        seeds = 0.0 if weights and weights == weights_again else seeds_apart(known, row)
        apart, allowed = (
            float((now - was).mean()),
            float(np.hypot(1.96 * (now - was).std() / np.sqrt(n), seeds)),
        )
        verdict = "differs" if abs(apart) > allowed else "differs by chance" if apart else "as published"
        verdict = verdict if settings == settings_again else "another training"
        found.append([*row[KEYS], n, was.mean(), now.mean(), allowed, verdict])
    return pd.DataFrame(found, columns=[*KEYS, "images", "published", "rerun", "allowed", "verdict"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Set a rerun beside the published results, row by row.")
    parser.add_argument("results", type=Path, help="folder of the rerun's runs, such as results/quick")
    parser.add_argument("--published", type=Path, default=ROOT / "results" / "book")
    chosen = parser.parse_args()
    rows = compare(chosen.results, chosen.published)
    if rows.empty:
        raise SystemExit(f"no run of {chosen.results} is published in {chosen.published}")
    print(rows.set_index(KEYS).round(1).to_string())
    print(", ".join(f"{count} {verdict}" for verdict, count in rows.verdict.value_counts().items()))

"""What the chapters on decisive experiments share: networks side by side, and many comparisons at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from study.report import panels, results
from study.report.claims import Verdict
from study.report.comparisons import Comparison
from study.report.figures import ATTACKS, PALETTE

MODES = panels.names(["tracked", "batch"], {"tracked": "tracked statistics", "batch": "batch statistics"})
NORMS = {"batch_norm": "BatchNorm", "robust_norm": "RobustNorm"}
SOURCES = {
    "ema": "tracked", "augmented": "augmented", "plain": "plain", "adversarial": "adversarial",
    "twin": "clean twin", "batch": "batch",
}  # fmt: skip
TESTED = dict(MODES) | {"reshuffled": ("batch statistics, other batches", PALETTE[2], ":")}
TRANSFER_ALT = (
    "For each network, accuracy of images crafted through tracked, batch and detached statistics:"
    " three dots, with tracked statistics, with those of the batch, and in other batches."
)
LADDER = panels.names(
    ["clean", "noise", "grad_sign", "pgd_linf"],
    {"clean": "clean", "noise": "noise", "grad_sign": "GradSign", "pgd_linf": "PGD"},
)


def networks(profile: str, name: str, experiment: str = "headline", **where: Any) -> pd.DataFrame:
    """A diagnostic of an experiment with a column ``network`` (norm and training), natural training first.

    Args:
        name: of the diagnostic.
        where: values of columns, to choose rows; a list means any of them.
    """
    table = results.diagnostic(profile, name, experiment)
    table = table[table.norm.isin(list(NORMS))].sort_values(
        ["norm", "training"], ascending=[True, False], kind="stable"
    )
    for column, value in where.items() if len(table) else ():
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    return table.assign(network=table.norm.map(NORMS) + ", " + table.training + " training")


def _columns(table: pd.DataFrame) -> int:
    return 2 if table.network.nunique() > 1 else 1


def transfer_figure(table: pd.DataFrame) -> Figure:
    """E2: PGD by the statistics it was crafted through, a panel for each network of :func:`networks`."""
    return panels.categories(
        table[table.attack != "grad_sign"], x="crafted", series="tested", looks=TESTED, panel="network",
        columns=2, height=2.8,
    )  # fmt: skip


def ladder_figure(table: pd.DataFrame) -> Figure:
    """E3: accuracy by the source of statistics, a panel for each network of :func:`networks`."""
    return panels.categories(
        table, x="source", series="attack", looks=LADDER, panel="network", labels=SOURCES,
        columns=_columns(table), rotation=30,
    )  # fmt: skip


def fraction_figure(table: pd.DataFrame) -> Figure:
    """E5: accuracy by the number of attacked images, a panel for each network of :func:`networks`."""
    return panels.categories(
        table.sort_values(["norm", "training", "attacked"], ascending=[True, False, True]), x="attacked",
        series="statistics", looks=MODES, panel="network", xlabel="attacked images of 100",
        columns=_columns(table),
    )  # fmt: skip


def withstood(profile: str, name: str, rows: pd.DataFrame) -> NDArray[np.floating] | None:
    """Which images are correct in every row of a table, 100 or 0 (n,); None if an outcome was not kept."""
    outcomes = [results.outcomes(profile, name, row) for _, row in rows.iterrows()]
    kept = [one for one in outcomes if one is not None]
    return 100.0 * np.logical_and.reduce(kept) if len(kept) == len(outcomes) else None


def strongest(profile: str, transfer: pd.DataFrame) -> pd.DataFrame:
    """E2: accuracy over images that stay correct under every way of crafting, in either mode.

    Args:
        transfer: rows of that diagnostic, as :func:`networks` has them.
    """
    columns = ["network", "attack", "tracked", "batch", "batch minus tracked"]
    rows = []
    groups = transfer.groupby(["network", "attack", "run"], sort=False) if len(transfer) else ()
    for (network, attack, _), found in groups:
        tracked, batch = (
            withstood(profile, "transfer", found[found.tested == mode]) for mode in ("tracked", "batch")
        )
        if tracked is not None and batch is not None:
            gap, low, high = results.difference(batch, tracked)
            means = [hits.mean().round(1) for hits in (tracked, batch)]
            rows.append((network, ATTACKS[attack], *means, f"{gap:+.1f} ({low:+.1f} to {high:+.1f})"))
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2])


def p_value(comparison: Comparison) -> float:
    """Two-sided, of no difference, from the width of the 95% interval: t over seeds, else normal."""
    quantile = stats.norm.ppf(0.975)
    if comparison.seeds > 1:
        quantile = stats.t.ppf(0.975, comparison.seeds - 1)
    error = (comparison.high - comparison.low) / 2 / quantile
    if error == 0:
        return float(comparison.ours == 0)
    size = abs(comparison.ours) / error
    return float(
        2 * (stats.t.sf(size, comparison.seeds - 1) if comparison.seeds > 1 else stats.norm.sf(size))
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979): all that stay below 5% are wrong together in 5%."""
    order, n = np.argsort(values, kind="stable"), len(values)
    corrected = np.empty(n)
    corrected[order] = np.maximum.accumulate([(n - i) * values[k] for i, k in enumerate(order)])
    return [float(value) for value in corrected.clip(0, 1)]


def multiplicity(verdicts: Sequence[Verdict]) -> Markdown:
    """How many differences of a page are clear one by one, and how many when corrected for their number.

    Claims that two sides are as good (within a margin), or differ by more than some least, are left out:
    they do not test whether there is a difference.
    """
    tested = [verdict for verdict in verdicts if not {"margin", "least"} & set(verdict.claim)]
    found = [one for verdict in tested for one in verdict.comparisons]
    if not found:
        return Markdown("")
    values = [p_value(one) for one in found]
    alone, together = sum(p < 0.05 for p in values), sum(p < 0.05 for p in holm(values))
    return Markdown(
        f"**Many comparisons.** Of the {len(found)} differences compared on this page {alone} are clear at"
        f" 95% taken one by one; {len(found) / 20:.0f} or so would be by chance if there were none at all."
        f" Corrected for their number (Holm), {together} are. Verdicts use the uncorrected intervals."
    )

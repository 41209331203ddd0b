"""The networks on which the scale of the outputs is measured, and the lead of batch statistics on each."""

from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from study.report import results
from study.report.figures import COLOURS, NAMES, lines, name, show
from study.runs import HEADLINE

CIFAR, MINIATURE = ("cifar10", "cifar10-jpeg"), ("miniature", "miniature_five_epochs", "miniature_smoothed")
GIVEN = "statistics as given"
LOSSES = ("cross_entropy", "equal_weight", GIVEN)
UNDER_PGD = "accuracy under PGD (%)"
LEAD = ["network", "dataset", "experiment", "norm", "training", "loss", "factor"]


def table(profile: str, measurement: str = "temperature") -> pd.DataFrame:
    """A measurement of networks with batch statistics, which the column ``network`` names for readers."""
    rows = results.table(profile, measurement, [HEADLINE, "eight_epochs", *MINIATURE])
    rows = rows[rows.norm.isin(["batch_norm", "robust_norm"])]
    columns = zip(rows.dataset, rows.norm, rows.training, rows.experiment, rows.epochs, strict=True)
    return rows.assign(network=[_network(*one) for one in columns])


def curves(profile: str) -> pd.DataFrame:
    """:func:`table` with every accuracy on the images that all cells of a network have: its first ones."""
    rows = table(profile)
    return results.on_first(profile, "temperature", rows, rows.groupby("run").n.transform("min"))


def _network(dataset: str, norm: str, training: str, experiment: str, epochs: int) -> str:
    after = f"{epochs} epochs" if dataset in CIFAR else name(experiment)
    after = after.replace("epochs", "adversarial epochs") if training == "adversarial" else after
    return ("" if dataset in CIFAR else "Fashion-MNIST: ") + f"{name(norm)}, {after}"


def leads(profile: str) -> pd.DataFrame:
    """Batch minus tracked statistics under PGD, in points: a row a network, loss and factor.

    An attack that takes statistics as given is another one with batch statistics alone: it is compared with
    the cross-entropy on tracked ones, on the images that both have.
    """
    rows, found = table(profile), []
    for key, part in rows.groupby(LEAD, sort=False):
        cell = dict(zip(LEAD, key, strict=True))
        usual = cell | {"loss": "cross_entropy"} if cell["loss"] == GIVEN else cell
        batch = part[part.statistics == "batch"]
        tracked = results.select(rows, usual | {"statistics": "tracked"})
        shared = int(min(batch.n.min(), tracked.n.min())) if len(batch) and len(tracked) else None
        gap = results.contrast(profile, "temperature", [batch, tracked], "accuracy", shared)
        if gap is not None:
            found.append(cell | vars(gap))
    return pd.DataFrame(found, columns=[*LEAD, *results.Difference.__dataclass_fields__])


def lead(rows: pd.DataFrame, loss: str, factor: float = 1.0, **network: str) -> str:
    """One of these leads for a sentence, "+20.6": of the long-trained BatchNorm, or as ``network`` says."""
    usual = {"experiment": HEADLINE, "norm": "batch_norm", "training": "natural"}
    found = results.select(rows, usual | network | {"loss": loss, "factor": factor})["mean"]
    return f"{round(float(found.iloc[0]), 1) + 0.0:+.1f}" if len(found) else "(not measured yet)"


def explorable(profile: str) -> HTML | Markdown:
    """A chart in which a reader turns the dial: network, loss and factor are chosen below it.

    Vega-Lite draws it; its script comes with the page. Without scripts the first network is a plain figure.
    """
    rows = curves(profile)
    rows = rows[rows.loss.isin(LOSSES)]
    if rows.empty:
        return Markdown("Nothing measured yet.")
    as_given = rows[(rows.loss == "cross_entropy") & (rows.statistics == "tracked")].assign(loss=GIVEN)
    rows = results.intervals(pd.concat([rows, as_given]), ["network", "loss", "factor", "statistics"])
    rows = rows.assign(
        loss=[name(one, "loss") for one in rows.loss], statistics=rows.statistics.map(NAMES)
    ).round({"mean": 1, "low": 1, "high": 1})
    first = rows[(rows.network == rows.network.iloc[0]) & (rows.loss == rows.loss.iloc[0])]
    still = show(
        lines(first, x="factor", hue="statistics", xscale="log", xlabel="outputs times", ylabel=UNDER_PGD),
        caption=f"{first.network.iloc[0]}, {first.loss.iloc[0]}.",
        alt="Accuracy under PGD against the factor on the outputs, with tracked and with batch statistics.",
    )
    import vl_convert

    # A module of its own: its names are not the page's.
    script = vl_convert.javascript_bundle(
        f"vegaEmbed('#dial', {_chart(rows).to_json(indent=None)}, {{actions: false}});"
    )
    return HTML(
        f"<div class='dial' id='dial'></div><script type='module'>{script}</script>"
        f"<noscript>{still.data}</noscript>"
    )


def _chart(rows: pd.DataFrame) -> Any:
    import altair as alt  # takes a second, and only one page needs it

    factors, both = sorted(rows.factor.unique()), [NAMES["tracked"], NAMES["batch"]]
    rows = rows.assign(place=[factors.index(one) for one in rows.factor])
    slider = alt.binding_range(min=0, max=len(factors) - 1, step=1, name="turn the dial: ")
    dial = alt.param(name="dial", value=factors.index(1.0), bind=slider)
    choices = {"network": alt.binding_select, "loss": alt.binding_radio}
    known = {key: list(dict.fromkeys(rows[key])) for key in choices}
    network, loss = (
        alt.param(name=key, value=known[key][0], bind=kind(options=known[key], name=f"{key}: "))
        for key, kind in choices.items()
    )
    x = alt.X("factor:Q", title="outputs times", axis=alt.Axis(values=factors))
    x = x.scale(type="log", domain=[factors[0] / 1.5, factors[-1] * 4], nice=False)
    colour = alt.Color("statistics:N", legend=None)
    colour = colour.scale(domain=both, range=[COLOURS[one] for one in both])
    chosen = alt.Chart(rows).transform_filter((alt.datum.network == network) & (alt.datum.loss == loss))
    base = chosen.encode(x=x, color=colour)
    accuracy = alt.Y("mean:Q", scale=alt.Scale(domain=[0, 100]), title=UNDER_PGD)
    here = base.transform_filter(alt.datum.place == dial)
    told = here.transform_calculate(
        told=alt.datum.statistics + " " + alt.expr.format(alt.datum.mean, ".1f") + "%"
    )
    gap = chosen.transform_filter(alt.datum.place == dial).transform_pivot(
        "statistics", "mean", groupby=["factor"]
    )
    words = alt.datum[both[1]] - alt.datum[both[0]]
    words = (
        "outputs times " + alt.datum.factor + ": batch statistics lead by " + alt.expr.format(words, "+.1f")
    )
    halo = told  # behind the words, so that they can be read on a line
    place: dict[str, Any] = {"align": "left", "dx": 10, "dy": -12}
    text: dict[str, Any] = {"fontSize": 14, "fontWeight": "bold"}
    return (
        alt.layer(
            base.mark_area(opacity=0.2).encode(y="low:Q", y2="high:Q"),
            base.mark_line().encode(
                y=accuracy, strokeDash=alt.StrokeDash("statistics:N", legend=None).scale(domain=both)
            ),
            here.mark_rule(color="gray", opacity=0.3),
            here.mark_point(size=120, filled=True, opacity=1).encode(y=accuracy),
            halo.mark_text(stroke="white", strokeWidth=5, **place, **text).encode(y=accuracy, text="told:N"),
            told.mark_text(**place, **text).encode(y=accuracy, text="told:N"),
            gap.transform_calculate(told=words + " points")
            .mark_text(align="right", **text)
            .encode(x=alt.value("width"), y=alt.value(-10), text="told:N"),
        )
        .add_params(network, loss, dial)
        .properties(width="container", height=300)
    )

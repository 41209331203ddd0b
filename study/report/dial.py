"""The networks on which the scale of the outputs is measured, and the lead of batch statistics on each."""

import pandas as pd

from study.report import results
from study.report.figures import name
from study.runs import HEADLINE

CIFAR, MINIATURE = ("cifar10", "cifar10-jpeg"), ("miniature", "miniature_five_epochs", "miniature_smoothed")
GIVEN = "statistics as given"
LEAD = ["network", "dataset", "experiment", "norm", "training", "loss", "factor"]


def table(profile: str, measurement: str = "temperature") -> pd.DataFrame:
    """A measurement of networks with batch statistics, which the column ``network`` names for readers."""
    rows = results.table(profile, measurement, [HEADLINE, "eight_epochs", *MINIATURE])
    rows = rows[rows.norm.isin(["batch_norm", "robust_norm"])]
    columns = zip(rows.dataset, rows.norm, rows.training, rows.experiment, rows.epochs, strict=True)
    return rows.assign(network=[_network(*one) for one in columns])


def _network(dataset: str, norm: str, training: str, experiment: str, epochs: int) -> str:
    after = f"{epochs} epochs" if dataset in CIFAR else name(experiment)
    after = after.replace("epochs", "adversarial epochs") if training == "adversarial" else after
    return ("" if dataset in CIFAR else "Fashion-MNIST: ") + f"{name(norm)}, {after}"


def leads(profile: str) -> pd.DataFrame:
    """Batch minus tracked statistics under PGD, in points: a row a network, loss and factor.

    An attack that takes statistics as given is another one with batch statistics alone: it is compared with
    the cross-entropy on tracked ones.
    """
    rows, found = table(profile), []
    for key, part in rows.groupby(LEAD, sort=False):
        cell = dict(zip(LEAD, key, strict=True))
        usual = cell | {"loss": "cross_entropy"} if cell["loss"] == GIVEN else cell
        batch = part[part.statistics == "batch"]
        tracked = results.select(rows, usual | {"statistics": "tracked"})
        gap = results.contrast(profile, "temperature", [batch, tracked], "accuracy")
        if gap is not None:
            found.append(cell | vars(gap))
    return pd.DataFrame(found, columns=[*LEAD, *results.Difference.__dataclass_fields__])


def lead(rows: pd.DataFrame, loss: str, factor: float = 1.0, **network: str) -> str:
    """One of these leads for a sentence, "+20.6": of the long-trained BatchNorm, or as ``network`` says."""
    usual = {"experiment": HEADLINE, "norm": "batch_norm", "training": "natural"}
    found = results.select(rows, usual | network | {"loss": loss, "factor": factor})["mean"]
    return f"{round(float(found.iloc[0]), 1) + 0.0:+.1f}" if len(found) else "(not measured yet)"

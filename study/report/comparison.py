"""What a claim says, as data, and its two sides set against each other on the results."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any

import pandas as pd

from study.plain import read_yaml
from study.report import results
from study.report.figures import name
from study.runs import HEADLINE, ROOT, TRAININGS

# What a word of a claim means in points, and how sure a direction is: these thresholds are ours.
LEAST: dict[str | None, float] = {None: 0.0, "large": 10.0, "about twenty": 15.0}
P = 0.05
SAME, OPPOSITE, LESS, UNCLEAR = "as claimed", "the other way round", "less than claimed", "unclear"
# What a difference is in, by the column compared.
UNITS = {"accuracy": "points", "diverged": "of the runs", "shift_abs": "tracked standard deviations"}
UNITS |= {"agreement": "of the pixels", "log_ratio_abs": "octaves"} | dict.fromkeys(
    ("std", "largest"), "of the spread after BatchNorm"
)
UNITS |= dict.fromkeys(("train_loss", "val_loss", "rise", "value"), "nats")
KINDS, BUDGETS = ("paper", "beyond"), ("matched", "short", "any")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An entry of ``study/claims/<page>.yml``; its first side is said to be ahead of its second."""

    id: str  # unique
    page: str  # the notebook that shows it
    text: str  # one sentence that is true or false
    where: str  # it stands in the paper
    # Settings of runs and columns of the table that make a side; each first has to be ahead of each second.
    first: list[dict[str, Any]]
    second: list[dict[str, Any]]
    kind: str = "paper"  # or beyond, for a hypothesis of ours
    shared: dict[str, Any] = field(default_factory=dict)  # the same on both sides
    over: dict[str, list[Any]] = field(default_factory=dict)  # columns with values, one comparison each
    # Each pair of these is a part with a verdict of its own; cifar10 is cifar10-jpeg as well.
    training: list[str] = field(default_factory=lambda: list(TRAININGS))
    dataset: list[str] = field(default_factory=lambda: ["cifar10"])
    table: str = "evaluations"
    value: str = "accuracy"  # the column compared; accuracies are over the same images
    margin: float | None = None  # no further apart than this, in place of ahead
    least: str | None = None  # ahead by more than a word of LEAST
    gap_at: dict[str, Any] = field(
        default_factory=dict
    )  # the difference is larger than it is at these values
    # matched: judged on trainings comparable to the paper's; short: about what short trainings do, judged on
    # the experiment `short`; any: true or false whatever the budget, and judged there too.
    budget: str = "matched"
    short: str = "eight_epochs"  # shown beside, and no evidence about a longer training
    paper: list[int] = field(default_factory=list)  # the tables that have the paper's numbers
    decides: str | None = None  # the condition of study.report.rule that it is evidence for
    images: int = 1000  # the least number of them, or of what else is compared, that supports a verdict

    def __post_init__(self) -> None:
        for key, known in {"kind": KINDS, "budget": BUDGETS, "value": [*UNITS], "least": [*LEAST]}.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} is {getattr(self, key)!r}, it must be one of {known}")

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Trainings and data sets that are judged one by one."""
        return list(itertools.product(self.training, self.dataset))

    def cells(self, training: str, dataset: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Every comparison that a part consists of: its label, and what each of the two sides is."""
        for first, second, *values in itertools.product(self.first, self.second, *self.over.values()):
            over = dict(zip(self.over, values, strict=True))
            label = [name(value, key) for key, value in over.items()]
            for word, side, all_sides in (("", first, self.first), ("against ", second, self.second)):
                if len(all_sides) > 1:
                    label.append(word + ", ".join(name(value, key) for key, value in side.items()))
            shared = {"training": training, "dataset": dataset} | self.shared | over
            yield ", ".join(label), [shared | side for side in (first, second)]

    def directed(self, low: float, high: float, p: float | None = None) -> str:
        """Where an interval lies: ahead by more than ``least``, or within ``margin`` of each other.

        Where few images are discordant, a direction needs the exact test as well.
        """
        if self.margin is not None:
            if -self.margin < low and high < self.margin:
                return SAME
            return OPPOSITE if low > self.margin or high < -self.margin else UNCLEAR
        if p is not None and p >= P and self.least is None and low < high:
            return UNCLEAR
        other = OPPOSITE if self.least is None else LESS
        return SAME if low > LEAST[self.least] else other if high < LEAST[self.least] else UNCLEAR


@dataclass(frozen=True)
class Comparison:
    """One first side against one second, after a training of some epochs and steps of its attack."""

    what: str
    paper: float | None  # None where the paper gives no number
    ours: results.Difference
    unit: str
    direction: str  # where our interval lies
    epochs: int
    attack_steps: int

    def signed(self, number: float) -> str:
        """A difference in this unit, with the digits that mean something."""
        digits = 1 if self.unit == "points" else 2
        return f"{round(number, digits) + 0.0:+.{digits}f}"  # without the sign of -0.0


@cache
def read_claims() -> dict[str, Claim]:
    """All claims by id: of each file its entries, with what its ``defaults`` say.

    ValueError if an id stands twice, or an entry has a key or a value that is not known, or lacks a key.
    """
    found: dict[str, Claim] = {}
    for path in sorted((ROOT / "study" / "claims").glob("*.yml")):
        contents = read_yaml(path)
        kinds = {"claims": list, "defaults": dict}
        known = isinstance(contents, dict) and "claims" in contents and contents.keys() <= kinds.keys()
        if not known or not all(isinstance(one, kinds[key]) for key, one in contents.items()):
            raise ValueError(f"{path} must be a list of claims, and if need be a dictionary of defaults")
        for entry in contents["claims"]:
            claim = make_claim(path.stem, contents.get("defaults", {}), entry)
            if claim.id in found:
                twice = f"claim {claim.id!r} is in {found[claim.id].page}.yml and in {path.name}"
                raise ValueError(f"{twice}: an id must stand once")
            found[claim.id] = claim
    return found


def make_claim(page: str, defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> Claim:
    """The claim of an entry: ``shared`` adds to that of the defaults, all else stands in place of theirs."""
    if not isinstance(entry, dict):
        raise ValueError(f"{page}.yml: {entry!r} must be a dictionary")
    told = {"page": page, **defaults, **entry}
    known = {one.name: one.default is MISSING and one.default_factory is MISSING for one in fields(Claim)}
    lacks = [name for name, needed in known.items() if needed and name not in told]
    if unknown := sorted(told.keys() - known.keys()):
        what = f"{', '.join(unknown)} is not known; known are {', '.join(known)}"
        raise ValueError(f"claim {told.get('id')!r} of {page}.yml: {what}")
    if lacks:
        raise ValueError(f"claim {told.get('id')!r} of {page}.yml: it must have {', '.join(lacks)}")
    told["shared"] = defaults.get("shared", {}) | entry.get("shared", {})
    for key in {"first", "second", "training", "dataset", "paper"} & set(told):
        told[key] = told[key] if isinstance(told[key], list) else [told[key]]
    try:
        return Claim(**told)
    except ValueError as error:
        raise ValueError(f"claim {told['id']!r} of {page}.yml: {error}") from error


def compare(claim: Claim, profile: str, training: str, dataset: str, experiment: str) -> list[Comparison]:
    """The comparisons of a part of a claim that the results of an experiment allow.

    ValueError if the claim names a column that its table does not have.
    """
    cells, found = list(claim.cells(training, dataset)), []
    varying = set(claim.gap_at).union({"value"}, claim.over, *claim.first, *claim.second)
    fixed = {key: one for key, one in cells[0][1][0].items() if key not in varying}
    table = results.table(profile, claim.table, None)
    table = table if table.empty else _rows(claim, table, fixed)
    if table.empty:
        return []
    for label, sides in cells:
        value = next(side.get("value", claim.value) for side in sides)
        wanted = [{"experiment": experiment, **side} for side in sides]
        wanted += [side | claim.gap_at for side in wanted if claim.gap_at]
        rows = [_rows(claim, table, side, value).dropna(subset=[value]) for side in wanted]
        ours = results.contrast(profile, claim.table, rows, value)
        if ours is not None:
            paper, direction = in_the_paper(claim, sides), claim.directed(ours.low, ours.high, ours.p)
            behind = [int(rows[0][column].iloc[0]) for column in ("epochs", "attack_steps")]
            found.append(Comparison(label, paper, ours, UNITS[value], direction, *behind))
    return found


def _rows(claim: Claim, table: pd.DataFrame, side: Mapping[str, Any], *values: str) -> pd.DataFrame:
    where = {key: one for key, one in side.items() if key != "value"}
    if side.get("dataset") == "cifar10":
        where["dataset"] = ["cifar10", "cifar10-jpeg"]
    if claim.budget == "matched" and side.get("experiment") == HEADLINE:
        where["matched"] = True
    if missing := sorted({*where, *values} - {*table}):
        raise ValueError(f"claim {claim.id!r} names {missing}; {claim.table} has {', '.join(table)}")
    return results.select(table, where)


def in_the_paper(claim: Claim, sides: list[dict[str, Any]]) -> float | None:
    """The paper's own difference of two sides; None where it gives no number of one."""
    if not claim.paper or claim.gap_at:
        return None
    table = results.paper(*claim.paper)
    found = [results.select(table, {key: one for key, one in side.items() if key in table}) for side in sides]
    return float(found[0].accuracy.sum() - found[1].accuracy.sum()) if [*map(len, found)] == [1, 1] else None


def paper_differences(claim: Claim, *parts: tuple[str, str]) -> list[float]:
    """The paper's own differences in all comparisons of some parts of a claim that it has numbers for."""
    found = [in_the_paper(claim, sides) for part in parts for _, sides in claim.cells(*part)]
    return [one for one in found if one is not None]


def paper_agrees(claim: Claim) -> list[bool]:
    """Whether the paper's own numbers are as the claim says, for each comparison that it has them for."""
    return [claim.directed(one, one) == SAME for one in paper_differences(claim, *claim.parts)]

"""How the benchmarks measure: rounds of all candidates in turn, in one process; medians and quartiles."""

import gc
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

Seconds = NDArray[np.floating]
COLUMNS = [
    "row",
    "case",
    "quantity",
    "value",
    "unit",
    "low",
    "high",
    "target",
    "met",
    "machine",
    "torch",
    "threads",
    "date",
]


@dataclass(frozen=True)
class Line:
    """One measured number.

    Attributes:
        case: what was measured, its parts separated by commas.
        quantity: what the number is: ours, baseline, ratio, cost, ...
        value: usually a median; NaN where it could not be measured.
        unit: of the value.
        low, high: lower and upper quartile, or the value itself where nothing varies.
        target: what was asked for, ``"<= 0.9"`` or ``">= 5"``; empty where nothing was.
        note: why there is no value.
    """

    case: str
    quantity: str
    value: float
    unit: str
    low: float
    high: float
    target: str = ""
    note: str = ""

    @property
    def met(self) -> str:
        """``yes``, ``no``, ``not measured``, or empty without a target."""
        if not self.target:
            return ""
        if math.isnan(self.value):
            return "not measured"
        symbol, bound = self.target.split()
        within = self.value <= float(bound) if symbol == "<=" else self.value >= float(bound)
        return "yes" if within else "no"


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    least: int = 5,
    warm_up: bool = True,
    turn: float = 0,
) -> dict[str, Seconds]:
    """Time functions in rounds: each has one turn a round, in an order that rotates.

    What slows the machine for a while then slows all of them. What a function returns is dropped before the
    clock stops, for all alike, and the garbage collector waits.

    Args:
        functions: by name.
        seconds: no new round after so many seconds; 0 for a single round.
        least: number of rounds at least.
        warm_up: call each once before the first round.
        turn: seconds that a turn should last: what is done sooner is called so many times that it does.
            With 0 a turn is one call, which finds in the caches what the others left there.

    Returns:
        Seconds a call of each round (rounds,), by name.
    """
    names, least = list(functions), least if seconds else 1
    times: dict[str, list[float]] = {name: [] for name in names}
    calls = dict.fromkeys(names, 1)
    for name in names if warm_up else ():
        functions[name]()
        if turn:
            start = perf_counter()
            functions[name]()
            calls[name] = math.ceil(turn / (perf_counter() - start))
    gc.collect()
    gc.disable()
    try:
        begin, rounds = perf_counter(), 0
        while rounds < least or perf_counter() - begin < seconds:
            shift = rounds % len(names)
            for name in names[shift:] + names[:shift]:
                start = perf_counter()
                for _ in range(calls[name]):
                    functions[name]()
                times[name].append((perf_counter() - start) / calls[name])
            rounds += 1
    finally:
        gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def summary(case: str, quantity: str, values: Seconds, unit: str, target: str = "") -> Line:
    """Median and quartiles of values (rounds,)."""
    low, middle, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return Line(case, quantity, middle, unit, low, high, target)


def exact(case: str, quantity: str, value: float, unit: str, target: str = "") -> Line:
    """A number without a spread."""
    return Line(case, quantity, value, unit, value, value, target)


def compare(
    case: str, ours: Seconds, baseline: Seconds, target: str = "", *, images: int | None = None
) -> list[Line]:
    """Ours, the baseline, and their ratio round by round.

    Args:
        ours, baseline: seconds of each round (rounds,).
        target: of the ratio. ``"<= x"`` makes it time over time, ours first; ``">= x"`` our speed over the
            baseline's.
        images: how many each round worked on; the two are then given in images/s, else in ms.
    """
    ratio = baseline / ours if target.startswith(">=") else ours / baseline
    unit = "ms" if images is None else "images/s"
    values = [1e3 * times if images is None else images / times for times in (ours, baseline)]
    return [
        summary(case, "ours", values[0], unit),
        summary(case, "baseline", values[1], unit),
        summary(case, "ratio", ratio, "x", target),
    ]


def missing(case: str, target: str, note: str) -> Line:
    """A ratio that could not be measured."""
    return Line(case, "ratio", math.nan, "x", math.nan, math.nan, target, note)


def machine(gpu: bool = False) -> str:
    """Processor, cores and system, and before them the GPU if that is what is measured."""
    if gpu and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {machine()}"
    name, file = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if file.exists():
        fields = (line.partition(":") for line in file.read_text().splitlines())
        name = next((value.strip() for key, _, value in fields if key.strip() == "model name"), name)
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}"


def write(path: Path, row: str, lines: Iterable[Line], order: Iterable[str]) -> None:
    """Put a row's lines into the CSV file in place of those that it had; the other rows stay.

    Args:
        order: all rows, in the order that the file has.
    """
    shared = {
        "machine": machine(gpu=row in ("gpu", "graphs")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    table = pd.DataFrame([{"row": row, "met": line.met} | asdict(line) | shared for line in lines])
    if path.exists():
        before = pd.read_csv(path, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
        before = before[before.row != row]
        table = pd.concat([before, table], ignore_index=True) if len(before) else table
    places = {name: place for place, name in enumerate(order)}
    table = table.sort_values("row", key=lambda names: names.map(places), kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, columns=COLUMNS, float_format="%.6g")

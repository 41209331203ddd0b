"""Measure all rows, or those that are named: ``python -m benchmarks [row ...]``."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

import rnlib
from benchmarks import measure
from benchmarks.measure import Line

# Each is a module of this package, imported when it is measured: no row needs what another one needs.
ROWS = (
    "norms",
    "memory",
    "training",
    "attacks",
    "evaluation",
    "landscape",
    "grid",
    "papermill",
    "scaling",
    "profiles",
)
# These need a GPU, are measured if they are named, and have a file of their own.
GPU_ROWS = ("gpu", "graphs")
RESULTS = Path(__file__).with_name("results.csv")
# glibc hands blocks of a few megabytes back to the system as soon as they are free, and a loop over one layer
# then spends most of its time on page faults (0.6 ms for 8 MB). Within a network they are less than 2%: there
# are always blocks to reuse. So the benchmarks keep freed memory, for both sides of every comparison.
KEEP_MEMORY = (
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.mmap_max=0"
)


def keep_freed_memory() -> None:
    """Start this program again under :data:`KEEP_MEMORY`, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc" and os.environ.get("GLIBC_TUNABLES") != KEEP_MEMORY:
        # The second keeps messages of torch.profiler out of the table.
        environment = os.environ | {"GLIBC_TUNABLES": KEEP_MEMORY, "KINETO_LOG_LEVEL": "99"}
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, environment)


def measured(row: str, smoke: bool) -> list[Line]:
    """All lines of a row.

    Raises:
        FileNotFoundError: its images or weights are not there; the message says what to do.
        ModuleNotFoundError: a package that it needs is not there.
    """
    return list(import_module(f"benchmarks.{row}").lines(smoke))


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def table(row: str, lines: list[Line]) -> Iterator[str]:
    """Yield the lines that have a target as text, and how many others there are."""
    cases = {(line.case, line.quantity): line for line in lines}
    wanted = [line for line in lines if line.target]
    for line in wanted:
        parts = {key: cases.get((line.case, key)) for key in ("ours", "baseline")}
        sides = [f"{number(part.value)} {part.unit}" if part else "" for part in parts.values()]
        found = f"{number(line.value)} {line.unit} ({number(line.low)} to {number(line.high)})"
        if line.quantity != "ratio":
            found += f" {line.quantity}"
        cells = [row, line.case, *sides, found, line.target, line.met, line.note]
        yield "| " + " | ".join(cells) + " |"
    shown = {line.case for line in wanted}
    if others := sum(line.case not in shown for line in lines):
        yield f"| {row} | {others} more numbers in the CSV file | | | | | | |"


def main() -> None:
    """The command line.

    Raises:
        SystemExit: an unknown row, or with status 1 where a row could not be measured; the others are.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Print and write the performance table."
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="row",
        help=f"by default {', '.join(ROWS)}; with a GPU {', '.join(GPU_ROWS)}",
    )
    parser.add_argument("--output", type=Path, help="CSV file; rows in it that are not measured now stay")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round: shows that it works")
    options = parser.parse_args()
    known = (*ROWS, *GPU_ROWS)
    if unknown := [row for row in options.rows if row not in known]:
        parser.error(f"unknown row {', '.join(unknown)}; known are {', '.join(known)}")
    keep_freed_memory()
    torch.set_num_threads(1)
    results = RESULTS.with_name("results-gpu.csv") if set(options.rows) & set(GPU_ROWS) else RESULTS
    output = options.output or (Path("_build/benchmarks-smoke.csv") if options.smoke else results)
    kept = os.environ.get("GLIBC_TUNABLES") == KEEP_MEMORY
    print(
        f"{measure.machine()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}, rnlib {rnlib.__version__}; one thread a process."
    )
    memory_is = "kept (GLIBC_TUNABLES)" if kept else "left to the C library"
    print(
        f"Freed memory is {memory_is}, on both sides of every ratio. "
        "Medians, ratios with quartiles; nothing else should be running.\n"
    )
    print("| row | case | ours | baseline | ratio | target | met | |\n|---|---|---|---|---|---|---|---|")
    failed = False
    for row in options.rows or ROWS:
        try:
            lines = measured(row, options.smoke)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            failed = True
            print(f"| {row} | not measured: {error} | | | | | | |", flush=True)
            continue
        print(*table(row, lines), sep="\n", flush=True)
        measure.write(output, row, lines, known)
    print(f"\nwritten to {output}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

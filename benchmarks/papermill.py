"""What a job of the grid costs beside its training: papermill, kernel start, imports, data, figures, results.

The worker notebook trains a tiny network for one epoch; its own measure of the epoch is taken off. What the
programs alone take to start is measured beside it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from benchmarks.measure import Line, summary
from study.runs import ROOT
from study.store import HISTORY

OPTIONS = {"architecture": "resnet8", "width": 2, "train_images": 128, "validation_images": 100, "epochs": 1}

STARTS = {
    "python": "pass",
    "torch": "import torch",
    "rnlib": "import study.work",
    "papermill": "import papermill.cli",
    "kernel": "import ipykernel.kernelapp",
}


def start(code: str) -> float:
    """Seconds that Python takes to start and run the code."""
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return perf_counter() - begin


def overhead() -> float:
    """Seconds of one execution of the training notebook less those of its epoch."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(sys.executable).with_name("papermill")
        paths = [ROOT / "notebooks" / "workers" / "train.ipynb", Path(folder) / "out.ipynb"]
        command = [str(part) for part in (program, "--no-progress-bar", *paths)]
        options = [str(part) for key, value in OPTIONS.items() for part in ("-p", key, value)]
        environment = os.environ | {"RNLIB_RESULTS": folder}
        start = perf_counter()
        subprocess.run([*command, *options], env=environment, check=True, capture_output=True)
        total = perf_counter() - start
        (history,) = Path(folder).rglob(HISTORY)
        return total - float(pd.read_csv(history).seconds.sum())


def lines(smoke: bool) -> Iterator[Line]:
    """Yield the overhead of a job."""
    overheads = np.array([overhead() for _ in range(1 if smoke else 3)])
    yield summary("overhead of a training job", "seconds", overheads, "s", "<= 6")
    for name, code in STARTS.items():
        times = np.array([start(code) for _ in range(1 if smoke else 3)])
        yield summary(f"start of {name}", "seconds", times, "s")

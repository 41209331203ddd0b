"""Training the same number of images as one process of two threads, and as two processes of one thread.

Every process trains a ResNet-20 of its own when told to, so that neither start nor imports are counted. One
process of one thread, with the other core idle, is measured beside them: it tells how well threads and
processes scale.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.measure import Line, compare, interleaved, summary
from benchmarks.subjects import BATCH
from benchmarks.training import bare_steps, batch
from rnlib.models import resnet

STEPS = 8  # of one of the two processes; the one alone makes twice as many


def start(threads: int, steps: int, smoke: bool) -> "subprocess.Popen[str]":
    """A process that is ready to train so many steps at every line that it is sent."""
    arguments = [str(threads), str(steps), "smoke" if smoke else "full"]
    command = [sys.executable, "-m", "benchmarks.grid", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _answer(process)
    return process


def _answer(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"a training process ended with status {process.wait()}")


def train_together(processes: Sequence["subprocess.Popen[str]"]) -> None:
    """Send every process to work and wait for all."""
    for process in processes:
        print("go", file=process.stdin, flush=True)
    for process in processes:
        _answer(process)


def lines(smoke: bool) -> Iterator[Line]:
    """Yield images per second of both ways, and the ratio."""
    steps = 1 if smoke else STEPS
    one: list[subprocess.Popen[str]] = []
    two: list[subprocess.Popen[str]] = []
    try:
        one.append(start(2, 2 * steps, smoke))
        two.extend(start(1, steps, smoke) for _ in range(2))
        times = interleaved(
            {
                "ours": lambda: train_together(two),
                "baseline": lambda: train_together(one),
                "single": lambda: train_together(two[:1]),
            },
            seconds=0 if smoke else 25,
        )
    finally:
        for process in one + two:
            process.communicate()  # closes its input, at which it ends
    images = 2 * steps * (4 if smoke else BATCH)
    case = "-j2 of 1 thread / -j1 of 2 threads"
    yield from compare(case, times["ours"], times["baseline"], ">= 1.1", images=images)
    yield summary("-j1 of 1 thread", "speed", images / 2 / times["single"], "images/s")


def work(threads: int, steps: int, smoke: bool) -> None:
    """What a process does."""
    torch.set_num_threads(threads)
    model = resnet(8, width=4) if smoke else resnet(20)
    x, y = batch(4 if smoke else BATCH)
    bare_steps(model, x, y)()
    train = bare_steps(model, x, y, steps=steps)
    print("ready", flush=True)
    for _ in sys.stdin:
        train()
        print("done", flush=True)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "smoke")

"""Memory is flat over many images and attacks; where it does not suffice the message says what to lower."""

import resource

import pytest
import torch
from harness import PROCESSES, PROFILE, refusal, smaller

import rnlib
from rnlib import PGD, Dataset, measure, resnet
from study import work
from study.runs import make_run

MODEL = {"in_channels": 1, "width": 4}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(function):
    """The numbers that a function sends from a process of its own."""
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=function, args=(there,))
    process.start()
    assert here.poll(600)
    found = here.recv()
    process.join()
    return found


def many_images(pipe):
    images = torch.randint(256, (10_000, 1, 7, 7), dtype=torch.uint8)
    dataset, found = Dataset("noise", images, torch.arange(10_000) % 10, ("a",) * 10), []
    for count in (1000, 10_000):
        measure(resnet(8, **MODEL), dataset.subset(torch.arange(count)), PGD(0.03, steps=2))
        found.append(peak())
    pipe.send(found)


def many_attacks(pipe):
    model, x, y, found = resnet(8, **MODEL).eval(), torch.rand(20, 1, 7, 7), torch.arange(20) % 10, []
    for _ in range(2):
        for _ in range(100):
            PGD(0.03, steps=2)(model, x, y)
        found.append(peak())
    pipe.send(found)


@pytest.mark.full
@pytest.mark.parametrize("function", [many_images, many_attacks])
def test_peak_memory_is_flat(function):
    first, second = in_a_process(function)
    assert second - first < 30, f"{first:.0f} MiB, then {second:.0f} MiB"


def limited(pipe):
    """Train with little memory more than there is."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20),) * 2)
    try:
        pipe.send(
            refusal(
                lambda: work.train_run(make_run(PROFILE, width=512)), "lower batch_size", kinds=MemoryError
            )
        )
    except AssertionError as error:
        pipe.send(str(error))


@pytest.mark.full
def test_memory_that_does_not_suffice(tmp_path, monkeypatch):
    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    assert "needs more memory than there is" in in_a_process(limited)


def test_memory_of_a_gpu_that_does_not_suffice(tmp_path, monkeypatch):
    def full(*what):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setenv("RNLIB_RESULTS", str(tmp_path))
    smaller(monkeypatch)
    run = make_run(PROFILE)
    with monkeypatch.context() as patch:
        patch.setattr("rnlib.train._schedule", full)
        refusal(lambda: work.train_run(run), run.name, "lower batch_size", kinds=MemoryError)
    assert not [*run.directory.glob(".*")]
    work.train_run(run)
    with monkeypatch.context() as patch:
        patch.setitem(work.MEASUREMENTS, "evaluations", lambda subject: iter([({"attack": "clean"}, full)]))
        refusal(lambda: work.measure_run(run, "evaluations"), run.name, "lower batch_size", kinds=MemoryError)
    assert len(work.measure_run(run, "evaluations")) == 8


def test_a_state_is_given_back_when_memory_does_not_suffice():
    model, x, y = resnet(8, **MODEL), torch.rand(4, 1, 7, 7), torch.arange(4)
    before = {key: one.clone() for key, one in model.state_dict().items()}

    class Full(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = model, 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.inner(x)

    full = Full().train()
    with pytest.raises(torch.OutOfMemoryError):
        PGD(0.03, steps=5)(full, x, y)
    assert full.training
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert rnlib.statistics_modes(model) == ("tracked", "batch")

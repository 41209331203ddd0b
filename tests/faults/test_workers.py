"""Commands that people type, killed: papermill and snakemake, with the kernels and jobs that they started."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from harness import PROFILE, ROOT, SEED, SIGNALS, content, small_disk

from study import store
from study.runs import make_run, other_seed

RUN = make_run(PROFILE)
PROGRAMS = {
    "papermill": ["papermill", "notebooks/workers/train.ipynb", "{out}/out.ipynb", "-p", "profile", PROFILE],
    "snakemake": [
        "snakemake",
        "-j2",
        "--config",
        f"profile={PROFILE}",
        "--",
        f"{{out}}/tiny/{RUN.name}/batch_size.csv",
        f"{{out}}/tiny/{other_seed(RUN).name}/{store.WEIGHTS}",  # trained beside the other
    ],
}


def start(name, out, cwd=ROOT, **more):
    words = [word.format(out=out) for word in PROGRAMS[name]]
    words[0] = shutil.which(words[0], path=os.path.dirname(sys.executable))
    env = os.environ | {"RNLIB_RESULTS": str(out), "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"} | more
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        words, cwd=cwd, env=env, preexec_fn=interruptible, start_new_session=True, **silent
    )


def interruptible():
    """A shell starts what is in its background deaf to Ctrl-C, and so all that this starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ours(out):
    """The processes that work on a folder of results."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RNLIB_RESULTS") == str(out):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """What each command makes, undisturbed."""
    folders = {name: tmp_path_factory.mktemp(name) for name in PROGRAMS}
    assert [start(name, out).wait(900) for name, out in folders.items()] == [0] * len(folders)
    return folders


@pytest.mark.full
@pytest.mark.parametrize("time_", range(3))
@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_killed_command_goes_on_with_the_same_command(whole, tmp_path, name, how, time_):
    chance = random.Random(f"{SEED} {name} {how} {time_}")
    process = start(name, tmp_path)
    deadline = time.monotonic() + 600
    while not (tmp_path / "tiny" / RUN.name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # until a training has begun
    time.sleep(chance.uniform(0, 0.3))
    assert process.poll() is None, "it was done already"
    for kind in SIGNALS[how]:
        if kind == signal.SIGINT:  # which a terminal sends to all that it started
            os.killpg(process.pid, kind)
        else:
            process.send_signal(kind)
        time.sleep(0.05)
    assert process.wait(600) != 0
    again = start(name, tmp_path)
    assert again.wait(900) == 0
    psutil.wait_procs(ours(tmp_path), timeout=30)
    assert not ours(tmp_path), "a process was left behind"
    made, right = (content(folder / "tiny") for folder in (tmp_path, whole[name]))
    assert made == right
    assert not [*tmp_path.rglob("*.lock")]
    assert store.WEIGHTS in {path.name for path in tmp_path.rglob("*")}


@pytest.mark.full
def test_the_kernel_of_a_killed_papermill_ends(tmp_path):
    process = start("papermill", tmp_path)
    while not (tmp_path / "tiny" / RUN.name).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(ours(tmp_path), timeout=30)
    assert not ours(tmp_path)


@pytest.mark.full
def test_a_worker_without_home_or_room_for_temporary_files(whole, tmp_path):
    """From a checkout behind a link, with results in a folder of a long name."""
    out, link = tmp_path / ("Ünï çödé " * 14), tmp_path / "link"
    out.mkdir()
    link.symlink_to(ROOT)
    with small_disk(tmp_path / "full", 16) as full:
        (full / "all").write_bytes(bytes(shutil.disk_usage(full).free))
        process = start("papermill", out, link, HOME="/proc/none", TMPDIR=str(full))
        assert process.wait(600) == 0
    assert content(out / "tiny") == content(whole["papermill"] / "tiny")

"""The README's command on a cluster: SLURM on this one machine, if its daemons are installed."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from rnlib.files import read_tensors

ROOT = Path(__file__).resolve().parents[2]
PROFILE = str(ROOT / "tests" / "study" / "tiny.yml")
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
TARGET = Path("fashion-mnist-sample_resnet8_batch_norm_natural_seed0", "batch_size.csv")
TWO_EPOCHS = Path(f"{TARGET.parent}_two_epochs", "weights.safetensors")
ALL = os.environ.get("FAULTS") == "all"
pytestmark = [
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(not ALL, reason="only in make faults"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (slurm-wlm, munge)"),
    pytest.mark.skipif(getattr(os, "getuid", lambda: 1)() != 0, reason="its daemons are started by root"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which commands find the cluster."""
    folder, script = tmp_path_factory.mktemp("slurm"), Path(__file__).with_name("slurm.sh")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)  # munged wants its key in a folder that others cannot write
    try:
        subprocess.run([script, "start", folder], check=True, timeout=300)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    finally:
        subprocess.run([script, "stop", folder], timeout=60)


def command(env, results, *more, runtime=30, target=TARGET):
    resources = ["--default-resources", f"runtime={runtime}", "mem_mb=0", "slurm_partition=batch"]
    words = ["snakemake", "-j2", *more, "--config", f"profile={PROFILE}", *(resources if more else [])]
    env = env | {"RNLIB_RESULTS": str(results)}
    return subprocess.Popen([*words, "--", results / "tiny" / target], cwd=ROOT, env=env)


SLURM = ("--executor", "slurm", "--slurm-no-account", "--slurm-status-command", "squeue")


def tables(results):
    return {
        str(path.relative_to(results)): pd.read_csv(path).drop(columns="seconds").to_csv()
        for path in sorted(results.rglob("*.csv"))
    }


@pytest.fixture(scope="module")
def local(cluster, tmp_path_factory):
    """The tables of the same command without a cluster."""
    results = tmp_path_factory.mktemp("local")
    assert command(cluster, results).wait(900) == 0
    return tables(results)


def test_the_tables_are_those_of_the_local_run(cluster, local, tmp_path):
    assert command(cluster, tmp_path, *SLURM).wait(900) == 0
    assert tables(tmp_path) == local


def test_a_cancelled_job_is_completed_by_the_same_command(cluster, local, tmp_path):
    process = command(cluster, tmp_path, *SLURM)
    deadline = time.monotonic() + 600
    while not [*tmp_path.rglob("config.json")] and time.monotonic() < deadline:
        time.sleep(0.1)
    subprocess.run(["scancel", "--full", "--user", str(os.getuid())], env=cluster, check=True)
    assert process.wait(900) != 0
    assert command(cluster, tmp_path, *SLURM).wait(900) == 0
    assert tables(tmp_path) == local


def test_a_job_that_meets_its_limit_goes_on_from_its_last_epoch(cluster, tmp_path):
    """It is stopped after an epoch, so that it meets the shortest limit that there is, of a minute."""
    local, results = tmp_path / "local", tmp_path / "results"
    assert command(cluster, local, target=TWO_EPOCHS).wait(900) == 0
    process, deadline = (
        command(cluster, results, *SLURM, runtime=1, target=TWO_EPOCHS),
        time.monotonic() + 600,
    )
    while not [*results.rglob("checkpoint.pt")] and time.monotonic() < deadline:
        time.sleep(0.01)
    kernels = [one for one in psutil.process_iter() if "ipykernel_launcher" in one.cmdline()]
    (kernel,) = [one for one in kernels if one.environ().get("RNLIB_RESULTS") == str(results)]
    kernel.suspend()
    assert process.wait(900) != 0
    with suppress(psutil.NoSuchProcess):  # it cannot see, stopped, that its parent has ended
        kernel.kill()
    (checkpoint,) = results.rglob("checkpoint.pt")
    first = read_tensors(checkpoint)["history"]
    assert len(first) == 1
    assert command(cluster, results, *SLURM, target=TWO_EPOCHS).wait(900) == 0
    assert tables(results) == tables(local)
    (history,) = results.rglob("history.csv")
    assert pd.read_csv(history).seconds[0] == first[0]["seconds"]  # it was not trained again

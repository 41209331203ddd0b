"""The harness itself: each of these guards is broken on purpose, and a test here must notice."""

import os
import subprocess
import sys

import pytest
from harness import GUARDS, ROOT

NOTICED_BY = {
    "checksums of results": ["test_bad_input.py", "-k", "weights.safetensors and bit"],
    "checksums of checkpoints": ["test_bad_input.py", "-k", "checkpoint.pt and bit"],
    "tensors only": ["test_strangers.py", "-k", "test_a_pickle and checkpoint.pt and torch"],
    "whole files": ["test_kills.py", "-k", "test_a_kill_right_at_a_renaming and train"],
    "one writer": ["test_side_by_side.py", "-k", "waits"],
    "no number that is none": ["test_bad_parameters.py", "-k", "lr-inf or eps-nan"],
    "small images": ["test_strangers.py", "-k", "test_a_bomb and zip"],
}


@pytest.mark.full
@pytest.mark.parametrize("guard", GUARDS)
def test_a_broken_guard_is_noticed(guard):
    file, *more = NOTICED_BY[guard]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        f"tests/faults/{file}",
        *more,
    ]
    env = {key: value for key, value in os.environ.items() if key != "FAULTS_COUNTS"}
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"FAULTS_BREAK": guard}, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert "AssertionError" in done.stdout or "Failed" in done.stdout, done.stdout[-2000:]

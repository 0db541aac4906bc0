"""No call with wrong arguments ends the process (`fuzz_calls.py` makes the calls)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = {"quick": 5_000, "full": 50_000, "soak": 1_000_000}[os.environ.get("BRASA_TEST_TIER", "quick")]


@pytest.mark.parametrize("seed", [1, 2])
def test_spoiled_arguments_are_refused(seed):
    command = [sys.executable, Path(__file__).parent / "fuzz_calls.py", str(seed), str(CALLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1] if lines else 'nothing'}\n{done.stderr[-3000:]}"
    assert lines[-1].startswith(f"{CALLS} calls")

"""The race check on the emulated tests of every family; the quick tier has `test_kernels_have_no_races` instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted(
    path.name
    for path in (ROOT / "tests" / "ops").glob("test_*.py")
    if "emulated" in path.read_text() or '"device"' in path.read_text() or "(xp" in path.read_text()
)


@pytest.mark.skipif(os.environ.get("BRASA_TEST_TIER", "quick") == "quick", reason="full tier")
@pytest.mark.parametrize("name", FAMILIES)
def test_emulated_tests_have_no_races(built_modules: None, name: str) -> None:
    environment = {**os.environ, "BRASA_EMULATOR_RACE": "1", "BRASA_TEST_TIER": "quick"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/ops/{name}", "-k", "emulated"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 5), done.stdout[-6000:] + done.stderr[-2000:]  # 5: none is emulated

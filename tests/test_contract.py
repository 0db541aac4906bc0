"""What holds for the whole build: symbols, names, imports."""

from __future__ import annotations

import subprocess
import sys

from brasa import _cpu

HOST_ONLY = {
    "empty", "empty_like", "empty_cache", "isa", "memory_stats", "num_threads", "set_num_threads", "supported_isas",
}  # fmt: skip
DEVICE_ONLY = {"alloc", "free", "set_option", "stats"}


def operators(module, others):
    return {name for name in dir(module) if not name.startswith("_")} - others


def test_both_devices_export_the_same_operators(emulated):
    host = operators(_cpu, HOST_ONLY)
    device = operators(emulated.kernels, DEVICE_ONLY)
    assert host == device
    for name in host:
        assert getattr(_cpu, name).__doc__ == getattr(emulated.kernels, name).__doc__, name


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_silent():
    heavy = ("safetensors", "tqdm", "matplotlib", "argparse", "PIL", "cupy", "torch", "importlib.metadata")
    code = f"import numpy, sys; before = set(sys.modules); import brasa; print([m for m in {heavy} if m in sys.modules and m not in before])"
    assert fresh(code).strip() == "[]"


def test_import_changes_no_process_state():
    code = """
import locale, signal, numpy as np
before = (locale.setlocale(locale.LC_ALL), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)])
import brasa
from brasa import ops
ops.relu(np.ones(100000, np.float32))
assert before == (locale.setlocale(locale.LC_ALL), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)])
assert np.finfo(np.float32).smallest_subnormal > 0
assert np.float32(1e-40) * np.float32(1) > 0
"""
    fresh(code)

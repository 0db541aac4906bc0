"""``brasa info``: the machine, and what this build can do on it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

import brasa
from brasa import _cpu

from .parser import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """There are no options."""


def run(options: argparse.Namespace) -> None:
    """Print a line per fact."""
    facts = {
        "brasa": f"{brasa.__version__} in {Path(brasa.__file__).parent}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "instruction sets": _instruction_sets(),
        "threads": f"{_cpu.num_threads()} of {os.cpu_count()} logical CPUs",
        "cuda kernels": _cuda_build(),
        "gpu": _gpus(),
        "extras": _extras(),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _instruction_sets() -> str:
    used = _cpu.isa()
    others = [name for name in _cpu.supported_isas() if name != used]
    return f"{used} in use; also {', '.join(others)}" if others else f"{used} in use"


def _has(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _cuda_build() -> str:
    return "built in" if _has("brasa._cuda") else "not in this build"


def _gpus() -> str:
    if not _has("cupy"):
        return "unknown: cupy is not installed"
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
        names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"none ({error})"
    return ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names)) or "none"


def _extras() -> str:
    modules = {"plot": "matplotlib", "image": "PIL", "bf16": "ml_dtypes", "cuda": "cupy"}
    found = [extra for extra, module in modules.items() if _has(module)]
    missing = [extra for extra in modules if extra not in found]
    return f"{', '.join(found) or 'none'}" + (f"; missing: {', '.join(missing)}" if missing else "")

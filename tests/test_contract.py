"""What holds for the whole build: symbols of the kernel objects, names of the modules, importing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import brasa
from brasa import _cpu

ROOT = Path(__file__).resolve().parent.parent
HOST_ONLY = {
    "empty",
    "empty_cache",
    "empty_like",
    "isa",
    "memory_stats",
    "num_threads",
    "set_num_threads",
    "supported_isas",
}
DEVICE_ONLY = {"alloc", "cast", "free", "set_option", "stats"}
HEAVY = ["PIL", "argparse", "cupy", "importlib.metadata", "matplotlib", "safetensors", "torch", "tqdm"]


def operators(module, others):
    return {name for name in dir(module) if not name.startswith("_")} - others


def test_both_devices_export_the_same_operators(device):
    host = operators(_cpu, HOST_ONLY)
    assert host == operators(device.kernels, DEVICE_ONLY)
    for name in host:
        assert getattr(_cpu, name).__doc__ == getattr(device.kernels, name).__doc__, name


def test_public_names_are_there():
    assert len(brasa.__all__) == len(set(brasa.__all__))
    for name in brasa.__all__:
        assert getattr(brasa, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        brasa.no_such_name  # noqa: B018


def fresh(code: str) -> str:
    """The output of a fresh interpreter in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_silent():
    code = f"""
import numpy, sys
before = set(sys.modules)
import brasa
print([name for name in {HEAVY} if name in sys.modules and name not in before])
"""
    assert fresh(code) == "[]\n"


def test_import_changes_no_process_state():
    code = """
import locale, multiprocessing, signal
import numpy as np

def state():
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV)]
    return locale.setlocale(locale.LC_ALL), handlers, multiprocessing.get_start_method(allow_none=True)

before = state()
import brasa
from brasa import ops
ops.relu(np.ones(100_000, np.float32))
assert before == state()
assert np.float32(1e-40) * np.float32(1) > 0, "denormals are flushed"
"""
    fresh(code)


# ---- symbols of the kernel objects: what an AVX-512 copy defines must never serve another CPU --------


def kernel_objects() -> list[Path]:
    folders = [Path(f) for f in os.environ.get("BRASA_KERNEL_OBJECTS", "").split(os.pathsep) if f]
    objects = [o for f in folders or [ROOT / "build"] for o in f.rglob("kernels_*.dir/**/*.o")]
    return sorted(objects)


def nm(objects: list[Path], *options: str) -> str:
    command = ["nm", "--print-file-name", *options, *map(str, objects)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_symbols(objects: list[Path]) -> None:
    line_form = re.compile(r"kernels_(?P<isa>\w+)\.dir.*?:[0-9a-f]* (?P<kind>\w) (?P<name>.*)")
    entries = [line_form.search(line) for line in nm(objects, "--defined-only", "--demangle").splitlines()]
    assert len(entries) > 10
    for entry in entries:
        isa, kind, name = entry.groups()
        local = kind.islower() and kind not in "uvw"
        assert local or f"brasa::cpu::{isa}::" in name, f"{kind} {name} may replace another CPU's copy"
    sections = subprocess.run(
        ["objdump", "--section-headers", *map(str, objects)], capture_output=True, text=True, check=True
    ).stdout
    assert ".init_array" not in sections
    assert ".ctors" not in sections


def test_kernel_objects_leak_no_symbol():
    objects = kernel_objects()
    if not objects:
        pytest.skip("no kernel objects: the library was not built in this checkout's build/ folder")
    check_symbols(objects)


def test_matrix_products_are_fused_multiply_adds():
    """The build forbids contraction: a product written ``a * b + c`` would round twice and cost double."""
    objects = [o for o in kernel_objects() if o.name.startswith("matmul") and "avx" in str(o)]
    if not objects:
        pytest.skip("no kernel objects: the library was not built in this checkout's build/ folder")
    code = subprocess.run(["objdump", "-d", *map(str, objects)], capture_output=True, text=True, check=True)
    assert code.stdout.count("vfmadd") > 400 * len(objects)
    assert code.stdout.count("vmulps") + code.stdout.count("vmulpd") == 0


@pytest.mark.skipif(os.environ.get("BRASA_TEST_TIER", "quick") == "quick", reason="full tier")
def test_debug_kernel_objects_leak_no_symbol(tmp_path):
    kernels = [f for f in ROOT.glob("csrc/*/*.cpp") if f.parent.name not in ("core", "bind", "emulator")]
    objects = []
    for source in (k for k in kernels if not k.stem.endswith("_bind")):
        target = tmp_path / "kernels_avx2.dir" / f"{source.stem}.o"
        target.parent.mkdir(exist_ok=True)
        options = ["-std=c++20", "-O0", "-march=x86-64-v3", "-DBRASA_ISA=avx2", "-fno-exceptions", "-w"]
        subprocess.run(["g++", *options, f"-I{ROOT}/csrc", "-c", source, "-o", target], check=True)
        objects.append(target)
    check_symbols(objects)

"""What brasa costs before it computes: import time, installed size, and the peak memory of training steps.

Every figure comes from an interpreter of its own. Peak memory is the high-water mark of the resident set that the
kernel keeps for the process (VmHWM; `ru_maxrss` would begin with the parent's), reset after the imports. "Growth" is
what the step adds to the imports: data, parameters, activations, gradients, Adam's moments. "Total" adds what the
library alone takes when imported.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.families import STEPS, TEXT_STEPS

_MODULES = ("numpy", "brasa", "brasa.nn", "torch", "jax")
_TIMED_IMPORT = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"
_MEBI = 1 << 20
_CLEAR_PEAK = "5"  # what resets VmHWM, by proc(5)


def installed(module: str) -> bool:
    """Whether the package of a module, or of a library and its variant, can be imported."""
    return importlib.util.find_spec(re.split("[./]", module)[0]) is not None


def _fresh(*arguments: str) -> str:
    """The last line that a new interpreter prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    return done.stdout.strip().splitlines()[-1]


def import_seconds(rounds: int = 5) -> dict[str, float]:
    """The median time of each import, the interpreters taking turns; the first turn fills the page cache."""
    modules = [module for module in _MODULES if installed(module)]
    times: dict[str, list[float]] = {module: [] for module in modules}
    for turn in range(rounds + 1):
        for module in modules:
            taken = float(_fresh("-c", _TIMED_IMPORT.format(module)))
            if turn:
                times[module].append(taken)
    return {module: statistics.median(values) for module, values in times.items()}


def _files(package: str) -> list[Path]:
    folder = Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def installed_bytes() -> dict[str, float]:
    """The size of the installed packages without what they depend on, and of brasa packed as a wheel is."""
    sizes = {"brasa": _files("brasa"), "torch": [], "jax": []}
    for name, packages in (("torch", ("torch",)), ("jax", ("jax", "jaxlib"))):
        if all(map(installed, packages)):
            sizes[name] = [path for package in packages for path in _files(package)]
    result = {name: float(sum(p.stat().st_size for p in files)) for name, files in sizes.items() if files}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sizes["brasa"]:
            archive.write(path)
    return {"brasa, packed": float(len(packed.getvalue())), **result}


def _status(field: str) -> float:
    """A field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _child(library: str, name: str, batch: int) -> dict[str, float]:
    """Runs in an interpreter of its own: two training steps."""
    peer, _, layout = library.partition("/")
    importlib.import_module(peer)
    alone = _status("VmRSS")
    step = _torch_maker(name, batch, layout) if peer == "torch" else _brasa_maker(name, batch)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    run = step()
    for _ in range(2):
        run()
    growth = _status("VmHWM") - before
    return {"growth": growth, "total": alone + growth}


def _brasa_maker(name: str, batch: int) -> Callable[[], Any]:
    from brasa._bench import cases

    case = cases.training_step(name, batch)
    return lambda: case.make()["brasa"]


def _torch_maker(name: str, batch: int, layout: str) -> Callable[[], Any]:
    import torch

    from bench import in_torch
    from brasa import _cpu
    from brasa._bench.cases.step import random_batch

    torch.set_num_threads(_cpu.num_threads())
    memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    return lambda: in_torch.step(name, *random_batch(name, batch), None, memory_format)


def peak_memory(
    name: str, batch: int, libraries: Sequence[str] = ("brasa", "torch/contiguous", "torch/channels-last")
) -> dict[str, dict[str, float]]:
    """Growth and total in bytes of a training step: brasa's, and PyTorch's in the format that needs less."""
    found: dict[str, dict[str, float]] = {}
    for library in filter(installed, libraries):
        measured = json.loads(_fresh("-m", "bench.footprint", library, name, str(batch)))
        peer = library.partition("/")[0]
        if peer not in found or measured["total"] < found[peer]["total"]:
            found[peer] = measured
    return found


def measure(progress: Callable[[str], None]) -> dict[str, Any]:
    """Everything; `progress` gets a line for each part."""
    imports, sizes = import_seconds(), installed_bytes()
    progress("import: " + ", ".join(f"{name} {1e3 * t:.0f} ms" for name, t in imports.items()))
    progress("size: " + ", ".join(f"{name} {size / _MEBI:.1f} MiB" for name, size in sizes.items()))
    memory = {}
    for name, batch in (*STEPS, *TEXT_STEPS):
        found = memory[f"{name}, batch {batch}"] = peak_memory(name, batch)
        parts = (
            f"{who} +{m['growth'] / _MEBI:.0f} = {m['total'] / _MEBI:.0f} MiB" for who, m in found.items()
        )
        progress(f"peak memory, {name} training step, batch {batch}: {', '.join(parts)}")
    return {"import_seconds": imports, "installed_bytes": sizes, "peak_memory_bytes": memory}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2], int(sys.argv[3]))))

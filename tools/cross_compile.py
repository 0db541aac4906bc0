"""Compile the sources with Clang for machines this one is not: `python tools/cross_compile.py [TARGET ...]`.

Needs the package ziglang, which brings Clang and the headers of every target. Nothing is linked or run:
the check is that kernels and core are free of one compiler's and one processor's peculiarities.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [
    "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas",
    "-Wno-missing-field-initializers", "-Wno-pass-failed", "-fno-exceptions", "-ffp-contract=off",
]  # fmt: skip
# target -> instruction sets and their options
TARGETS = {
    "aarch64-linux-gnu": {"scalar": ["-DBRASA_SCALAR"], "baseline": []},
    "aarch64-macos": {"baseline": []},
    "x86_64-windows-gnu": {"avx2": ["-march=x86_64_v3"]},
    "x86_64-linux-gnu": {"baseline": ["-march=x86_64_v2"], "avx512": ["-march=x86_64_v4"]},
}
CORE = ["isa", "memory", "os", "parallel"]  # compiled where the operating system is supported


def kernel_sources() -> list[Path]:
    others = ("core", "bind", "emulator")
    files = sorted(ROOT.glob("csrc/*/*.cpp"))
    return [f for f in files if f.parent.name not in others and not f.stem.endswith("_bind")]


def jobs(target: str) -> list[list[str]]:
    commands = [
        [*options, f"-DBRASA_ISA={isa}", str(source)]
        for isa, options in TARGETS[target].items()
        for source in kernel_sources()
    ]
    if target.endswith("linux-gnu"):
        commands += [["-fexceptions", f"{ROOT}/csrc/core/{name}.cpp"] for name in CORE]
    return commands


def compile_one(target: str, arguments: list[str], folder: str, number: int) -> str | None:
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *OPTIONS, f"-I{ROOT}/csrc"]
    command += [*arguments, "-c", "-o", f"{folder}/{number}.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"{target} {arguments[-1]}\n{done.stderr}"


def main(targets: list[str]) -> int:
    unknown = [t for t in targets if t not in TARGETS]
    if unknown:
        print(f"unknown target {unknown[0]}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        for target in targets or TARGETS:
            work = jobs(target)
            results = [pool.submit(compile_one, target, job, folder, i) for i, job in enumerate(work)]
            for error in filter(None, (r.result() for r in results)):
                print(error, file=sys.stderr)
                return 1
            print(f"{target}: {len(work)} files compile")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

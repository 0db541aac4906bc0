"""Every kernel file compiles for the GPUs the project builds for, and no kernel spills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
KERNEL_FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("csrc", "tests")
    for path in (REPOSITORY / folder).rglob("*.cu")
    if path.name not in ("conv.cu", "driver.cu")  # no kernel in them
)
TARGETS = ("80", "90a", "100", "120") if os.environ.get("BRASA_TEST_TIER") == "full" else ("80", "90a")
NVCC, CUOBJDUMP = shutil.which("nvcc"), shutil.which("cuobjdump")

# Instructions that a file's machine code must hold for a target: tensor cores, and copies past registers.
INSTRUCTIONS = {
    "csrc/attention/attention_mma.cu": dict.fromkeys(("80", "90a"), ("HMMA", "LDGSTS", "LDSM", "MUFU.EX2")),
    "csrc/attention/attention_mma_backward.cu": dict.fromkeys(("80", "90a"), ("HMMA", "LDGSTS", "LDSM")),
    "csrc/attention/attention_wgmma.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG", "MUFU.EX2")},
    "csrc/attention/attention_wgmma_backward.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG", "MUFU.EX2")},
    "csrc/conv/conv_mma.cu": {"80": ("HMMA", "LDGSTS", "LDSM"), "90a": ("HMMA", "LDGSTS", "LDSM")},
    "csrc/conv/conv_wgmma.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG")},
    "csrc/matmul/matmul_mma.cu": {"80": ("HMMA", "LDGSTS", "LDSM"), "90a": ("HMMA", "LDGSTS", "LDSM")},
    "csrc/matmul/matmul_wgmma.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG")},
}

_KERNEL = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def compile_kernels(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Compile `source` for every target and let ptxas tell about each kernel."""
    assert NVCC is not None
    command = [
        NVCC,
        "-std=c++20",
        "-O3",
        "-Xptxas",
        "-v",
        "--threads",
        "2",
        "-c",
        "-o",
        str(output),
    ]
    command += ["-DBRASA_FOR_CUDA=1", f"-I{REPOSITORY / 'csrc'}", str(source)]
    for target in TARGETS:
        command += ["-gencode", f"arch=compute_{target},code=sm_{target}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def spilling_kernels(report: str) -> tuple[int, list[str]]:
    """Count the kernels in ptxas's report, and name those that spill."""
    count, kernel, spilling = 0, "?", []
    for line in report.splitlines():
        if found := _KERNEL.search(line):
            count, kernel = count + 1, f"{found[1]} for {found[2]}"
        elif (found := _SPILLS.search(line)) and (int(found[1]) or int(found[2])):
            spilling.append(f"{kernel}: {found[0]}")
    return count, spilling


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", KERNEL_FILES)
def test_compiles_without_spills(name: str, tmp_path: Path) -> None:
    result = compile_kernels(REPOSITORY / name, tmp_path / "kernels.o")
    assert result.returncode == 0, result.stderr
    count, spilling = spilling_kernels(result.stdout + result.stderr)
    assert count > 0, "ptxas reported no kernel"
    assert not spilling, "\n".join(spilling)


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="nvcc or cuobjdump is not installed")
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_tensor_cores_are_used(name: str, tmp_path: Path) -> None:
    result = compile_kernels(REPOSITORY / name, tmp_path / "kernels.o")
    assert result.returncode == 0, result.stderr
    report = result.stdout + result.stderr
    assert "C75" not in report, report  # warpgroup products one at a time, or registers not handed over
    for target, wanted in INSTRUCTIONS[name].items():
        command = [CUOBJDUMP, "-sass", "-arch", f"sm_{target}", str(tmp_path / "kernels.o")]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for instruction in wanted:
            assert re.search(rf"\b{instruction}\b", code), f"no {instruction} for sm_{target}"


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_a_spill_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "spills.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spills(float* x) {\n"
        "  float v[96];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 96; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 96; ++i) x[i * 1024 + threadIdx.x] = v[95 - i] * v[(i * 7) % 96];\n"
        "}\n"
    )
    result = compile_kernels(source, tmp_path / "spills.o")
    assert result.returncode == 0, result.stderr
    count, spilling = spilling_kernels(result.stdout + result.stderr)
    assert count == len(TARGETS)
    assert len(spilling) == len(TARGETS)

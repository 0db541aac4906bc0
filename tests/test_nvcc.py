"""Every kernel file compiles for the GPUs the project builds for, and no kernel has local memory."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
KERNEL_FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("csrc", "tests")
    for path in (REPOSITORY / folder).rglob("*.cu")
    if path.name not in ("conv.cu", "copies.cu", "driver.cu")  # no kernel in them
)
FULL = os.environ.get("BRASA_TEST_TIER") == "full"
TARGETS = ("80", "90a", "100", "120") if FULL else ("80", "90a")


def search_path() -> str:
    """PATH, and behind it the packages of the group cuda-build."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) / "cu13" / "bin" for folder in (spec and spec.submodule_search_locations) or ()]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])


def cuda_program(name: str) -> str | None:
    """A program of CUDA's toolkit, from either."""
    return shutil.which(name, path=search_path())


NVCC, CUOBJDUMP = cuda_program("nvcc"), cuda_program("cuobjdump")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

# Of all files for all targets of a release: 14.6 MB when it was measured (docs/gpu.md). 3.3 of host code come to it,
# and 20 in all are the most it may be.
MOST_MACHINE_CODE = 15_500_000
MACHINE_CODE: dict[str, int] = {}

# Instructions that a file's machine code must hold for a target: tensor cores, copies past registers, 16 bytes at once.
PACKS = dict.fromkeys(("80", "90a"), ("LDG.E.128", "STG.E.128"))
WARP_PRODUCTS = ("HMMA", "LDGSTS", "LDSM")
INSTRUCTIONS = {
    "csrc/activation/activation.cu": PACKS,
    "csrc/attention/attention_mma.cu": dict.fromkeys(("80", "90a"), (*WARP_PRODUCTS, "MUFU.EX2")),
    "csrc/attention/attention_mma_backward.cu": dict.fromkeys(("80", "90a"), WARP_PRODUCTS),
    "csrc/attention/attention_wgmma.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG", "MUFU.EX2")},
    "csrc/attention/attention_wgmma_backward.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG", "MUFU.EX2")},
    "csrc/conv/conv_classes.cu": {"90a": ("HGMMA", "UTMALDG", "USETMAXREG")},
    "csrc/conv/conv_mma.cu": dict.fromkeys(("80", "90a"), WARP_PRODUCTS),
    "csrc/conv/conv_wgmma.cu": {"90a": ("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG")},
    "csrc/dropout/dropout.cu": PACKS,
    "csrc/elementary/elementary.cu": PACKS,
    "csrc/embedding/embedding.cu": PACKS,
    "csrc/loss/loss.cu": PACKS,
    "csrc/matmul/matmul_mma.cu": dict.fromkeys(("80", "90a"), WARP_PRODUCTS),
    "csrc/matmul/matmul_wgmma.cu": {"90a": ("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG")},
    "csrc/norm/batch_norm.cu": PACKS,
    "csrc/norm/layer_norm.cu": PACKS,
    "csrc/optim/optim.cu": PACKS,
    "csrc/pool/pool.cu": PACKS,
    "csrc/rnn/rnn.cu": dict.fromkeys(("80", "90a"), (*WARP_PRODUCTS, "LDS.128")),
    "csrc/rnn/rnn_backward.cu": dict.fromkeys(("80", "90a"), (*WARP_PRODUCTS, "LDS.128")),
    "csrc/softmax/softmax.cu": PACKS,
}

# What these store, they store in packs of 16 bytes or a column to a lane.
WHOLE_PACKS = [
    "csrc/conv/conv_gather.cu",
    "csrc/conv/conv_mma.cu",
    "csrc/conv/conv_tensor.cu",
    "csrc/conv/conv_wgmma.cu",
    "csrc/matmul/matmul_mma.cu",
    "csrc/matmul/matmul_tensor.cu",
    "csrc/matmul/matmul_wgmma.cu",
]

_KERNEL = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


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
    command += ["-DBRASA_FOR_CUDA=1", f"-I{REPOSITORY / 'csrc'}", "--compress-mode=size", str(source)]
    for target in TARGETS:
        code = (
            f"[compute_{target},sm_{target}]" if target == "120" else f"sm_{target}"
        )  # as cmake/cuda.cmake has it
        command += ["-gencode", f"arch=compute_{target},code={code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def kernels_with_local_memory(report: str) -> tuple[int, list[str]]:
    """Count the kernels in ptxas's report, and name those with a stack frame or spills."""
    count, kernel, found_in = 0, "?", []
    for line in report.splitlines():
        if found := _KERNEL.search(line):
            count, kernel = count + 1, f"{found[1]} for {found[2]}"
        elif (found := _LOCAL.search(line)) and any(map(int, found.groups())):
            found_in.append(f"{kernel}: {found[0]}")
    return count, found_in


def machine_code_bytes(objects: Path) -> int:
    """What GPUs get of an object file, compressed."""
    sections = subprocess.run(["size", "-A", str(objects)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^\.nv_fatbin\s+(\d+)", sections, re.MULTILINE)
    return int(found[1]) if found else 0


def machine_code(objects: Path, target: str) -> str:
    """The instructions of an object file for one target."""
    command = [str(CUOBJDUMP), "-sass", "-arch", f"sm_{target}", str(objects)]
    environment = {**os.environ, "PATH": search_path()}  # it starts nvdisasm
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Path]]:
    """A function of a file's name: what the compiler said, and the object file. Compiles each file once."""
    folder = tmp_path_factory.mktemp("kernels")

    @functools.cache
    def run(name: str) -> tuple[str, Path]:
        objects = folder / f"{Path(name).stem}.o"
        result = compile_kernels(REPOSITORY / name, objects)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr, objects

    return run


@needs_nvcc
@pytest.mark.parametrize("name", KERNEL_FILES)
def test_compiles_without_local_memory(name: str, compiled: Callable[[str], tuple[str, Path]]) -> None:
    report, objects = compiled(name)
    count, local = kernels_with_local_memory(report)
    assert count > 0, "ptxas reported no kernel"
    if name.startswith("tests/"):  # planted mistakes: a stack that overflows, products without a fence
        return
    assert not local, "\n".join(local)
    assert "C75" not in report, report  # warpgroup products one at a time, or registers not handed over
    MACHINE_CODE[name] = machine_code_bytes(objects)


@needs_nvcc
@pytest.mark.skipif(not FULL, reason="targets of a release: the full tier")
def test_machine_code_stays_small() -> None:
    files = [name for name in KERNEL_FILES if name.startswith("csrc/")]
    if not MACHINE_CODE.keys() >= set(files):
        pytest.skip("not every file was compiled in this run")
    assert sum(MACHINE_CODE[name] for name in files) <= MOST_MACHINE_CODE


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="nvcc or cuobjdump is not installed")
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions(name: str, compiled: Callable[[str], tuple[str, Path]]) -> None:
    _, objects = compiled(name)
    for target, wanted in INSTRUCTIONS[name].items():
        code = machine_code(objects, target)
        for instruction in wanted:
            assert re.search(rf"\b{re.escape(instruction)}\b", code), f"no {instruction} for sm_{target}"


# For sm_80 without a descriptor.
_WORD_STORE = re.compile(r"\bSTG\.E (?:desc\[\w+\])?\[(R\d+)(?:\.64)?(?:\+0x([0-9a-f]+))?\]")


def packs_taken_apart(code: str) -> int:
    """How often machine code stores 16 neighbouring bytes word by word."""
    words = [(found[1], int(found[2] or "0", 16)) for found in _WORD_STORE.finditer(code)]
    runs = zip(words, words[1:], words[2:], words[3:], strict=False)
    return sum(all(word == (run[0][0], run[0][1] + 4 * i) for i, word in enumerate(run)) for run in runs)


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="nvcc or cuobjdump is not installed")
@pytest.mark.parametrize("name", WHOLE_PACKS)
@pytest.mark.parametrize("target", ["80", "90a"])
def test_packs_are_stored_whole(name: str, target: str, compiled: Callable[[str], tuple[str, Path]]) -> None:
    assert packs_taken_apart(machine_code(compiled(name)[1], target)) == 0


@pytest.mark.parametrize("place", ["[R24.64{}]", "desc[UR8][R24.64{}]"], ids=["80", "90a"])
def test_a_pack_taken_apart_is_seen(place: str) -> None:
    code = "".join(
        f"STG.E {place.format(at)}, R7 ; IADD3 R1, R1, R2, RZ ; " for at in ("", "+0x4", "+0x8", "+0xc")
    )
    assert packs_taken_apart(code) == 1
    assert packs_taken_apart(code.replace("0xc", "0x10")) == 0


@needs_nvcc
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
    count, spilling = kernels_with_local_memory(result.stdout + result.stderr)
    assert count == len(TARGETS)
    assert len(spilling) == len(TARGETS)

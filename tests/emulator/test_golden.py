"""The emulator against what GPUs gave for the same inputs, as far as that was recorded."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from emulator import golden
from emulator.selftest import run_wrapper

CASES = {case.name: case for case in golden.cases()}
RECORDED = [(path, name) for path in sorted(golden.FOLDER.glob("*.npz")) for name in golden.load(path)[1]]


@pytest.mark.skipif(not RECORDED, reason="no GPU's outputs are stored: tools/gpu_check.py golden")
@pytest.mark.parametrize(("path", "name"), RECORDED, ids=[f"{path.stem}-{name}" for path, name in RECORDED])
def test_the_emulator_does_what_a_gpu_did(plain: ModuleType, path: Path, name: str) -> None:
    assert name in CASES, "recorded, but no case any more: record anew"
    difference = golden.compare(plain, path, CASES[name])
    assert not difference, difference


@pytest.fixture(scope="module")
def own(built_modules: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the emulator gives, as if it were a GPU."""
    import _emu_selftest

    path = tmp_path_factory.mktemp("golden") / "90.npz"
    assert golden.record(_emu_selftest, path, golden.HOPPER, device="emulator") == len(CASES)
    return path


def test_the_emulator_agrees_with_itself(plain: ModuleType, own: Path) -> None:
    for order, timing in (("reverse", "eager"), ("random", "random")):
        plain.set_option("order", order)
        plain.set_option("async", timing)
        for case in CASES.values():
            assert golden.compare(plain, own, case) == "", case.name


def test_a_file_is_small_and_free_of_pickles(own: Path) -> None:
    assert own.stat().st_size < 420_000
    about, outputs = golden.load(own)
    assert about["capability"] == golden.HOPPER
    assert all(array.dtype != object for array in outputs.values())


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_bit_is_found(plain: ModuleType, own: Path, tmp_path: Path, name: str) -> None:
    """The last bit, where bits are compared; else one far above the bound."""
    about, outputs = golden.load(own)
    spoiled, case = outputs[name], CASES[name]
    finite = np.flatnonzero(np.isfinite(spoiled))
    place = int(finite[len(finite) // 2])
    if case.rounding:
        spoiled.reshape(-1)[place] = 1.01 * spoiled.reshape(-1)[place] + 1
    else:
        spoiled.reshape(-1).view(f"u{spoiled.itemsize}")[place] ^= 1
    path = tmp_path / "spoiled.npz"
    golden.save(path, about, outputs)
    assert "1 of" in golden.compare(plain, path, case)


def test_other_inputs_are_found(plain: ModuleType, own: Path, tmp_path: Path) -> None:
    about, outputs = golden.load(own)
    about["inputs"]["shuffles"] = "another"
    golden.save(tmp_path / "other.npz", about, outputs)
    assert "other inputs" in golden.compare(plain, tmp_path / "other.npz", CASES["shuffles"])


def test_older_gpus_run_what_they_have() -> None:
    assert {case.capability for case in golden.cases(80)} == {golden.AMPERE}
    assert len(golden.cases(120)) == len(golden.cases(80)) < len(CASES)


def test_conversions_are_those_of_numpy(plain: ModuleType) -> None:
    x = CASES["narrow f16"].inputs
    with np.errstate(over="ignore"):
        expected = x.view(np.float32).astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(run_wrapper(plain, "narrow f16", x, x.size), expected)
    pairs = run_wrapper(plain, "narrow pair f16", x, x.size)
    np.testing.assert_array_equal(pairs, expected | (expected.astype(np.uint32) ^ 0x8000) << 16)
    half = CASES["widen f16"].inputs
    np.testing.assert_array_equal(
        run_wrapper(plain, "widen f16", half, half.size).view(np.float32),
        half.astype(np.uint16).view(np.float16).astype(np.float32),
    )

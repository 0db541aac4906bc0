"""The access lint: what it counts for a kernel that is known, and every kernel against its budget."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from emulator.selftest import DeviceArray

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def access_lint():
    spec = importlib.util.spec_from_file_location("access_lint", ROOT / "tools" / "access_lint.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["access_lint"] = module
    spec.loader.exec_module(module)
    module.fill_cases()
    yield module
    del sys.modules["access_lint"]


# ---- a known kernel


def counted(race: ModuleType, stride: int, pad: int) -> dict[tuple[bool, bool], list[tuple[int, int, int]]]:
    """(requests, moved, ideal) by (shared, write)."""
    x = DeviceArray(race, np.arange(32 * stride, dtype=np.float32))
    y = DeviceArray(race, np.zeros(32, np.float32))
    race.set_option("lint", "on")
    race._access_lines()
    race.access_pattern(x.address, y.address, stride, pad)
    race.set_option("lint", "off")
    np.testing.assert_array_equal(y.get(), np.arange(32) * stride)
    found: dict = {}
    for _, _, shared, write, *counts in race._access_lines():
        found.setdefault((shared, write), []).append(tuple(counts))
    return {key: sorted(lines) for key, lines in found.items()}


@pytest.mark.parametrize("stride", [1, 2, 8, 9])
def test_sectors_of_a_strided_read(race: ModuleType, stride: int) -> None:
    found = counted(race, stride, 1)
    touched = {4 * stride * lane // 32 for lane in range(32)}
    assert found[False, False] == [(1, len(touched), 4)]
    assert found[False, True] == [(1, 4, 4)]


@pytest.mark.parametrize(("pad", "wavefronts"), [(0, 32), (1, 1), (2, 2), (4, 4)])
def test_wavefronts_of_a_column(race: ModuleType, pad: int, wavefronts: int) -> None:
    found = counted(race, 1, pad)
    # Eight lanes of 16 bytes are one wavefront.
    assert found[True, False] == sorted([(1, wavefronts, 1), (1, 1, 1)])
    assert found[True, True] == sorted([(1, wavefronts, 1), (1, 1, 1)])


def test_lines_are_taken_once_and_only_while_the_lint_is_on(race: ModuleType) -> None:
    counted(race, 1, 0)
    assert race._access_lines() == []


def test_the_lint_needs_an_instrumented_module(plain: ModuleType) -> None:
    with pytest.raises(ValueError, match="built with RACE"):
        plain.set_option("lint", "on")


# ---- the kernels


CASES = [
    "gelu", "softmax of 1000", "softmax of 10", "log softmax", "layer norm", "layer norm of long rows",
    "batch norm, contiguous", "max pool, contiguous", "max pool of 3x2, contiguous", "avg pool, contiguous",
    "avg pool of 3x2, contiguous", "pixel shuffle, contiguous", "batch norm, channels-last",
    "max pool, channels-last", "max pool of 3x2, channels-last", "avg pool, channels-last",
    "avg pool of 3x2, channels-last", "pixel shuffle, channels-last", "max pool of 32x32", "avg pool of 32x32",
    "max pool, indices", "matmul", "matmul by a weight", "matmul of 8 rows", "matmul of 16 bits",
    "matmul of 16 bits, Hopper", "matmul in tf32, Hopper", "matmul of 16 bits, odd", "conv 3x3", "conv 1x1",
    "conv, depthwise", "conv, groups of 2 channels", "conv of 16 bits", "conv in tf32", "conv of 16 bits, Hopper",
    "conv in tf32, Hopper", "conv of 3 channels", "attention",
    "attention of 16 bits", "attention of 16 bits, Hopper", "dropout", "cross entropy",
    "cross entropy, smoothed", "embedding", "adam", "elements and copies", "unscale", "lstm", "lstm of 16 bits",
    "lstm of 16 bits, streamed", "ctc loss",
]  # fmt: skip


def test_all_cases_are_held_to_a_budget(access_lint):
    assert list(access_lint.CASES) == CASES == list(access_lint.budgets())


def test_every_kernel_has_a_budget_or_a_reason(access_lint):
    names = access_lint.kernel_names()
    measured = {kernel.partition("<")[0] for case in access_lint.budgets().values() for kernel in case}
    assert len(names) > 80
    assert measured <= names
    assert names - measured == set(access_lint.WITHOUT_BUDGET)
    assert all(access_lint.WITHOUT_BUDGET.values())


@pytest.fixture(scope="module")
def measured(access_lint, built_modules):
    """What the kernels of all cases do, with what the race check says of them, in a process of its own: the arrays
    of this one have other kernels.
    """
    import os
    import pickle
    import subprocess

    code = (
        "import pickle, sys; sys.path.insert(0, 'tools'); import access_lint as a\n"
        "module = a.emulated(); races = {}; found = a.measure(module, races=races)\n"
        "lines = {k: [tuple(x) for x in v] for k, v in found.items()}\n"
        "sys.stdout.buffer.write(b'LINES' + pickle.dumps((lines, races)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr.decode()
    lines, races = pickle.loads(done.stdout.partition(b"LINES")[2])
    return {name: [access_lint.Line(*x) for x in rows] for name, rows in lines.items()}, races


@pytest.mark.parametrize("name", CASES)
def test_kernels_have_no_races(measured, name):
    """Every kernel of csrc at a small shape: the quick tier's race check."""
    assert name not in measured[1], measured[1][name]


@pytest.mark.parametrize("name", CASES)
def test_kernels_keep_their_budgets(access_lint, measured, name):
    """Fewer is fine; then, and for a kernel that is new: `python tools/access_lint.py --write`."""
    wrong = access_lint.over_budget(name, access_lint.ratios(measured[0][name]))
    assert not wrong, "\n".join(wrong)


def test_a_kernel_over_its_budget_or_without_one_is_told(access_lint):
    assert access_lint.over_budget("dropout", {"dropout_kernel<float>": (1.5, 0.0)}) == [
        "dropout: dropout_kernel<float> moves 1.50 of the ideal in device memory, budget 1.00"
    ]
    assert access_lint.over_budget("dropout", {"other": (1, 1)}) == ["dropout: other has no budget"]


def test_the_report_names_lines(access_lint):
    line = access_lint.Line("k<float>", "a/a.cu:7", True, False, 2, 8, 2)
    text = access_lint.report({"case": [line]}, True)
    assert "4.00  case: k<float>" in text
    assert "a/a.cu:7: read, shared memory: 2 requests, 8 for 2 wavefronts" in text

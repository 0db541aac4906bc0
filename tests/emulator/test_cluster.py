"""Loads for several blocks of a cluster, arrivals at another's barrier, products from registers."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest

from emulator.selftest import ORDERS, TIMINGS, DeviceArray, small_integers, to_bf16

NO_WAIT, ONE_BLOCK, ENDS_EARLY = 1, 2, 3


def run_multicast(emulator: ModuleType, x: np.ndarray, bug: int = 0) -> np.ndarray:
    source, sums = DeviceArray(emulator, x), DeviceArray(emulator, np.zeros((2, 3), np.float32))
    emulator.multicast(source.address, sums.address, bug)
    return sums.get()


@pytest.fixture
def numbers(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 100, (192, 64)).astype(np.uint16)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_both_blocks_get_every_box(
    emulator: ModuleType, numbers: np.ndarray, order: str, timing: str
) -> None:
    emulator.set_option("order", order)
    emulator.set_option("async", timing)
    sums = numbers.reshape(3, -1).sum(axis=1)
    np.testing.assert_array_equal(run_multicast(emulator, numbers), [sums, sums])


def test_a_box_loaded_over_too_early_is_found(plain: ModuleType, numbers: np.ndarray) -> None:
    sums, wrong = numbers.reshape(3, -1).sum(axis=1), []
    for order, timing in itertools.product(ORDERS, TIMINGS):
        plain.set_option("order", order)
        plain.set_option("async", timing)
        try:
            wrong.append(not np.array_equal(run_multicast(plain, numbers, NO_WAIT), [sums, sums]))
        except RuntimeError:  # more bytes or arrivals than the phase expects
            wrong.append(True)
    assert any(wrong)


@pytest.mark.parametrize("order", ORDERS)
def test_mistakes_of_a_cluster_are_reported(emulator: ModuleType, numbers: np.ndarray, order: str) -> None:
    emulator.set_option("order", order)
    with pytest.raises(RuntimeError, match=r"waits in barrier_wait at cluster\.cu:"):
        run_multicast(emulator, numbers, ONE_BLOCK)


def test_the_shared_memory_of_an_ended_block_is_gone(plain: ModuleType, numbers: np.ndarray) -> None:
    """Block 0 may end before the other has arrived at its barrier."""
    messages = []
    for order, timing in itertools.product(ORDERS, TIMINGS):
        plain.set_option("order", order)
        plain.set_option("async", timing)
        try:
            run_multicast(plain, numbers, ENDS_EARLY)
        except RuntimeError as error:
            messages.append(str(error))
    assert any("block 0 of the cluster has ended" in m for m in messages), messages


def run_product(emulator: ModuleType, kind: str, a: np.ndarray, b: np.ndarray, overwritten: bool = False):
    to = {"tf32": np.float32, "bf16": to_bf16, "f16": np.float16}[kind]
    left, right = DeviceArray(emulator, to(a)), DeviceArray(emulator, to(b))
    y = DeviceArray(emulator, np.zeros((64, len(b)), np.float32))
    emulator.register_product(kind, len(b), left.address, right.address, y.address, overwritten)
    return y.get()


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_products_from_registers(
    emulator: ModuleType, kind: str, n: int, order: str, timing: str, rng: np.random.Generator
) -> None:
    depth = 32 if kind == "tf32" else 64
    a, b = small_integers(rng, 64, depth), small_integers(rng, n, depth)
    emulator.set_option("order", order)
    emulator.set_option("async", timing)
    np.testing.assert_array_equal(run_product(emulator, kind, a, b), a @ b.T)


def test_registers_overwritten_too_early_give_a_wrong_product(
    plain: ModuleType, rng: np.random.Generator
) -> None:
    a, b = 1 + abs(small_integers(rng, 64, 64)), 1 + abs(small_integers(rng, 64, 64))
    plain.set_option("async", "lazy")
    assert not np.array_equal(run_product(plain, "bf16", a, b, overwritten=True), a @ b.T)

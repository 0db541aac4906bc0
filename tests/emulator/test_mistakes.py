"""Kernels with one planted bug each: the emulator finds it and names the place."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest

from emulator.selftest import (
    DIVERGENT_BARRIER,
    GIVEN_BACK_EARLY,
    MISSING_BARRIER,
    NO_BARRIER,
    NO_FENCE,
    NO_WAIT_FOR_PRODUCT,
    NO_WAIT_FOR_STAGE,
    NOT_INITIALISED,
    ORDERS,
    READ_PAST_END,
    STAGE_REUSED,
    TIMINGS,
    WEAK_WAIT,
    WRONG_BYTES,
    DeviceArray,
    normal,
    run_panel,
    run_ring_gemm,
    run_sgemm,
    run_softmax,
    run_tensor_gemm,
    small_integers,
    softmax_reference,
)

# ---- planted bugs, found without the race check


@pytest.mark.parametrize("order", ORDERS)
def test_missing_barrier_gives_nan_in_some_order(
    plain: ModuleType, order: str, rng: np.random.Generator
) -> None:
    plain.set_option("order", order)
    result = run_softmax(plain, normal(rng, 1, 300), MISSING_BARRIER)
    assert np.isnan(result).any()


def test_missing_second_barrier_gives_a_wrong_product(plain: ModuleType, rng: np.random.Generator) -> None:
    a, b = normal(rng, 64, 64), normal(rng, 64, 64)
    errors = []
    for order in ORDERS:
        plain.set_option("order", order)
        errors.append(np.abs(run_sgemm(plain, a, b, second_barrier=False) - a @ b).max())
    assert max(errors) > 1e-2


def test_divergent_barrier_is_reported(plain: ModuleType, rng: np.random.Generator) -> None:
    with pytest.raises(RuntimeError) as error:
        run_softmax(plain, normal(rng, 1, 300), DIVERGENT_BARRIER)
    assert_mentions(error, "divergent barrier: this thread is at selftest.cu:", "others of its block")


def test_access_past_a_buffer_is_reported(plain: ModuleType, rng: np.random.Generator) -> None:
    with pytest.raises(RuntimeError) as error:
        run_softmax(plain, normal(rng, 1, 300), READ_PAST_END)
    assert_mentions(
        error,
        "illegal memory access: 0 bytes past the end of a device buffer of 1200 bytes",
        "in block (0,0,0) thread (44,0,0)",
        "at selftest.cu:",
    )


MISTAKES = {
    "deadlock": ["deadlock: no thread can run", "waits in bar_sync at selftest.cu:", "28 more"],
    "divergent shuffle": ["divergent warp: this lane is in a shuffle at selftest.cu:"],
    "wrong mask": ["the mask does not name the calling lane", "thread (16,0,0)"],
    "misaligned copy": ["misaligned address: an access of 16 bytes at byte 4 of a device buffer"],
    "copy to global": ["cp_async: byte 0 of a device buffer of 256 bytes, not shared memory"],
    "half a warp's mma": ["mma: all 32 lanes must take part"],
    "misaligned": ["misaligned address: an access of 16 bytes at byte 4 of a device buffer of 256"],
    "division by zero": ["integer division by zero", "thread (0,0,0)", "at selftest.cu:"],
    "endless spin": ["no progress: threads do nothing but spin, this one at selftest.cu:"],
    "write far outside": ["illegal memory access: an address in no device buffer"],
    "stack overflow": ["stack overflow"],
    "block too large": ["invalid block size (1025,1,1)"],
    "grid empty": ["invalid grid size (0,1,1)"],
    "grid too high": ["invalid grid size (1,65536,1)"],
    "too much shared": ["233472 bytes of dynamic shared memory, at most 232448"],
    "too many resident": ["a cooperative launch of 133 blocks; at most 132"],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported(emulator: ModuleType, name: str, rng: np.random.Generator) -> None:
    y = DeviceArray(emulator, np.zeros(64, np.float32))
    emulator.set_option("race", "off")
    with pytest.raises(RuntimeError) as error:
        emulator.mistake(name, y.address)
    assert_mentions(error, *MISTAKES[name])
    # The next launch finds everything in order.
    x = normal(rng, 3, 200)
    np.testing.assert_allclose(run_softmax(emulator, x), softmax_reference(x), rtol=3e-6)


# ---- planted bugs, found by the race check


RACES = {
    "missing syncwarp": ["data race at byte ", "of shared memory", "no barrier between them"],
    "race between blocks": [
        "data race at byte ",
        "of a device buffer of 256",
        "nothing orders blocks",
    ],
    "shared past end": ["write of 4 bytes outside an array", "of shared memory", "thread (3,0,0)"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RACES)
def test_race_is_reported(race: ModuleType, name: str, order: str) -> None:
    y = DeviceArray(race, np.zeros(64, np.float32))
    race.set_option("order", order)
    with pytest.raises(RuntimeError) as error:
        race.mistake(name, y.address)
    assert_mentions(error, *RACES[name], "at selftest.cu:")


@pytest.mark.parametrize("order", ORDERS)
def test_race_check_finds_missing_barriers(race: ModuleType, order: str, rng: np.random.Generator) -> None:
    race.set_option("order", order)
    with pytest.raises(RuntimeError) as error:
        run_softmax(race, normal(rng, 1, 300), MISSING_BARRIER)
    assert_mentions(error, "data race at byte", "write at selftest.cu:", "read at selftest.cu:")
    with pytest.raises(RuntimeError) as error:
        run_sgemm(race, normal(rng, 65, 33), normal(rng, 33, 67), second_barrier=False)
    assert_mentions(error, "data race at byte", "of shared memory", "selftest.cu:")


def test_race_check_knows_the_exact_end_of_a_buffer(race: ModuleType, rng: np.random.Generator) -> None:
    # 301 floats end 12 bytes before the guard page: only the race check sees the access.
    with pytest.raises(RuntimeError) as error:
        run_softmax(race, normal(rng, 1, 301), READ_PAST_END)
    assert_mentions(error, "read of 4 bytes outside an array: 0 bytes past the end", "selftest.cu:")


def test_race_check_finds_host_code_that_touches_device_memory(race: ModuleType) -> None:
    y = DeviceArray(race, np.zeros(64, np.float32))
    with pytest.raises(RuntimeError) as error:
        race.mistake("host read", y.address)
    assert_mentions(
        error,
        "host code touches device memory: read of 4 bytes at byte 20 of a device buffer of 256",
        "at selftest.cu:",
    )
    lanes = DeviceArray(race, np.zeros((6, 32), np.int32))
    race.shuffles(lanes.address)  # said once


def test_same_words_in_two_launches_are_no_race(race: ModuleType) -> None:
    y = DeviceArray(race, np.zeros((6, 32), np.int32))
    for _ in range(2):
        race.shuffles(y.address)
    assert y.get().any()


def test_race_check_can_be_switched_off(race: ModuleType) -> None:
    y = DeviceArray(race, np.zeros(64, np.float32))
    race.set_option("race", "off")
    race.mistake("race between blocks", y.address)


@pytest.mark.parametrize("bug", [WEAK_WAIT, STAGE_REUSED])
def test_copy_bug_gives_a_wrong_product(plain: ModuleType, bug: int, rng: np.random.Generator) -> None:
    a, b = small_integers(rng, 64, 96), small_integers(rng, 96, 64)
    wrong = []
    for order, timing in itertools.product(ORDERS, TIMINGS):
        plain.set_option("order", order)
        plain.set_option("async", timing)
        wrong.append(not np.array_equal(run_tensor_gemm(plain, "bf16", a, b, bug), a @ b))
    assert any(wrong)


def test_race_check_finds_a_stage_reused_too_early(race: ModuleType, rng: np.random.Generator) -> None:
    a, b = small_integers(rng, 64, 96), small_integers(rng, 96, 64)
    with pytest.raises(RuntimeError) as error:
        run_tensor_gemm(race, "bf16", a, b, STAGE_REUSED)
    assert_mentions(error, "data race at byte", "of shared memory", "tensor_core.cu:")


@pytest.mark.parametrize("bug", [NO_WAIT_FOR_STAGE, GIVEN_BACK_EARLY, NO_WAIT_FOR_PRODUCT])
def test_bug_of_a_ring_gives_a_wrong_product(plain: ModuleType, bug: int, rng: np.random.Generator) -> None:
    a, b = small_integers(rng, 64, 320), small_integers(rng, 256, 320)
    wrong = []
    for order, timing in itertools.product(ORDERS, TIMINGS):
        plain.set_option("order", order)
        plain.set_option("async", timing)
        try:
            wrong.append(not np.array_equal(run_ring_gemm(plain, a, b, bug), a @ b.T))
        except RuntimeError:  # too many arrivals, or a phase that never ends
            wrong.append(True)
    assert any(wrong)


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (WRONG_BYTES, "waits in barrier_wait at hopper.cu:"),
        (NOT_INITIALISED, "a barrier that barrier_init() has not set up"),
    ],
)
def test_mistake_with_a_barrier_is_reported(
    emulator: ModuleType, bug: int, message: str, rng: np.random.Generator
) -> None:
    a, b = small_integers(rng, 64, 64), small_integers(rng, 128, 64)
    with pytest.raises(RuntimeError) as error:
        run_ring_gemm(emulator, a, b, bug=bug)
    assert_mentions(error, message)
    np.testing.assert_array_equal(run_ring_gemm(emulator, a, b), a @ b.T)


def test_registers_that_a_block_does_not_have_are_reported(emulator: ModuleType) -> None:
    emulator.share_registers(False)
    with pytest.raises(RuntimeError) as error:
        emulator.share_registers(True)
    assert_mentions(error, "threads wait for ever for 65536 registers", "begins with 64512")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["copy", "square"])
def test_a_write_without_a_fence_is_reported_where_the_engine_reads_it(
    race: ModuleType, kind: str, order: str, rng: np.random.Generator
) -> None:
    x = small_integers(rng, 64, 64)
    race.set_option("order", order)
    with pytest.raises(RuntimeError) as error:
        run_panel(race, kind, x, NO_FENCE)
    reader = {"copy": "tma_store", "square": "wgmma"}[kind]
    assert_mentions(error, f"{reader} reads byte", "without tma_store_fence() behind it", "hopper.cu:")


@pytest.mark.parametrize("order", ORDERS)
def test_a_store_before_the_barrier_is_a_race(race: ModuleType, order: str, rng: np.random.Generator) -> None:
    race.set_option("order", order)
    with pytest.raises(RuntimeError) as error:
        run_panel(race, "copy", small_integers(rng, 64, 64), NO_BARRIER)
    assert_mentions(error, "data race at byte", "of shared memory", "hopper.cu:")


def assert_mentions(error: pytest.ExceptionInfo[RuntimeError], *parts: str) -> None:
    message = str(error.value)
    for part in parts:
        assert part in message, f"{part!r} is not in:\n{message}"

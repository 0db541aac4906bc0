"""What orders memory, and what does not: each way right, and with one thing left out."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest

from emulator.selftest import ORDERS, TIMINGS, DeviceArray, small_integers, to_bf16

(
    NONE, NOT_SET_UP, NOT_FENCED, NO_WAIT_TO_READ, NO_WAIT_TO_WRITE, ARRIVES_EARLY, NO_BARRIER, ENDS_EARLY, NOBODY,
    UNALIGNED,
) = range(10)  # fmt: skip
SHAPES = {
    "hand over": (3, 32),
    "sum boxes": (3,),
    "square": (64, 64),
    "neighbours": (2, 32),
    "next block": (6, 32),
    "matrices": (384,),
}


def operands(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What a kernel reads, and what it has to write."""
    lane = np.arange(32.0)
    nothing = np.zeros(1, np.uint16)
    if name == "hand over":
        return nothing, 100 * np.arange(3.0)[:, None] + lane
    if name == "sum boxes":
        x = rng.integers(0, 100, (192, 64)).astype(np.uint16)
        return x, x.reshape(3, -1).sum(axis=1)
    if name == "square":
        a = small_integers(rng, 64, 64)
        return to_bf16(a), a @ a.T
    if name == "neighbours":
        return nothing, 100 * np.arange(1.0, -1, -1)[:, None] + lane
    if name == "next block":
        lines = 100 * np.arange(3.0)[:, None] + lane
        return nothing, np.concatenate([lines, np.roll(lines, -1, axis=0)[:, ::-1]])
    a, b = small_integers(rng, 16, 16), small_integers(rng, 16, 8)
    bits = np.concatenate([a.ravel(), b.ravel()]).astype(np.float16).view(np.uint16)
    return bits, np.concatenate([(a @ b).ravel(), a.ravel()])


def run(emulator: ModuleType, name: str, x: np.ndarray, bug: int = NONE) -> np.ndarray:
    source = DeviceArray(emulator, x)
    y = DeviceArray(emulator, np.full(SHAPES[name], np.nan, np.float32))
    emulator.ordering(name, source.address, y.address, bug)
    return y.get()


def message(emulator: ModuleType, name: str, x: np.ndarray, bug: int) -> str:
    with pytest.raises(RuntimeError) as error:
        run(emulator, name, x, bug)
    return str(error.value)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_ordered_is_no_race(
    emulator: ModuleType, name: str, order: str, timing: str, rng: np.random.Generator
) -> None:
    emulator.set_option("order", order)
    emulator.set_option("async", timing)
    x, expected = operands(name, rng)
    np.testing.assert_array_equal(run(emulator, name, x), expected)


RACES = {
    ("hand over", NOT_SET_UP): ["data race"],
    ("hand over", NO_WAIT_TO_READ): ["data race", "of the same block, no barrier between them"],
    ("hand over", NO_WAIT_TO_WRITE): ["data race", "of the same block, no barrier between them"],
    ("hand over", ARRIVES_EARLY): ["data race", "of the same block, no barrier between them"],
    ("sum boxes", NO_WAIT_TO_READ): ["data race", "write by the copy engine"],
    ("sum boxes", NO_WAIT_TO_WRITE): ["data race", "write by the copy engine in", "read by thread"],
    ("square", NO_WAIT_TO_READ): ["data race", "read by wgmma in", "write by thread"],
    ("square", NO_WAIT_TO_WRITE): ["data race", "read by wgmma, which nobody waited for"],
    ("neighbours", NO_BARRIER): ["data race", "of the cluster, no barrier between them"],
    ("next block", NO_BARRIER): ["data race", "nothing orders blocks"],
    ("matrices", NO_BARRIER): ["data race", "of shared memory", "no barrier between them"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "bug"), RACES)
def test_what_is_not_ordered_is_a_race(
    race: ModuleType, name: str, bug: int, order: str, rng: np.random.Generator
) -> None:
    race.set_option("order", order)
    x, _ = operands(name, rng)
    try:
        run(race, name, x, bug)
    except RuntimeError as error:
        text = str(error)
    else:
        pytest.fail("no race was found")
    if bug == NOT_SET_UP and "barrier_init() has not set up" in text:
        return  # another thread came first
    for part in [*RACES[name, bug], "ordering.cu:"]:
        assert part in text, f"{part!r} is not in:\n{text}"


def test_a_grid_barrier_that_is_missing_gives_wrong_numbers(
    plain: ModuleType, rng: np.random.Generator
) -> None:
    x, expected = operands("next block", rng)
    wrong = []
    for order in ORDERS:
        plain.set_option("order", order)
        wrong.append(not np.array_equal(run(plain, "next block", x, NO_BARRIER), expected))
    assert any(wrong)


MISTAKES = {
    ("sum boxes", NOT_FENCED): ["tma_load: a barrier without barrier_init_fence() behind barrier_init()"],
    ("square", NOT_FENCED): ["wgmma without wgmma_fence()"],
    ("neighbours", NOBODY): ["cluster_load: the cluster has no block 2"],
    ("matrices", NOBODY): ["mma_m16n8k16_f16"],
    ("matrices", UNALIGNED): ["misaligned address: an access of 16 bytes at byte", "of shared memory"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "bug"), MISTAKES)
def test_a_mistake_is_named(
    emulator: ModuleType, name: str, bug: int, order: str, rng: np.random.Generator
) -> None:
    emulator.set_option("order", order)
    x, expected = operands(name, rng)
    text = message(emulator, name, x, bug)
    for part in MISTAKES[name, bug]:
        assert part in text, f"{part!r} is not in:\n{text}"
    np.testing.assert_array_equal(run(emulator, name, x), expected)  # the next launch is in order


def test_shared_memory_of_a_block_that_has_ended_is_not_read(
    plain: ModuleType, rng: np.random.Generator
) -> None:
    """Block 0 may end before the other has read what it left."""
    x, _ = operands("neighbours", rng)
    messages = []
    for order, timing in itertools.product(ORDERS, TIMINGS):
        plain.set_option("order", order)
        plain.set_option("async", timing)
        try:
            run(plain, "neighbours", x, ENDS_EARLY)
        except RuntimeError as error:
            messages.append(str(error))
    assert any("block 0 of the cluster has ended" in m for m in messages), messages

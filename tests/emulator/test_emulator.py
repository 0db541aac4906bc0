"""The emulator itself: right kernels are right in every order, each planted bug is caught."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ORDERS = ["forward", "reverse", "random"]
PLAIN, RACE = "_emu_selftest", "_emu_selftest_race"


class DeviceArray:
    """An array in emulated device memory, copied from `values`."""

    def __init__(self, emulator: ModuleType, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        self.emulator, self.shape, self.dtype = emulator, values.shape, values.dtype
        self.nbytes = values.nbytes
        self.address: int = emulator.alloc(values.nbytes)
        ctypes.memmove(self.address, values.ctypes.data, values.nbytes)

    def __del__(self) -> None:
        self.emulator.free(self.address)

    def get(self) -> np.ndarray:
        values = np.empty(self.shape, self.dtype)
        ctypes.memmove(values.ctypes.data, self.address, self.nbytes)
        return values


@pytest.fixture(params=[PLAIN, RACE])
def emulator(request: pytest.FixtureRequest, built_modules: None) -> ModuleType:
    """Either test module, in its initial state."""
    return load(request.param)


@pytest.fixture
def plain(built_modules: None) -> ModuleType:
    """The module without race check."""
    return load(PLAIN)


@pytest.fixture
def race(built_modules: None) -> ModuleType:
    """The module with race check."""
    return load(RACE)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


def load(name: str) -> ModuleType:
    module = importlib.import_module(name)
    module.set_option("order", "forward")
    module.set_option("async", "lazy")
    module.set_option("seed", 1)
    module.set_option("race", "on" if name == RACE else "off")
    return module


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def run_sgemm(emulator: ModuleType, a: np.ndarray, b: np.ndarray, second_barrier: bool = True) -> np.ndarray:
    (m, k), n = a.shape, b.shape[1]
    left, right = DeviceArray(emulator, a), DeviceArray(emulator, b)
    product = DeviceArray(emulator, np.empty((m, n), np.float32))
    emulator.sgemm(left.address, right.address, product.address, m, n, k, second_barrier)
    return product.get()


def run_softmax(emulator: ModuleType, x: np.ndarray, bug: int = 0) -> np.ndarray:
    source, result = DeviceArray(emulator, x), DeviceArray(emulator, np.full_like(x, np.nan))
    emulator.softmax(source.address, result.address, *x.shape, bug)
    return result.get()


def softmax_reference(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    result: np.ndarray = e / e.sum(1, keepdims=True)
    return result


MISSING_BARRIER, DIVERGENT_BARRIER, READ_PAST_END = 1, 2, 3


# ---- right kernels


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (64, 64, 16), (65, 67, 33), (17, 130, 40)])
def test_sgemm_is_exact_on_integers(
    emulator: ModuleType, order: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    m, n, k = shape
    a = rng.integers(-4, 5, (m, k)).astype(np.float32)
    b = rng.integers(-4, 5, (k, n)).astype(np.float32)
    emulator.set_option("order", order)
    np.testing.assert_array_equal(run_sgemm(emulator, a, b), a @ b)


@pytest.mark.parametrize("order", ORDERS)
def test_softmax(emulator: ModuleType, order: str, rng: np.random.Generator) -> None:
    x = normal(rng, 5, 300)
    emulator.set_option("order", order)
    np.testing.assert_allclose(run_softmax(emulator, x), softmax_reference(x), rtol=3e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_block_reduce_is_right_and_the_same_in_every_order(
    emulator: ModuleType, dtype: Any, threads: int, rng: np.random.Generator
) -> None:
    rows, n = 3, 1500
    x = (100 * rng.standard_normal((rows, n))).astype(dtype)
    reduce = getattr(emulator, f"row_statistics_{np.dtype(dtype).name}")
    results = []
    for order in ORDERS:
        emulator.set_option("order", order)
        source = DeviceArray(emulator, x)
        sums, maxima = (DeviceArray(emulator, np.empty(rows, dtype)) for _ in range(2))
        reduce(source.address, sums.address, maxima.address, rows, n, threads)
        np.testing.assert_array_equal(maxima.get(), x.max(1))
        results.append(sums.get())
    bound = 0 if dtype == np.int32 else n * np.finfo(dtype).eps * np.abs(x).sum(1).max()
    np.testing.assert_allclose(results[0], x.astype(np.float64).sum(1), rtol=0, atol=bound)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_maximum_keeps_nan(plain: ModuleType) -> None:
    for position in (0, 1, 31, 32, 99):
        x = np.zeros((1, 100), np.float32)
        x[0, position] = np.nan
        source, out = DeviceArray(plain, x), DeviceArray(plain, np.zeros(2, np.float32))
        plain.row_statistics_float32(source.address, out.address, out.address + 4, 1, 100, 64)
        assert np.isnan(out.get()[1])


@pytest.mark.parametrize("n", [0, 1, 3, 4, 1023, 4100])
@pytest.mark.parametrize("scalar", [False, True])
def test_packs(emulator: ModuleType, n: int, scalar: bool, rng: np.random.Generator) -> None:
    x = normal(rng, n)
    source, result = DeviceArray(emulator, x), DeviceArray(emulator, np.empty_like(x))
    emulator.scale_by_packs(source.address, result.address, n, scalar)
    np.testing.assert_array_equal(result.get(), 2 * x)


def test_grid_stride_covers_more_than_the_largest_grid(plain: ModuleType) -> None:
    n = 2112 * 64 + 5
    values = (np.arange(n) % 16).astype(np.int32)
    x, bins = DeviceArray(plain, values), DeviceArray(plain, np.zeros(16, np.int32))
    odd = DeviceArray(plain, np.zeros(1, np.int32))
    plain.histogram(x.address, bins.address, odd.address, n)
    np.testing.assert_array_equal(bins.get(), np.bincount(values))
    assert odd.get()[0] == (values % 2).sum()


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(emulator: ModuleType, order: str) -> None:
    out = DeviceArray(emulator, np.zeros(8, np.int32))
    emulator.set_option("order", order)
    emulator.atomics(out.address, 100)
    result = out.get()
    first = {"forward": 1, "reverse": 100}.get(order, result[4])
    assert result[:5].tolist() == [4950, 99, 7, 100, first]
    assert 1 <= result[4] <= 100
    assert result[5:6].view(np.float32)[0] == 50
    assert result[6:].view(np.float64)[0] == 25


def test_shuffles(emulator: ModuleType) -> None:
    y = DeviceArray(emulator, np.empty((6, 32), np.int32))
    emulator.shuffles(y.address)
    lane = np.arange(32)
    expected = [
        np.full(32, 5),
        np.where(lane < 3, lane, lane - 3),
        np.where(lane > 28, lane, lane + 3),
        lane ^ 9,
        np.where(lane % 8 > 4, lane, lane + 3),
        lane // 8 * 8 + 2,
    ]
    np.testing.assert_array_equal(y.get(), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_grid_barrier(emulator: ModuleType, order: str, rng: np.random.Generator) -> None:
    steps, width = 4, 70
    w, x = 0.1 * normal(rng, width, width), normal(rng, steps, width)
    weights, inputs = DeviceArray(emulator, w), DeviceArray(emulator, x)
    h0, h1 = (DeviceArray(emulator, np.zeros(width, np.float32)) for _ in range(2))
    emulator.set_option("order", order)
    emulator.recurrence(weights.address, inputs.address, h0.address, h1.address, steps, width)
    h = np.zeros(width)
    for t in range(steps):
        h = np.tanh(w.astype(np.float64) @ h + x[t])
    np.testing.assert_allclose(h0.get(), h, atol=1e-5)


def test_dynamic_shared_memory(emulator: ModuleType, rng: np.random.Generator) -> None:
    x = normal(rng, 16384)
    source, result = DeviceArray(emulator, x), DeviceArray(emulator, np.empty_like(x))
    emulator.reverse(source.address, result.address, x.size, x.size)
    np.testing.assert_array_equal(result.get(), x[::-1])


# ---- memory


@pytest.mark.parametrize("nbytes", [0, 1, 16, 4095, 4096, 100_000])
def test_fresh_memory_is_poisoned_and_aligned(emulator: ModuleType, nbytes: int) -> None:
    before = emulator.stats()
    address = emulator.alloc(nbytes)
    assert address % 16 == 0
    assert ctypes.string_at(address, nbytes) == b"\xff" * nbytes
    during = emulator.stats()
    assert during["buffers"] == before["buffers"] + 1
    assert during["buffer_bytes"] == before["buffer_bytes"] + nbytes
    emulator.free(address)
    assert emulator.stats()["buffers"] == before["buffers"]


def test_freeing_what_was_not_allocated_is_an_error(emulator: ModuleType) -> None:
    address = emulator.alloc(64)
    with pytest.raises(ValueError, match="did not return"):
        emulator.free(address + 16)
    emulator.free(address)
    with pytest.raises(ValueError, match="did not return"):
        emulator.free(address)


def test_impossible_size_is_a_memory_error(plain: ModuleType) -> None:
    for nbytes in (2**62, 2**64 - 1):
        with pytest.raises(MemoryError):
            plain.alloc(nbytes)


def test_fill_outside_a_buffer_is_an_error(plain: ModuleType) -> None:
    out = DeviceArray(plain, np.zeros(7, np.int32))
    with pytest.raises(RuntimeError, match="memset of 32 bytes outside a device buffer"):
        plain.atomics(out.address, 1)


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


def test_race_check_can_be_switched_off(race: ModuleType) -> None:
    y = DeviceArray(race, np.zeros(64, np.float32))
    race.set_option("race", "off")
    race.mistake("race between blocks", y.address)


# ---- tensor cores and asynchronous copies


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of x, which bfloat16 holds exactly."""
    bits = x.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def run_tensor_gemm(
    emulator: ModuleType, kind: str, a: np.ndarray, b: np.ndarray, bug: int = 0
) -> np.ndarray:
    (m, k), n = a.shape, b.shape[1]
    if kind == "bf16":
        left, right = DeviceArray(emulator, to_bf16(a)), DeviceArray(emulator, to_bf16(b))
    else:
        left, right = DeviceArray(emulator, a), DeviceArray(emulator, b)
    product = DeviceArray(emulator, np.empty((m, n), np.float32))
    emulator.tensor_gemm(kind, left.address, right.address, product.address, m, n, k, bug)
    return product.get()


def small_integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


TIMINGS = ["lazy", "eager", "random"]
WEAK_WAIT, STAGE_REUSED = 1, 2


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(8, 8, 8), (64, 64, 32), (65, 72, 40), (17, 80, 104)])
@pytest.mark.parametrize("kind", ["tf32", "bf16"])
def test_tensor_gemm_is_exact_on_integers(
    emulator: ModuleType,
    kind: str,
    shape: tuple[int, int, int],
    order: str,
    timing: str,
    rng: np.random.Generator,
) -> None:
    m, n, k = shape
    a, b = small_integers(rng, m, k), small_integers(rng, k, n)
    emulator.set_option("order", order)
    emulator.set_option("async", timing)
    np.testing.assert_array_equal(run_tensor_gemm(emulator, kind, a, b), a @ b)


def test_tf32_rounds_to_ten_bits_ties_away(plain: ModuleType) -> None:
    ulp = 2.0**-10
    values = [1, 1 + ulp, 1 + ulp / 2, 1 + ulp / 4, -1 - ulp / 2, 1 + 3 * ulp / 2, 2.0**-126, 0]
    expected = [1, 1 + ulp, 1 + ulp, 1, -1 - ulp, 1 + 2 * ulp, 2.0**-126, 0]
    x = np.diag(np.array(values, np.float32))
    product = run_tensor_gemm(plain, "tf32", np.eye(8, dtype=np.float32), x)
    np.testing.assert_array_equal(np.diag(product), expected)


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


# ---- options, threads


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", "sideways"),
        ("async", "never"),
        ("seed", -1),
        ("seed", 10**9),
        ("race", "maybe"),
        ("speed", 1),
    ],
)
def test_unknown_option_is_a_value_error(emulator: ModuleType, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"no option '{name}' with the value '{value}'"):
        emulator.set_option(name, value)


def test_race_check_needs_an_instrumented_module(plain: ModuleType) -> None:
    with pytest.raises(ValueError, match="built with RACE"):
        plain.set_option("race", "on")


def test_random_order_follows_the_seed(plain: ModuleType) -> None:
    plain.set_option("order", "random")
    winners = []
    for seed in (1, 2, 3, 1):
        plain.set_option("seed", seed)
        out = DeviceArray(plain, np.zeros(8, np.int32))
        plain.atomics(out.address, 100)
        winners.append(int(out.get()[4]))
    assert winners[0] == winners[3]
    assert len(set(winners)) > 1


def test_launches_from_several_threads(plain: ModuleType, rng: np.random.Generator) -> None:
    x = normal(rng, 4, 257)
    expected = run_softmax(plain, x).tobytes()
    wrong: list[int] = []

    def work(number: int) -> None:
        for step in range(20):
            if number == 0 and step % 5 == 0:
                y = DeviceArray(plain, np.zeros(64, np.float32))
                with pytest.raises(RuntimeError, match="divergent warp"):
                    plain.mistake("divergent shuffle", y.address)
            if run_softmax(plain, x).tobytes() != expected:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_counters(plain: ModuleType, rng: np.random.Generator) -> None:
    before = plain.stats()
    run_softmax(plain, normal(rng, 3, 10))
    after = plain.stats()
    grown = {name: after[name] - before[name] for name in after}
    threads = 3 * 128
    assert (grown["launches"], grown["blocks"], grown["threads"]) == (1, 3, threads)
    assert (grown["barriers"], grown["warp_collectives"]) == (2 * threads, 10 * threads)


def assert_mentions(error: pytest.ExceptionInfo[RuntimeError], *parts: str) -> None:
    message = str(error.value)
    for part in parts:
        assert part in message, f"{part!r} is not in:\n{message}"

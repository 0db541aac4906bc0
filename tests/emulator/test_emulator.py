"""Right kernels on the emulator are right in every order; its memory, options and threads."""

from __future__ import annotations

import ctypes
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from emulator.selftest import (
    ORDERS,
    TIMINGS,
    DeviceArray,
    normal,
    run_load_box,
    run_load_pixels,
    run_panel,
    run_ring_gemm,
    run_sgemm,
    run_softmax,
    run_store_pixels,
    run_tensor_gemm,
    run_wrapper,
    small_integers,
    softmax_reference,
    to_bf16,
)

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


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(64, 128, 64), (7, 5, 8), (70, 130, 264), (130, 300, 200)])
def test_warpgroup_product_is_exact_on_integers(
    emulator: ModuleType, order: str, timing: str, shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    m, n, k = shape
    a, b = small_integers(rng, m, k), small_integers(rng, n, k)
    emulator.set_option("order", order)
    emulator.set_option("async", timing)
    np.testing.assert_array_equal(run_ring_gemm(emulator, a, b), a @ b.T)


@pytest.mark.parametrize("timing", TIMINGS)
def test_loads_of_boxes_of_four_dimensions(
    emulator: ModuleType, timing: str, rng: np.random.Generator
) -> None:
    """Zeros outside of the tensor: a line never goes on in the next item."""
    emulator.set_option("async", timing)
    x = rng.integers(1, 1000, (3, 2, 30, 72)).astype(np.uint16)
    padded = np.zeros((4, 3, 64, 136), np.uint16)
    padded[:3, :2, :30, :72] = x
    for at in ((0, 0, 0, 0), (64, 0, 1, 2), (0, 24, 1, 1), (0, 30, 0, 1), (0, 0, 2, 0), (0, 0, 0, 3)):
        first, line, item, outer = at
        expected = padded[outer, item, line : line + 24, first : first + 64]
        np.testing.assert_array_equal(run_load_box(emulator, x, at), expected)


# (N, H, W, C); first place, number and step of the places along w and h; taps of a kernel
WALKS = {
    "3x3": ((2, 4, 5, 64), (-1, -1), (5, 4), (1, 1), [(0, 0), (1, 1), (2, 2), (0, 2)]),
    "stride 2": ((3, 7, 6, 72), (-2, -1), (4, 4), (2, 2), [(0, 0), (1, 0), (4, 2)]),
    "no padding": ((2, 6, 7, 80), (0, 0), (5, 4), (1, 1), [(0, 0), (2, 2)]),
    "far beyond": ((1, 2, 3, 8), (3, -5), (4, 6), (1, 3), [(0, 0), (0, 5)]),
}


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("name", WALKS)
def test_loads_of_pixels(emulator: ModuleType, name: str, timing: str, rng: np.random.Generator) -> None:
    """Each tap at each place, zeros outside of the images and behind the last one."""
    shape, first, count, step, taps = WALKS[name]
    images, height, width, channels = shape
    emulator.set_option("async", timing)
    x = rng.integers(1, 1000, shape).astype(np.uint16)
    reach = 40
    padded = np.zeros((images + 9, height + 2 * reach, width + 2 * reach, channels + 64), np.uint16)
    padded[:images, reach : reach + height, reach : reach + width, :channels] = x
    for right, down in taps:
        for place in range(0, images * count[0] * count[1], 7):
            for channel in range(0, channels, 64):
                expected = np.empty((24, 64), np.uint16)
                for i in range(24):
                    image, rest = divmod(place + i, count[0] * count[1])
                    row, column = divmod(rest, count[0])
                    w, h = first[0] + column * step[0], first[1] + row * step[1]
                    if i == 0:
                        at = (channel, w, h, image, right, down)
                    expected[i] = padded[image, reach + h + down, reach + w + right, channel : channel + 64]
                np.testing.assert_array_equal(
                    run_load_pixels(emulator, x, (first, count, step), at), expected
                )


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("name", WALKS)
def test_stores_of_pixels(emulator: ModuleType, name: str, timing: str, rng: np.random.Generator) -> None:
    """What lies outside of the images is not written."""
    shape, first, count, step, _ = WALKS[name]
    images, height, width, channels = shape
    emulator.set_option("async", timing)
    x = rng.integers(2, 1000, (24, 64)).astype(np.uint16)
    for place in range(0, images * count[0] * count[1], 7):
        for channel in range(0, channels, 64):
            expected = np.ones(shape, np.uint16)
            for i in range(24):
                image, rest = divmod(place + i, count[0] * count[1])
                row, column = divmod(rest, count[0])
                w, h = first[0] + column * step[0], first[1] + row * step[1]
                if i == 0:
                    at = (channel, w, h, image, 0, 0)
                if image < images and 0 <= h < height and 0 <= w < width:
                    last = min(channel + 64, channels)
                    expected[image, h, w, channel:last] = x[i, : last - channel]
            got = run_store_pixels(emulator, x, shape, (first, count, step), at)
            np.testing.assert_array_equal(got, expected)


def test_a_load_of_pixels_begins_on_its_walk(emulator: ModuleType) -> None:
    x = np.zeros((1, 4, 4, 8), np.uint16)
    walk = (-1, -1), (4, 4), (2, 1)
    for at in ((0, 0, 0, 0, 0, 0), (0, 7, 0, 0, 0, 0), (0, -1, -2, 0, 0, 0)):
        with pytest.raises(RuntimeError, match="off its walk"):
            run_load_pixels(emulator, x, walk, at)
    with pytest.raises(RuntimeError, match="reads 300 pixels beside"):
        run_load_pixels(emulator, x, walk, (0, -1, -1, 0, 300, 0))
    with pytest.raises(RuntimeError, match="cannot walk"):
        run_load_pixels(emulator, x, ((-200, 0), (4, 4), (1, 1)), (0, -200, 0, 0, 0, 0))


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


def test_sums_of_tensor_cores_can_be_cut(plain: ModuleType) -> None:
    """Each term to the 24 bits that the largest has: 1.5 beside 2^24 is nothing."""
    a = np.array([[4096, 1], [4096, 1]] + [[0, 0]] * 6, np.float32)
    b = np.zeros((2, 8), np.float32)
    b[:, 0], b[:, 1] = (4096, 1.5), (4096, -1.5)
    rounded = run_tensor_gemm(plain, "tf32", a, b)
    plain.set_option("sums", "cut")
    try:
        cut = run_tensor_gemm(plain, "tf32", a, b)
    finally:
        plain.set_option("sums", "rounded")
    assert rounded[0, :2].tolist() == [2.0**24 + 2, 2.0**24 - 2]
    assert cut[0, :2].tolist() == [2.0**24, 2.0**24]


def test_powers_of_two(plain: ModuleType) -> None:
    """Within 2^-22; what is below the least normal number is 0."""
    x = np.linspace(-126, 127, 32, dtype=np.float32)
    x[:5] = -np.inf, np.inf, np.nan, -126.5, 0
    result = run_wrapper(plain, "exp2", x.view(np.uint32), 32).view(np.float32)
    expected = np.exp2(x.astype(np.float64))
    expected[3] = 0
    np.testing.assert_allclose(result, expected, rtol=2.0**-22)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_panels_that_threads_write(
    emulator: ModuleType, order: str, timing: str, rng: np.random.Generator
) -> None:
    x = small_integers(rng, 64, 64)
    emulator.set_option("order", order)
    emulator.set_option("async", timing)
    np.testing.assert_array_equal(run_panel(emulator, "copy", x), to_bf16(x))
    np.testing.assert_array_equal(run_panel(emulator, "square", x), np.tile(x @ x.T, 2))


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

"""Generators: streams that depend on seed, purpose and position, and on nothing else."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import _cpu, random
from brasa.random import PURPOSES, Generator, default_generator, manual_seed


def draws(generator: Generator) -> list:
    return [
        generator.permutation(10).tolist(),
        generator.uniform(-1, 1, (3, 2)).tolist(),
        generator.normal(size=5, dtype=np.float64).tolist(),
        generator.integers(3, 100, 7).tolist(),
        generator.next(17),
    ]


def test_equal_seeds_give_equal_numbers():
    assert draws(Generator(5)) == draws(Generator(5))
    assert draws(Generator(5)) != draws(Generator(6))
    generator = Generator(5)
    assert draws(generator) != draws(generator)
    generator.manual_seed(5)
    assert draws(generator) == draws(Generator(5))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, np.int64(3)])
def test_any_integer_is_a_seed(seed):
    key, offset = Generator(seed).next(1)
    assert 0 <= key < 2**63
    assert offset == 0


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_other_seeds_are_refused(seed):
    with pytest.raises(TypeError, match="seed: expected an int"):
        Generator(seed)


@given(st.lists(st.integers(0, 100), max_size=8))
def test_next_hands_out_stretches_that_do_not_overlap(counts):
    generator = Generator(1)
    expected = 0
    for n in counts:
        _, offset = generator.next(n)
        assert offset == expected
        expected += -(-n // 4)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="n: expected at least 0"):
        Generator(0).next(-1)


def test_purposes_do_not_disturb_each_other():
    a, b = Generator(2), Generator(2)
    a.permutation(100)
    a.next(1000, "dropout")
    assert a.normal(size=4).tolist() == b.normal(size=4).tolist()
    assert a.integers(10, size=4).tolist() == b.integers(10, size=4).tolist()
    keys = {Generator(2).next(1, purpose)[0] for purpose in (*PURPOSES, "my own")}
    assert len(keys) == len(PURPOSES) + 1


def test_seeds_of_streams_differ():
    keys = {
        Generator(seed).fork(key).next(1, p)[0] for seed in range(20) for key in range(20) for p in PURPOSES
    }
    assert len(keys) == 20 * 20 * len(PURPOSES)


def test_fork_depends_on_seed_and_key_only():
    a = Generator(3)
    a.permutation(10)
    assert draws(a.fork(7)) == draws(Generator(3).fork(7))
    seeds = {Generator(3).fork(key).seed for key in (0, 1, -1, "0", "epoch 1", "a" * 100, "a" * 101)}
    assert len(seeds) == 7


def test_state_continues_where_it_stood():
    a = Generator(9)
    draws(a)
    state = json.loads(json.dumps(a.state_dict()))
    b = Generator(0)
    b.load_state_dict(state)
    assert draws(a) == draws(b)
    state["offsets"]["shuffle"] = 99
    assert a.state_dict()["offsets"]["shuffle"] != 99


@pytest.mark.parametrize(
    "state", [{}, {"seed": 1}, {"seed": "x", "offsets": {}}, {"seed": 1, "offsets": {"a": -1}}, 3]
)
def test_a_broken_state_is_refused_whole(state):
    generator = Generator(4)
    with pytest.raises(ValueError, match="state"):
        generator.load_state_dict(state)
    assert generator.state_dict() == {"seed": 4, "offsets": {}}


def test_threads_get_different_stretches():
    generator, got = Generator(0), []

    def work():
        got.extend([generator.next(4)[1] for _ in range(500)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(4000))


def test_the_default_generator():
    assert manual_seed(11) is default_generator()
    first = draws(default_generator())
    manual_seed(11)
    assert draws(default_generator()) == first == draws(Generator(11))
    assert random.default_generator().seed == 11


# Distributions; bounds of 5 standard errors, fixed seeds

N = 100_000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform(dtype):
    x = Generator(0).uniform(-2, 3, N, dtype=dtype)
    assert x.dtype == dtype
    assert x.min() >= -2
    assert x.max() < 3
    assert abs(x.mean() - 0.5) < 5 * 5 / np.sqrt(12 * N)
    assert abs(np.quantile(x, 0.25) + 0.75) < 0.05


def test_uniform_never_reaches_its_upper_end():
    low, high = 1.0, np.float32(1) + np.float32(2**-22)
    x = Generator(0).uniform(low, high, N)
    assert x.min() == low
    assert x.max() < high


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal(dtype):
    x = Generator(0).normal(1.0, 2.0, N, dtype=dtype)
    assert x.dtype == dtype
    assert abs(x.mean() - 1) < 5 * 2 / np.sqrt(N)
    assert abs(x.std() - 2) < 5 * 2 / np.sqrt(2 * N)
    assert abs((np.abs(x - 1) < 2).mean() - 0.6827) < 5 * 0.5 / np.sqrt(N)
    with pytest.raises(ValueError, match="std"):
        Generator(0).normal(0, -1)


def test_integers_and_permutation():
    x = Generator(0).integers(-2, 3, N)
    assert x.dtype == np.int64
    assert np.abs(np.bincount(x + 2, minlength=5) / N - 0.2).max() < 5 * 0.4 / np.sqrt(N)
    order = Generator(0).permutation(1000)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(1000))
    assert (order == np.arange(1000)).sum() < 10
    first = [int(Generator(seed).permutation(5)[0]) for seed in range(2000)]
    assert np.abs(np.bincount(first) / 2000 - 0.2).max() < 5 * 0.4 / np.sqrt(2000)


def test_streams_are_not_correlated():
    a = Generator(0).normal(size=N, dtype=np.float64)
    for other in (Generator(1), Generator(0).fork(0), Generator(0).fork(1)):
        b = other.normal(size=N, dtype=np.float64)
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(N)


@pytest.mark.parametrize("method", ["uniform", "normal"])
def test_large_draws_are_the_same_on_any_number_of_threads(method):
    size, before, found = (3, (1 << 20) - 5), _cpu.num_threads(), []
    try:
        for threads in (1, 3):
            _cpu.set_num_threads(threads)
            found.append(getattr(Generator(5), method)(-2.0, 3.0, size))
    finally:
        _cpu.set_num_threads(before)
    np.testing.assert_array_equal(*found)
    drawn = found[0].ravel()
    few = getattr(Generator(5), method)(-2.0, 3.0, 1000)
    np.testing.assert_array_equal(drawn[:1000], few)  # the first million is as it is alone
    chunks = drawn[: 2 << 20].reshape(2, 1 << 20)
    assert abs(np.corrcoef(*chunks)[0, 1]) < 5 / 1024  # 5 deviations of independent numbers
    if method == "uniform":
        assert -2 <= drawn.min() < -1.999 < 2.999 < drawn.max() < 3

"""Vector functions against their bounds in units in the last place (ULP), over the bit patterns of float32.

Every 65,537th of the 2^32 patterns in the quick tier, every 4,099th in the full one, all in the soak one:
zeros, denormals, infinities and NaN are among them. The bounds are those that core/vmath.h states.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from brasa import ops
from descriptors.activation import REFERENCES

_erf = np.vectorize(math.erf, otypes=[np.float64])

FUNCTIONS = {  # name: (bound in ULP, the function in float64)
    "exp": (1, np.exp),
    "expm1": (2, np.expm1),
    "log": (1, np.log),
    "log1p": (2, np.log1p),
    "erf": (3, _erf),
    "tanh": (2, np.tanh),
    "sigmoid": (3, REFERENCES["sigmoid"]),
    "softplus": (3, REFERENCES["softplus"]),
    "gelu": (4, REFERENCES["gelu"]),
    "silu": (4, REFERENCES["silu"]),
    "mish": (5, REFERENCES["mish"]),
    "elu": (2, REFERENCES["elu"]),
    "relu": (0, REFERENCES["relu"]),
    "hardtanh": (0, REFERENCES["hardtanh"]),
    "step": (0, REFERENCES["step"]),
    "sign": (0, REFERENCES["sign"]),
}
LIMITS = {"gelu": 0.0, "silu": 0.0, "mish": 0.0}  # at minus infinity, where the formula gives 0 * infinity

STEP = {"full": 4099, "soak": 1}.get(os.environ.get("BRASA_TEST_TIER", "quick"), 65537)
CHUNK = 2**22


def patterns():
    """float32 arrays that cover every STEP-th bit pattern, both signs' neighbourhood of 0 and infinity."""
    edges = np.array([0, 0x007FFFFF, 0x7F7FFFFF], np.int64)[:, None] + np.arange(17)
    yield np.concatenate([edges, edges | 0x80000000]).astype(np.uint32).view(np.float32).ravel()
    for start in range(0, 2**32, STEP * CHUNK):
        yield (
            np.arange(start, min(start + STEP * CHUNK, 2**32), STEP, np.int64)
            .astype(np.uint32)
            .view(np.float32)
        )


def errors_in_ulp(got, expected):
    """|got - expected| in ULP of float32 at `expected`; infinite where one is special and the other not."""
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.where(expected == 0, 1e-300, expected))[1]
        ulp = np.ldexp(1.0, np.maximum(exponent - 24, -149))
        error = np.abs(got.astype(np.float64) - expected) / ulp
        rounded = expected.astype(np.float32)
    special = ~np.isfinite(rounded) | ~np.isfinite(got)
    same = (rounded == got) | (np.isnan(rounded) & np.isnan(got))
    return np.where(special, np.where(same, 0, np.inf), error)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32(name, isa):
    bound, reference = FUNCTIONS[name]
    function = getattr(ops, name)
    for x in patterns():
        with np.errstate(all="ignore"):
            expected = np.array(reference(x.astype(np.float64)))
        if name in LIMITS:
            expected[np.isneginf(x)] = LIMITS[name]
        got = function(x)
        error = errors_in_ulp(got, expected)
        worst = error.argmax()
        assert error[worst] <= bound, (float(x[worst]).hex(), float(got[worst]), float(expected[worst]))


ODD = ["expm1", "log1p", "erf", "tanh"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ODD)
def test_the_sign_of_zero_stays(name, dtype, isa):
    x = np.array([0.0, -0.0], dtype)
    assert np.signbit(getattr(ops, name)(x)).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ODD)
def test_denormals_are_not_flushed(name, dtype, isa):
    x = np.finfo(dtype).smallest_subnormal * np.array([1, 2, 3, 1000], dtype)
    factor = 2 / math.sqrt(math.pi) if name == "erf" else 1
    error = np.abs(getattr(ops, name)(x).astype(np.float64) - x * factor)
    assert np.all(error <= 1.01 * np.finfo(dtype).smallest_subnormal + 1e-15 * x)


LONG = {
    "exp": (2, np.exp, -745, 709),
    "expm1": (3, np.expm1, -60, 709),
    "log": (2, np.log, 1e-300, 1e300),
    "log1p": (3, np.log1p, -1 + 1e-9, 1e9),
    "tanh": (3, np.tanh, -25, 25),
    "sigmoid": (4, lambda x: 1 / (1 + np.exp(-x)), -700, 60),
}


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="long double is no wider than double here")
@pytest.mark.parametrize("name", LONG)
def test_float64(name, isa):
    """Against long double: linear and logarithmic samples of the range."""
    bound, reference, low, high = LONG[name]
    rng = np.random.default_rng(0)
    near_zero = rng.choice([-1, 1], 20_000) * 10.0 ** rng.uniform(-20, 3, 20_000)
    x = np.concatenate([rng.uniform(low, high, 20_000), near_zero[(near_zero > low) & (near_zero < high)]])
    expected = reference(x.astype(np.longdouble))
    got = getattr(ops, name)(x)
    spacing = np.spacing(np.abs(expected).astype(np.float64))
    error = np.abs((got.astype(np.longdouble) - expected) / spacing).astype(np.float64)
    worst = error.argmax()
    assert error[worst] <= bound, (float(x[worst]).hex(), error[worst])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_on_every_device(name, xp):
    """CUDA's own functions, or the C library's in the emulator, stay within one more ULP."""
    bound, reference = FUNCTIONS[name]
    x = next(iter(patterns()))
    x = np.concatenate([x, np.linspace(-120, 120, 5001, dtype=np.float32)])
    with np.errstate(all="ignore"):
        expected = np.array(reference(x.astype(np.float64)))
    if name in LIMITS:
        expected[np.isneginf(x)] = LIMITS[name]
    got = xp.asnumpy(getattr(ops, name)(xp.asarray(x)))
    error = errors_in_ulp(got, expected)
    worst = error.argmax()
    assert error[worst] <= bound + (xp.name != "cpu" and bound > 0), (float(x[worst]).hex(), got[worst])

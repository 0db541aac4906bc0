"""What the generic properties leave out: parameters, special values, ``out=``, layouts, gradients by name."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brasa as br
from brasa import _cpu, ops
from brasa.tensor import Tensor
from brasa.testing import gradcheck
from descriptors.activation import DERIVATIVES, REFERENCES, WITH_PARAMETERS

NAMES = sorted(ops.ACTIVATIONS)
every_activation = pytest.mark.parametrize("name", NAMES)
floats = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def values(*shape, dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)
    x[np.abs(x) < 0.05] = 0.5
    return x


def backward_of(name, x, dy):
    """The gradient through whichever of input and result the derivative is computed from."""
    v = ops.activation(x, name) if ops.ACTIVATIONS[name].needs == "y" else x
    return ops.activation_backward(dy, v, name)


def test_the_list_is_what_the_operators_offer():
    assert set(NAMES) == set(REFERENCES)
    assert set(NAMES) - {"gelu_tanh"} <= set(ops.__all__)


# Values -----------------------------------------------------------------------------------------------


@every_activation
@floats
def test_forward_and_backward_on_every_device(name, dtype, xp):
    x, dy = values(3, 5, 7, dtype=dtype), values(3, 5, 7, dtype=dtype, seed=1)
    y = xp.asnumpy(ops.activation(xp.asarray(x), name))
    dx = xp.asnumpy(backward_of(name, xp.asarray(x), xp.asarray(dy)))
    unit = np.finfo(dtype).eps / 2
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, REFERENCES[name](wide), rtol=16 * unit, atol=2 * unit)
    np.testing.assert_allclose(dx, dy * DERIVATIVES[name](wide), rtol=64 * unit, atol=64 * unit)
    assert y.dtype == dx.dtype == dtype


@pytest.mark.parametrize(("name", "parameters"), WITH_PARAMETERS)
def test_parameters(name, parameters, xp):
    x = values(40, dtype=np.float64)
    y = ops.activation(xp.asarray(x), (name, *parameters))
    np.testing.assert_allclose(xp.asnumpy(y), REFERENCES[name](x, *parameters), rtol=1e-14, atol=1e-15)
    assert gradcheck(lambda t: ops.activation(t, (name, *parameters)), [xp.asarray(x)])


def test_a_negative_slope_has_the_right_gradient():
    """The result hides the sign of the input there, so the input is kept."""
    x = np.array([-2.0, -0.5, 0.5, 2.0])
    assert gradcheck(lambda t: ops.leaky_relu(t, -0.3), [x])


def test_named_operators_pass_their_parameters_on():
    x = values(50)
    for named, activation in [
        (ops.leaky_relu(x, 0.3), ("leaky_relu", 0.3)),
        (ops.elu(x, 0.7), ("elu", 0.7)),
        (ops.celu(x, 0.7), ("celu", 0.7)),
        (ops.softplus(x, 2.0, 5.0), ("softplus", 2.0, 5.0)),
        (ops.hardtanh(x, -0.5, 2.0), ("hardtanh", -0.5, 2.0)),
        (ops.gelu(x, "tanh"), "gelu_tanh"),
    ]:
        np.testing.assert_array_equal(named, ops.activation(x, activation))


@every_activation
@floats
def test_nan_stays_and_limits_are_finite(name, dtype, xp):
    """At plus and minus infinity the value and the slope are their limits, never 0 * infinity."""
    x = xp.asarray(np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0], dtype))
    y = xp.asnumpy(ops.activation(x, name))
    dx = xp.asnumpy(backward_of(name, x, xp.asarray(np.ones(7, dtype))))
    assert np.isnan(y[0])
    assert not np.isnan(y[1:]).any()
    assert not np.isnan(dx[1:]).any()
    limit = REFERENCES[name](np.array([1e30, -1e30]))
    np.testing.assert_allclose(y[3:5], limit, rtol=1e-6, atol=1e-30)
    same = np.isfinite(y[1:3])
    np.testing.assert_array_equal(y[1:3][same], y[3:5][same])
    np.testing.assert_array_equal(dx[1:3], dx[3:5])


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu", "mish", "leaky_relu", "hardtanh", "sign"])
def test_zero_keeps_its_sign(name):
    y = ops.activation(np.float32([-0.0, 0.0]), name)
    assert np.signbit(y).tolist() == [True, False]


# The same bits ----------------------------------------------------------------------------------------


def bits(name, x, dy):
    return ops.activation(x, name).tobytes(), backward_of(name, x, dy).tobytes()


@every_activation
@floats
def test_a_value_does_not_depend_on_its_place(name, dtype, isa):
    """Vector body and tail compute alike: whole array, every length, every element alone."""
    x = values(70, dtype=dtype)
    whole = ops.activation(x, name)
    for n in range(70):
        assert ops.activation(x[:n].copy(), name).tobytes() == whole[:n].tobytes()
        assert ops.activation(x[n : n + 1].copy(), name).tobytes() == whole[n : n + 1].tobytes()


@every_activation
@floats
def test_instruction_sets_with_fma_agree(name, dtype, request):
    x, dy = values(4099, dtype=dtype), values(4099, dtype=dtype, seed=1)
    found, before = {}, _cpu.isa()
    try:
        for isa in _cpu.supported_isas():
            _cpu._set_isa(isa)
            found[isa] = bits(name, x, dy)
    finally:
        _cpu._set_isa(before)
    assert len({found[isa] for isa in found if isa != "baseline"}) == 1


@every_activation
def test_threads_agree(name, set_threads):
    x, dy = values(150_001), values(150_001, seed=1)
    found = set()
    for n in (1, 2, 3, 7):
        set_threads(n)
        found.add(bits(name, x, dy))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["relu", "hardswish", "tanh"])
def test_a_result_too_large_for_the_caches(name, dtype, isa):
    """Large results of light activations are stored past the caches: the same bits, tail and offset too."""
    n = 2**24 // np.dtype(dtype).itemsize + 4096 * 5 + 3
    x, dy = np.resize(values(2**16, dtype=dtype), n), np.resize(values(2**16, dtype=dtype, seed=1), n)
    half = n // 2
    for out in (np.empty(n, dtype), np.empty(n + 1, dtype)[1:]):
        y = ops.activation(x, name, out=out)
        assert y[:half].tobytes() == ops.activation(x[:half], name).tobytes()
        assert y[half:].tobytes() == ops.activation(x[half:], name).tobytes()
    dx = backward_of(name, x, dy)
    assert dx[:half].tobytes() == backward_of(name, x[:half], dy[:half]).tobytes()
    assert dx[half:].tobytes() == backward_of(name, x[half:], dy[half:]).tobytes()


# Layouts and out= -------------------------------------------------------------------------------------

LAYOUTS = {
    "channels-last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "every other": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "offset": lambda x: np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_layouts(name, layout, xp):
    x, dy = values(2, 3, 4, 5), values(2, 3, 4, 5, seed=1)
    change = LAYOUTS[layout]
    y = ops.activation(xp.asarray(change(x)), name)
    expected = xp.asnumpy(ops.activation(xp.asarray(x), name))
    assert xp.asnumpy(y).tobytes() == expected.tobytes()
    if layout == "channels-last":
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    gradient = xp.asnumpy(backward_of(name, xp.asarray(x), xp.asarray(dy)))
    for a, b in [(change(x), change(dy)), (change(x), dy), (x, change(dy))]:
        dx = backward_of(name, xp.asarray(a), xp.asarray(b))
        assert xp.asnumpy(dx).tobytes() == gradient.tobytes()


@pytest.mark.parametrize("name", ["relu", "hardswish"])
def test_more_packs_than_threads(name, xp):
    """A GPU's threads take several packs then, the next one read before the last one is done."""
    n = 2 * 2112 * 256 * 4 + 1029
    x = np.resize(values(4099), n)
    got = xp.asnumpy(ops.activation(xp.asarray(x), name))
    few = xp.asnumpy(ops.activation(xp.asarray(x[:4099]), name))
    np.testing.assert_array_equal(got, np.resize(few, n))
    given = xp.asarray(x)
    np.testing.assert_array_equal(xp.asnumpy(ops.activation(given, name, out=given)), got)


def test_a_broadcast_view_and_rank_0(xp):
    x = xp.asarray(np.float32([[-1], [2]]))
    view = np.broadcast_to(x, (2, 3), subok=True) if xp.name == "emulated" else None
    if view is not None:
        np.testing.assert_array_equal(xp.asnumpy(ops.relu(view)), [[0, 0, 0], [2, 2, 2]])
    assert ops.relu(xp.asarray(np.float32(-3).reshape(()))).shape == ()
    assert ops.relu(xp.asarray(np.empty((0, 3), np.float32))).shape == (0, 3)


@every_activation
def test_out_in_place_is_exact(name, xp):
    x = values(5, 7)
    expected = xp.asnumpy(ops.activation(xp.asarray(x), name))
    a = xp.asarray(x.copy())
    assert ops.activation(a, name, out=a) is a
    assert xp.asnumpy(a).tobytes() == expected.tobytes()


def test_out_of_another_layout_or_overlapping_is_right():
    x = values(64)
    expected = ops.tanh(x)
    strided = np.zeros(128, np.float32)[::2]
    assert ops.tanh(x, out=strided) is strided
    np.testing.assert_array_equal(strided, expected)
    buffer = np.zeros(65, np.float32)
    buffer[:64] = x
    ops.tanh(buffer[:64], out=buffer[1:])
    np.testing.assert_array_equal(buffer[1:], expected)
    images = values(2, 3, 4, 5)
    channels_last = np.zeros((2, 4, 5, 3), np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(ops.tanh(images, out=channels_last), ops.tanh(images))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros(3, np.float32), ValueError, "out: expected shape (4,), got (3,)"),
        (np.zeros(4, np.float64), TypeError, "out: expected float32, got float64"),
        ([0, 0, 0, 0], TypeError, "out: expected ndarray, got list"),
        (np.broadcast_to(np.float32(0), 4), ValueError, "out: the array is read-only"),
    ],
)
def test_bad_out(out, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ops.relu(values(4), out=out)


def test_out_with_a_tensor_is_a_type_error():
    x = values(4)
    with pytest.raises(TypeError, match="out= is for arrays"):
        ops.relu(Tensor(x, requires_grad=True), out=x)


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.activation(x, "rely"), ValueError, "activation: expected one of relu,"),
        (lambda x: ops.activation(x, None), ValueError, "name: expected an activation, got None"),
        (lambda x: ops.activation(x, ("relu", 1, 2, 3)), ValueError, "activation: expected (name, alpha"),
        (lambda x: ops.activation(x, ("elu", "1")), TypeError, "activation: expected a number, got '1'"),
        (lambda x: ops.activation(x, 7), ValueError, "got 7"),
        (lambda x: ops.activation(x, ()), ValueError, "activation: expected"),
        (lambda x: ops.activation(x, (["relu"],)), ValueError, "activation: expected one of"),
        (lambda x: ops.relu(x.astype(np.int64)), TypeError, "x: expected float32 or float64, got int64"),
        (lambda x: ops.relu("abc"), TypeError, "x: expected an array of numbers, got str"),
        (lambda x: ops.elu(x, -1), ValueError, "alpha: elu expects at least 0, got -1.0"),
        (lambda x: ops.celu(x, 0), ValueError, "alpha: celu expects a positive number, got 0.0"),
        (lambda x: ops.softplus(x, 0), ValueError, "beta: softplus expects a positive number, got 0.0"),
        (lambda x: ops.softplus(x, float("nan")), ValueError, "beta: softplus expects"),
        (lambda x: ops.hardtanh(x, 1, 1), ValueError, "min_val: hardtanh expects less than max_val (1.0)"),
        (lambda x: ops.gelu(x, "exact"), ValueError, "approximate: expected 'none' or 'tanh', got 'exact'"),
        (
            lambda x: ops.activation_backward(x[1:], x, "relu"),
            ValueError,
            "dy: expected shape (4,)",
        ),
        (lambda x: ops.activation_backward(x.astype(float), x, "relu"), TypeError, "dy: expected float32"),
        (lambda x: ops.activation_backward(x, x, None), ValueError, "name: expected an activation, got None"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(values(4))


def test_two_devices_are_a_type_error(device):
    x = values(4)
    with pytest.raises(TypeError, match="one device"):
        ops.activation_backward(device.asarray(x), x, "relu")


def test_the_binding_refuses_what_does_not_fit():
    """A direct call of the kernel with the wrong arrays never reaches it."""
    x, relu = values(4, 6), (1, 0.0, 0.0)
    for bad in (np.zeros((4, 5), np.float32), np.zeros((4, 6)), np.zeros((6, 4), np.float32).T):
        with pytest.raises((ValueError, TypeError)):
            _cpu.activation_forward(x, bad, relu)
        with pytest.raises((ValueError, TypeError)):
            _cpu.activation_backward(x, x, bad, relu)
    for kind in ((99, 0.0, 0.0), (-1, 0.0, 0.0), (1, 0.0), (1, "a", 0.0), "relu", 2**70):
        with pytest.raises(TypeError):
            _cpu.activation_forward(x, x.copy(), kind)


# Gradients --------------------------------------------------------------------------------------------


@every_activation
@settings(max_examples=5)  # a gradcheck costs thirty calls
@given(seed=st.integers(0, 2**32 - 1))
def test_gradients(name, seed):
    x = values(3, 4, dtype=np.float64, seed=seed)
    x[np.abs(np.abs(x) - 1) < 0.05] = 0.7  # hardtanh's kinks
    x[np.abs(np.abs(x) - 3) < 0.05] = 2.5  # hardsigmoid's and hardswish's
    assert gradcheck(lambda t: ops.activation(t, name), [x])


def test_a_recorded_activation_keeps_its_layout_and_adds_up():
    x = Tensor(values(2, 3, 4, 5).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), requires_grad=True)
    y = ops.tanh(x)
    (y * y + ops.relu(x)).sum().backward()
    t = np.tanh(x.numpy().astype(np.float64))
    np.testing.assert_allclose(x.grad.numpy(), 2 * t * (1 - t * t) + (x.numpy() > 0), rtol=1e-5, atol=1e-6)


def test_no_grad_records_nothing():
    x = Tensor(values(3), requires_grad=True)
    with br.no_grad():
        assert not ops.relu(x).requires_grad


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"step"}))
def test_torch_gives_the_same(name):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    peers = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "sign": torch.sign}
    peers["gelu_tanh"] = lambda t: functional.gelu(t, approximate="tanh")
    peer = peers.get(name) or getattr(functional, name)
    x, dy = values(1000, dtype=np.float64), values(1000, dtype=np.float64, seed=1)
    t = torch.tensor(x, requires_grad=True)
    expected = peer(t)
    expected.backward(torch.tensor(dy))
    rtol = 1e-7 if name == "hardsigmoid" else 1e-12  # torch's slope there is float32(1 / 6)
    np.testing.assert_allclose(ops.activation(x, name), expected.detach().numpy(), rtol=rtol, atol=1e-14)
    np.testing.assert_allclose(backward_of(name, x, dy), t.grad.numpy(), rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("dtype", [object, "S1", bool, np.int64, np.complex64, "V4"])
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "erf"])
def test_elementary_functions_refuse_what_is_no_floating_array(name, dtype):
    with pytest.raises(TypeError, match="x: expected float16"):
        getattr(ops, name)(np.ones(3).astype(dtype) if dtype != "V4" else np.zeros(3, dtype))


def test_methods_of_a_tensor_of_integers_give_float32():
    x = br.Tensor(np.arange(1, 4))
    for result in (x.exp(), x.log(), x.expm1(), x.log1p(), x.logsumexp(0)):
        assert result.dtype == np.float32


def test_out_that_overlaps_or_lies_otherwise_gives_the_same_result():
    line = np.linspace(-1, 1, 12).astype(np.float32)
    expected = ops.relu(line[:8])
    for out in (line.copy()[:8], np.empty(16, np.float32)[::2]):
        assert ops.relu(line[:8], out=out) is out
        np.testing.assert_array_equal(out, expected)
    shifted = line[1:9]
    assert ops.relu(line[:8], out=shifted) is shifted  # what it overlaps is changed, the result is right
    np.testing.assert_array_equal(shifted, expected)

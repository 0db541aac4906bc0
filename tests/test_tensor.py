"""Tensor against NumPy: values and dtypes of every method, gradients of first and second order."""

from __future__ import annotations

import copy
import operator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from brasa import ops
from brasa._shape import scatter
from brasa.autograd import grad, no_grad
from brasa.tensor import Tensor, cat, maximum, minimum, split, stack, where
from brasa.testing import assert_close, gradcheck

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
}
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


def values(shape: tuple[int, ...], seed: int = 0, dtype: type = np.float64) -> np.ndarray:
    """Distinct numbers in [0.4, 2.4], none within 1e-4 of another: away from kinks, ties and poles."""
    size = int(np.prod(shape))
    order = np.random.Generator(np.random.Philox(seed)).permutation(size)
    return (0.4 + 2.0 * (order + 0.31 * (seed + 1) / 3) / max(size, 1)).reshape(shape).astype(dtype)


def signed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Like `values`, about half of them negative."""
    x = values(shape, seed)
    return x * np.where(np.arange(x.size).reshape(shape) % 2, 1.0, -1.0)


def gradgradcheck(f, *arrays):
    """Second derivatives: gradcheck of the gradient of a non-linear function of what `f` returns."""

    def first(*tensors):
        y = f(*tensors)
        return list(grad((y * y * y).sum(), [t for t in tensors if t.requires_grad], create_graph=True))

    def all_first(*tensors):
        inner = [t if t.requires_grad else Tensor(t, requires_grad=True) for t in tensors]
        return first(*inner)

    gradcheck(all_first, arrays)


# Making and looking


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, "float32"), (2, "int64"), (True, "bool"), ([[1.0, 2.0]], "float32"), ([1, 2], "int64"),
        (np.arange(3, dtype=np.float64), "float64"), (np.arange(3, dtype=np.uint8), "uint8"),
        (np.arange(3, dtype=np.float16), "float16"),
    ],
)  # fmt: skip
def test_dtype_of_data(data, dtype):
    assert Tensor(data).dtype == dtype


def test_an_array_is_shared():
    a = np.zeros(3)
    t = Tensor(a)
    assert t.data is a
    assert t.numpy() is a
    assert Tensor(t).data is a
    assert t.detach().data is a
    assert np.asarray(t) is a


def test_properties():
    t = Tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    assert (t.shape, t.ndim, t.size, len(t), t.dtype, t.device) == ((2, 3), 2, 6, 2, np.float32, "cpu")
    assert t.is_leaf
    assert t.grad is None
    assert t.version == 0
    assert not (t * 2).is_leaf
    assert t.T.shape == (3, 2)
    assert [row.shape for row in t] == [(3,), (3,)]
    with pytest.raises(TypeError, match="without dimensions"):
        len(Tensor(1.0))
    with pytest.raises(AttributeError):
        t.gard = 1


def test_repr():
    assert (
        repr(Tensor([1.0, 2.0], requires_grad=True)) == "Tensor([1., 2.], dtype=float32, requires_grad=True)"
    )
    assert repr(Tensor([[1, 2], [3, 4]])) == "Tensor([[1, 2],\n        [3, 4]], dtype=int64)"
    assert repr(Tensor(True)) == "Tensor(True, dtype=bool)"
    assert len(repr(Tensor(np.zeros(10**6)))) < 200


def test_only_floats_have_gradients():
    for data in (1, True, np.arange(3)):
        with pytest.raises(TypeError, match="only floating dtypes"):
            Tensor(data, requires_grad=True)
    y = Tensor(1.0, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad = False


def test_one_element():
    t = Tensor([[2.5]], requires_grad=True)
    assert t.item() == 2.5
    assert float(t) == 2.5
    assert int(t) == 2
    assert bool(t)
    assert not Tensor(0)
    for method in (bool, float, Tensor.item):
        with pytest.raises(ValueError, match=r"shape.* \(2,\)|one element"):
            method(Tensor([1.0, 2.0]))


def test_deepcopy_of_leaves():
    class Special(Tensor):
        pass

    t = Special(np.arange(6.0).reshape(2, 3).T, requires_grad=True)
    t.name = "weight"
    (t * 2).sum().backward()
    a, b = copy.deepcopy([t, t])
    assert a is b
    assert type(a) is Special
    assert a.name == "weight"
    assert a.requires_grad
    assert not np.shares_memory(a.data, t.data)
    assert not np.shares_memory(a.grad.data, t.grad.data)
    assert a.data.strides == t.data.strides
    np.testing.assert_array_equal(a.grad.data, t.grad.data)
    with pytest.raises(RuntimeError, match="only leaves"):
        copy.deepcopy(t * 2)


def test_assignment():
    t = Tensor(np.zeros(3))
    t[1] = 5.0
    t[Tensor([0])] = Tensor(np.array([7.0]))
    assert t.tolist() == [7, 5, 0]
    assert t.version == 2
    w = Tensor(np.zeros(3), requires_grad=True)
    with pytest.raises(RuntimeError, match="recorded"):
        w[0] = 1.0
    with pytest.raises(RuntimeError, match="recorded"):
        (w * 2)[0] = 1.0
    with no_grad():
        w[0] = 1.0
    assert w.version == 1


def test_augmented_assignment_rebinds():
    w = Tensor(np.ones(2), requires_grad=True)
    before = w
    w += 1.0
    assert w is not before
    assert before.tolist() == [1, 1]
    assert not w.is_leaf


@pytest.mark.parametrize("compare", COMPARISONS)
def test_comparisons_give_arrays(compare):
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    for left, right in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b)), (Tensor(a), 2.0)):
        result = compare(left, right)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, compare(a, b))
    assert hash(Tensor(a)) != hash(Tensor(a))


def test_backward_needs_a_scalar_or_a_gradient():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"must have shape \(2,\), got \(3,\)"):
        (x * 2).backward(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="must have dtype float32, got float64"):
        (x * 2).backward(np.zeros(2))
    with pytest.raises(RuntimeError, match="requires a gradient"):
        Tensor(1.0).backward()
    (x * 2).backward([1.0, 3.0])
    assert x.grad.tolist() == [2, 6]


# Arithmetic


@given(
    st.sampled_from(sorted(BINARY)), npst.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3)
)
@example("div", npst.BroadcastableShapes(((), ()), ()))
@example("mul", npst.BroadcastableShapes(((0, 1), (3,)), (0, 3)))
def test_arithmetic(name, shapes):
    f = BINARY[name]
    a, b = values(shapes.input_shapes[0]), values(shapes.input_shapes[1], 1)
    for left, right in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
        result = f(left, right)
        assert type(result) is Tensor
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result.data, f(a, b))
    gradcheck(f, (a, b))


@given(st.sampled_from(sorted(BINARY)), SHAPES, st.sampled_from([2, 3.5, -1.5, 0, 1]))
def test_arithmetic_with_numbers(name, shape, c):
    f = BINARY[name]
    x = values(shape)
    if not (name == "div" and c == 0):
        np.testing.assert_array_equal(f(Tensor(x), c).data, f(x, c))
        gradcheck(lambda t: f(t, c), x)
    if not (name == "pow" and c < 0):
        np.testing.assert_array_equal(f(c, Tensor(x)).data, f(c, x))
        if not (name == "pow" and c == 0):
            gradcheck(lambda t: f(c, t), x)


@pytest.mark.parametrize("name", sorted(BINARY))
def test_arithmetic_twice(name):
    gradgradcheck(BINARY[name], values((2, 3)), values((3,), 1))
    gradgradcheck(lambda t: BINARY[name](t, 3), values((2, 2)))
    gradgradcheck(lambda t: BINARY[name](3, t), values((2, 2)))


def test_power_at_zero():
    x = Tensor(np.array([0.0, 0.0, 2.0]), requires_grad=True)
    e = Tensor(np.array([0.0, 2.0, 0.0]), requires_grad=True)
    (x**e).sum().backward()
    assert x.grad.tolist() == [0, 0, 0]
    assert e.grad.tolist() == [0, 0, np.log(2.0)]
    y = Tensor(np.array([0.0, -1.0]), requires_grad=True)
    (y**2).sum().backward()
    assert y.grad.tolist() == [0, -2]
    z = Tensor(np.array([0.0, -1.0]), requires_grad=True)
    (z**0).sum().backward()
    assert z.grad.tolist() == [0, 0]


def test_dtypes_are_not_promoted_silently():
    half, single, double = (Tensor(np.ones(2, t)) for t in (np.float16, np.float32, np.float64))
    for f in BINARY.values():
        with pytest.raises(TypeError, match="float32 and float64"):
            f(single, double)
        for t in (half, single, double):
            for other in (
                2,
                2.5,
                np.float64(2.5),
                np.int64(2),
                [1.0, 2.0],
                np.arange(1, 3),
                Tensor([True, True]),
            ):
                assert f(t, other).dtype == t.dtype
            assert f(2.5, t).dtype == t.dtype
            assert f(np.float64(2.5), t).dtype == t.dtype
    whole = Tensor([1, 2])
    assert (whole + 1).dtype == np.int64
    assert (whole + 0.5).dtype == np.float32
    assert (whole / whole).dtype == np.float32
    assert (whole / 2).dtype == np.float32
    assert whole.exp().dtype == np.float32
    assert whole.mean().dtype == np.float32
    assert whole.sum().dtype == np.int64
    assert whole.var().dtype == np.float32


def test_gradients_keep_the_dtype_beside_integers():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * np.arange(2) + np.arange(2) / x).sum().backward()
    assert x.grad.dtype == np.float32
    assert x.grad.tolist() == [0, 0.75]


def test_strange_operands():
    for other in (None, "3"):
        with pytest.raises(TypeError):
            Tensor(1.0) + other
    with pytest.raises(ValueError, match="broadcast"):
        Tensor([1.0, 2.0]) + Tensor([1.0, 2.0, 3.0])


@pytest.mark.skipif(not hasattr(ops, "matmul"), reason="no matmul yet")
def test_matmul_operator():
    a, b = values((2, 3)), values((3, 4), 1)
    for left, right in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
        assert_close(left @ right, a @ b, rtol=1e-14)
    gradcheck(operator.matmul, (a, b))


# Elementwise methods: (method, NumPy's function, sample)

ELEMENTWISE = {
    "exp": (np.exp, signed),
    "expm1": (np.expm1, signed),
    "log": (np.log, values),
    "log1p": (np.log1p, values),
    "sqrt": (np.sqrt, values),
    "sin": (np.sin, signed),
    "cos": (np.cos, signed),
    "abs": (np.abs, signed),
    "__neg__": (np.negative, signed),
    "copy": (np.copy, signed),
}


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
@settings(max_examples=10)
@given(SHAPES)
def test_elementwise(name, shape):
    function, sample = ELEMENTWISE[name]
    x = sample(shape)
    f = operator.methodcaller(name)
    result = f(Tensor(x))
    assert type(result.data) is np.ndarray
    np.testing.assert_array_max_ulp(result.data, function(x), 4)
    assert f(Tensor(x.astype(np.float32))).dtype == np.float32
    gradcheck(f, x)


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_elementwise_twice(name):
    gradgradcheck(operator.methodcaller(name), ELEMENTWISE[name][1]((2, 3)))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh,
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "log_softmax": lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    if not hasattr(ops, name):
        pytest.skip(f"no {name} yet")
    x = signed((3, 5))
    f = operator.methodcaller(name)
    assert_close(f(Tensor(x)), ACTIVATIONS[name](x), rtol=1e-13, atol=1e-15)
    gradcheck(f, x)


def test_clip():
    x = signed((3, 4))
    for low, high in ((-0.5, 1.0), (None, 1.0), (-0.5, None)):
        np.testing.assert_array_equal(Tensor(x).clip(low, high).data, x.clip(low, high))
        gradcheck(lambda t, low=low, high=high: t.clamp(low, high), x)
        gradgradcheck(lambda t, low=low, high=high: t.clip(low, high), x)
    with pytest.raises(ValueError, match="low, high or both"):
        Tensor(x).clip()


@given(npst.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3))
def test_where(shapes):
    condition = signed(shapes.input_shapes[0]) > 0
    a, b = values(shapes.input_shapes[1], 1), values(shapes.input_shapes[2], 2)
    np.testing.assert_array_equal(where(condition, Tensor(a), b).data, np.where(condition, a, b))
    gradcheck(lambda x, y: where(condition, x, y), (a, b))
    gradcheck(lambda x: where(condition, x, 0.5), a)
    gradcheck(lambda x: where(Tensor(condition), 0.5, x), a)


def test_where_of_arrays_and_numbers():
    condition = np.array([True, False])
    assert type(where(condition, np.ones(2), 0.0)) is np.ndarray
    assert where(condition, np.ones(2, np.float32), 0.5).dtype == np.float32
    assert where(condition, 1.0, 0.0).tolist() == [1, 0]
    assert where(condition, 1, np.arange(2)).dtype == np.int64
    with pytest.raises(TypeError, match="float32 and float64"):
        where(condition, np.ones(2, np.float32), np.ones(2))


@pytest.mark.parametrize(("f", "reference"), [(maximum, np.maximum), (minimum, np.minimum)])
def test_maximum_and_minimum(f, reference):
    a, b = signed((2, 3)), signed((3,), 2)
    np.testing.assert_array_equal(f(Tensor(a), b).data, reference(a, b))
    gradcheck(f, (a, b))
    gradgradcheck(f, a, b)
    x, y = Tensor([1.0, 2.0], requires_grad=True), Tensor([1.0, 1.0], requires_grad=True)
    f(x, y).sum().backward()
    assert (x.grad.numpy() + y.grad.numpy()).tolist() == [1, 1]
    assert x.grad.tolist()[0] == 0.5


def test_torch_tensors_that_numpy_cannot_read_are_named():
    torch = pytest.importorskip("torch")
    for tensor, why in (
        (torch.ones(3, dtype=torch.bfloat16), "(?i:bfloat16)"),
        (torch.ones(3, requires_grad=True), "requires grad"),
    ):
        with pytest.raises(TypeError, match=rf"^x: NumPy cannot read this torch.Tensor: .*{why}"):
            ops.relu(tensor)
        with pytest.raises(TypeError, match=r"^b: NumPy cannot read"):
            ops.matmul(np.ones((2, 3), np.float32), tensor)


def test_astype_and_to():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.astype(np.float64)
    assert y.dtype == np.float64
    (y * y).sum().backward()
    assert x.grad.dtype == np.float32
    assert x.to("cpu") is x
    assert x.to(np.float32) is x
    assert x.to("float16").dtype == np.float16
    assert x.astype(int).requires_grad is False
    with pytest.raises(ValueError, match="cuda"):
        x.to("cuda:99")
    gradgradcheck(lambda t: t.astype(np.float64) * 1, values((3,)))


# Reductions

AXES = st.sampled_from([None, 0, 1, -1, (0, 1), (-1, 0), ()])
REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min,
    "prod": np.prod, "var": np.var, "std": np.std,
    "logsumexp": lambda x, axis, keepdims: np.log(np.exp(x).sum(axis=axis, keepdims=keepdims)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
@settings(max_examples=20)
@given(npst.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=4), AXES, st.booleans())
def test_reductions(name, shape, axis, keepdims):
    if name in ("var", "std") and axis == ():
        return
    x = signed(shape)
    f = operator.methodcaller(name, axis=axis, keepdims=keepdims)
    result = f(Tensor(x))
    expected = REDUCTIONS[name](x, axis=axis, keepdims=keepdims)
    assert type(result.data) is np.ndarray
    assert_close(result, expected, rtol=1e-13, atol=1e-15)
    assert f(Tensor(x.astype(np.float32))).dtype == np.float32
    gradcheck(f, x)


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_reductions_twice(name):
    gradgradcheck(operator.methodcaller(name, axis=1), signed((2, 3)))


def test_reductions_of_nothing_and_of_one():
    empty = Tensor(np.zeros((0, 3)), requires_grad=True)
    assert empty.sum(0).tolist() == [0, 0, 0]
    assert empty.prod(0).tolist() == [1, 1, 1]
    (empty.sum() + empty.prod(0).sum()).backward()
    assert empty.grad.shape == (0, 3)
    with pytest.raises(ValueError, match="zero-size"):
        empty.max()
    for name in REDUCTIONS:
        if name != "std":
            gradcheck(operator.methodcaller(name), np.array(1.5))


def test_variance_with_ddof():
    x = signed((3, 4))
    assert_close(Tensor(x).var(1, ddof=1), x.var(1, ddof=1), rtol=1e-14)
    assert_close(Tensor(x).std(ddof=1), x.std(ddof=1), rtol=1e-14)
    gradcheck(lambda t: t.std(0, ddof=1), x)


def test_ties_share_the_gradient():
    x = Tensor(np.array([[2.0, 2.0, 1.0], [3.0, 3.0, 3.0]]), requires_grad=True)
    x.max(axis=1).backward(np.array([1.0, 3.0]))
    assert x.grad.tolist() == [[0.5, 0.5, 0], [1, 1, 1]]


def test_product_with_zeros():
    for zeros in (0, 1, 2):
        x = values((5,))
        x[:zeros] = 0.0
        gradcheck(Tensor.prod, x)


def test_logsumexp_does_not_overflow():
    x = np.array([[1000.0, 1000.0], [-np.inf, -1000.0]])
    assert_close(Tensor(x).logsumexp(1), [1000 + np.log(2), -1000], rtol=1e-15)


def test_argmax_is_an_array():
    x = signed((3, 4))
    assert type(Tensor(x).argmax(1)) is np.ndarray
    np.testing.assert_array_equal(Tensor(x).argmax(1), x.argmax(1))
    np.testing.assert_array_equal(Tensor(x).argmin(0), x.argmin(0))
    assert Tensor(x).argmax() == x.argmax()


# Shapes and indexing


@st.composite
def arrays_and_indices(draw):
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    kind = draw(st.sampled_from(["basic", "integers", "mask", "mixed"]))
    if kind == "basic":
        return shape, draw(npst.basic_indices(shape, allow_newaxis=True))
    if kind == "integers":
        return shape, draw(npst.integer_array_indices(shape))
    if kind == "mask":
        return shape, signed(shape) > 0
    rows = draw(st.lists(st.integers(-shape[0], shape[0] - 1), min_size=1, max_size=4))
    return shape, (rows, ...)


@given(arrays_and_indices())
@settings(max_examples=80)
def test_indexing(case):
    shape, index = case
    x = signed(shape)
    result = Tensor(x)[index]
    np.testing.assert_array_equal(result.data, x[index])
    gradcheck(lambda t: t[index], x)


@pytest.mark.parametrize(
    "index", [0, (slice(None), 1), [0, 0, 1], (np.array([0, 0]), np.array([1, 1])), None]
)
def test_indexing_twice(index):
    gradgradcheck(lambda t: t[index], signed((2, 3)))


def test_indexing_with_tensors():
    x = Tensor(np.arange(6.0).reshape(3, 2))
    rows = Tensor([2, 0])
    np.testing.assert_array_equal(x[rows].data, x.data[[2, 0]])
    np.testing.assert_array_equal(x[rows, Tensor([1, 0])].data, [5, 0])
    with pytest.raises(IndexError):
        x[3]


def test_basic_indexing_shares_memory():
    x = Tensor(np.zeros((3, 3)))
    row = x[1]
    row[0] = 5.0
    assert x.data[1, 0] == 5
    assert x.version == 1


SHAPED = {
    "reshape": (lambda t: t.reshape(4, 6), lambda x: x.reshape(4, 6)),
    "reshape one": (lambda t: t.reshape((-1, 2)), lambda x: x.reshape(-1, 2)),
    "view": (lambda t: t.view(-1), lambda x: x.reshape(-1)),
    "flatten": (lambda t: t.flatten(), lambda x: x.reshape(-1)),
    "flatten from 1": (lambda t: t.flatten(1), lambda x: x.reshape(2, 12)),
    "flatten to 1": (lambda t: t.flatten(0, 1), lambda x: x.reshape(6, 4)),
    "transpose": (lambda t: t.transpose(), lambda x: x.T),
    "transpose axes": (lambda t: t.transpose(1, 2, 0), lambda x: x.transpose(1, 2, 0)),
    "transpose tuple": (lambda t: t.transpose((-1, 0, 1)), lambda x: x.transpose(-1, 0, 1)),
    "permute": (lambda t: t.permute(2, 0, 1), lambda x: x.transpose(2, 0, 1)),
    "T": (lambda t: t.T, lambda x: x.T),
    "swapaxes": (lambda t: t.swapaxes(0, -1), lambda x: x.swapaxes(0, -1)),
    "unsqueeze": (lambda t: t.unsqueeze(-2), lambda x: x[:, :, None, :]),
    "squeeze": (lambda t: t.unsqueeze(1).squeeze(), lambda x: x),
    "squeeze axis": (lambda t: t.unsqueeze(0).squeeze(0), lambda x: x),
    "broadcast_to": (lambda t: t.broadcast_to(2, 2, 3, 4), lambda x: np.broadcast_to(x, (2, 2, 3, 4))),
    "cat": (lambda t: cat([t, t * 2.0], axis=1), lambda x: np.concatenate([x, x * 2], 1)),
    "cat last": (lambda t: cat((t, t[..., :1]), -1), lambda x: np.concatenate([x, x[..., :1]], -1)),
    "stack": (lambda t: stack([t, t * 2.0], axis=1), lambda x: np.stack([x, x * 2], 1)),
    "stack last": (lambda t: stack([t, t], axis=-1), lambda x: np.stack([x, x], -1)),
    "split": (lambda t: t.split(2, axis=2)[1], lambda x: x[:, :, 2:]),
    "split extents": (lambda t: split(t, [1, 2], 1)[1], lambda x: x[:, 1:]),
}


@pytest.mark.parametrize("name", sorted(SHAPED))
def test_shapes(name):
    f, reference = SHAPED[name]
    x = signed((2, 3, 4))
    np.testing.assert_array_equal(f(Tensor(x)).data, reference(x))
    gradcheck(f, x)
    gradgradcheck(f, signed((2, 3, 4)))


def test_joining_arrays_gives_arrays():
    a = np.ones((2, 2), np.float32)
    assert type(cat([a, a])) is np.ndarray
    assert type(stack([a, a])) is np.ndarray
    assert all(type(part) is np.ndarray for part in split(a, 1))
    assert type(cat([a, Tensor(a)])) is Tensor


def test_joining_errors():
    a = np.ones((2, 2), np.float32)
    for f in (cat, stack):
        with pytest.raises(ValueError, match="at least one"):
            f([])
    with pytest.raises(TypeError, match="float32 and float64"):
        cat([a, a.astype(np.float64)])
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
        stack([a, np.ones((3, 2), np.float32)])
    with pytest.raises(ValueError, match="out of range"):
        stack([a, a], axis=3)
    with pytest.raises(ValueError, match="do not add up to 2"):
        split(a, [1, 2])
    with pytest.raises(ValueError, match="positive"):
        split(a, 0)
    with pytest.raises(ValueError, match="swapaxes"):
        Tensor(np.zeros((2, 2, 2))).transpose(0, 1)


def test_cat_gives_each_its_part():
    a, b, c = (Tensor(np.ones((n, 2)), requires_grad=n != 2) for n in (1, 2, 3))
    y = cat([a, b, c])
    y.backward(np.arange(12.0).reshape(6, 2))
    assert a.grad.tolist() == [[0, 1]]
    assert b.grad is None
    assert c.grad.tolist() == [[6, 7], [8, 9], [10, 11]]


def test_views_are_not_copies():
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    for y in (x.reshape(3, 2), x.T, x[0], x.broadcast_to(2, 2, 3), x.flatten()):
        assert np.shares_memory(x.data, y.data)


@given(st.data())
@settings(max_examples=60)
def test_chains_of_methods(data):
    """A few random methods in a row, one input used in several places."""
    steps = {
        "mul": lambda t, x: t * x[: t.shape[0]].sum() if t.ndim else t * x.sum(),
        "exp": lambda t, x: (t * 0.1).exp(),
        "T": lambda t, x: t.T,
        "sum": lambda t, x: t.sum(axis=0, keepdims=True) if t.ndim else t,
        "add": lambda t, x: t + x.mean(),
        "index": lambda t, x: t[::-1] if t.ndim else t,
        "reshape": lambda t, x: t.reshape(-1),
        "join": lambda t, x: cat([t, t]) if t.ndim else t,
        "divide": lambda t, x: t / (x * x + 1.0).sum(),
    }
    names = data.draw(st.lists(st.sampled_from(sorted(steps)), min_size=1, max_size=5))

    def f(x):
        t = x
        for name in names:
            t = steps[name](t, x)
        return t

    gradcheck(f, signed((2, 3)))


# Other kinds of array


def _everything(x, w):
    """A bit of each family of operators; positive arguments."""
    y = (x * w + w / x - x**2 + 2**w).exp().log() + where(x > w, x, 0.5) + x.clip(0.5, 1.5)
    z = cat([y, y.T.reshape(y.shape)], axis=1).max(axis=1) + y.var(1) + y.prod(1) + y.logsumexp(1)
    return (z * y[[0, 0, 1], 1]).sum() + y[1:, ::2].mean() + stack([z, z]).min()


def test_every_kind_of_array(xp):
    a, b = values((3, 4)), values((4,), 1)
    expected = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
    _everything(*expected).backward()
    x, w = Tensor(xp.asarray(a), requires_grad=True), Tensor(xp.asarray(b), requires_grad=True)
    y = _everything(x, w)
    y.backward()
    for actual, reference in ((x, expected[0]), (w, expected[1])):
        assert type(actual.grad.data) is type(actual.data)
        assert_close(actual.grad, reference.grad, rtol=1e-12, atol=1e-14)
    assert type(y.data) is type(x.data)
    if xp.name != "cpu":
        assert x.device.startswith("cuda")
        assert type(x.numpy()) is np.ndarray
        with pytest.raises(TypeError, match="'cpu'"):
            x * np.ones((3, 4))
        with pytest.raises(TypeError, match="use numpy"):
            np.asarray(x)
        assert x.to("cpu").device == "cpu"


def test_the_gradient_of_an_index_keeps_the_format_of_images():
    image = np.ones((2, 6, 6, 4), np.float32).transpose(0, 3, 1, 2)
    scattered = scatter(image[:, 1:3], (slice(None), slice(1, 3)), image.shape)
    expected = np.ones(image.shape, np.float32)
    expected[:, [0, 3]] = 0
    np.testing.assert_array_equal(scattered, expected)
    assert scattered.strides == image.strides

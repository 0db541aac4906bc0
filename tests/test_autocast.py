"""`autocast`: which dtype each operator computes in, gradients, and the casts of weights."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, _backend, nn, ops
from brasa.nn import functional as F

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOAT32 = np.dtype(np.float32)
both = pytest.mark.parametrize("name", DTYPES)


def array(device, *shape, dtype=FLOAT32, seed=0):
    return device.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def square(device, dtype):
    """A Tensor (4, 4) of positive numbers."""
    return Tensor(device.asarray(np.abs(np.random.default_rng(1).standard_normal((4, 4))).astype(dtype) + 1))


INDICES = np.array([0, 3, 1, 2])

# What PyTorch's documentation of CUDA autocast lists, where brasa has the operator: the dtype of the result
# for arguments of 16 bits (first) and of float32 (second); "n" is the dtype of the block.
PRODUCTS = {
    "matmul": lambda x: x @ x,
    "linear": lambda x: F.linear(x, x, x[0].astype("float32")),
    "conv2d": lambda x: ops.conv2d(x.reshape(1, 1, 4, 4), x.reshape(1, 1, 4, 4), padding=1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "lstm": lambda x: _sequence(x, ops.lstm, x, br.cat((x, x, x, x)), br.cat((x, x, x, x)))[0],
    "lstm's cell": lambda x: _sequence(x, ops.lstm, x, br.cat((x, x, x, x)), br.cat((x, x, x, x)))[2],
    "gru": lambda x: _sequence(x, ops.gru, br.cat((x, x, x)), br.cat((x, x, x)))[0],
    "rnn": lambda x: _sequence(x, ops.rnn, x, x)[1],
}


def _sequence(x, op, *rest):
    return op(x.reshape(1, 4, 4), x, *rest, rest[-1][:, 0].astype("float32"))


IN_FLOAT32 = {
    "softmax": lambda x: ops.softmax(x),
    "log_softmax": lambda x: ops.log_softmax(x),
    "cross_entropy": lambda x: ops.cross_entropy(x, INDICES),
    "nll_loss": lambda x: F.nll_loss(x, INDICES),
    "mse_loss": lambda x: F.mse_loss(x, x),
    "l1_loss": lambda x: F.l1_loss(x, x),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, x),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x),
    "layer_norm": lambda x: ops.layer_norm(x),
    "softplus": lambda x: ops.softplus(x),
    "exp": lambda x: x.exp(),
    "expm1": lambda x: x.expm1(),
    "log": lambda x: x.log(),
    "log1p": lambda x: x.log1p(),
    "pow": lambda x: x**2.5,
    "rpow": lambda x: 2.0**x,
    "reciprocal": lambda x: 1.0 / x,
    "lstm_cell": lambda x: ops.lstm_cell(x, x, x, br.cat((x, x, x, x)), br.cat((x, x, x, x)))[0],
    "gru_cell": lambda x: ops.gru_cell(x, x, br.cat((x, x, x)), br.cat((x, x, x))),
    "sum": lambda x: x.sum(),
}
AS_THEY_COME = {
    "relu": lambda x: ops.relu(x),
    "gelu": lambda x: ops.gelu(x),
    "tanh": lambda x: x.tanh(),
    "dropout": lambda x: ops.dropout(x, 0.5, 1, 0),
    "max_pool2d": lambda x: ops.max_pool2d(x.reshape(1, 1, 4, 4), 2),
    "avg_pool2d": lambda x: ops.avg_pool2d(x.reshape(1, 1, 4, 4), 2),
    "batch_norm": lambda x: ops.batch_norm(x, training=True),
    "embedding": lambda x: ops.embedding(INDICES, x),
    "add": lambda x: x + x,
    "multiply": lambda x: x * 2,
    "mean": lambda x: x.mean(),
    "max": lambda x: x.max(),
    "reshape": lambda x: x.reshape(2, 8),
    "cat": lambda x: br.cat((x, x)),
}
RESULTS = [
    *((op, call, ("n", "n")) for op, call in PRODUCTS.items()),
    *((op, call, ("float32", "float32")) for op, call in IN_FLOAT32.items()),
    *((op, call, ("n", "float32")) for op, call in AS_THEY_COME.items()),
]


@pytest.fixture
def indices(device, monkeypatch):
    monkeypatch.setattr(f"{__name__}.INDICES", device.asarray(np.array([0, 3, 1, 2])))


@both
@pytest.mark.usefixtures("indices")
@pytest.mark.parametrize(("op", "call", "expected"), RESULTS, ids=[r[0] for r in RESULTS])
def test_dtypes_of_results_are_those_of_torch(device, name, op, call, expected):
    for given, wanted in zip((name, "float32"), expected, strict=True):
        x = square(device, DTYPES.get(given, FLOAT32))
        with br.autocast(name):
            y = call(x)
        assert y.dtype == DTYPES.get(name if wanted == "n" else wanted, FLOAT32), (op, given)


WIDER_OF_TWO = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "maximum": lambda x, y: br.maximum(x, y),
    "where": lambda x, y: br.where(x.data > 0, x, y),
    "cat": lambda x, y: br.cat((x, y)),
    "batch_norm": lambda x, y: ops.batch_norm(x, training=True, residual=y),
}


@both
@pytest.mark.parametrize("op", WIDER_OF_TWO)
def test_where_float32_meets_16_bits_the_result_is_float32(device, name, op):
    x, y = square(device, DTYPES[name]), square(device, FLOAT32)
    for first, second in ((x, y), (y, x)):
        first.requires_grad = second.requires_grad = True
        first.grad = second.grad = None
        with br.autocast(name):
            result = WIDER_OF_TWO[op](first, second)
        assert result.dtype == FLOAT32
        result.backward(device.asarray(np.ones(result.shape, np.float32)))
        assert first.grad is None or first.grad.dtype == first.dtype
        assert second.grad is None or second.grad.dtype == second.dtype
    if op != "batch_norm":
        with pytest.raises(TypeError, match=r"float32|dtype"):
            WIDER_OF_TWO[op](x, y)


@both
def test_arrays_are_cast_as_tensors_are(device, name):
    x, w = array(device, 3, 4), array(device, 4, 5, seed=1)
    with br.autocast(name):
        y = ops.matmul(x, w, activation="relu")
    assert y.dtype == DTYPES[name]
    assert ops.matmul(x, w).dtype == FLOAT32


@both
def test_float64_and_the_cpu_are_left_alone(device, name):
    with br.autocast(name):
        assert (
            array(device, 3, 3, dtype=np.float64) @ array(device, 3, 3, dtype=np.float64)
        ).dtype == np.float64
        x = Tensor(np.ones((2, 2), np.float32))
        assert (x @ x).dtype == FLOAT32
        y = Tensor(array(device, 3, 3, dtype=np.float64))
        assert (y @ y).dtype == np.float64


@both
def test_gradients_are_float32_and_near_those_of_float32(device, name):
    """Products of operands rounded to u: the gradients are within a few u of their scale."""
    br.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = device.asarray(tensor.data)
    x, labels = array(device, 9, 12), device.asarray(np.arange(9) % 5)
    found = {}
    for enabled in (True, False):
        model.zero_grad()
        with br.autocast(name, enabled=enabled):
            loss = F.cross_entropy(model(x), labels)
        assert loss.dtype == FLOAT32
        loss.backward()
        found[enabled] = [device.asnumpy(p.grad.data) for p in model.parameters()]
    for got, want in zip(found[True], found[False], strict=True):
        assert got.dtype == FLOAT32
        assert np.abs(got - want).max() <= 40 * ROUNDING[name] * np.abs(want).max() + ROUNDING[name]


def casts_of(function, monkeypatch):
    """How many casts of arrays an operator's arguments take while `function` runs."""
    count = 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return cast(*arguments)

    cast = _backend.cast
    with monkeypatch.context() as patched:
        patched.setattr(_backend, "cast", counted)
        function()
    return count


@both
def test_a_weight_is_cast_once_and_again_after_it_changed(device, name, monkeypatch):
    weight = Tensor(array(device, 4, 4), requires_grad=True)
    x = array(device, 3, 4, dtype=DTYPES[name])

    def three_uses():
        with br.autocast(name):
            y = x
            for _ in range(3):
                y = ops.matmul(y, weight)

    assert casts_of(three_uses, monkeypatch) == 1

    def changed_between():
        with br.autocast(name):
            first = ops.matmul(x, weight)
            with br.no_grad():
                weight.data[...] = 2 * weight.data
                weight.version += 1
            second = ops.matmul(x, weight)
            assert not np.array_equal(device.asnumpy(first.data), device.asnumpy(second.data))

    assert casts_of(changed_between, monkeypatch) == 2


@both
def test_a_cast_serves_several_backwards(device, name):
    """Gradients may be accumulated within one block, with the same cast of the weight."""
    weight = Tensor(array(device, 4, 4), requires_grad=True)
    x = array(device, 3, 4)
    with br.autocast(name):
        for _ in range(2):
            ops.matmul(x, weight).sum().backward()
        with br.no_grad():
            quiet = ops.matmul(x, weight)
        ops.matmul(x, weight).sum().backward()
    assert not quiet.requires_grad
    once = Tensor(weight.data, requires_grad=True)
    with br.autocast(name):
        ops.matmul(x, once).sum().backward()
    np.testing.assert_allclose(
        device.asnumpy(weight.grad.data), 3 * device.asnumpy(once.grad.data), rtol=1e-6
    )


@both
def test_shared_weights_get_the_sum_of_both_gradients(device, name):
    weight = Tensor(array(device, 4, 4), requires_grad=True)
    x = array(device, 3, 4)
    with br.autocast(name):
        y = ops.matmul(ops.matmul(x, weight), weight)
    y.backward(device.asarray(np.ones((3, 4), DTYPES[name])))
    w, values = device.asnumpy(weight.data).astype(np.float64), device.asnumpy(x).astype(np.float64)
    want = values.T @ (np.ones((3, 4)) @ w.T) + (values @ w).T @ np.ones((3, 4))
    got = device.asnumpy(weight.grad.data)
    assert got.dtype == FLOAT32
    scale = np.abs(values).T @ (np.ones((3, 4)) @ np.abs(w).T) + (np.abs(values) @ np.abs(w)).T @ np.ones(
        (3, 4)
    )
    assert np.all(np.abs(got - want) <= 6 * ROUNDING[name] * scale)


def test_blocks_nest_and_decorate(device):
    x = Tensor(array(device, 2, 2))
    with br.autocast("float16"):
        assert (x @ x).dtype == np.float16
        with br.autocast(enabled=False):
            assert (x @ x).dtype == FLOAT32
            with br.autocast("bfloat16"):
                assert (x @ x).dtype == DTYPES["bfloat16"]
        assert (x @ x).dtype == np.float16
    assert (x @ x).dtype == FLOAT32

    @br.autocast("float16")
    def product(depth):
        return x @ x if not depth else product(depth - 1)

    assert product(2).dtype == np.float16
    with pytest.raises(RuntimeError, match="out"), br.autocast("float16"):
        raise RuntimeError("out")
    assert (x @ x).dtype == FLOAT32


def test_a_block_holds_for_its_thread(device):
    x, seen = Tensor(array(device, 2, 2)), []
    with br.autocast("float16"):
        thread = threading.Thread(target=lambda: seen.append((x @ x).dtype))
        thread.start()
        thread.join()
    assert seen == [FLOAT32]


def test_backward_within_the_block(device):
    """The operators that a gradient is made of are not cast again."""
    x = square(device, FLOAT32)
    x.requires_grad = True
    with br.autocast("float16"):
        ((x @ x).exp() / 3.0).sum().backward()
    assert x.grad.dtype == FLOAT32
    with br.autocast("float16"):
        (gradient,) = br.grad((x.exp() * x).sum(), x, create_graph=True)
    assert gradient.dtype == FLOAT32


def test_inference_of_a_layer(device):
    layer = nn.Linear(4, 3)
    for parameter in layer.parameters():
        parameter.data = device.asarray(parameter.data)
    with br.inference(layer), br.autocast("float16"):
        assert layer(array(device, 2, 4)).dtype == np.float16


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype: expected 'bfloat16' or 'float16', got 'float32'"):
        br.autocast("float32")


class Block(nn.Module):
    """Two paths that meet, as in a residual network; smooth, as a relu near 0 may open on one side alone."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 6)

    def forward(self, x):
        y = self.norm(self.first(x))
        y = ops.tanh(self.second(ops.tanh(y)) + y)
        return self.out(y.mean(axis=(2, 3)))


NETWORKS = {
    "images": (Block, (3, 2, 5, 5)),
    "transformer": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 6)
        ),
        (3, 4, 6),
    ),
    "additive attention": (lambda: Additive(), (3, 4, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM(8, 8)), (5, 3, 6)),
    "two directions, projected": (
        lambda: Recurrent(nn.LSTM(8, 8, num_layers=2, bidirectional=True, proj_size=4), [5, 2, 4]), (5, 3, 6)
    ),
    "gru": (lambda: Recurrent(nn.GRU(8, 8, num_layers=2), [5, 2, 4]), (5, 3, 6)),
    "rnn": (lambda: Recurrent(nn.RNN(8, 8)), (5, 3, 6)),
}  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, cells, lengths=None):
        super().__init__()
        self.before, self.cells, self.after = nn.Linear(6, 8), cells, nn.Linear(8, 6)
        self.lengths = lengths

    def forward(self, x):
        y, _ = self.cells(self.before(x), lengths=self.lengths)
        return self.after(y)


class Additive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.after = nn.AdditiveAttention(6, 6, 8), nn.Linear(6, 6)

    def forward(self, x):
        y = self.attention(x[:, 0], x)
        return self.after(y[0] if isinstance(y, tuple) else y)


@both
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_are_near_those_of_float32(device, name, kind):
    """Results within 4 roundings of the largest, gradients within 16: sums are float32, and four layers round."""
    br.manual_seed(0)
    make, shape = NETWORKS[kind]
    net = make()
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = device.asarray(tensor.data)
    x = Tensor(array(device, *shape))
    found = {}
    for enabled in (True, False):
        net.zero_grad()
        with br.autocast(name, enabled=enabled):
            y = net(x)
            loss = F.mse_loss(y, Tensor(array(device, *y.shape, seed=3)))
        assert y.dtype == (DTYPES[name] if enabled else FLOAT32)
        loss.backward()
        values = [device.asnumpy(p.grad.data) for p in net.parameters()]
        assert all(v.dtype == FLOAT32 for v in values)
        found[enabled] = [device.asnumpy(y.data).astype(np.float32), *values]
    for i, (got, want) in enumerate(zip(found[True], found[False], strict=True)):
        allowed = (16 if i else 4) * ROUNDING[name] * np.abs(want).max() + ROUNDING[name] / 4
        assert np.abs(got - want).max() <= allowed

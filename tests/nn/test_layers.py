"""Every layer against torch's: outputs, gradients, arguments."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, nn

LAYERS = {
    "identity": (lambda nn: nn.Identity(), (2, 3)),
    "linear": (lambda nn: nn.Linear(5, 7), (4, 5)),
    "linear_3d": (lambda nn: nn.Linear(5, 7), (2, 3, 5)),
    "linear_1d": (lambda nn: nn.Linear(5, 7), (5,)),
    "linear_no_bias": (lambda nn: nn.Linear(5, 7, False), (4, 5)),
    "conv": (lambda nn: nn.Conv2d(3, 8, 3), (2, 3, 9, 8)),
    "conv_stride": (lambda nn: nn.Conv2d(3, 8, (3, 5), (2, 1), (1, 2)), (2, 3, 9, 8)),
    "conv_dilated": (
        lambda nn: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False),
        (2, 4, 9, 8),
    ),
    "conv_depthwise": (lambda nn: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 7, 7)),
    "conv_same": (lambda nn: nn.Conv2d(3, 4, (4, 3), padding="same"), (1, 3, 7, 6)),
    "conv_valid": (lambda nn: nn.Conv2d(3, 4, 1, padding="valid"), (1, 3, 7, 6)),
    "max_pool": (lambda nn: nn.MaxPool2d(2), (2, 3, 8, 7)),
    "max_pool_padded": (lambda nn: nn.MaxPool2d((3, 2), 2, (1, 0), ceil_mode=True), (2, 3, 8, 7)),
    "max_pool_dilated": (lambda nn: nn.MaxPool2d(2, 1, 0, 2), (2, 3, 8, 7)),
    "avg_pool": (lambda nn: nn.AvgPool2d(2), (2, 3, 8, 7)),
    "avg_pool_padded": (lambda nn: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 3, 8, 7)),
    "avg_pool_divisor": (lambda nn: nn.AvgPool2d((3, 2), ceil_mode=True, divisor_override=5), (2, 3, 8, 7)),
    "adaptive_avg": (lambda nn: nn.AdaptiveAvgPool2d((3, None)), (2, 3, 8, 7)),
    "adaptive_max": (lambda nn: nn.AdaptiveMaxPool2d(3), (2, 3, 8, 7)),
    "batch_norm_1d": (lambda nn: nn.BatchNorm1d(5), (8, 5)),
    "batch_norm_1d_sequence": (lambda nn: nn.BatchNorm1d(5, eps=1e-3), (4, 5, 3)),
    "batch_norm": (lambda nn: nn.BatchNorm2d(3, momentum=0.3), (4, 3, 5, 5)),
    "batch_norm_cumulative": (lambda nn: nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 5)),
    "batch_norm_plain": (lambda nn: nn.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 5, 5)),
    "layer_norm": (lambda nn: nn.LayerNorm(6), (4, 3, 6)),
    "layer_norm_2d": (lambda nn: nn.LayerNorm((3, 6), eps=1e-3, bias=False), (4, 3, 6)),
    "layer_norm_plain": (lambda nn: nn.LayerNorm(6, elementwise_affine=False), (4, 3, 6)),
    "dropout_0": (lambda nn: nn.Dropout(0.0), (4, 3)),
    "flatten": (lambda nn: nn.Flatten(), (2, 3, 4, 5)),
    "flatten_part": (lambda nn: nn.Flatten(-3, 2), (2, 3, 4, 5)),
    "unflatten": (lambda nn: nn.Unflatten(1, (2, -1)), (2, 6, 3)),
    "pixel_shuffle": (lambda nn: nn.PixelShuffle(2), (2, 12, 3, 5)),
    "pixel_shuffle_3": (lambda nn: nn.PixelShuffle(3), (2, 18, 3, 2)),
    "pixel_unshuffle": (lambda nn: nn.PixelUnshuffle(2), (2, 3, 6, 4)),
    "softmax": (lambda nn: nn.Softmax(dim=1), (3, 5, 2)),
    "log_softmax": (lambda nn: nn.LogSoftmax(dim=-1), (3, 5)),
    "relu": (lambda nn: nn.ReLU(inplace=True), (3, 5)),
    "leaky_relu": (lambda nn: nn.LeakyReLU(0.2), (3, 5)),
    "elu": (lambda nn: nn.ELU(0.7), (3, 5)),
    "selu": (lambda nn: nn.SELU(), (3, 5)),
    "celu": (lambda nn: nn.CELU(1.5), (3, 5)),
    "gelu": (lambda nn: nn.GELU(), (3, 5)),
    "gelu_tanh": (lambda nn: nn.GELU("tanh"), (3, 5)),
    "silu": (lambda nn: nn.SiLU(), (3, 5)),
    "mish": (lambda nn: nn.Mish(), (3, 5)),
    "softplus": (lambda nn: nn.Softplus(2.0, 3.0), (3, 5)),
    "sigmoid": (lambda nn: nn.Sigmoid(), (3, 5)),
    "tanh": (lambda nn: nn.Tanh(), (3, 5)),
    "hardtanh": (lambda nn: nn.Hardtanh(-0.5, 0.8), (3, 5)),
    "hardsigmoid": (lambda nn: nn.Hardsigmoid(), (3, 5)),
    "hardswish": (lambda nn: nn.Hardswish(), (3, 5)),
}
# Against a float64 torch run, relative to the largest value: all sums here are shorter than 1,000 terms.
BOUND = {np.float32: 2e-5, np.float64: 1e-12}


def close(actual, expected, dtype):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0.0), 1.0)
    assert np.abs(actual - expected).max(initial=0.0) <= BOUND[dtype] * scale


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_against_torch(name, dtype):
    torch = pytest.importorskip("torch")
    make, shape = LAYERS[name]
    ours, theirs = make(nn), make(torch.nn).double()
    state = {
        key: values(t.shape, 7) if t.dtype.is_floating_point else t for key, t in theirs.state_dict().items()
    }
    for key in state:
        if key == "running_var":
            state[key] = np.abs(state[key]) + 0.5
    theirs.load_state_dict({key: torch.as_tensor(v) for key, v in state.items()})
    ours.to(dtype).load_state_dict(theirs.state_dict())
    for step, mode in enumerate((True, True, False)):
        ours.train(mode)
        theirs.train(mode)
        data = values(shape, step).astype(dtype)
        x, x_torch = (
            Tensor(data, requires_grad=True),
            torch.tensor(data.astype(np.float64), requires_grad=True),
        )
        y, y_torch = ours(x), theirs(x_torch.clone())
        dy = values(y.shape, 100 + step).astype(dtype)
        y.backward(Tensor(dy))
        y_torch.backward(torch.tensor(dy.astype(np.float64)))
        close(y.data, y_torch.detach(), dtype)
        # torch multiplies the gradient of hardsigmoid by a float32 1/6 in float64 too.
        close(x.grad.data, x_torch.grad, np.float32 if name == "hardsigmoid" else dtype)
    for (key, p), p_torch in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close(p.grad.data, p_torch.grad, dtype), key
    for key, tensor in theirs.state_dict().items():
        close(ours.state_dict()[key].data, tensor, dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    make, shape = LAYERS[name]
    layer = make(nn).to(np.float64)
    for p in layer.parameters():
        p.data[...] = values(p.shape, 3)
    if name.startswith(("conv", "max", "avg", "adaptive")):
        shape = (1, *shape[1:])
    x = values(shape)
    if not name.startswith(("batch_norm", "layer_norm")):
        x = np.where(np.abs(x) < 1e-2, 0.1, x)
    layer.eval() if "cumulative" in name else layer.train()
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *parameters):
        vars(layer).update(zip(names, parameters, strict=True))
        return layer(x)

    assert br.testing.gradcheck(call, [x, *(p.data for p in layer.parameters())])


def test_max_pool_indices():
    torch = pytest.importorskip("torch")
    x = values((2, 3, 7, 6)).astype(np.float32)
    y, at = nn.MaxPool2d(3, 2, 1, return_indices=True)(x)
    y_torch, at_torch = torch.nn.MaxPool2d(3, 2, 1, return_indices=True)(torch.tensor(x))
    np.testing.assert_array_equal(y.data, y_torch)
    np.testing.assert_array_equal(at.data, at_torch)


def test_global_pooling():
    x = values((2, 3, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(nn.GlobalAvgPool2d()(x).data, x.mean((2, 3), keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(nn.GlobalMaxPool2d()(x).data, x.max((2, 3), keepdims=True))


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embedding(padding_idx):
    torch = pytest.importorskip("torch")
    ours, theirs = nn.Embedding(6, 3, padding_idx), torch.nn.Embedding(6, 3, padding_idx)
    if padding_idx is not None:
        assert (ours.weight.data[padding_idx] == 0).all()
        assert ours.padding_idx == theirs.padding_idx
    ours.load_state_dict(theirs.state_dict())
    indices = np.array([[0, 2, 5], [2, 2, 1]])
    y, y_torch = ours(indices), theirs(torch.tensor(indices))
    np.testing.assert_array_equal(y.data, y_torch.detach())
    dy = values(y.shape).astype(np.float32)
    y.backward(Tensor(dy))
    y_torch.backward(torch.tensor(dy))
    close(ours.weight.grad.data, theirs.weight.grad, np.float32)


def test_embedding_from_pretrained():
    rows = values((4, 3)).astype(np.float32)
    layer = nn.Embedding.from_pretrained(rows)
    assert layer.num_embeddings == 4
    assert not layer.weight.requires_grad
    np.testing.assert_array_equal(layer(np.array([3])).data, rows[3:])
    assert nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=-1).padding_idx == 3
    with pytest.raises(ValueError, match="embeddings"):
        nn.Embedding.from_pretrained(np.zeros(3, np.float32))


def test_dropout_drops_scales_and_repeats():
    x = np.ones((200, 500), np.float32)
    layer = nn.Dropout(0.3)
    br.manual_seed(5)
    first, second = layer(x).data, layer(x).data
    assert set(np.unique(first)) <= {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert abs((first == 0).mean() - 0.3) < 5 * np.sqrt(0.21 / x.size)
    assert (first != second).any()
    br.manual_seed(5)
    np.testing.assert_array_equal(layer(x).data, first)
    assert (nn.Dropout(1.0)(x).data == 0).all()
    np.testing.assert_array_equal(layer.eval()(x).data, x)


def test_dropout_gradient_has_the_same_mask():
    x = Tensor(np.ones((50, 20), np.float32), requires_grad=True)
    y = nn.Dropout(0.4)(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, y.data)


def test_batch_norm_statistics_survive_reuse_in_one_graph():
    layer = nn.BatchNorm1d(3)
    x = Tensor(values((4, 3)).astype(np.float32), requires_grad=True)
    layer(layer(x)).sum().backward()
    assert x.grad is not None
    assert layer.num_batches_tracked.item() == 2


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.2), "gelu"])
def test_activation_keyword(activation):
    x = values((4, 6)).astype(np.float32)
    layer = nn.Linear(6, 5)
    plain = br.ops.activation(layer(x), activation).data
    layer.activation = activation
    np.testing.assert_array_equal(layer(x).data, plain)


def test_same_seed_same_weights():
    def weights():
        br.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.Conv2d(2, 3, 3), nn.Embedding(3, 2))
        return [p.data for p in model.parameters()]

    for a, b in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    br.manual_seed(4)
    assert (nn.Linear(4, 5).weight.data != weights()[0]).any()


@pytest.mark.parametrize(
    ("make", "fan_in"), [(lambda: nn.Linear(50, 60), 50), (lambda: nn.Conv2d(8, 90, 3, groups=2), 36)]
)
def test_initial_distribution(make, fan_in):
    layer = make()
    bound = 1 / np.sqrt(fan_in)
    for p in layer.parameters():
        assert np.abs(p.data).max() <= bound
    assert abs(layer.weight.data.std() * np.sqrt(3) / bound - 1) < 0.05
    assert abs(nn.Embedding(100, 100).weight.data.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: nn.Linear(0, 3), ValueError, "in_features"),
        (lambda: nn.Linear(3, 2.0), TypeError, "out_features"),
        (lambda: nn.Linear(3, True), TypeError, "out_features"),
        (lambda: nn.Linear(3, 4, activation="rleu"), ValueError, "activation"),
        (lambda: nn.LayerNorm(3, activation=("elu", 1, 2, 3)), ValueError, "activation"),
        (lambda: nn.Conv2d(3, 4, 0), ValueError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, (1, 2, 3)), ValueError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 1.5), TypeError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), ValueError, "stride"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ValueError, "padding"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "padding"),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), ValueError, "padding"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect"), ValueError, "padding_mode"),
        (lambda: nn.MaxPool2d(0), ValueError, "kernel_size"),
        (lambda: nn.AvgPool2d(2, stride="x"), TypeError, "stride"),
        (lambda: nn.AdaptiveAvgPool2d((0, 1)), ValueError, "output_size"),
        (lambda: nn.BatchNorm2d(-1), ValueError, "num_features"),
        (lambda: nn.LayerNorm((3, 0)), ValueError, "normalized_shape"),
        (lambda: nn.Dropout(1.5), ValueError, "p: "),
        (lambda: nn.Embedding(3, 4, padding_idx=3), ValueError, "padding_idx"),
        (lambda: nn.GELU("erf"), ValueError, "approximate"),
        (lambda: nn.ELU(-1.0), ValueError, "alpha"),
        (lambda: nn.CELU(0.0), ValueError, "alpha"),
        (lambda: nn.Softplus(0.0), ValueError, "beta"),
        (lambda: nn.Hardtanh(1.0, 1.0), ValueError, "min_val"),
    ],
)
def test_bad_arguments_name_themselves(make, error, word):
    with pytest.raises(error, match=word):
        make()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (2, 3, 4, 4)),
        (nn.BatchNorm2d(3), (2, 3)),
        (nn.LayerNorm((3, 4)), (2, 4)),
        (nn.Flatten(1, 4), (2, 3)),
        (nn.Flatten(2, 1), (2, 3, 4)),
        (nn.Unflatten(1, (2, 2)), (2, 3)),
        (nn.Unflatten(3, (2, 2)), (2, 3)),
        (nn.Linear(3, 4), (2, 5)),
        (nn.Conv2d(3, 4, 3), (2, 5, 8, 8)),
    ],
)
def test_wrong_shapes(layer, shape):
    with pytest.raises(ValueError, match=r"got|divide|comes after"):
        layer(np.zeros(shape, np.float32))

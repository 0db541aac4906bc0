"""The functional names against torch's, with torch's argument order."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import Tensor
from brasa.nn import functional as F

RNG = np.random.default_rng(0)
IMAGE, VECTOR = RNG.normal(size=(2, 4, 6, 5)), RNG.normal(size=(3, 4))
C = RNG.uniform(0.5, 1.5, 4)
LOG_PROBS = np.log(np.random.default_rng(1).dirichlet(np.ones(4), (5, 2)))
CALLS = {
    "linear": lambda F, a: F.linear(a(VECTOR), a(np.full((5, 4), 0.3)), a(np.arange(5.0))),
    "conv2d": lambda F, a: F.conv2d(a(IMAGE), a(np.ones((4, 2, 3, 3))), a(C), 2, 1, 1, 2),
    "max_pool2d": lambda F, a: F.max_pool2d(a(IMAGE), 2, 2, 1, 1, True),
    "avg_pool2d": lambda F, a: F.avg_pool2d(a(IMAGE), 2, 1, 1, False, False),
    "adaptive_avg_pool2d": lambda F, a: F.adaptive_avg_pool2d(a(IMAGE), (2, 3)),
    "adaptive_max_pool2d": lambda F, a: F.adaptive_max_pool2d(a(IMAGE), 2),
    "pixel_shuffle": lambda F, a: F.pixel_shuffle(a(IMAGE), 2),
    "pixel_unshuffle": lambda F, a: F.pixel_unshuffle(a(IMAGE[..., :4]), 2),
    "batch_norm": lambda F, a: F.batch_norm(a(IMAGE), a(C), a(C * 2), a(C + 1), a(C - 1), False, 0.1, 1e-3),
    "batch_norm_training": lambda F, a: F.batch_norm(a(IMAGE), None, None, training=True),
    "layer_norm": lambda F, a: F.layer_norm(a(IMAGE), (6, 5), a(IMAGE[0, 0]), a(IMAGE[1, 1]), 1e-3),
    "scaled_dot_product_attention": lambda F, a: F.scaled_dot_product_attention(
        a(IMAGE),
        a(IMAGE[::-1].copy()),
        a(IMAGE[..., :3].copy()),
        a(np.tri(6, dtype=bool)),
        0.0,
        False,
        scale=0.3,
    ),
    "softmax": lambda F, a: F.softmax(a(IMAGE), 1),
    "log_softmax": lambda F, a: F.log_softmax(a(VECTOR), dim=-1),
    "gelu": lambda F, a: F.gelu(a(VECTOR), approximate="tanh"),
    "leaky_relu": lambda F, a: F.leaky_relu(a(VECTOR), 0.2),
    "elu": lambda F, a: F.elu(a(VECTOR), 0.7),
    "celu": lambda F, a: F.celu(a(VECTOR), 0.7),
    "softplus": lambda F, a: F.softplus(a(VECTOR), 2, 3),
    "hardtanh": lambda F, a: F.hardtanh(a(VECTOR), -0.5, 0.7),
    **{
        name: lambda F, a, name=name: getattr(F, name)(a(VECTOR))
        for name in ("relu", "selu", "sigmoid", "tanh", "silu", "mish", "hardsigmoid", "hardswish")
    },
    "embedding": lambda F, a: F.embedding(a(np.array([[0, 2]])), a(VECTOR), 2),
    "cross_entropy": lambda F, a: F.cross_entropy(a(VECTOR), a(np.array([0, 3, 1])), a(C), reduction="sum"),
    "ctc_loss": lambda F, a: F.ctc_loss(
        a(LOG_PROBS), a(np.array([[1, 1], [3, 2]])), (5, 4), (2, 1), 0, "none", True
    ),
    "nll_loss": lambda F, a: F.nll_loss(a(VECTOR), a(np.array([0, 3, 1])), a(C)),
    "mse_loss": lambda F, a: F.mse_loss(a(VECTOR), a(VECTOR[::-1].copy()), reduction="none"),
    "l1_loss": lambda F, a: F.l1_loss(a(VECTOR), a(VECTOR[::-1].copy())),
    "smooth_l1_loss": lambda F, a: F.smooth_l1_loss(a(VECTOR), a(VECTOR[::-1].copy()), beta=0.3),
    "huber_loss": lambda F, a: F.huber_loss(a(VECTOR), a(VECTOR[::-1].copy()), delta=0.3),
    "binary_cross_entropy": lambda F, a: F.binary_cross_entropy(a(C / 2), a(1 - C / 2), a(C)),
    "binary_cross_entropy_with_logits": lambda F, a: F.binary_cross_entropy_with_logits(a(C), a(C / 2), a(C)),
}


@pytest.mark.parametrize("name", CALLS)
def test_against_torch(name):
    torch = pytest.importorskip("torch")
    y = CALLS[name](F, np.copy)
    y = y.data if isinstance(y, Tensor) else y
    expected = CALLS[name](torch.nn.functional, torch.tensor).numpy()
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_every_name_is_tested():
    tested = {name.removesuffix("_training") for name in CALLS} | {"dropout"}
    assert tested == set(F.__all__)


def test_batch_norm_moves_the_running_statistics():
    mean, var = np.zeros(4), np.ones(4)
    F.batch_norm(IMAGE, mean, var, training=True, momentum=0.5)
    np.testing.assert_allclose(mean, IMAGE.mean((0, 2, 3)) / 2)
    np.testing.assert_allclose(var, 0.5 + IMAGE.var((0, 2, 3), ddof=1) / 2)


def test_dropout():
    x = np.ones((40, 50), np.float32)
    br.manual_seed(0)
    assert 0 < (F.dropout(x) == 0).mean() < 1
    assert F.dropout(x, training=False) is x
    assert F.dropout(x, p=0.0) is x
    with pytest.raises(ValueError, match="p: expected"):
        F.dropout(x, -0.1)


def test_layer_norm_checks_the_shape():
    with pytest.raises(ValueError, match=r"expected last dimensions \(3,\)"):
        F.layer_norm(IMAGE, (3,))

"""Losses against torch's."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, nn
from brasa.nn import functional as F

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5))
LOGITS = RNG.normal(size=(6, 5)) * 3
LABELS = RNG.integers(0, 5, 6)
WITH_IGNORED = np.where(np.arange(6) == 2, -100, LABELS)
SHARES = RNG.dirichlet(np.ones(5), 6)
TARGET = RNG.uniform(size=(6, 5))
WEIGHT = RNG.uniform(0.5, 2.0, 5)
IMAGE = RNG.normal(size=(2, 5, 3, 2))
IMAGE_LABELS = RNG.integers(0, 5, (2, 3, 2))


HARD = np.array([0.0, 1.0, 1.0, 1.0])


def logp(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


CASES = {
    "cross_entropy": (lambda nn, a, **k: nn.CrossEntropyLoss(**k), LOGITS, LABELS),
    "cross_entropy_ignore": (lambda nn, a, **k: nn.CrossEntropyLoss(**k), LOGITS, WITH_IGNORED),
    "cross_entropy_weight": (lambda nn, a, **k: nn.CrossEntropyLoss(a(WEIGHT), **k), LOGITS, LABELS),
    "cross_entropy_smooth": (lambda nn, a, **k: nn.CrossEntropyLoss(label_smoothing=0.1, **k), X, LABELS),
    "cross_entropy_shares": (lambda nn, a, **k: nn.CrossEntropyLoss(**k), LOGITS, SHARES),
    "cross_entropy_image": (lambda nn, a, **k: nn.CrossEntropyLoss(**k), IMAGE, IMAGE_LABELS),
    "nll": (lambda nn, a, **k: nn.NLLLoss(**k), logp(LOGITS), LABELS),
    "nll_ignore": (lambda nn, a, **k: nn.NLLLoss(**k), logp(LOGITS), WITH_IGNORED),
    "nll_ignore_3": (lambda nn, a, **k: nn.NLLLoss(ignore_index=3, **k), logp(LOGITS), LABELS),
    "nll_weight": (lambda nn, a, **k: nn.NLLLoss(a(WEIGHT), **k), logp(LOGITS), WITH_IGNORED),
    "nll_image": (lambda nn, a, **k: nn.NLLLoss(a(WEIGHT), **k), logp(IMAGE), IMAGE_LABELS),
    "mse": (lambda nn, a, **k: nn.MSELoss(**k), X, TARGET),
    "l1": (lambda nn, a, **k: nn.L1Loss(**k), X, TARGET),
    "smooth_l1": (lambda nn, a, **k: nn.SmoothL1Loss(beta=0.5, **k), X, TARGET),
    "smooth_l1_0": (lambda nn, a, **k: nn.SmoothL1Loss(beta=0.0, **k), X, TARGET),
    "huber": (lambda nn, a, **k: nn.HuberLoss(delta=0.7, **k), X, TARGET),
    "bce": (lambda nn, a, **k: nn.BCELoss(**k), RNG.uniform(size=(6, 5)), TARGET),
    "bce_weight": (lambda nn, a, **k: nn.BCELoss(a(WEIGHT), **k), RNG.uniform(size=(6, 5)), TARGET),
    "bce_hard": (lambda nn, a, **k: nn.BCELoss(**k), HARD, HARD[::-1].copy()),
    "bce_logits": (lambda nn, a, **k: nn.BCEWithLogitsLoss(**k), LOGITS, TARGET),
    "bce_logits_large": (lambda nn, a, **k: nn.BCEWithLogitsLoss(**k), LOGITS * 100, np.round(TARGET)),
    "bce_logits_weights": (
        lambda nn, a, **k: nn.BCEWithLogitsLoss(a(WEIGHT), pos_weight=a(WEIGHT[::-1].copy()), **k), LOGITS,
        TARGET,
    ),
}  # fmt: skip
BOUND = {np.float32: 1e-5, np.float64: 1e-12}


def cast(array, dtype):
    return array.astype(dtype) if array.dtype.kind == "f" else array


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_against_torch(name, reduction, dtype):
    torch = pytest.importorskip("torch")
    make, data, target = CASES[name]
    data, target = cast(data, dtype), cast(target, dtype)
    ours = make(nn, lambda a: a.astype(dtype), reduction=reduction)
    theirs = make(torch.nn, lambda a: torch.tensor(a.astype(dtype)).double(), reduction=reduction)
    x, x_torch = Tensor(data, requires_grad=True), torch.tensor(cast(data, np.float64), requires_grad=True)
    loss, loss_torch = ours(x, target), theirs(x_torch, torch.tensor(cast(target, np.float64)))
    assert loss.shape == tuple(loss_torch.shape)
    assert loss.dtype == dtype
    loss.sum().backward()
    loss_torch.sum().backward()
    for a, b in ((loss.data, loss_torch.detach().numpy()), (x.grad.data, x_torch.grad.numpy())):
        # torch's limit on the divisor of the gradient of BCELoss is a float32 1e-12.
        bound = max(BOUND[dtype], 1e-8) if name == "bce_hard" else BOUND[dtype]
        assert np.abs(a - b).max() <= bound * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("bce_hard", "bce_logits_large")])
def test_gradcheck(name):
    make, data, target = CASES[name]
    loss = make(nn, lambda a: a)
    x = data * 0.98 + 0.01 if name.startswith("bce") and "logits" not in name else data
    assert br.testing.gradcheck(lambda x: loss(x, target), Tensor(x.copy(), requires_grad=True))


def test_bce_with_logits_keeps_tiny_losses():
    loss = nn.BCEWithLogitsLoss(reduction="none")(np.float32([30.0, -30.0]), np.float32([1.0, 0.0]))
    assert 0 < loss.data[0] < 1e-12


def test_nll_ignores_infinite_log_probabilities_of_ignored_rows():
    x = Tensor(np.float32([[-np.inf, 0.0], [-1.0, -2.0]]), requires_grad=True)
    loss = nn.NLLLoss()(x, np.array([-100, 1]))
    loss.backward()
    assert loss.item() == 2.0
    np.testing.assert_array_equal(x.grad.data, [[0, 0], [0, -1]])


@pytest.mark.parametrize("make", [nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss])
@pytest.mark.parametrize("dtype", [np.int64, bool])
def test_targets_that_are_no_floats_take_the_dtype_of_the_input(make, dtype):
    x, target = np.float32([0.25, 0.75]), np.array([0, 1])
    loss = make()(x, target.astype(dtype))
    assert loss.dtype == np.float32
    assert loss.item() == make()(x, target.astype(np.float32)).item()


def test_losses_with_buffers_have_a_state():
    loss = nn.CrossEntropyLoss(np.ones(3, np.float32))
    assert list(loss.state_dict()) == ["weight"]
    assert list(nn.NLLLoss().state_dict()) == []


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: nn.MSELoss(reduction="max"), ValueError, "reduction"),
        (lambda: nn.HuberLoss(delta=0), ValueError, "delta"),
        (lambda: nn.SmoothL1Loss(beta=-1), ValueError, "beta"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=1.5), ValueError, "label_smoothing"),
        (lambda: nn.MSELoss()(np.zeros((3, 1), np.float32), np.zeros(3, np.float32)), ValueError, "target"),
        (lambda: nn.MSELoss()(np.zeros(3, np.float32), np.zeros(3)), TypeError, "float32, got float64"),
        (lambda: nn.BCELoss()(np.float32([1.5]), np.float32([1])), ValueError, "probabilities"),
        (
            lambda: nn.NLLLoss()(np.zeros((2, 3), np.float32), np.array([0, 3])),
            ValueError,
            "got 3 at position 1",
        ),
        (
            lambda: nn.NLLLoss()(np.zeros((2, 3), np.float32), np.array([0, -1])),
            ValueError,
            "got -1 at position 1",
        ),
        (lambda: nn.NLLLoss()(np.zeros((2, 3), np.float32), np.array([0, 1, 2])), ValueError, "shape"),
        (lambda: nn.NLLLoss()(np.zeros((2, 3), np.float32), np.float32([0, 1])), TypeError, "integers"),
        (lambda: F.l1_loss(np.zeros(2, np.float32), np.zeros(2, np.float32), "avg"), ValueError, "reduction"),
    ],
)
def test_bad_arguments(call, error, word):
    with pytest.raises(error, match=word):
        call()


@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum", "zero_infinity": True}, {"blank": 3, "reduction": "none"}]
)
def test_ctc_against_torch(options):
    torch = pytest.importorskip("torch")
    logits = RNG.normal(size=(7, 3, 5))
    targets, steps, lengths = np.array([[1, 1, 2], [4, 0, 0], [2, 4, 4]]), [7, 5, 6], [3, 1, 2]
    x, x_torch = Tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    loss = nn.CTCLoss(**options)(x.log_softmax(-1), targets, steps, lengths)
    theirs = torch.nn.CTCLoss(**options)(x_torch.log_softmax(-1), torch.tensor(targets), steps, lengths)
    loss.sum().backward()
    theirs.sum().backward()
    np.testing.assert_allclose(loss.data, theirs.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(x.grad.data, x_torch.grad.numpy(), atol=1e-12)

"""Cross-entropy beyond the properties that all operators share: gradients, classes out of range, extreme logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import Tensor, _cpu, ops
from descriptors import UNIT
from descriptors.loss import _terms, cross_entropy, sample
from descriptors.softmax import relative_error, softmax

seeds = st.integers(0, 2**32 - 1)


def gradient(dy, logits, targets, *, weight, ignore_index, label_smoothing, reduction):
    """dlogits in float64, and what of it is subtracted: sum_c factor_c p - factor."""
    factors, weights = _terms(logits, targets, weight, ignore_index, label_smoothing)
    scale = dy if reduction == "none" else dy / (weights.sum() if reduction == "mean" else 1)
    scale = np.broadcast_to(scale, weights.shape)[:, None]
    p = softmax(logits, 1)
    return scale * (factors.sum(1, keepdims=True) * p - factors), (np.abs(scale), factors, p)


def check_backward(xp, arguments, dy):
    dtype = dy.dtype.type
    device = {k: xp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    _, saved = ops.cross_entropy(**device, save=True)
    got = xp.asnumpy(ops.cross_entropy_backward(xp.asarray(np.asarray(dy)), **device, saved=saved))
    wide = {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
        for k, v in arguments.items()
    }
    wanted, (scale, factors, p) = gradient(dy.astype(np.float64), **wide)
    total = factors.sum(1, keepdims=True)
    relative = relative_error({"x": wide["logits"], "axis": 1}, UNIT[dtype]) + 16 * UNIT[dtype]
    bound = scale * total * p * relative + 8 * UNIT[dtype] * scale * factors
    assert np.all(np.abs(got - wanted) <= bound + 1e-44)


@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_backward(xp, seed, dtype):
    rng = np.random.default_rng(seed)
    arguments = sample(rng, dtype)
    shape = arguments["logits"].shape
    dy = rng.standard_normal((shape[0], *shape[2:]) if arguments["reduction"] == "none" else ()).astype(dtype)
    check_backward(xp, arguments, np.asarray(dy))


@pytest.mark.parametrize("classes", [131, 256, 1028, 4099, 8196, 32772])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_classes(xp, classes, smoothing, dtype):
    rng = np.random.default_rng(classes)
    arguments = {
        "logits": (rng.standard_normal((3, classes)) * 3).astype(dtype),
        "targets": rng.integers(0, classes, 3),
        "weight": None,
        "ignore_index": -100,
        "label_smoothing": smoothing,
        "reduction": "none",
    }
    check_backward(xp, arguments, rng.standard_normal(3).astype(dtype))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_backward_has_the_same_bits_everywhere(reduction, smoothing, set_threads):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((300, 70)).astype(np.float32)
    targets = rng.integers(0, 70, 300)
    results = set()
    before = _cpu.isa()
    for isa in _cpu.supported_isas():
        for threads in (1, 2, 3):
            _cpu._set_isa(isa)
            set_threads(threads)
            loss, saved = ops.cross_entropy(
                logits, targets, reduction=reduction, label_smoothing=smoothing, save=True
            )
            dx = ops.cross_entropy_backward(
                np.ones_like(loss),
                logits,
                targets,
                reduction=reduction,
                label_smoothing=smoothing,
                saved=saved,
            )
            if isa != "baseline":
                results.add(np.asarray(loss).tobytes() + dx.tobytes())
    _cpu._set_isa(before)
    assert len(results) == 1


def test_streamed_gradients_have_the_bits_of_cached_ones(isa):
    rng = np.random.default_rng(2)
    logits, targets = rng.standard_normal((4104, 1024)).astype(np.float32), rng.integers(0, 1024, 4104)
    one = np.ones((), np.float32)

    def gradient(part):
        _, saved = ops.cross_entropy(logits[part], targets[part], reduction="sum", save=True)
        return ops.cross_entropy_backward(one, logits[part], targets[part], reduction="sum", saved=saved)

    whole = gradient(slice(None))
    for part in (slice(2052), slice(2052, None)):
        assert whole[part].tobytes() == gradient(part).tobytes()


def test_layouts_agree(xp):
    """Channels-last logits give the same losses, and a gradient in their layout."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((2, 21, 5, 9)).astype(np.float32)
    last = np.ascontiguousarray(logits.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    targets = xp.asarray(rng.integers(0, 21, (2, 5, 9)))
    losses = []
    for x in (xp.asarray(logits), xp.asarray(last)):
        t = Tensor(x, requires_grad=True)
        loss = ops.cross_entropy(t, targets)
        loss.backward()
        assert t.grad.data.strides == x.strides
        losses.append((float(xp.asnumpy(loss.data)), xp.asnumpy(t.grad.data)))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    np.testing.assert_allclose(losses[0][1], losses[1][1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("n", [2, 40, 1500])
def test_extreme_logits(xp, n):
    """Where softmax underflows, the loss is still exact: log(softmax) would be -inf."""
    logits = np.zeros((3, n), np.float32)
    logits[0, 1] = 1e4
    logits[1] = -np.inf
    logits[1, 0] = 0
    logits[2, 0] = np.nan
    losses = xp.asnumpy(
        ops.cross_entropy(xp.asarray(logits), xp.asarray(np.zeros(3, np.int64)), reduction="none")
    )
    assert losses[0] == 1e4
    assert losses[1] == 0
    assert np.isnan(losses[2])


def test_ignored_positions_count_for_nothing(xp):
    logits = np.random.default_rng(4).standard_normal((4, 5)).astype(np.float32)
    logits[1] = np.nan
    logits[3] = np.inf
    targets = np.array([2, 9, 0, 9])
    t = Tensor(xp.asarray(logits), requires_grad=True)
    loss = ops.cross_entropy(t, xp.asarray(targets), ignore_index=9)
    loss.backward()
    kept = [0, 2]
    wanted = cross_entropy(logits[kept].astype(np.float64), targets[kept])
    assert float(xp.asnumpy(loss.data)) == pytest.approx(float(wanted), rel=1e-6)
    grad = xp.asnumpy(t.grad.data)
    assert (grad[[1, 3]] == 0).all()
    assert (grad[kept] != 0).all()


def test_the_mean_of_nothing_is_nan_and_the_sum_is_zero(xp):
    logits = xp.asarray(np.zeros((2, 3), np.float32))
    targets = xp.asarray(np.full(2, -100))
    assert np.isnan(xp.asnumpy(ops.cross_entropy(logits, targets)))
    assert xp.asnumpy(ops.cross_entropy(logits, targets, reduction="sum")) == 0
    for reduction, shape in (("sum", ()), ("mean", ()), ("none", (0,))):
        y = ops.cross_entropy(logits[:0], targets[:0], reduction=reduction)
        assert y.shape == shape


@pytest.mark.parametrize("value", [-1, 3, 2**31, -(2**63)])
def test_a_class_out_of_range_is_named(value):
    targets = np.array([[0, 1], [value, -100]])
    with pytest.raises(
        ValueError, match=rf"targets: expected values in \[0, 3\), got {value} at position \(1, 0\)"
    ):
        ops.cross_entropy(np.zeros((2, 3, 2), np.float32), targets)


@pytest.mark.parametrize("n", [3, 40])
def test_a_class_out_of_range_on_a_device(device, monkeypatch, n):
    logits = device.asarray(np.random.default_rng(5).standard_normal((3, n)).astype(np.float32))
    targets = device.asarray(np.array([1, n, -1]))
    losses, saved = ops.cross_entropy(logits, targets, reduction="none", save=True)
    assert np.isnan(device.asnumpy(losses)).tolist() == [False, True, True]
    dy = device.asarray(np.ones(3, np.float32))
    dx = device.asnumpy(ops.cross_entropy_backward(dy, logits, targets, reduction="none", saved=saved))
    assert (dx[0] != 0).all()
    assert (dx[1:] == 0).all()
    monkeypatch.setenv("BRASA_CHECK", "1")
    with pytest.raises(ValueError, match=rf"got {n} at position \(1,\)"):
        ops.cross_entropy(logits, targets)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": np.zeros(3, np.float32)}, ValueError, "logits"),
        ({"logits": np.zeros((3, 0), np.float32)}, ValueError, "at least one class"),
        ({"targets": np.zeros((3, 4), np.int64)}, ValueError, "targets: expected shape"),
        ({"targets": np.zeros(3, np.float32)}, ValueError, "targets: expected shape"),
        ({"targets": np.zeros((3, 4), np.float64)}, TypeError, "targets: expected float32"),
        ({"targets": np.zeros(3, bool)}, TypeError, "targets: expected integers"),
        ({"weight": np.ones(3, np.float32)}, ValueError, "weight: expected shape"),
        ({"weight": np.ones(4)}, TypeError, "weight: expected float32"),
        ({"reduction": "max"}, ValueError, "reduction"), ({"reduction": None}, ValueError, "reduction"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"), ({"label_smoothing": "a"}, TypeError, "label"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index"),
    ],
)  # fmt: skip
def test_refusals(change, error, message):
    arguments = {"logits": np.zeros((3, 4), np.float32), "targets": np.zeros(3, np.int64)} | change
    with pytest.raises(error, match=message):
        ops.cross_entropy(**arguments)


@pytest.mark.torch
@given(seed=seeds)
def test_torch_agrees(seed):
    torch = pytest.importorskip("torch")
    arguments = sample(np.random.default_rng(seed), np.float64)
    given = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    if given["targets"].dtype == torch.int32:
        given["targets"] = given["targets"].long()
    given["input"], given["target"] = given.pop("logits"), given.pop("targets")
    given["input"].requires_grad_(True)
    theirs = torch.nn.functional.cross_entropy(**given)
    theirs.sum().backward()
    x = Tensor(arguments["logits"], requires_grad=True)
    ours = ops.cross_entropy(**(arguments | {"logits": x}))
    ours.sum().backward()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(x.grad.numpy(), given["input"].grad.numpy(), rtol=1e-11, atol=1e-14)

"""CTC loss beyond the properties that all operators share: alignments counted out, targets that cannot be spelt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import Tensor, ops
from descriptors import UNIT
from descriptors.ctc import loss_bound, losses_of, sample, targets_of
from descriptors.softmax import log_softmax

seeds = st.integers(0, 2**32 - 1)


def spelling(path, blank):
    """What a path of classes spells: runs of one class count once, blanks for nothing."""
    return [c for c, _ in itertools.groupby(path) if c != blank]


def counted_out(log_probs, labels, blank):
    """The loss by adding up every path, and the share of the paths that stand at each class and step."""
    steps, classes = log_probs.shape
    share = np.zeros_like(log_probs)
    for path in itertools.product(range(classes), repeat=steps):
        if spelling(path, blank) == list(labels):
            share[np.arange(steps), path] += np.exp(log_probs[np.arange(steps), path].sum())
    total = share.sum() / steps
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(total), share / total


def random_log_probs(rng, *shape, dtype=np.float64):
    return log_softmax(rng.standard_normal(shape) * 2, -1).astype(dtype)


def gradient(xp, log_probs, *arguments, **options):
    x = Tensor(xp.asarray(log_probs), requires_grad=True)
    loss = ops.ctc_loss(x, *(xp.asarray(a) for a in arguments), **options)
    loss.sum().backward()
    return xp.asnumpy(loss.data), xp.asnumpy(x.grad.data)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("labels", [[], [1], [1, 1], [3, 1], [1, 3, 1], [1, 1, 1], [3, 3, 1]])
def test_against_every_alignment(xp, labels, blank):
    rng = np.random.default_rng(len(labels))
    log_probs = random_log_probs(rng, 5, 1, 4)
    wanted, share = counted_out(log_probs[:, 0], labels, blank)
    loss, grad = gradient(
        xp,
        log_probs,
        np.array([labels], np.int64),
        np.array([5]),
        np.array([len(labels)]),
        blank=blank,
        reduction="none",
    )
    np.testing.assert_allclose(loss, [wanted], rtol=1e-14)
    np.testing.assert_allclose(grad[:, 0], -share, atol=1e-14)


@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_backward(xp, seed, dtype):
    """By the derivative of the reference: it is the same sum with one step's probability held at each class."""
    rng = np.random.default_rng(seed)
    arguments = sample(rng, dtype) | {"reduction": "none"}
    log_probs, lengths = arguments["log_probs"].astype(np.float64), arguments["target_lengths"]
    blank, labels = arguments["blank"], targets_of(arguments["targets"], lengths)
    dy = rng.standard_normal(lengths.shape).astype(dtype)
    device = {k: xp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    _, saved = ops.ctc_loss(**device, save=True)
    del device["zero_infinity"]
    got = xp.asnumpy(ops.ctc_loss_backward(xp.asarray(dy), **device, saved=saved))
    for n, steps in enumerate(arguments["input_lengths"]):
        wanted = -dy[n] * occupation(log_probs[:steps, n], labels[n], blank)
        # Two passes, each off by loss_bound's first term, over a total off by it as well; then some products.
        bound = (3 * loss_bound(0, steps, UNIT[dtype]) + 8 * UNIT[dtype]) * np.abs(wanted)
        assert (np.abs(got[:steps, n] - wanted) <= bound + 1e-37).all()
        assert (got[steps:, n] == 0).all()


def occupation(log_probs, labels, blank):
    """The share of alignments that stand at each class and step, 0 where there is no alignment."""
    states = [blank, *(state for label in labels for state in (label, blank))]
    last = len(states) - 1
    step = np.full((last + 1, last + 1), -np.inf)
    for s, state in enumerate(states):
        for source in (s, s - 1, s - 2):
            if source == s - 2 and (source < 0 or state in (blank, states[source])):
                continue
            if source >= 0:
                step[source, s] = 0
    emission = log_probs[:, states].astype(np.longdouble)
    ahead, back = np.full_like(emission, -np.inf), np.full_like(emission, -np.inf)
    for t in range(len(log_probs)):
        reach = (
            np.where(np.arange(last + 1) < 2, 0, -np.inf)
            if t == 0
            else np.logaddexp.reduce(ahead[t - 1][:, None] + step)
        )
        ahead[t] = reach + emission[t]
    for t in reversed(range(len(log_probs))):
        ends = np.where(np.arange(last + 1) > last - 2, 0, -np.inf)
        back[t] = (
            ends
            if t == len(log_probs) - 1
            else np.logaddexp.reduce(step + emission[t + 1] + back[t + 1], axis=1)
        )
    share = np.zeros_like(log_probs)
    if not len(log_probs):
        return share
    total = np.logaddexp.reduce(ahead[-1][-2:])
    if total > -np.inf:
        for s, state in enumerate(states):
            share[:, state] += np.exp(ahead[:, s] + back[:, s] - total)
    return share


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_long_sequence_keeps_its_digits(dtype):
    """In float32, logarithms of a thousand would leave a gradient of three digits."""
    rng = np.random.default_rng(1)
    log_probs = random_log_probs(rng, 400, 1, 30, dtype=dtype)
    labels = rng.integers(1, 30, (1, 100))
    x = Tensor(log_probs, requires_grad=True)
    loss = ops.ctc_loss(x, labels, [400], [100], reduction="sum")
    loss.backward()
    wide = log_probs.astype(np.float64)
    wanted = losses_of(wide, labels, [400], [100], 0)[0]
    assert abs(loss.item() - wanted) <= loss_bound(wanted, 400, UNIT[dtype])
    assert abs(loss.item() - wanted) < 1e-6 * wanted
    share = occupation(wide[:, 0], labels[0].tolist(), 0)
    assert np.abs(x.grad.numpy()[:, 0] + share).max() <= 3 * loss_bound(0, 400, UNIT[dtype])
    np.testing.assert_allclose(x.grad.numpy().sum(-1), -1, atol=3 * loss_bound(0, 400, UNIT[dtype]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_instruction_set(isa, dtype):
    """Also the one without fma, which rounds on its own; targets that end inside, at and beyond a vector."""
    rng = np.random.default_rng(9)
    log_probs, labels = random_log_probs(rng, 50, 6, 30, dtype=dtype), rng.integers(1, 30, (6, 33))
    arguments = labels, rng.integers(40, 51, 6), np.array([0, 7, 15, 16, 17, 33])
    loss, grad = gradient(np_arrays, log_probs, *arguments, reduction="none", zero_infinity=True)
    wide = log_probs.astype(np.float64)
    wanted = losses_of(wide, *arguments, 0)
    wanted[np.isinf(wanted)] = 0
    assert (np.abs(loss - wanted) <= loss_bound(wanted, 50, UNIT[dtype])).all()
    for n, (steps, length) in enumerate(zip(*arguments[1:], strict=True)):
        share = occupation(wide[:steps, n], labels[n, :length].tolist(), 0)
        assert np.abs(grad[:steps, n] + share).max() <= 3 * loss_bound(0, 50, UNIT[dtype])


def test_more_states_than_threads(xp):
    """A block of 128 threads takes a target of 140 labels, with repeated ones, in turns; a CPU in many vectors."""
    rng = np.random.default_rng(8)
    log_probs, labels = random_log_probs(rng, 200, 2, 20, dtype=np.float32), rng.integers(1, 20, (2, 140))
    labels[:, 1::7] = labels[:, ::7]
    arguments = labels, np.array([200, 199]), np.array([140, 129])
    loss, grad = gradient(xp, log_probs, *arguments, reduction="none")
    wide = log_probs.astype(np.float64)
    wanted = losses_of(wide, *arguments, 0)
    assert np.isfinite(wanted).all()
    assert (np.abs(loss - wanted) <= loss_bound(wanted, 200, UNIT[np.float32])).all()
    for n, (steps, length) in enumerate(((200, 140), (199, 129))):
        share = occupation(wide[:steps, n], labels[n, :length].tolist(), 0)
        assert np.abs(grad[:steps, n] + share).max() <= 3 * loss_bound(0, 200, UNIT[np.float32])


def test_probabilities_that_no_float_holds():
    """The beginnings of a target whose first labels are improbable differ by more than float's range."""
    log_probs = np.full((60, 1, 4), -200.0, np.float32)
    log_probs[:, :, 0] = 0
    labels = np.tile([1, 2, 3], 6)[None]
    loss = ops.ctc_loss(log_probs, labels, [60], [18], reduction="sum")
    wanted = losses_of(log_probs.astype(np.float64), labels, [60], [18], 0)[0]
    assert wanted > 3000
    assert abs(loss - wanted) <= loss_bound(wanted, 60, UNIT[np.float32])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sample_alone_is_the_sample_in_a_batch(dtype, every_isa, set_threads):
    rng = np.random.default_rng(2)
    log_probs = random_log_probs(rng, 40, 7, 30, dtype=dtype)
    targets, steps = rng.integers(1, 30, (7, 33)), rng.integers(20, 41, 7)
    lengths = np.array([0, 1, 15, 16, 17, 10, 33])

    def run(which, threads):
        set_threads(threads)
        rows = log_probs[:, which]
        results = gradient(
            np_arrays,
            rows,
            targets[which],
            steps[which],
            lengths[which],
            reduction="none",
            zero_infinity=True,
        )
        return [results[0].tobytes()] + [results[1][:, i].tobytes() for i in range(rows.shape[1])]

    results = every_isa(lambda: [run(slice(None), threads) for threads in (1, 2, 3)])
    assert len({repr(r) for one in results for r in one}) == 1
    assert run([4], 1)[1] == results[0][0][5]


class np_arrays:
    asarray = asnumpy = staticmethod(np.asarray)


def test_batches_first_in_memory(xp):
    """A transposed (N, T, C) is read as it lies, and its gradient lies so too."""
    rng = np.random.default_rng(3)
    first = xp.asarray(random_log_probs(rng, 4, 9, 6, dtype=np.float32))
    arguments = [xp.asarray(a) for a in (rng.integers(1, 6, (4, 3)), np.full(4, 9), np.array([3, 0, 2, 1]))]
    rows = xp.asarray(np.ascontiguousarray(xp.asnumpy(first).transpose(1, 0, 2)))
    saved = [ops.ctc_loss(x, *arguments, save=True) for x in (first.transpose(1, 0, 2), rows)]
    assert xp.asnumpy(saved[0][0]) == xp.asnumpy(saved[1][0])
    one = xp.asarray(np.ones((), np.float32))
    transposed, plain = (
        ops.ctc_loss_backward(one, x, *arguments, saved=s[1])
        for x, s in zip((first.transpose(1, 0, 2), rows), saved, strict=True)
    )
    assert transposed.transpose(1, 0, 2).flags.c_contiguous
    np.testing.assert_array_equal(xp.asnumpy(transposed), xp.asnumpy(plain))


def test_forms_of_targets_and_lengths(xp):
    rng = np.random.default_rng(4)
    log_probs = xp.asarray(random_log_probs(rng, 9, 3, 6, dtype=np.float32))
    padded, lengths = rng.integers(1, 6, (3, 4)), [3, 0, 2]
    joined = np.concatenate([row[:n] for row, n in zip(padded, lengths, strict=True)])
    padded[:, 3] = -1  # padding may be anything
    padded[1] = 99
    wanted = xp.asnumpy(ops.ctc_loss(log_probs, xp.asarray(padded), (9, 8, 9), lengths, reduction="none"))
    again = ops.ctc_loss(
        log_probs, xp.asarray(joined), xp.asarray(np.int32([9, 8, 9])), lengths, reduction="none"
    )
    assert xp.asnumpy(again).tobytes() == wanted.tobytes()
    joined = xp.asarray(joined)
    again = ops.ctc_loss(log_probs, joined, [9, 8, 9], xp.asarray(np.array(lengths)), reduction="none")
    assert xp.asnumpy(again).tobytes() == wanted.tobytes()
    alone = ops.ctc_loss(log_probs[:, 0], joined[:3], 9, 3, reduction="none")
    assert alone.shape == ()
    assert xp.asnumpy(alone) == wanted[0]


def test_targets_that_cannot_be_spelt(xp):
    """Two equal labels need three steps; no step spells only the empty target."""
    log_probs = random_log_probs(np.random.default_rng(5), 2, 4, 3, dtype=np.float32)
    arguments = np.array([[1, 1], [1, 2], [1, 1], [1, 2]]), np.array([2, 2, 0, 0]), np.array([2, 2, 1, 0])
    loss, grad = gradient(xp, log_probs, *arguments, reduction="none")
    assert np.isinf(loss).tolist() == [True, False, True, False]
    assert loss[3] == 0
    assert np.isnan(grad[:, 0, :2]).all()
    assert np.isfinite(grad[:, 1:]).all()
    loss, grad = gradient(xp, log_probs, *arguments, reduction="none", zero_infinity=True)
    assert loss[0] == loss[2] == 0 < loss[1]
    assert (grad[:, [0, 2, 3]] == 0).all()
    assert (grad[:, 1] != 0).any()
    for reduction in ("sum", "mean"):
        assert np.isinf(gradient(xp, log_probs, *arguments, reduction=reduction)[0])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_steps_and_no_samples(xp, reduction):
    none, one = np.zeros(0, np.int64), np.zeros(1, np.int64)
    loss, grad = gradient(
        xp, np.zeros((0, 1, 3), np.float32), np.zeros((1, 0), np.int64), one, one, reduction=reduction
    )
    assert (loss == 0).all()
    assert grad.shape == (0, 1, 3)
    arguments = np.zeros((4, 0, 3), np.float32), np.zeros((0, 2), np.int64), none, none
    loss = xp.asnumpy(ops.ctc_loss(*map(xp.asarray, arguments), reduction=reduction))
    assert np.isnan(loss) if reduction == "mean" else loss.sum() == 0
    assert loss.shape == ((0,) if reduction == "none" else ())
    as_lists = xp.asnumpy(ops.ctc_loss(*map(xp.asarray, arguments[:2]), [], [], reduction=reduction))
    assert as_lists.tobytes() == loss.tobytes()


def test_probabilities_of_zero_and_nan(xp):
    """-inf and what masks it stand for 0; NaN goes through to the loss of its sample only."""
    log_probs = np.full((3, 4, 3), np.log(1 / 3), np.float32)
    log_probs[1, 0] = [-np.inf, 0, -np.inf]
    log_probs[1, 1] = [-1e30, 0, -1e9]
    log_probs[:, 2, 1] = -np.inf
    log_probs[2, 3, 2] = np.nan
    loss, grad = gradient(
        xp, log_probs, np.array([[1, 2]] * 4), np.full(4, 3), np.full(4, 2), reduction="none"
    )
    assert loss[0] == loss[1] == pytest.approx(-np.log(2 / 9), rel=1e-6)  # of 1 in the middle: -12, 112
    assert loss[2] == np.inf
    assert np.isnan(loss[3])
    assert (grad[1, 0] == [0, -1, 0]).all()
    assert np.isfinite(grad[:, :2]).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_probs": np.zeros(3, np.float32)}, ValueError, r"log_probs: expected 2 or 3 dimensions"),
        ({"log_probs": np.zeros((4, 2, 3), np.int64)}, TypeError, "log_probs: expected float32"),
        ({"targets": np.array([[1, 3], [1, 1]])}, ValueError, r"in \[0, 3\) other than the blank 0, got 3 at"),
        ({"targets": np.array([[1, 2], [0, 1]])}, ValueError, r"other than the blank 0, got 0 at position \(1, 0\)"),
        ({"targets": np.array([1, 2, -1]), "target_lengths": (1, 2)}, ValueError, r"got -1 at position \(2,\)"),
        ({"targets": np.array([1, 2, 1, 1])}, ValueError, "target_lengths: expected a sum of 4"),
        ({"targets": np.ones((3, 2), np.int64)}, ValueError, "targets: expected shape"),
        ({"targets": np.ones((2, 2), np.float32)}, TypeError, "targets: expected integers"),
        ({"input_lengths": (4, 5)}, ValueError, r"input_lengths: expected values in \[0, 4\].*got 5 at position 1"),
        ({"input_lengths": (4,)}, ValueError, "input_lengths: expected shape"),
        ({"input_lengths": np.array([2**63 + 1, 1], np.uint64)}, ValueError, "got 9223372036854775809 at position"),
        ({"input_lengths": 1.5}, TypeError, "input_lengths: expected integers"),
        ({"target_lengths": (2, 3)}, ValueError, r"target_lengths: expected values in \[0, 2\].*got 3 at position 1"),
        ({"target_lengths": (2, -1)}, ValueError, "got -1 at position 1"),
        ({"blank": 3}, ValueError, "blank: expected a class of 3, got 3"),
        ({"blank": -1}, ValueError, "blank"), ({"reduction": "max"}, ValueError, "reduction"),
    ],
)  # fmt: skip
def test_refusals(change, error, message):
    arguments = {
        "log_probs": np.zeros((4, 2, 3), np.float32), "targets": np.array([[1, 2], [2, 1]]),
        "input_lengths": (4, 4), "target_lengths": (2, 1),
    } | change  # fmt: skip
    with pytest.raises(error, match=message):
        ops.ctc_loss(**arguments)


def test_lengths_of_another_device(device):
    log_probs = device.asarray(np.zeros((4, 1, 3), np.float32))
    with pytest.raises(TypeError, match="target_lengths: expected a list, or an array on cuda:0"):
        ops.ctc_loss(log_probs, device.asarray(np.array([[1, 2]])), [4], np.array([2]))


def test_values_out_of_range_on_a_device(device, monkeypatch):
    """A label or length that does not fit gives its sample NaN and no gradient, and reads nothing outside."""
    log_probs = random_log_probs(np.random.default_rng(6), 4, 5, 3, dtype=np.float32)
    targets = np.array([[1, 2], [1, 3], [0, 1], [1, 2], [1, 2]])
    steps, lengths = np.array([4, 4, 4, 5, 4]), np.array([2, 2, 2, 2, 3])
    loss, grad = gradient(device, log_probs, targets, steps, lengths, reduction="none")
    assert np.isnan(loss).tolist() == [False, True, True, True, True]
    assert (grad[:, 0] != 0).any()
    assert (grad[:, 1:] == 0).all()
    monkeypatch.setenv("BRASA_CHECK", "1")
    for bad, message in (
        (slice(0, 3), r"got 3 at position \(1, 1\)"),
        (slice(3, 4), "input_lengths"),
        (slice(4, 5), "target_lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient(device, log_probs[:, bad], targets[bad], steps[bad], lengths[bad])


@pytest.mark.torch
@given(seed=seeds)
def test_torch_agrees(seed):
    """Through log_softmax, whose term PyTorch's gradient has already."""
    torch = pytest.importorskip("torch")
    arguments = sample(np.random.default_rng(seed), np.float64)
    logits = arguments.pop("log_probs")
    theirs = torch.tensor(logits, requires_grad=True)
    given = {k: torch.from_numpy(v).long() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    expected = torch.nn.functional.ctc_loss(theirs.log_softmax(-1), **given)
    expected.sum().backward()
    x = Tensor(logits, requires_grad=True)
    loss = ops.ctc_loss(x.log_softmax(-1), **arguments)
    loss.sum().backward()
    np.testing.assert_allclose(loss.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), theirs.grad.numpy(), atol=1e-12)

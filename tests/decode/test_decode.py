"""Decoding against every sequence of a tiny vocabulary."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, decode, nn, ops
from descriptors.softmax import log_softmax

END = 0


class np_arrays:
    asarray = asnumpy = staticmethod(np.asarray)


def model(xp, rng, batch, words, peaked=1.5):
    """A step function whose log-probabilities depend on all tokens so far, and the same for a list of tokens.

    The state is a pair of a Tensor with the batch in front and an array with it on the second axis.
    """
    first = rng.standard_normal((batch, 6))
    read, write = rng.standard_normal((words, 6)), rng.standard_normal((6, words)) * peaked

    def next_state(token, state):
        return np.tanh(state @ np.diag(np.linspace(0.3, 0.9, 6)) + read[token])

    def log_probs_of(state):
        return log_softmax(state @ write, -1)

    def step(tokens, state):
        h, doubled = state
        new = next_state(xp.asnumpy(tokens), xp.asnumpy(h.data))
        np.testing.assert_array_equal(xp.asnumpy(doubled)[1], xp.asnumpy(h.data))
        return Tensor(xp.asarray(log_probs_of(new))), (
            Tensor(xp.asarray(new)),
            xp.asarray(np.stack([new, new])),
        )

    def score(sample, tokens, start):
        state, total = first[sample], 0.0
        for before, token in zip([start, *tokens], tokens, strict=False):
            state = next_state(before, state)
            total += log_probs_of(state)[token]
        return total

    state = Tensor(xp.asarray(first)), xp.asarray(np.stack([first, first]))
    return step, state, score


def all_sequences(words, max_length):
    """Tokens up to and with the end token; without one only where `max_length` cuts them off."""
    others = [w for w in range(words) if w != END]
    for n in range(max_length):
        for tokens in itertools.product(others, repeat=n):
            yield (*tokens, END)
    yield from itertools.product(others, repeat=max_length)


def split_state(step):
    """The step with its state as a dict of arrays that have the batch in front."""

    def wrapped(tokens, state):
        h = state["h"]
        log_probs, (h, _) = step(tokens, (h, np.stack([h.numpy(), h.numpy()])))
        return log_probs, {"h": h, "nothing": None}

    return wrapped


@pytest.mark.parametrize("penalty", [0.0, 0.7, -0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_holds_everything_finds_the_best(seed, penalty):
    rng = np.random.default_rng(seed)
    words, length, batch = 4, 4, 3
    step, (h, _), score = model(np_arrays, rng, batch, words)
    start = rng.integers(0, words, batch)
    found = decode.beam_search(
        split_state(step),
        start,
        {"h": h, "nothing": None},
        end=END,
        max_length=length,
        beams=400,
        length_penalty=penalty,
    )
    for n in range(batch):
        every = {
            tuple(t for t in tokens if t != END): score(n, tokens, start[n])
            / ((5 + len(tokens)) / 6) ** penalty
            for tokens in all_sequences(words, length)
        }
        wanted = sorted(every.values(), reverse=True)
        count = int((found.scores[n] > -np.inf).sum())
        assert count > 10
        np.testing.assert_allclose(found.scores[n, :count], wanted[:count])
        for k in range(count):
            tokens = tuple(found.tokens[n, k, : found.lengths[n, k]].tolist())
            assert every[tokens] == pytest.approx(found.scores[n, k])
            assert (found.tokens[n, k, found.lengths[n, k] :] == END).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy(xp, seed):
    rng = np.random.default_rng(seed)
    step, state, score = model(xp, rng, 5, 6, peaked=3.0)
    start = xp.asarray(rng.integers(0, 6, 5))
    plain = decode.greedy(step, start, state, end=END, max_length=8)

    def moved(tokens, h):
        log_probs, (h, _) = step(tokens, (h, xp.asarray(np.stack([xp.asnumpy(h.data)] * 2))))
        return log_probs, h

    beam = decode.beam_search(moved, start, state[0], end=END, max_length=8, beams=1)
    np.testing.assert_array_equal(beam.lengths[:, 0], plain.lengths)
    np.testing.assert_allclose(beam.scores[:, 0], plain.scores)
    for n in range(5):
        tokens = plain.tokens[n, : plain.lengths[n]].tolist()
        assert beam.tokens[n, 0, : plain.lengths[n]].tolist() == tokens
        ended = [END] if plain.lengths[n] < 8 else []
        assert plain.scores[n] == pytest.approx(score(n, tokens + ended, xp.asnumpy(start)[n]))
        assert (plain.tokens[n, plain.lengths[n] :] == END).all()


def test_wider_beams_find_no_worse():
    rng = np.random.default_rng(7)
    step, (h, _), _ = model(np_arrays, rng, 20, 8)
    best = [
        decode.beam_search(
            split_state(step), np.ones(20, int), {"h": h, "nothing": None}, end=END, max_length=6, beams=k
        ).scores[:, 0]
        for k in (1, 3, 60)
    ]
    assert (best[2] >= best[1] - 1e-12).all()
    assert best[0].mean() < best[1].mean() <= best[2].mean()


def test_states_of_layers_are_reordered_along_their_second_axis():
    """Beams over a recurrent layer, (layers, B, H), score what the layer gives for the whole sequence."""
    br.manual_seed(0)
    table, layer, head = nn.Embedding(5, 4), nn.LSTM(4, 8, num_layers=2), nn.Linear(8, 5)

    def step(tokens, state):
        y, state = layer(table(tokens[None]), state)
        return (head(y[0]) * 4).log_softmax(-1), state

    start = np.array([1, 2, 3])
    found = decode.beam_search(step, start, None, end=END, max_length=5, beams=3, batch_axis=1)
    for n, k in itertools.product(range(3), range(3)):
        length = found.lengths[n, k]
        tokens = found.tokens[n, k, :length].tolist() + [END] * bool(length < 5)
        y, _ = layer(table(np.array([[start[n], *tokens[:-1]]]).T))
        rows = (head(y[:, 0]) * 4).log_softmax(-1).numpy()
        assert rows[np.arange(len(tokens)), tokens].sum() == pytest.approx(found.scores[n, k], rel=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_no_end_and_few_words():
    """Without an end all have the full length; two words make no more than eight sequences of three."""
    table = np.log(np.float64([[0.7, 0.3], [0.4, 0.6]]))
    found = decode.beam_search(lambda t, s: (table[t], s), [0], max_length=3, beams=10)
    assert (found.lengths[0, :8] == 3).all()
    assert (found.scores[0, 8:] == -np.inf).all()
    np.testing.assert_allclose(np.exp(found.scores[0, :8]).sum(), 1)
    plain = decode.greedy(lambda t, s: (table[t], s), [0, 1], max_length=3)
    assert plain.tokens.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert plain.lengths.tolist() == [3, 3]
    assert decode.greedy(lambda t, s: (table[t], s), [0, 1], max_length=0).tokens.shape == (2, 0)


def test_nothing_is_recorded_and_masked_words_do_not_occur():
    weight = Tensor(np.zeros((3, 3), np.float32), requires_grad=True)

    def step(tokens, state):
        log_probs = (weight[tokens] + np.float32([0, -np.inf, 1])).log_softmax(-1)
        assert not log_probs.requires_grad
        return log_probs, state

    found = decode.beam_search(step, [0], end=END, max_length=4, beams=4)
    assert not (found.tokens == 1).any()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 1)])
def test_samples_follow_the_distribution(temperature, top_k):
    p = np.array([0.4, 0.3, 0.2, 0.1])
    log_p = np.log(p)
    br.manual_seed(1)
    count = 20_000
    drawn = decode.sample(
        lambda t, s: (np.broadcast_to(log_p, (len(t), 4)), s), np.zeros(count, int), max_length=1,
        temperature=temperature, top_k=top_k,
    )  # fmt: skip
    q = p ** (1 / temperature) * (np.arange(4) < (top_k or 4))
    q /= q.sum()
    shares = np.bincount(drawn.tokens[:, 0], minlength=4) / count
    assert (np.abs(shares - q) <= 5 * np.sqrt(q * (1 - q) / count)).all()
    np.testing.assert_allclose(drawn.scores, log_p[drawn.tokens[:, 0]])


def test_samples_are_the_seeds():
    def draw(**options):
        step = lambda t, s: (np.full((len(t), 9), -np.log(9.0)), s)  # noqa: E731
        return decode.sample(step, [0, 0], end=8, max_length=30, **options).tokens

    br.manual_seed(5)
    first, second = draw(), draw()
    br.manual_seed(5)
    np.testing.assert_array_equal(draw(), first)
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(draw(generator=br.Generator(2)), draw(generator=br.Generator(2)))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda step: decode.greedy(step, [[1]]), "start"), (lambda step: decode.greedy(step, [1.5]), "start"),
        (lambda step: decode.greedy(step, [1]), r"step: expected log-probabilities of shape \(1, V\), got \(3, 4\)"),
        (lambda step: decode.beam_search(step, [1], beams=0), "beams"),
        (lambda step: decode.sample(step, [1], temperature=0), "temperature"),
        (lambda step: decode.sample(step, [1], top_k=0), "top_k"),
        (lambda step: decode.sample(step, [1], temperature=np.inf), "temperature"),
        (lambda step: decode.greedy(step, [1], max_length=-1), "max_length"),
        (lambda step: decode.beam_search(step, [1], max_length=-1), "max_length"),
        (lambda step: decode.beam_search(step, [1], length_penalty=np.nan), "length_penalty"),
        (lambda step: decode.beam_search(step, [1], batch_axis=-1), "batch_axis"),
        (lambda _: decode.ctc_greedy(np.zeros(3)), "log_probs"),
        (lambda _: decode.ctc_greedy(np.zeros((3, 2)), blank=2), "blank"),
        (lambda _: decode.ctc_greedy(np.zeros((3, 2)), [4]), r"lengths: expected 1 in \[0, 3\], got \[4\]"),
        (lambda _: decode.ctc_beam_search(np.zeros((3, 2)), beams=0), "beams"),
    ],
)  # fmt: skip
def test_refusals(call, word):
    with pytest.raises(ValueError, match=word):
        call(lambda tokens, state: (np.zeros((3, 4)), state))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda step: decode.beam_search(step, [1], beams=2.5), "beams"),
        (lambda step: decode.sample(step, [1], top_k=2.5), "top_k"),
        (lambda step: decode.sample(step, [1], temperature="1"), "temperature"),
        (lambda step: decode.greedy(step, [1], end="."), "end"),
        (lambda step: decode.greedy(step, [1], max_length=2.5), "max_length"),
        (lambda _: decode.ctc_beam_search(np.zeros((3, 2)), beams=2.5), "beams"),
        (lambda _: decode.ctc_greedy(np.zeros((3, 2, 2)), [np.nan, 1]), "lengths: expected integers"),
        (lambda _: decode.ctc_greedy(np.zeros((3, 2)), blank=0.5), "blank"),
    ],
)
def test_refusals_of_kinds(call, word):
    with pytest.raises(TypeError, match=word):
        call(lambda tokens, state: (np.zeros((1, 4)), state))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_diverged_is_not_decoded(xp, bad):
    table = xp.asarray(np.float32([[-1, -1], [-1, bad]]))
    for search in (decode.greedy, decode.sample, decode.beam_search):
        with pytest.raises(
            ValueError, match=r"step: expected log-probabilities, got (nan|inf) at position \(0, 1\)"
        ):
            search(lambda tokens, state: (table[xp.asnumpy(tokens)], state), [1], max_length=5)
    log_probs = xp.asarray(np.array([[[-1, -1], [-1, -1]], [[-1, -1], [-1, bad]]]))
    for search in (decode.ctc_greedy, decode.ctc_beam_search):
        with pytest.raises(ValueError, match=r"log_probs: sample 1: .* at position \(1, 1\)"):
            search(log_probs)
        assert len(search(log_probs, [2, 1]).lengths) == 2  # what is not read may be anything


def test_a_state_may_be_a_named_tuple():
    class State(NamedTuple):
        rows: np.ndarray
        nested: tuple

    table = log_softmax(np.random.default_rng(0).standard_normal((5, 5)), -1)

    def step(tokens, state):
        assert isinstance(state, State)
        return table[tokens], State(tokens, (state.rows,))

    first = State(np.array([1, 2]), ())
    named = decode.beam_search(step, [1, 2], first, end=END, max_length=4, beams=3)
    plain = decode.beam_search(lambda t, s: (table[t], s), [1, 2], end=END, max_length=4, beams=3)
    np.testing.assert_array_equal(named.tokens, plain.tokens)


# CTC --------------------------------------------------------------------------------------------------


def labellings(log_probs, blank):
    """The log-probability of every labelling, by adding up all paths."""
    steps, classes = log_probs.shape
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(classes), repeat=steps):
        labels = tuple(c for c, _ in itertools.groupby(path) if c != blank)
        found[labels] = np.logaddexp(found.get(labels, -np.inf), log_probs[np.arange(steps), path].sum())
    return found


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_holds_every_labelling(xp, seed, blank):
    log_probs = log_softmax(np.random.default_rng(seed).standard_normal((5, 2, 3)) * 2, -1)
    found = decode.ctc_beam_search(xp.asarray(log_probs), [5, 3], beams=100, blank=blank)
    for n, steps in enumerate((5, 3)):
        wanted = labellings(log_probs[:steps, n], blank)
        count = int((found.scores[n] > -np.inf).sum())
        assert count == len(wanted)
        for k in range(count):
            assert found.scores[n, k] == pytest.approx(
                wanted[tuple(found.tokens[n, k, : found.lengths[n, k]].tolist())]
            )
        assert (np.diff(found.scores[n, :count]) <= 0).all()


def test_scores_are_those_of_the_loss():
    log_probs = log_softmax(np.random.default_rng(3).standard_normal((12, 1, 5)) * 3, -1)
    found = decode.ctc_beam_search(log_probs, beams=300)
    labels, length = found.tokens[:, 0], found.lengths[:, 0]
    loss = ops.ctc_loss(log_probs, labels, [12], length, reduction="sum")
    assert found.scores[0, 0] <= -loss  # what was dropped on the way is missing
    assert -loss == pytest.approx(found.scores[0, 0], rel=1e-4)


def test_narrow_beams_find_the_best_of_a_confident_model():
    rng = np.random.default_rng(4)
    log_probs = log_softmax(rng.standard_normal((6, 4, 3)) * 6, -1)
    found = decode.ctc_beam_search(log_probs, beams=5)
    for n in range(4):
        wanted = labellings(log_probs[:, n], 0)
        assert tuple(found.tokens[n, 0, : found.lengths[n, 0]].tolist()) == max(
            wanted, key=wanted.__getitem__
        )


def test_greedy_reads_the_best_path(xp):
    path = np.array([[0, 3, 3, 0, 3, 2, 2, 0], [1, 0, 0, 1, 1, 1, 2, 2]]).T
    log_probs = np.log(np.where(np.arange(4) == path[..., None], 0.7, 0.1)).astype(np.float32)
    found = decode.ctc_greedy(Tensor(xp.asarray(log_probs)), np.array([8, 5]))
    assert found.tokens.tolist() == [[3, 3, 2], [1, 1, 0]]
    assert found.lengths.tolist() == [3, 2]
    np.testing.assert_allclose(found.scores, [8 * np.log(0.7), 5 * np.log(0.7)], rtol=1e-5)
    assert decode.ctc_greedy(log_probs[:, 0]).tokens.tolist() == [[3, 3, 2]]
    assert decode.ctc_greedy(log_probs[:0]).lengths.tolist() == [0, 0]

"""Recurrent layers and their single steps, with all arguments that there are."""

from __future__ import annotations

from descriptors import Operator
from references import rnn as reference


def _array(rng, dtype, *shape):
    return (rng.standard_normal(shape) * 0.5).astype(dtype)


def _sizes(rng):
    """Steps, batch, inputs, hidden units, around vectors and tiles."""
    return (
        int(rng.integers(1, 5)),
        int(rng.integers(1, 9)),
        int(rng.integers(1, 6)),
        int(rng.choice([1, 3, 16, 18])),
    )


def _weights(rng, dtype, gates, inputs, hidden, state):
    rows = gates * hidden
    return {
        "w_ih": _array(rng, dtype, rows, inputs),
        "w_hh": _array(rng, dtype, rows, state),
        "b_ih": _array(rng, dtype, rows),
        "b_hh": _array(rng, dtype, rows),
    }


def _sequence(rng, dtype, gates, state=None):
    """The arguments of a sequence, the batch first, and the number of hidden units."""
    steps, batch, inputs, hidden = _sizes(rng)
    state = hidden if state is None else state
    arguments = {"x": _array(rng, dtype, batch, steps, inputs), "h0": _array(rng, dtype, batch, state)}
    if gates == 4:
        arguments["c0"] = _array(rng, dtype, batch, hidden)
    arguments |= _weights(rng, dtype, gates, inputs, hidden, state)
    arguments |= {
        "lengths": rng.integers(0, steps + 1, batch),
        "reverse": bool(rng.integers(2)),
        "batch_first": True,
        "clip": 10.0,
    }
    return arguments, hidden


def _sample_lstm(rng, dtype):
    return _sequence(rng, dtype, 4)[0]


def _sample_projected(rng, dtype):
    arguments, hidden = _sequence(rng, dtype, 4, state=2)
    return arguments | {"w_hr": _array(rng, dtype, 2, hidden), "peephole": _array(rng, dtype, 3, hidden)}


def _sample_gru(rng, dtype):
    return _sequence(rng, dtype, 3)[0] | {"reset_after": bool(rng.integers(2))}


def _sample_rnn(rng, dtype):
    return _sequence(rng, dtype, 1)[0] | {"nonlinearity": "tanh"}


def _cell(sample, reference_of):
    """The sample and the reference of a single step."""

    def sample_cell(rng, dtype):
        arguments = sample(rng, dtype)
        arguments = {k: v for k, v in arguments.items() if k not in ("lengths", "reverse", "batch_first")}
        names = {"h0": "h", "c0": "c"}
        arguments = {names.get(k, k): v for k, v in arguments.items()}
        return arguments | {"x": arguments["x"][:, 0].copy()}

    def reference_cell(x, h, c=None, **rest):
        states = (h,) if c is None else (h, c)
        last = reference_of(x[None], *states, **rest)[1:]
        return last if len(last) > 1 else last[0]

    return sample_cell, reference_cell


def _bound(reference_of):
    """The largest error of any element, followed over the steps."""

    def bound(arguments, _, unit):
        found = reference_of(**arguments, unit=unit)
        return max(float(e.max(initial=0)) for e in (found if isinstance(found, tuple) else (found,)))

    return bound


SEQUENCE = ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh")
LSTM = ("x", "h0", "c0", *SEQUENCE[2:])


def _operators(name, sample, reference_of, gradients, batched):
    sample_cell, reference_cell = _cell(sample, reference_of)
    of_cell = tuple({"h0": "h", "c0": "c"}.get(k, k) for k in gradients)
    return [
        Operator(
            name, sample, reference_of, _bound(reference_of), gradients, batched, indices=("lengths",),
        ),
        Operator(
            f"{name}_cell", sample_cell, reference_cell, _bound(reference_cell), of_cell,
            tuple({"h0": "h", "c0": "c"}.get(k, k) for k in batched if k != "lengths"),
        ),
    ]  # fmt: skip


OPERATORS = [
    *_operators("lstm", _sample_lstm, reference.lstm, LSTM, ("x", "h0", "c0", "lengths")),
    *_operators(
        "lstm", _sample_projected, reference.lstm, (*LSTM, "w_hr", "peephole"), ("x", "h0", "c0", "lengths")
    ),
    *_operators("gru", _sample_gru, reference.gru, SEQUENCE, ("x", "h0", "lengths")),
    *_operators("rnn", _sample_rnn, reference.rnn, SEQUENCE, ("x", "h0", "lengths")),
]

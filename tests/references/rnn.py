"""Recurrent layers in float64 NumPy: one sample, one step at a time, from the definitions.

The same text serves two kinds of numbers: arrays, which give the result, and `Rounded`, which also carry how far
arithmetic of a smaller format may have led away from it. The bounds of the tests are the latter's, so they
follow each error through the gates and over the steps. A `unit` that is a pair has the roundoff of the arithmetic
first, then that of what is stored: of 16 bits.
"""

from __future__ import annotations

import numpy as np


class Rounded:
    """A vector in float64 and a bound of the error of its computed counterpart; `unit` is half an ulp of 1, `narrow`
    the same of what is stored in 16 bits and half of the least number there.
    """

    def __init__(self, value, error, unit, narrow=None):
        self.value, self.error = np.asarray(value), error + np.zeros_like(value)
        self.unit, self.narrow = unit, narrow

    def _with(self, value, error):
        return Rounded(value, error, self.unit, self.narrow)

    def _result(self, value, error):
        return self._with(value, error + self.unit * (np.abs(value) + error))

    def stored(self):
        if self.narrow is None:
            return self
        relative, least = self.narrow
        return self._with(self.value, self.error + relative * (np.abs(self.value) + self.error) + least)

    def __add__(self, other):
        return self._result(self.value + other.value, self.error + other.error)

    def __mul__(self, other):
        error = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
        return self._result(self.value * other.value, error)

    def __getitem__(self, key):
        return self._with(self.value[key], self.error[key])

    def through(self, function, slope, rounding):
        """f(self), where |f'| <= slope and f is computed to so many units of the result."""
        value, error = function(self.value), slope * self.error
        return self._with(value, error + rounding * self.unit * (np.abs(value) + error))


def stored(x):
    """x as it lies in memory."""
    return x.stored() if isinstance(x, Rounded) else x


def product(w, h):
    """w h for a matrix and a vector: sums of so many terms, in any order."""
    if not isinstance(h, Rounded):
        return w @ h
    size, terms = np.abs(w), w.shape[1] + 2
    error = size @ h.error + terms * h.unit * (size @ (np.abs(h.value) + h.error))
    return h._with(w @ h.value, error)


def _map(function, slope, rounding):
    def apply(x):
        return x.through(function, slope, rounding) if isinstance(x, Rounded) else function(x)

    return apply


# The functions of the library are within 3 units in the last place, which are 6 of `unit`.
sigmoid = _map(lambda x: 1 / (1 + np.exp(-x)), 0.25, 6)
tanh = _map(np.tanh, 1, 6)
relu = _map(lambda x: np.maximum(x, 0), 1, 0)


def _clipped(x, clip):
    return x if clip is None else _map(lambda a: np.clip(a, -clip, clip), 1, 0)(x)


def lstm_step(a, h, c, w_hh, w_hr=None, peephole=None, clip=None, lift=np.asarray):
    """h and c after a step; `a` is the product of the input with the biases, `lift` makes a number of a constant."""
    hidden = w_hh.shape[0] // 4
    parts = [slice(k * hidden, (k + 1) * hidden) for k in range(4)]
    before = a + product(w_hh, h)
    before = [before[part] for part in parts]
    if peephole is not None:
        before[0] = before[0] + lift(peephole[0]) * c
        before[1] = before[1] + lift(peephole[1]) * c
    i, f, g = (
        sigmoid(_clipped(before[0], clip)),
        sigmoid(_clipped(before[1], clip)),
        tanh(_clipped(before[2], clip)),
    )
    c = f * c + i * g
    if peephole is not None:
        before[3] = before[3] + lift(peephole[2]) * c
    h = sigmoid(_clipped(before[3], clip)) * tanh(c)
    return stored(h if w_hr is None else product(w_hr, stored(h))), c


def gru_step(a, h, w_hh, b_hh, reset_after=True, clip=None, lift=np.asarray):
    """h after a step; `a` has no part of b_hh."""
    hidden = w_hh.shape[0] // 3
    r, z, n = (slice(k * hidden, (k + 1) * hidden) for k in range(3))
    both = slice(0, 2 * hidden)
    s = stored(a[both] + lift(b_hh[both])) + product(w_hh[both], stored(h))
    reset, update = sigmoid(_clipped(s[r], clip)), sigmoid(_clipped(s[z], clip))
    if reset_after:
        before = stored(a[n]) + reset * (product(w_hh[n], stored(h)) + lift(b_hh[n]))
    else:
        update = stored(update)
        before = stored(a[n] + lift(b_hh[n])) + product(w_hh[n], stored(reset * h))
    new = tanh(_clipped(before, clip))
    return new + update * (h + lift(-1.0) * new)


def rnn_step(a, h, w_hh, nonlinearity="tanh", clip=None):
    """h after a step of a simple cell."""
    return stored({"tanh": tanh, "relu": relu}[nonlinearity](_clipped(a + product(w_hh, h), clip)))


def _sequence(x, states, step, lengths, reverse, batch_first, unit):
    """The states of all steps in the order of `x`, and the last ones; with `unit` bounds of their errors.

    `states` are pairs of an array, or None, and its columns.
    """

    units = unit if isinstance(unit, tuple) else (unit, None)

    def lift(v):
        return np.asarray(v) if unit is None else Rounded(v, 0.0, *units)

    samples = x if batch_first else x.swapaxes(0, 1)
    batch, steps = samples.shape[:2]
    first = [np.zeros((batch, n)) if s is None else s for s, n in states]
    y = np.zeros((batch, steps, states[0][1]))
    last = [np.zeros((batch, n)) for _, n in states]
    for b in range(batch):
        state = [lift(s[b]) for s in first]
        alive = steps if lengths is None else int(lengths[b])
        for t in reversed(range(alive)) if reverse else range(alive):
            state = step(lift(samples[b, t]), *state, lift)
            y[b, t] = state[0] if unit is None else stored(state[0]).error
        for whole, s in zip(last, state, strict=True):
            whole[b] = s if unit is None else stored(s).error
    return (y if batch_first else y.swapaxes(0, 1)), *last


def lstm(
    x, h0, c0, w_ih, w_hh, b_ih=None, b_hh=None, *, w_hr=None, peephole=None, lengths=None, reverse=False,
    batch_first=False, clip=None, unit=None,
):  # fmt: skip
    """What `brasa.ops.lstm` returns, or, with `unit`, bounds of the errors of a format with that roundoff."""
    zero = np.zeros(len(w_ih))
    bias = (zero if b_ih is None else b_ih), (zero if b_hh is None else b_hh)

    def step(inputs, h, c, lift):
        a = stored(product(w_ih, inputs) + lift(bias[0]) + lift(bias[1]))
        return lstm_step(a, h, c, w_hh, w_hr, peephole, clip, lift)

    states = [(h0, w_hh.shape[1]), (c0, len(w_hh) // 4)]
    return _sequence(x, states, step, lengths, reverse, batch_first, unit)


def gru(
    x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, lengths=None, reverse=False, batch_first=False, reset_after=True,
    clip=None, unit=None,
):  # fmt: skip
    """The same for `brasa.ops.gru`."""
    zero = np.zeros(len(w_ih))
    bias = (zero if b_ih is None else b_ih), (zero if b_hh is None else b_hh)

    def step(inputs, h, lift):
        a = product(w_ih, inputs) + lift(bias[0])
        return (gru_step(a, h, w_hh, bias[1], reset_after, clip, lift),)

    return _sequence(x, [(h0, w_hh.shape[1])], step, lengths, reverse, batch_first, unit)


def rnn(
    x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh", lengths=None, reverse=False,
    batch_first=False, clip=None, unit=None,
):  # fmt: skip
    """The same for `brasa.ops.rnn`."""
    zero = np.zeros(len(w_ih))
    bias = (zero if b_ih is None else b_ih), (zero if b_hh is None else b_hh)

    def step(inputs, h, lift):
        a = stored(product(w_ih, inputs) + lift(bias[0]) + lift(bias[1]))
        return (rnn_step(a, h, w_hh, nonlinearity, clip),)

    return _sequence(x, [(h0, w_hh.shape[1])], step, lengths, reverse, batch_first, unit)

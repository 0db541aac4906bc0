"""Recurrent layers over whole sequences, their single steps, and the gradients of both.

The products of the inputs with their weights are one matrix product over all steps, and so are the gradients of
`x` and of every weight; the kernel walks the steps in between. Layouts, the order of the gates (LSTM i, f, g, o;
GRU r, z, n) and names are PyTorch's. In shapes T is the number of steps, B the batch, I the inputs, H the hidden
units and P the columns of the state: H, or those of `w_hr`. Arrays are float32 or float64, all of one dtype.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = [
    "gru", "gru_backward", "gru_cell", "gru_cell_backward", "lstm", "lstm_backward", "lstm_cell",
    "lstm_cell_backward", "rnn", "rnn_backward", "rnn_cell", "rnn_cell_backward",
]  # fmt: skip

GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "tanh": 1, "relu": 1}
ARRAYS = ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh")
LSTM_ARRAYS = ("x", "h0", "c0", *ARRAYS[2:], "w_hr", "peephole")
ALL = (True,) * len(LSTM_ARRAYS)


class _Layer(NamedTuple):
    """The checked operands of a call, as kernels take them."""

    cell: str
    x: Any
    h0: Any
    c0: Any
    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    w_hr: Any
    peephole: Any
    lengths: Any
    reverse: bool
    batch_first: bool
    clip: float

    @property
    def hidden(self) -> int:
        return self.w_hh.shape[0] // GATES[self.cell]

    @property
    def batch(self) -> int:
        return self.x.shape[not self.batch_first]

    def rows(self, columns: int) -> Any:
        """A new array with a row for every step and sample."""
        return _backend.empty(self.x, (*self.x.shape[:2], columns))

    def states(self, columns: int) -> Any:
        """A new array with a row for every sample."""
        return _backend.empty(self.x, (self.batch, columns))


def _operand(name: str, array: Any, x: Any, shape: tuple[int, ...], letters: str) -> Any:
    if array is None:
        return None
    array = _check.floating(name, array)
    _check.same_dtype(**{"x": x, name: array})
    _check.shape(name, array, shape, letters)
    return _backend.contiguous(array)


def _layer(
    cell: str,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    *,
    c0: Any = None,
    w_hr: Any = None,
    peephole: Any = None,
    lengths: Any = None,
    reverse: Any = False,
    batch_first: Any = False,
    clip: Any = None,
    names: tuple[str, str] = ("h0", "c0"),
) -> _Layer:
    x = _backend.contiguous(_check.floating("x", x))
    batch_first = bool(batch_first)
    _check.rank("x", x, 3, shape="(B, T, I)" if batch_first else "(T, B, I)")
    gates, inputs, batch = GATES[cell], x.shape[2], x.shape[not batch_first]
    w_ih = _check.floating("w_ih", w_ih)
    _check.rank("w_ih", w_ih, 2, shape=f"({gates if gates > 1 else ''}H, I)")
    rows = w_ih.shape[0]
    if rows % gates:
        raise ValueError(f"w_ih: expected a multiple of {gates} rows, one part per gate, got shape {w_ih.shape}")
    hidden = state = rows // gates
    w_ih = _operand("w_ih", w_ih, x, (rows, inputs), "one row per gate and unit, the inputs of x")
    if w_hr is not None:
        w_hr = _check.floating("w_hr", w_hr)
        _check.rank("w_hr", w_hr, 2, shape="(P, H)")
        state = w_hr.shape[0]
    if clip is not None and not _check.number("clip", clip) > 0:
        raise ValueError(f"clip: expected a number above 0, got {clip}")
    return _Layer(
        cell,
        x,
        _operand(names[0], h0, x, (batch, state), "the state of each sample"),
        _operand(names[1], c0, x, (batch, hidden), "the cell of each sample"),
        w_ih,
        _operand("w_hh", w_hh, x, (rows, state), "one row per gate and unit, the state's columns"),
        _operand("b_ih", b_ih, x, (rows,), "one per gate and unit"),
        _operand("b_hh", b_hh, x, (rows,), "one per gate and unit"),
        _operand("w_hr", w_hr, x, (state, hidden), "from the units to the state"),
        _operand("peephole", peephole, x, (3, hidden), "of the gates i, f, o"),
        _lengths(lengths, x, batch, x.shape[batch_first]),
        bool(reverse),
        batch_first,
        inf if clip is None else float(clip),
    )


def _lengths(lengths: Any, x: Any, batch: int, steps: int) -> Any:
    """One int64 for each sample."""
    if lengths is None:
        return None
    lengths = _check.indices("lengths", lengths, steps + 1)
    _check.shape("lengths", lengths, (batch,), "one per sample")
    _backend.kernels(x, lengths)
    return lengths if lengths.dtype.char == "l" else lengths.astype("int64")


def _sum(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def _biases(layer: _Layer) -> tuple[Any, Any]:
    """What is added to the product of the inputs, and what to that of the state (b_hn of a GRU)."""
    if layer.cell != "gru" or layer.b_hh is None:
        return _sum(layer.b_ih, layer.b_hh), None
    bias, split = layer.b_hh.copy(), 2 * layer.hidden
    bias[split:] = 0
    return _sum(layer.b_ih, bias), layer.b_hh[split:]


def _forward(layer: _Layer, save: bool) -> tuple[Any, Any, Any, Any]:
    """The states of all steps, the last ones (h and, of an LSTM, c), and what the gradient needs."""
    kernels = _backend.backend_of(layer.x).kernels
    lstm, hidden, state = layer.cell == "lstm", layer.hidden, layer.w_hh.shape[1]
    bias, b_hn = _biases(layer)
    gates = layer.rows(len(layer.w_ih))
    kernels.matmul(layer.x, layer.w_ih, bias, None, gates, None, False, True, None)
    y, h_n, c_n = layer.rows(state), layer.states(state), layer.states(hidden) if lstm else None
    cells = layer.rows(hidden) if lstm and save else None
    v = layer.rows(hidden) if layer.cell == "gru" and save else None
    kernels.rnn_forward(
        layer.cell, gates, layer.w_hh, b_hn, layer.w_hr, layer.peephole, layer.h0, layer.c0, layer.lengths, y,
        cells, v, h_n, c_n, layer.reverse, layer.batch_first, layer.clip, save and GATES[layer.cell] > 1,
    )  # fmt: skip
    return y, h_n, c_n, (gates if GATES[layer.cell] > 1 else None, cells, v, y) if save else None


def _saved(saved: Any, layer: _Layer) -> tuple[Any, Any, Any, Any]:
    """The arrays that `_forward` kept for a call of these shapes."""
    if not isinstance(saved, (tuple, list)) or len(saved) != 4:
        raise ValueError(f"saved: expected the four arrays that save=True returned, got {saved!r}")
    many = GATES[layer.cell] > 1
    kept = many, layer.cell == "lstm", layer.cell == "gru", True
    columns = len(layer.w_ih), layer.hidden, layer.hidden, layer.w_hh.shape[1]
    for array, there, wanted in zip(saved, kept, columns, strict=True):
        if (array is not None) != there:
            raise ValueError(f"saved: expected what save=True returned for this cell, got {saved!r}")
        if there:
            _operand("saved", array, layer.x, (*layer.x.shape[:2], wanted), "as for the forward")
    return tuple(saved)  # type: ignore[return-value]


def _backward(layer: _Layer, dys: tuple[Any, Any, Any], saved: Any, wanted: dict[str, bool]) -> dict[str, Any]:
    """The gradients by name. `dys` are those of y, h_n and c_n."""
    kernels = _backend.backend_of(layer.x).kernels
    hidden, state, outer = layer.hidden, layer.w_hh.shape[1], layer.x.shape[:2]
    gates, cells, v, y = _saved(saved, layer)
    dy = _operand("dy", dys[0], layer.x, (*outer, state), "that of y")
    dh_n = _operand("dh_n", dys[1], layer.x, (layer.batch, state), "that of h_n")
    dc_n = _operand("dc_n", dys[2], layer.x, (layer.batch, hidden), "that of c_n")
    projected, peeps = layer.w_hr is not None, layer.peephole is not None
    terms = {
        "dgates": layer.rows(len(layer.w_ih)),
        "dv": layer.rows(hidden) if v is not None else None,
        "previous": layer.rows(state) if wanted["w_hh"] else None,
        "reset": layer.rows(hidden) if layer.cell == "gru_reset_before" else None,
        "dh": layer.rows(state) if projected else None,
        "m": layer.rows(hidden) if projected else None,
        "dpeephole": layer.rows(3 * hidden) if peeps else None,
        "dh0": layer.states(state) if wanted["h0"] and layer.h0 is not None else None,
        "dc0": layer.states(hidden) if wanted.get("c0") and layer.c0 is not None else None,
    }
    kernels.rnn_backward(
        layer.cell, dy, dh_n, dc_n, layer.w_hh, layer.w_hr, layer.peephole, layer.h0, layer.c0, layer.lengths,
        gates, cells, v, y, *terms.values(), layer.reverse, layer.batch_first, layer.clip,
    )  # fmt: skip
    return _gradients(layer, terms, wanted)


def _product(a: Any, b: Any, y: Any, transpose_a: bool) -> Any:
    """y = a b, where `a` may be given transposed."""
    _backend.backend_of(y).kernels.matmul(a, b, None, None, y, None, transpose_a, False, None)
    return y


def _column_sums(terms: Any) -> Any:
    sums = _backend.empty(terms, terms.shape[-1:])
    _backend.backend_of(terms).kernels.column_sums(_flat(terms), sums)
    return sums


def _flat(rows: Any) -> Any:
    return rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2])


def _gradients(layer: _Layer, terms: dict[str, Any], wanted: dict[str, bool]) -> dict[str, Any]:
    """What follows from the gradients before the activations: one product over all steps each."""
    dgates = terms["dgates"]
    found = {"h0": terms["dh0"], "c0": terms["dc0"]}
    if wanted["x"]:
        found["x"] = _product(dgates, layer.w_ih, layer.rows(layer.x.shape[2]), False)
    if wanted["w_ih"]:
        dw = _backend.empty(layer.x, layer.w_ih.shape)
        found["w_ih"] = _product(_flat(dgates), _flat(layer.x), dw, True)
    if wanted["w_hh"]:
        found["w_hh"] = _gradient_of_w_hh(layer, terms)
    found |= _gradients_of_biases(layer, terms, wanted)
    if wanted.get("w_hr") and layer.w_hr is not None:
        dw = _backend.empty(layer.x, layer.w_hr.shape)
        found["w_hr"] = _product(_flat(terms["dh"]), _flat(terms["m"]), dw, True)
    if wanted.get("peephole") and layer.peephole is not None:
        found["peephole"] = _column_sums(terms["dpeephole"]).reshape(3, layer.hidden)
    return found


def _gradient_of_w_hh(layer: _Layer, terms: dict[str, Any]) -> Any:
    dw, dgates, previous = _backend.empty(layer.x, layer.w_hh.shape), _flat(terms["dgates"]), terms["previous"]
    if not layer.cell.startswith("gru"):
        return _product(dgates, _flat(previous), dw, True)
    split = 2 * layer.hidden
    _product(dgates[:, :split], _flat(previous), dw[:split], True)
    if layer.cell == "gru":
        _product(_flat(terms["dv"]), _flat(previous), dw[split:], True)
    else:
        _product(dgates[:, split:], _flat(terms["reset"]), dw[split:], True)
    return dw


def _gradients_of_biases(layer: _Layer, terms: dict[str, Any], wanted: dict[str, bool]) -> dict[str, Any]:
    wants = {name: wanted[name] and getattr(layer, name) is not None for name in ("b_ih", "b_hh")}
    if not any(wants.values()):
        return {}
    sums = _column_sums(terms["dgates"])
    if not wants["b_hh"]:
        return {"b_ih": sums}
    of_state = sums.copy() if wants["b_ih"] else sums
    found = {"b_ih": sums, "b_hh": of_state} if wants["b_ih"] else {"b_hh": of_state}
    if layer.cell == "gru":
        of_state[2 * layer.hidden :] = _column_sums(terms["dv"])
    return found


def _asked(names: tuple[str, ...], mask: Any) -> dict[str, bool]:
    return {name: bool(wants) for name, wants in zip(names, mask, strict=True)}


# LSTM -------------------------------------------------------------------------------------------------


def lstm_backward(
    dy: Any,
    dh_n: Any,
    dc_n: Any,
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL,
) -> tuple[Any, ...]:
    """The gradients of `lstm`.

    Parameters
    ----------
    dy, dh_n, dc_n : array or None
        The gradients of the three results; None where one is unused.
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, peephole, lengths, reverse, batch_first, clip
        As for `lstm`.
    saved : tuple
        What ``save=True`` returned. It holds the result `y` itself.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr, dpeephole : array or None
        None where `mask` is False or the argument was None.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`, and when `saved` is not what the forward returned.

    Notes
    -----
    Beyond `lengths` the gradient of `x` is 0, and `x` must be finite there if that of `w_ih` is wanted. Where
    `clip` limits a gate its derivative is 0.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> (y, h_n, c_n), saved = lstm(x, None, None, w_ih, w_hh, save=True)
    >>> dx, _, _, dw_ih, *_ = lstm_backward(np.ones_like(y), None, None, x, None, None, w_ih, w_hh, saved=saved)
    >>> dx.shape, dw_ih.shape
    ((2, 1, 3), (4, 3))
    """
    layer = _layer(
        "lstm", x, h0, w_ih, w_hh, b_ih, b_hh, c0=c0, w_hr=w_hr, peephole=peephole, lengths=lengths,
        reverse=reverse, batch_first=batch_first, clip=clip,
    )  # fmt: skip
    found = _backward(layer, (dy, dh_n, dc_n), saved, _asked(LSTM_ARRAYS, mask))
    return tuple(found.get(name) for name in LSTM_ARRAYS)


def _lstm(
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One direction of a long short-term memory layer over a batch of sequences.

    At every step, with the state (h, c) of the step before, ``a = x w_ih.T + b_ih + h w_hh.T + b_hh`` and, cut
    into four, ``i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)``; then ``c = f c + i g`` and
    ``h = o tanh(c)``, or ``h = (o tanh(c)) w_hr.T``.

    Parameters
    ----------
    x : array or Tensor
        (T, B, I), or (B, T, I) with `batch_first`. float32 or float64.
    h0, c0 : array or Tensor or None
        (B, P) and (B, H), the states before the first step; zeros where None.
    w_ih, w_hh : array or Tensor
        (4 H, I) and (4 H, P), gates in the order i, f, g, o.
    b_ih, b_hh : array or Tensor, optional
        (4 H,).
    w_hr : array or Tensor, optional
        (P, H), the projection of the state (torch's ``proj_size``).
    peephole : array or Tensor, optional
        (3, H): ``a_i`` and ``a_f`` also get ``peephole[0] c`` and ``peephole[1] c`` of the step before, ``a_o``
        gets ``peephole[2] c`` of this one.
    lengths : array, optional
        (B,), integers in [0, T] in any order: the steps of each sample that count. Beyond them `y` is 0, and
        `h_n` and `c_n` are the states after the last that does (`h0` and `c0` for a length of 0).
    reverse : bool
        Walk from each sample's last step to its first; `y` stays at its place in time.
    batch_first : bool
        `x` and `y` have the batch first.
    clip : float, optional
        Limit `a` to [-clip, clip].
    save : bool
        Return ``(results, saved)``; `saved` goes to `lstm_backward`. For arrays only.

    Returns
    -------
    y, h_n, c_n : array or Tensor
        (T, B, P) or (B, T, P), the states of all steps; (B, P) and (B, H), the last ones.

    Raises
    ------
    ValueError
        For shapes that do not fit, lengths out of range, or a `clip` not above 0. On CUDA the results of a
        sample whose length is out of range are NaN instead, unless ``BRASA_CHECK=1`` is set.
    TypeError
        For another dtype or a mix of them.

    Notes
    -----
    A sequence in pieces, each given the states after the one before, has the bits of the whole; a sample alone
    those of the sample in a batch. Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> y, h_n, c_n = lstm(x, None, None, w_ih, w_hh)
    >>> y[:, 0, 0].round(4), h_n.round(4)
    (array([0.7037, 0.9425], dtype=float32), array([[0.9425]], dtype=float32))
    """
    layer = _layer(
        "lstm", x, h0, w_ih, w_hh, b_ih, b_hh, c0=c0, w_hr=w_hr, peephole=peephole, lengths=lengths,
        reverse=reverse, batch_first=batch_first, clip=clip,
    )  # fmt: skip
    y, h_n, c_n, saved = _forward(layer, save)
    return ((y, h_n, c_n), saved) if save else (y, h_n, c_n)


lstm = differentiable(_lstm, lstm_backward, arrays=LSTM_ARRAYS)


# GRU --------------------------------------------------------------------------------------------------


def _gru_name(reset_after: bool) -> str:
    return "gru" if reset_after else "gru_reset_before"


def gru_backward(
    dy: Any,
    dh_n: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `gru`.

    Parameters
    ----------
    dy, dh_n : array or None
        The gradients of the two results; None where one is unused.
    x, h0, w_ih, w_hh, b_ih, b_hh, lengths, reverse, batch_first, reset_after, clip
        As for `gru`.
    saved : tuple
        What ``save=True`` returned. It holds the result `y` itself.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh : array or None
        None where `mask` is False or the argument was None.

    Raises
    ------
    ValueError, TypeError
        As for `gru`, and when `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> (y, h_n), saved = gru(x, None, w_ih, w_hh, save=True)
    >>> dx, _, dw_ih, *_ = gru_backward(np.ones_like(y), None, x, None, w_ih, w_hh, saved=saved)
    >>> dx.shape, dw_ih.shape
    ((2, 1, 3), (3, 3))
    """
    layer = _layer(
        _gru_name(reset_after), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    found = _backward(layer, (dy, dh_n, None), saved, _asked(ARRAYS, mask))
    return tuple(found.get(name) for name in ARRAYS)


def _gru(
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One direction of a layer of gated recurrent units over a batch of sequences.

    At every step, with the state h of the step before, ``a = x w_ih.T + b_ih`` and ``s = h w_hh.T + b_hh``, each
    cut into three; then ``r, z = sigmoid(a_r + s_r), sigmoid(a_z + s_z)``, ``n = tanh(a_n + r s_n)`` and
    ``h = (1 - z) n + z h``.

    Parameters
    ----------
    x : array or Tensor
        (T, B, I), or (B, T, I) with `batch_first`. float32 or float64.
    h0 : array or Tensor or None
        (B, H), the state before the first step; zeros where None.
    w_ih, w_hh : array or Tensor
        (3 H, I) and (3 H, H), gates in the order r, z, n.
    b_ih, b_hh : array or Tensor, optional
        (3 H,).
    lengths : array, optional
        (B,), integers in [0, T] in any order: the steps of each sample that count. Beyond them `y` is 0, and
        `h_n` is the state after the last that does (`h0` for a length of 0).
    reverse : bool
        Walk from each sample's last step to its first; `y` stays at its place in time.
    batch_first : bool
        `x` and `y` have the batch first.
    reset_after : bool
        True is torch's form, above. False applies r before the product:
        ``n = tanh(a_n + (r h) w_hn.T + b_hn)``, as in the original paper and ONNX's ``linear_before_reset=0``.
    clip : float, optional
        Limit what the sigmoids and tanh are applied to to [-clip, clip].
    save : bool
        Return ``(results, saved)``; `saved` goes to `gru_backward`. For arrays only.

    Returns
    -------
    y, h_n : array or Tensor
        (T, B, H) or (B, T, H), the states of all steps; (B, H), the last ones.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`.

    Notes
    -----
    A sequence in pieces has the bits of the whole, a sample alone those of the sample in a batch. Cho et al. 2014.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> y, h_n = gru(x, None, w_ih, w_hh)
    >>> y[:, 0, 0].round(4), h_n.round(4)
    (array([0.0472, 0.0924], dtype=float32), array([[0.0924]], dtype=float32))
    """
    layer = _layer(
        _gru_name(reset_after), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    y, h_n, _, saved = _forward(layer, save)
    return ((y, h_n), saved) if save else (y, h_n)


gru = differentiable(_gru, gru_backward, arrays=ARRAYS)


# Simple -----------------------------------------------------------------------------------------------


def _nonlinearity(name: Any) -> str:
    if name not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {name!r}")
    return name


def rnn_backward(
    dy: Any,
    dh_n: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `rnn`.

    Parameters
    ----------
    dy, dh_n : array or None
        The gradients of the two results; None where one is unused.
    x, h0, w_ih, w_hh, b_ih, b_hh, nonlinearity, lengths, reverse, batch_first, clip
        As for `rnn`.
    saved : tuple
        What ``save=True`` returned. It holds the result `y` itself.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh : array or None
        None where `mask` is False or the argument was None.

    Raises
    ------
    ValueError, TypeError
        As for `rnn`, and when `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> (y, h_n), saved = rnn(x, None, w_ih, w_hh, nonlinearity="relu", save=True)
    >>> dx, *_ = rnn_backward(np.ones_like(y), None, x, None, w_ih, w_hh, nonlinearity="relu", saved=saved)
    >>> dx[:, 0]
    array([[2., 2., 2.],
           [1., 1., 1.]], dtype=float32)
    """
    layer = _layer(
        _nonlinearity(nonlinearity), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    found = _backward(layer, (dy, dh_n, None), saved, _asked(ARRAYS, mask))
    return tuple(found.get(name) for name in ARRAYS)


def _rnn(
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One direction of a simple recurrent layer over a batch of sequences.

    At every step ``h = f(x w_ih.T + b_ih + h w_hh.T + b_hh)`` of the state h of the step before.

    Parameters
    ----------
    x : array or Tensor
        (T, B, I), or (B, T, I) with `batch_first`. float32 or float64.
    h0 : array or Tensor or None
        (B, H), the state before the first step; zeros where None.
    w_ih, w_hh : array or Tensor
        (H, I) and (H, H).
    b_ih, b_hh : array or Tensor, optional
        (H,).
    nonlinearity : str
        f: "tanh" or "relu".
    lengths : array, optional
        (B,), integers in [0, T] in any order: the steps of each sample that count. Beyond them `y` is 0, and
        `h_n` is the state after the last that does (`h0` for a length of 0).
    reverse : bool
        Walk from each sample's last step to its first; `y` stays at its place in time.
    batch_first : bool
        `x` and `y` have the batch first.
    clip : float, optional
        Limit what f is applied to to [-clip, clip].
    save : bool
        Return ``(results, saved)``; `saved` goes to `rnn_backward`. For arrays only.

    Returns
    -------
    y, h_n : array or Tensor
        (T, B, H) or (B, T, H), the states of all steps; (B, H), the last ones.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`; another `nonlinearity`.

    Notes
    -----
    A sequence in pieces has the bits of the whole, a sample alone those of the sample in a batch. Elman 1990.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> y, h_n = rnn(x, None, w_ih, w_hh, nonlinearity="relu")
    >>> y[:, 0, 0], h_n
    (array([3., 6.], dtype=float32), array([[6.]], dtype=float32))
    """
    layer = _layer(
        _nonlinearity(nonlinearity), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    y, h_n, _, saved = _forward(layer, save)
    return ((y, h_n), saved) if save else (y, h_n)


rnn = differentiable(_rnn, rnn_backward, arrays=ARRAYS)


# Single steps -----------------------------------------------------------------------------------------

CELL_ARRAYS = ("x", "h", *ARRAYS[2:])
LSTM_CELL_ARRAYS = ("x", "h", "c", *LSTM_ARRAYS[3:])


def _one_step(x: Any) -> Any:
    """(B, I) as a sequence of one step."""
    x = _check.floating("x", x)
    _check.rank("x", x, 2, shape="(B, I)")
    return x[None]


def _without_step(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    dx = gradients[0]
    return (dx if dx is None else dx[0], *gradients[1:])


def lstm_cell_backward(
    dh: Any,
    dc: Any,
    x: Any,
    h: Any,
    c: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL,
) -> tuple[Any, ...]:
    """The gradients of `lstm_cell`: dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh, dw_hr, dpeephole.

    `dh` and `dc` are those of the results; the rest is as for `lstm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> (h, c), saved = lstm_cell(x, None, None, w_ih, w_hh, save=True)
    >>> dx, *_ = lstm_cell_backward(np.ones_like(h), None, x, None, None, w_ih, w_hh, saved=saved)
    >>> dx.shape
    (2, 3)
    """
    gradients = lstm_backward(
        None, dh, dc, _one_step(x), h, c, w_ih, w_hh, b_ih, b_hh, w_hr=w_hr, peephole=peephole, clip=clip,
        saved=saved, mask=mask,
    )  # fmt: skip
    return _without_step(gradients)


def _lstm_cell(
    x: Any,
    h: Any,
    c: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One step of `lstm`.

    Parameters
    ----------
    x : array or Tensor
        (B, I).
    h, c : array or Tensor or None
        (B, P) and (B, H), the states before the step; zeros where None.
    w_ih, w_hh, b_ih, b_hh, w_hr, peephole, clip
        As for `lstm`.
    save : bool
        Return ``((h, c), saved)``; `saved` goes to `lstm_cell_backward`. For arrays only.

    Returns
    -------
    h, c : array or Tensor
        The states after the step, with the bits of a sequence of one step.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((1, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> h, c = lstm_cell(x, None, None, w_ih, w_hh)
    >>> h.round(4), c.round(4)
    (array([[0.7037]], dtype=float32), array([[0.9479]], dtype=float32))
    """
    layer = _layer(
        "lstm", _one_step(x), h, w_ih, w_hh, b_ih, b_hh, c0=c, w_hr=w_hr, peephole=peephole, clip=clip,
        names=("h", "c"),
    )  # fmt: skip
    _, h_n, c_n, saved = _forward(layer, save)
    return ((h_n, c_n), saved) if save else (h_n, c_n)


lstm_cell = differentiable(_lstm_cell, lstm_cell_backward, arrays=LSTM_CELL_ARRAYS)


def gru_cell_backward(
    dh: Any,
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `gru_cell`: dx, dh, dw_ih, dw_hh, db_ih, db_hh.

    `dh` is that of the result; the rest is as for `gru_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> h, saved = gru_cell(x, None, w_ih, w_hh, save=True)
    >>> dx, *_ = gru_cell_backward(np.ones_like(h), x, None, w_ih, w_hh, saved=saved)
    >>> dx.shape
    (2, 3)
    """
    gradients = gru_backward(
        None, dh, _one_step(x), h, w_ih, w_hh, b_ih, b_hh, reset_after=reset_after, clip=clip, saved=saved,
        mask=mask,
    )  # fmt: skip
    return _without_step(gradients)


def _gru_cell(
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One step of `gru`.

    Parameters
    ----------
    x : array or Tensor
        (B, I).
    h : array or Tensor or None
        (B, H), the state before the step; zeros where None.
    w_ih, w_hh, b_ih, b_hh, reset_after, clip
        As for `gru`.
    save : bool
        Return ``(h, saved)``; `saved` goes to `gru_cell_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        (B, H), the state after the step, with the bits of a sequence of one step.

    Raises
    ------
    ValueError, TypeError
        As for `gru`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((1, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> gru_cell(x, None, w_ih, w_hh).round(4)
    array([[0.0472]], dtype=float32)
    """
    layer = _layer(
        _gru_name(reset_after), _one_step(x), h, w_ih, w_hh, b_ih, b_hh, clip=clip, names=("h", "c")
    )
    _, h_n, _, saved = _forward(layer, save)
    return (h_n, saved) if save else h_n


gru_cell = differentiable(_gru_cell, gru_cell_backward, arrays=CELL_ARRAYS)


def rnn_cell_backward(
    dh: Any,
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `rnn_cell`: dx, dh, dw_ih, dw_hh, db_ih, db_hh.

    `dh` is that of the result; the rest is as for `rnn_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> h, saved = rnn_cell(x, None, w_ih, w_hh, nonlinearity="relu", save=True)
    >>> dx, *_ = rnn_cell_backward(np.ones_like(h), x, None, w_ih, w_hh, nonlinearity="relu", saved=saved)
    >>> dx
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    gradients = rnn_backward(
        None, dh, _one_step(x), h, w_ih, w_hh, b_ih, b_hh, nonlinearity=nonlinearity, clip=clip, saved=saved,
        mask=mask,
    )  # fmt: skip
    return _without_step(gradients)


def _rnn_cell(
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One step of `rnn`.

    Parameters
    ----------
    x : array or Tensor
        (B, I).
    h : array or Tensor or None
        (B, H), the state before the step; zeros where None.
    w_ih, w_hh, b_ih, b_hh, nonlinearity, clip
        As for `rnn`.
    save : bool
        Return ``(h, saved)``; `saved` goes to `rnn_cell_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        (B, H), the state after the step, with the bits of a sequence of one step.

    Raises
    ------
    ValueError, TypeError
        As for `rnn`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((1, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> rnn_cell(x, None, w_ih, w_hh, nonlinearity="relu")
    array([[3.]], dtype=float32)
    """
    layer = _layer(
        _nonlinearity(nonlinearity), _one_step(x), h, w_ih, w_hh, b_ih, b_hh, clip=clip, names=("h", "c")
    )
    _, h_n, _, saved = _forward(layer, save)
    return (h_n, saved) if save else h_n


rnn_cell = differentiable(_rnn_cell, rnn_cell_backward, arrays=CELL_ARRAYS)

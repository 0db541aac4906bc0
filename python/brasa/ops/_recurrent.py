"""What the recurrent operators share: checked operands, the walk over the steps, and the products around it.

The products of the inputs with their weights are one matrix product over all steps, and so are the gradients of
`x` and of every weight; the kernel walks the steps in between.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from brasa import _backend
from brasa.ops import _check

GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "tanh": 1, "relu": 1}
ARRAYS = ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh")
LSTM_ARRAYS = ("x", "h0", "c0", *ARRAYS[2:], "w_hr", "peephole")
ALL = (True,) * len(LSTM_ARRAYS)


class Layer(NamedTuple):
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
    array = _check.device_floating(name, array)
    _check.same_dtype(**{"x": x, name: array})
    _check.shape(name, array, shape, letters)
    return _backend.contiguous(array)


def _vector(name: str, array: Any, x: Any, shape: tuple[int, ...], letters: str) -> Any:
    """An operand that may be float32 beside `x` of 16 bits: a bias, or a peephole."""
    if array is None:
        return None
    array = _check.device_floating(name, array)
    if array.dtype.char != "f" or not _backend.is_narrow(x.dtype):
        return _operand(name, array, x, shape, letters)
    _check.shape(name, array, shape, letters)
    return _backend.contiguous(_check.vector(name, array, x=x))


def _wide(vector: Any) -> Any:
    """The vector as kernels take it: of 16 bits as float32."""
    narrow = vector is not None and _backend.is_narrow(vector.dtype)
    return _backend.cast(vector, "float32") if narrow else vector


def make_layer(
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
) -> Layer:
    x = _backend.contiguous(_check.device_floating("x", x))
    batch_first = bool(batch_first)
    _check.rank("x", x, 3, shape="(B, T, I)" if batch_first else "(T, B, I)")
    gates, inputs, batch = GATES[cell], x.shape[2], x.shape[not batch_first]
    w_ih = _check.device_floating("w_ih", w_ih)
    _check.rank("w_ih", w_ih, 2, shape=f"({gates if gates > 1 else ''}H, I)")
    rows = w_ih.shape[0]
    if rows % gates:
        raise ValueError(
            f"w_ih: expected a multiple of {gates} rows, one part per gate, got shape {w_ih.shape}"
        )
    hidden = state = rows // gates
    w_ih = _operand("w_ih", w_ih, x, (rows, inputs), "one row per gate and unit, the inputs of x")
    w_hh = _check.device_floating("w_hh", w_hh)
    if w_hr is not None:
        w_hr = _check.device_floating("w_hr", w_hr)
        _check.rank("w_hr", w_hr, 2, shape="(P, H)")
        state = w_hr.shape[0]
    w_hh = _operand("w_hh", w_hh, x, (rows, state), "one row per gate and unit, the state's columns")
    if clip is not None and not _check.number("clip", clip) > 0:
        raise ValueError(f"clip: expected a number above 0, got {clip}")
    return Layer(
        cell,
        x,
        _operand(names[0], h0, x, (batch, state), "the state of each sample"),
        _operand(names[1], c0, x, (batch, hidden), "the cell of each sample"),
        w_ih,
        w_hh,
        _vector("b_ih", b_ih, x, (rows,), "one per gate and unit"),
        _vector("b_hh", b_hh, x, (rows,), "one per gate and unit"),
        _operand("w_hr", w_hr, x, (state, hidden), "from the units to the state"),
        _vector("peephole", peephole, x, (3, hidden), "of the gates i, f, o"),
        _lengths(lengths, x, batch, x.shape[batch_first]),
        bool(reverse),
        batch_first,
        inf if clip is None else float(clip),
    )


def _lengths(lengths: Any, x: Any, batch: int, steps: int) -> Any:
    """One int64 for each sample."""
    if lengths is None:
        return None
    lengths = _check.indices("lengths", lengths, steps + 1, like=x)
    _check.shape("lengths", lengths, (batch,), "one per sample")
    return lengths if lengths.dtype.char == "l" else lengths.astype("int64")


def _sum(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def _biases(layer: Layer) -> tuple[Any, Any]:
    """What is added to the product of the inputs, and what to that of the state (b_hn of a GRU)."""
    b_ih, b_hh = _wide(layer.b_ih), _wide(layer.b_hh)
    if layer.cell != "gru" or b_hh is None:
        return _sum(b_ih, b_hh), None
    bias, split = b_hh.copy(), 2 * layer.hidden
    bias[split:] = 0
    return _sum(b_ih, bias), b_hh[split:]


def _gates(layer: Layer, bias: Any, keep: bool) -> tuple[Any, tuple[Any, Any, Any]]:
    """The array of the gates, which holds the products of the inputs, and the factors of these products where the
    kernel makes them itself; then the array is only there to keep the gates in.
    """
    kernels = _backend.backend_of(layer.x).kernels
    if kernels.rnn_takes_inputs(layer.cell, layer.x, layer.w_hh, layer.batch_first):
        return layer.rows(len(layer.w_ih)) if keep else None, (layer.x, layer.w_ih, bias)
    gates = layer.rows(len(layer.w_ih))
    kernels.matmul(layer.x, layer.w_ih, bias, None, gates, None, False, True, None)
    return gates, (None, None, None)


def forward(layer: Layer, save: bool) -> tuple[Any, Any, Any, Any]:
    """The states of all steps, the last ones (h and, of an LSTM, c), and what the gradient needs."""
    kernels = _backend.backend_of(layer.x).kernels
    lstm, hidden, state = layer.cell == "lstm", layer.hidden, layer.w_hh.shape[1]
    bias, b_hn = _biases(layer)
    keep = save and GATES[layer.cell] > 1
    gates, inputs = _gates(layer, bias, keep)
    y, h_n, c_n = layer.rows(state), layer.states(state), layer.states(hidden) if lstm else None
    cells = layer.rows(hidden) if lstm and save else None
    v = layer.rows(hidden) if layer.cell == "gru" and save else None
    kernels.rnn_forward(
        layer.cell, gates, *inputs, layer.w_hh, b_hn, layer.w_hr, _wide(layer.peephole), layer.h0,
        layer.c0, layer.lengths, y, cells, v, h_n, c_n, layer.reverse, layer.batch_first, layer.clip, keep,
    )  # fmt: skip
    return y, h_n, c_n, (gates if keep else None, cells, v, y) if save else None


def _saved(saved: Any, layer: Layer) -> tuple[Any, Any, Any, Any]:
    """The arrays that `forward` kept for a call of these shapes."""
    saved = _check.saved(saved, 4)
    many = GATES[layer.cell] > 1
    kept = many, layer.cell == "lstm", layer.cell == "gru", True
    columns = len(layer.w_ih), layer.hidden, layer.hidden, layer.w_hh.shape[1]
    for array, there, wanted in zip(saved, kept, columns, strict=True):
        if (array is not None) != there:
            _check.refuse_saved(saved)
        if there:
            _operand("saved", array, layer.x, (*layer.x.shape[:2], wanted), "as for the forward")
    return tuple(saved)


def backward(layer: Layer, dys: tuple[Any, Any, Any], saved: Any, wanted: dict[str, bool]) -> dict[str, Any]:
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
        layer.cell, dy, dh_n, dc_n, layer.w_hh, layer.w_hr, _wide(layer.peephole), layer.h0, layer.c0,
        layer.lengths, gates, cells, v, y, *terms.values(), layer.reverse, layer.batch_first, layer.clip,
    )  # fmt: skip
    return _gradients(layer, terms, wanted)


def _product(a: Any, b: Any, y: Any, transpose_a: bool) -> Any:
    """y = a b, where `a` may be given transposed."""
    _backend.backend_of(y).kernels.matmul(a, b, None, None, y, None, transpose_a, False, None)
    return y


def _column_sums(terms: Any, like: Any) -> Any:
    """The gradient of `like` from its terms, a row each."""
    sums = _backend.empty(like, terms.shape[-1:])
    _backend.backend_of(terms).kernels.column_sums(_flat(terms), sums)
    return sums


def _flat(rows: Any) -> Any:
    return rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2])


def _x_that_counts(layer: Layer) -> Any:
    """x, with 0 beyond the lengths: its product with the gradients there, 0, may not be NaN."""
    if layer.lengths is None:
        return layer.x
    steps = _backend.namespace(layer.x).arange(layer.x.shape[layer.batch_first])
    beyond = steps[:, None] >= layer.lengths
    # Looked at only where nothing waits for a device.
    if _backend.backend_of(layer.x).name == "cpu" and not beyond.any():
        return layer.x
    x = layer.x.copy()
    x[beyond.T if layer.batch_first else beyond] = 0
    return x


def _gradients(layer: Layer, terms: dict[str, Any], wanted: dict[str, bool]) -> dict[str, Any]:
    """What follows from the gradients before the activations: one product over all steps each."""
    dgates = terms["dgates"]
    found = {"h0": terms["dh0"], "c0": terms["dc0"]}
    if wanted["x"]:
        found["x"] = _product(dgates, layer.w_ih, layer.rows(layer.x.shape[2]), False)
    if wanted["w_ih"]:
        dw = _backend.empty(layer.x, layer.w_ih.shape)
        found["w_ih"] = _product(_flat(dgates), _flat(_x_that_counts(layer)), dw, True)
    if wanted["w_hh"]:
        found["w_hh"] = _gradient_of_w_hh(layer, terms)
    found |= _gradients_of_biases(layer, terms, wanted)
    if wanted.get("w_hr") and layer.w_hr is not None:
        dw = _backend.empty(layer.x, layer.w_hr.shape)
        found["w_hr"] = _product(_flat(terms["dh"]), _flat(terms["m"]), dw, True)
    if wanted.get("peephole") and layer.peephole is not None:
        found["peephole"] = _column_sums(terms["dpeephole"], layer.peephole).reshape(3, layer.hidden)
    return found


def _gradient_of_w_hh(layer: Layer, terms: dict[str, Any]) -> Any:
    dw, dgates, previous = (
        _backend.empty(layer.x, layer.w_hh.shape),
        _flat(terms["dgates"]),
        terms["previous"],
    )
    if not layer.cell.startswith("gru"):
        return _product(dgates, _flat(previous), dw, True)
    split = 2 * layer.hidden
    _product(dgates[:, :split], _flat(previous), dw[:split], True)
    if layer.cell == "gru":
        _product(_flat(terms["dv"]), _flat(previous), dw[split:], True)
    else:
        _product(dgates[:, split:], _flat(terms["reset"]), dw[split:], True)
    return dw


def _gradients_of_biases(layer: Layer, terms: dict[str, Any], wanted: dict[str, bool]) -> dict[str, Any]:
    wants = {name: wanted[name] and getattr(layer, name) is not None for name in ("b_ih", "b_hh")}
    if not any(wants.values()):
        return {}
    sums = _column_sums(terms["dgates"], layer.b_ih if wants["b_ih"] else layer.b_hh)
    if not wants["b_hh"]:
        return {"b_ih": sums}
    of_state = sums
    if wants["b_ih"]:
        alike = layer.b_ih.dtype == layer.b_hh.dtype
        of_state = sums.copy() if alike else _column_sums(terms["dgates"], layer.b_hh)
    if layer.cell == "gru":
        of_state[2 * layer.hidden :] = _column_sums(terms["dv"], layer.b_hh)
    return {"b_ih": sums, "b_hh": of_state} if wants["b_ih"] else {"b_hh": of_state}


def asked(names: tuple[str, ...], mask: Any) -> dict[str, bool]:
    """Which gradients `mask` asks for, by name."""
    return dict(zip(names, _check.mask(mask, len(names)), strict=True))


def gru_name(reset_after: bool) -> str:
    """The kernel's name of the cell."""
    return "gru" if reset_after else "gru_reset_before"


def nonlinearity_name(name: Any) -> str:
    """The same of a simple cell."""
    if not isinstance(name, str) or name not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {name!r}")
    return name

"""Mixed precision: products in 16 bits on a device, sums and exponentials in float32.

`autocast` is a hook on every operator call (`_tape.precall`), so that one place casts. What an operator's
arguments become is a list by name, below; it is PyTorch's list for CUDA, where brasa has the operator.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from brasa import _backend, _tape
from brasa._backend import is_narrow
from brasa._elementwise import astype
from brasa._extras import require
from brasa._tape import Operator, is_tensor

__all__ = ["autocast", "in_float32", "narrow_dtype", "with_own_casts"]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# Products, convolutions, attention and recurrent layers: these arguments are cast from float32 to 16 bits. A bias, a
# peephole and a mask stay float32, as the kernels take them.
_SEQUENCE = ("x", "h0", "w_ih", "w_hh")
_NARROW = {
    "attention": ("q", "k", "v"),
    "conv2d": ("x", "weight", "residual"),
    "gru": _SEQUENCE,
    "lstm": (*_SEQUENCE, "c0", "w_hr"),
    "matmul": ("a", "b", "residual"),
    "rnn": _SEQUENCE,
}

# Where 16 bits lose too much (a single step of a recurrent layer hands its state on rounded), or where no kernel takes
# them: 16 bits are cast up to float32.
_WIDE = {
    "bce", "ctc_loss", "divide_into", "exp", "expm1", "gru_cell", "layer_norm", "log", "log1p", "log_softmax",
    "lstm_cell", "power", "raise_from", "raise_to", "rnn_cell", "softmax", "sum",
}  # fmt: skip

# The arguments of every other operator get the widest dtype among them; of these, only the ones named, as they
# take float32 beside 16 bits.
_AMONG = {"batch_norm": ("x", "residual"), "cross_entropy": ("logits",)}


def narrow_dtype(dtype: Any) -> np.dtype:
    """The dtype of 16 bits of this name.

    Raises
    ------
    ValueError
        For any other.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name == "float16":
        return np.dtype(np.float16)
    if name != "bfloat16":
        raise ValueError(f"dtype: expected 'bfloat16' or 'float16', got {name!r}")
    return np.dtype(require("ml_dtypes", "bf16", "for arrays of bfloat16").bfloat16)


def in_float32(x: Any) -> Any:
    """Within `autocast`, a Tensor or array of 16 bits as float32; anything else as it is."""
    active = _tape.mode.get().precall is not None
    return astype(x, "float32") if active and _on_device(x) and is_narrow(x.dtype) else x


def _on_device(value: Any) -> bool:
    """Whether this is an array, or a Tensor of one, that is not on the CPU."""
    return _array_on_device(value) is not None


# What most arguments are, and not on a device.
_NO_ARRAYS = {np.ndarray, type(None), bool, int, float, str, tuple}


def _array_on_device(value: Any) -> Any:
    """The array that this is, or that a Tensor holds, if it is not on the CPU; else None."""
    if type(value) in _tape._tensors:
        value = value.data
    return value if type(value) not in _NO_ARRAYS and _backend.is_array(value) else None


class _Weights:
    """Casts of weights within a block, each used until the weight changes."""

    def __init__(self) -> None:
        self._casts: dict[int, tuple[Any, Any, int, Any]] = {}
        self._lock = threading.Lock()  # a block may be entered in one thread and used in several

    def cast(self, tensor: Any, dtype: Any) -> Any:
        """The array of `tensor`, a leaf that requires a gradient, as `dtype`."""
        with self._lock:
            entry = self._casts.get(id(tensor))
            if entry is not None:
                _, data, version, narrow = entry
                if data is tensor.data and version == tensor._cell[0] and narrow.dtype == dtype:
                    return narrow
            narrow = _backend.cast(tensor.data, dtype)
            self._casts[id(tensor)] = tensor, tensor.data, tensor._cell[0], narrow
            return narrow


class _Plan(NamedTuple):
    """What is done with the arguments of an operator."""

    positions: tuple[int, ...] | None  # that are looked at; None: those of its arrays
    product: bool
    wide: bool
    native: int  # the position of an activation, which may be a softplus; or -1


@lru_cache(maxsize=1024)
def _plan(op: Operator) -> _Plan:
    names = _NARROW.get(op.name) or _AMONG.get(op.name)
    positions = None if op.variadic else op.possible
    return _Plan(
        positions if names is None else tuple(op.names.index(name) for name in names),
        op.name in _NARROW,
        op.name in _WIDE,
        op.names.index("native") if op.name == "activation" else -1,
    )


class _Caster:
    """The hook of one block."""

    def __init__(self, dtype: np.dtype, weights: _Weights) -> None:
        self.dtype, self.weights = dtype, weights

    def __call__(self, op: Operator, values: Sequence[Any]) -> Sequence[Any]:
        plan = _plan(op)
        if plan.product:
            return self._narrowed(values, plan.positions)  # type: ignore[arg-type]
        narrow: list[int] = []
        dtypes = set()
        for i in op.variable(values) if plan.positions is None else plan.positions:
            array = _array_on_device(values[i])
            if array is not None and _tape.is_floating(array.dtype):
                dtypes.add(array.dtype)
                if is_narrow(array.dtype):
                    narrow.append(i)
        if not narrow or not (plan.wide or len(dtypes) > 1 or _is_softplus(plan, values)):
            return values
        widest = _FLOAT64 if _FLOAT64 in dtypes else _FLOAT32
        changed = list(values)
        for i in narrow:
            changed[i] = (astype if is_tensor(values[i]) else _backend.cast)(values[i], widest)
        return changed

    def _narrowed(self, values: Sequence[Any], positions: Sequence[int]) -> Sequence[Any]:
        """`values`, those at `positions` as arrays of 16 bits; float64 stays what it is."""
        changed: list[Any] | None = None
        for i in positions:
            array = _array_on_device(values[i])
            if array is None or array.dtype == self.dtype:
                continue
            if array.dtype.char != "f" and not is_narrow(array.dtype):
                continue
            changed = list(values) if changed is None else changed
            value = values[i]
            is_weight = value is not array and value._node is None and value._requires_grad
            changed[i] = (
                self.weights.cast(value, self.dtype) if is_weight else _backend.cast(array, self.dtype)
            )
        return values if changed is None else changed


def with_own_casts() -> AbstractContextManager[None]:
    """A block within `autocast` that neither finds the casts of weights made so far nor leaves its own behind.

    A captured step needs it: the launches that cast would otherwise be missing from its replays.
    """
    caster = _tape.mode.get().precall
    return _tape.precall(_Caster(caster.dtype, _Weights())) if isinstance(caster, _Caster) else nullcontext()


def _is_softplus(plan: _Plan, values: Sequence[Any]) -> bool:
    """Whether this is the one activation that PyTorch computes in float32."""
    return plan.native >= 0 and values[plan.native][0] == _softplus_kind()


@cache
def _softplus_kind() -> int:
    from brasa.ops.activation import ACTIVATIONS  # which stands on this module's neighbours

    return ACTIVATIONS["softplus"].kind


class autocast(ContextDecorator):
    """Compute products in 16 bits on a device, in this block or in calls of the function it decorates.

    Weights and their gradients stay float32. The arguments of products (`ops.matmul`, fully connected layers),
    convolutions, attention and recurrent layers are cast to `dtype` where they are float32, so that their results,
    and what activations, dropout, pooling and batch norms make of them, have 16 bits; biases and the weights of norms
    stay float32. Softmax, exponentials, logarithms, powers, sums, layer norms and losses are computed in float32, as
    are single steps of recurrent layers. Where float32 meets 16 bits the result is float32.
    float64 is left alone, and so are arrays on the CPU: there the block changes nothing.

    The cast of a weight is kept until the weight changes or the outermost block ends.
    ``backward`` may be called inside or outside: gradients are computed in the dtypes of the forward pass.
    A block holds for the thread (or asyncio task) that enters it.

    Parameters
    ----------
    dtype : {"bfloat16", "float16"}
        What products are made in. float16 has three more bits and a range that gradients leave: scale the
        loss, with `GradScaler`. bfloat16 has the range of float32, and needs the package ml_dtypes.
    enabled : bool, default True
        False: a block inside another one that computes as usual.

    Raises
    ------
    ValueError
        For another dtype.
    MissingExtra
        For bfloat16 without ml_dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> layer = br.nn.Linear(4, 2)
    >>> with br.autocast("float16"):
    ...     y = layer(np.zeros((1, 4), np.float32))
    >>> y.dtype  # on the CPU
    dtype('float32')
    """

    def __init__(self, dtype: Any = "bfloat16", enabled: bool = True) -> None:
        self._dtype = narrow_dtype(dtype)
        self._enabled = bool(enabled)
        self._blocks: list[AbstractContextManager[None]] = []

    def _recreate_cm(self) -> autocast:
        return type(self)(self._dtype, self._enabled)

    def __enter__(self) -> None:
        outer = _tape.mode.get().precall
        weights = outer.weights if isinstance(outer, _Caster) else _Weights()
        block = _tape.precall(_Caster(self._dtype, weights) if self._enabled else None)
        block.__enter__()
        self._blocks.append(block)

    def __exit__(self, *error: Any) -> None:
        self._blocks.pop().__exit__(*error)

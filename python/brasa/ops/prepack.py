"""Weights packed once, for products and convolutions that read them again and again."""

from __future__ import annotations

from typing import Any

from brasa import _backend
from brasa._tape import is_tensor
from brasa.ops import _check

__all__ = ["PackedWeight", "prepack"]

_SHAPES = {"matmul": "(k, n)", "linear": "(n, k)", "conv2d": "(O, C / groups, KH, KW)"}


class PackedWeight:
    """A constant operand of `matmul` or `conv2d` in the order in which its kernel reads it; `prepack` makes
    it.

    Opaque: it serves the operator, device, dtype and instruction set that it was packed for, and does not
    follow later changes of the array.

    Attributes
    ----------
    kind : str
        What it was packed for, as `prepack` was told.
    shape : tuple of int
        Of the array that was packed.
    dtype : dtype
        Of the array that was packed.
    device : str
        ``"cpu"`` or ``"cuda:0"``.
    isa : str or None
        The instruction set of the CPU kernels that can read it.
    """

    __slots__ = (
        "array", "device", "dtype", "groups", "isa", "kind", "ndim", "operand", "shape", "transposed",
    )  # fmt: skip

    def __init__(self, array: Any, kind: str, groups: int = 1) -> None:
        array, groups = _checked(array, kind, groups)
        backend = _backend.backend_of(array)
        self.kind = kind
        self.groups = groups
        self.shape: tuple[int, ...] = array.shape
        self.ndim = array.ndim
        self.dtype = array.dtype
        self.device = _backend.device_of(array)
        self.isa: str | None = None
        self.array = type(array)  # the kind of array that it goes with
        self.transposed = kind == "linear"  # what kernels are told about `operand`
        self.operand = array
        if backend.name == "cpu":
            kernels = backend.kernels
            if kind == "conv2d":
                size = kernels._conv_packed_size(array, groups)
                self.operand = backend.empty((size,), array.dtype, False)
                kernels._conv_pack(array, self.operand, groups)
            else:
                size = kernels._matmul_packed_size(array, self.transposed)
                self.operand = backend.empty((size,), array.dtype, False)
                kernels._matmul_pack(array, self.operand, self.transposed)
            self.isa = kernels.isa()
            self.transposed = False
        else:
            self.operand = array.copy()

    def __repr__(self) -> str:
        where = self.device if self.isa is None else f"{self.device}, {self.isa}"
        return f"PackedWeight({self.kind!r}, shape={self.shape}, dtype={self.dtype}, {where})"


def _checked(array: Any, kind: Any, groups: Any) -> tuple[Any, int]:
    """An array that can be packed as `kind`, and its groups."""
    if not isinstance(kind, str) or kind not in _SHAPES:
        raise ValueError(f"kind: expected 'matmul', 'linear' or 'conv2d', got {kind!r}")
    array = _check.floating("weight", array)
    _check.rank("weight", array, 4 if kind == "conv2d" else 2, shape=_SHAPES[kind])
    groups = _check.integer("groups", groups, minimum=1)
    if kind != "conv2d":
        if groups != 1:
            raise ValueError(f"groups: expected 1 for the kind {kind!r}, got {groups}")
        return array, groups
    if min(array.shape) < 1 or array.shape[0] % groups:
        raise ValueError(
            f"groups: {groups} does not divide the outputs of weight {array.shape}, or it is empty"
        )
    return _backend.contiguous(array), groups


def prepack(weight: Any, kind: str = "matmul", groups: int = 1) -> PackedWeight:
    """Pack a constant weight, so that products or convolutions with it no longer do.

    It pays where the weight is used more than once: a product of up to some 64 rows takes between half and
    nine tenths of its time, a 3x3 convolution of one image of 7x7 with 512 channels two thirds. Results have
    the same bits. `brasa.inference` does this for a whole model.

    Recurrent operators take their weights as they are and pack them once per call: a single step takes no longer
    than memory needs to give them (an LSTM of 512 units 153 us, 55 GB/s).

    Parameters
    ----------
    weight : array or Tensor
        (k, n) for the kind "matmul", (n, k) for "linear", (O, C / groups, KH, KW) for "conv2d". float32 or
        float64.
    kind : {"matmul", "linear", "conv2d"}
        What it stands for: ``b`` in ``matmul(a, b)``, or in ``matmul(a, b, transpose_b=True)`` as the weight of
        `nn.Linear`, or ``weight`` in ``conv2d(x, weight)``.
    groups : int, default: 1
        Of the convolution.

    Returns
    -------
    PackedWeight
        What `matmul` takes in place of `b`, or `conv2d` in place of `weight`, for constants: it has no
        gradient. It takes as much memory as the weight, that of a 1x1 convolution twice as much, and does not
        see later changes of it.

    Raises
    ------
    ValueError
        For an unknown kind, a weight of another rank, or groups that do not divide its outputs.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import ops
    >>> weight = prepack(np.float32([[1, 2], [3, 4], [5, 6]]), "linear")
    >>> ops.matmul(np.float32([[1, 10]]), weight, transpose_b=True)
    array([[21., 43., 65.]], dtype=float32)
    """
    return PackedWeight(weight.data if is_tensor(weight) else weight, kind, groups)


def check_packed(b: PackedWeight, a: Any, transpose_b: bool) -> None:
    """Raise what is wrong with a packed operand of `matmul` beside `a`; the shapes are checked elsewhere."""
    if b.kind == "conv2d":
        raise ValueError("b: packed as 'conv2d', expected 'matmul' or 'linear'")
    if bool(transpose_b) is not (b.kind == "linear"):
        raise ValueError(
            f"b: packed as {b.kind!r}, which needs transpose_b={b.kind == 'linear'}, got {transpose_b!r}"
        )
    _check_beside("b", b, "a", a)


def check_packed_conv(weight: PackedWeight, x: Any, groups: int) -> None:
    """The same of a packed weight of `conv2d`."""
    if weight.kind != "conv2d":
        raise ValueError(f"weight: packed as {weight.kind!r}, expected 'conv2d'")
    if groups != weight.groups:
        raise ValueError(f"weight: packed for groups={weight.groups}, got groups={groups}")
    _check_beside("weight", weight, "x", x)


def _check_beside(name: str, packed: PackedWeight, other: str, array: Any) -> None:
    if type(array) is not packed.array:
        raise TypeError(f"{name}: packed on {packed.device}, but {other} is on {_backend.device_of(array)}")
    if array.dtype != packed.dtype:
        raise TypeError(f"{name}: expected {array.dtype} as {other} has, got one packed from {packed.dtype}")
    isa = packed.isa and _backend.backend_of(array).kernels.isa()
    if packed.isa != isa:
        raise ValueError(f"{name}: packed for the instruction set {packed.isa}, but {isa} is in use")

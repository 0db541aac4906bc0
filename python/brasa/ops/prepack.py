"""Weights packed once, for products that read them again and again."""

from __future__ import annotations

from typing import Any

from brasa import _backend
from brasa._tape import is_tensor
from brasa.ops import _check

__all__ = ["PackedWeight", "prepack"]

_TRANSPOSED = {"matmul": False, "linear": True}


class PackedWeight:
    """A constant operand of `matmul` in the order in which its kernel reads it; `prepack` makes it.

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

    __slots__ = ("array", "device", "dtype", "isa", "kind", "ndim", "operand", "shape", "transposed")

    def __init__(self, array: Any, kind: str) -> None:
        backend = _backend.backend_of(array)
        self.kind = kind
        self.shape: tuple[int, int] = array.shape
        self.ndim = 2
        self.dtype = array.dtype
        self.device = _backend.device_of(array)
        self.isa: str | None = None
        self.array = type(array)  # the kind of array that it goes with
        self.transposed = _TRANSPOSED[kind]  # what kernels are told about `operand`
        self.operand = array
        if backend.name == "cpu":
            kernels = backend.kernels
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


def prepack(weight: Any, kind: str = "matmul") -> PackedWeight:
    """Pack a constant weight, so that products with it no longer do.

    It pays where the weight is used more than once: a product of up to some 64 rows takes between half and
    nine tenths of its time. Results have the same bits. `brasa.inference` does this for a whole model.

    Parameters
    ----------
    weight : array or Tensor
        (k, n) for the kind "matmul", (n, k) for "linear". float32 or float64.
    kind : {"matmul", "linear"}
        What it stands for: ``b`` in ``matmul(a, b)``, or in ``matmul(a, b, transpose_b=True)`` as the weight of
        `nn.Linear`.

    Returns
    -------
    PackedWeight
        What `matmul` takes in place of `b`, for constants: it has no gradient. It takes as much memory as
        the weight and does not see later changes of it.

    Raises
    ------
    ValueError
        For an unknown kind, or a weight that is not a matrix.
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
    if kind not in _TRANSPOSED:
        raise ValueError(f"kind: expected 'matmul' or 'linear', got {kind!r}")
    weight = _check.floating("weight", weight.data if is_tensor(weight) else weight)
    _check.rank("weight", weight, 2, shape="(k, n)" if kind == "matmul" else "(n, k)")
    return PackedWeight(weight, kind)


def check_packed(b: PackedWeight, a: Any, transpose_b: bool) -> None:
    """Raise what is wrong with a packed operand beside `a`; the shapes are checked elsewhere."""
    if bool(transpose_b) is not _TRANSPOSED[b.kind]:
        raise ValueError(
            f"b: packed as {b.kind!r}, which needs transpose_b={_TRANSPOSED[b.kind]}, got {transpose_b!r}"
        )
    if type(a) is not b.array:
        raise TypeError(f"b: packed on {b.device}, but a is on {_backend.device_of(a)}")
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected {a.dtype} as a has, got one packed from {b.dtype}")
    if b.isa is not None and b.isa != _backend.backend_of(a).kernels.isa():
        raise ValueError(
            f"b: packed for the instruction set {b.isa}, but {_backend.backend_of(a).kernels.isa()} is in use"
        )

"""What a caller may pass by mistake or malice, for the tests that look for a crash."""

from __future__ import annotations

import numpy as np

from brasa.tensor import Tensor


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def misaligned(a):
    raw = np.empty(a.nbytes + 3, np.uint8)[3:]
    shifted = np.frombuffer(raw.data, a.dtype, count=a.size).reshape(a.shape) if a.size else a
    if a.size:
        shifted[...] = a
    return shifted


HOSTILE_NUMBERS = [
    *(0, 1, -1, 2, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, -(2**63), np.int64(1)),
    *(1.5, float("nan"), float("inf"), True, "3", None, object()),
    *((), (1,), (1, 2, 3, 4, 5), (True, True, True), [1, "a"], {}, np.ones(2)),
]
HOSTILE_ARRAYS = {
    "int": lambda a: a.astype(np.int32) if a.dtype.kind == "f" else a.astype(np.float32),
    "bool": lambda a: a.astype(bool),
    "complex": lambda a: a.astype(np.complex64),
    "half": lambda a: a.astype(np.float16),
    "object": lambda a: a.astype(object),
    "text": lambda a: "abc",
    "none": lambda a: None,
    "scalar": lambda a: a.reshape(-1)[0] if a.size else a,
    "rank 0": lambda a: a.reshape(-1)[:1].reshape(()) if a.size else a,
    "rank + 1": lambda a: a[None],
    "rank 9": lambda a: a.reshape((1,) * (9 - a.ndim) + a.shape),
    "empty": lambda a: a[:0],
    "no elements at the end": lambda a: a[..., :0],
    "one more row": lambda a: np.concatenate([a, a[:1]]),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "misaligned": lambda a: misaligned(a),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "Fortran": np.asfortranarray,
    "broadcast": lambda a: np.broadcast_to(a.reshape(-1)[:1].reshape((1,) * a.ndim), a.shape),
    "read-only": lambda a: read_only(a),
    "subclass": lambda a: a.view(np.matrix) if a.ndim == 2 else a.view(np.recarray),
    "masked": lambda a: np.ma.masked_array(a, mask=True),
    "tensor": lambda a: Tensor(a),
    "list": lambda a: a.tolist(),
}

"""Arrays with the same values as others that lie in memory in other ways."""

from __future__ import annotations

import numpy as np

from brasa import _backend
from descriptors import UNIT


def channels_last(values):
    """A copy of a NumPy array, its axis 1 innermost."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)


def arrangements(move, values):
    """`values`, a C-contiguous NumPy array, in every other layout, and numbers that repeat with strides of 0.

    `move` makes arrays of the kind to test from NumPy's. Yields (name, array).
    """
    if values.ndim:
        yield "transposed", move(np.ascontiguousarray(values.T)).T
        yield "strided", move(np.repeat(values, 2, axis=-1))[..., ::2]
    if values.ndim > 2:
        yield "channels-last", move(channels_last(values))
    for name, kept in (("repeated", 0), ("repeated along rows", 1)):
        if values.ndim > kept and values.size:
            first = values[(slice(None),) * kept + (slice(1),) * (values.ndim - kept)]
            part = move(np.ascontiguousarray(first))
            yield name, _backend.namespace(part).broadcast_to(part, values.shape)


def weights_of(result):
    """A gradient of `result`: four numbers with short significands, so that every product with them is exact."""
    return np.resize(np.array([1, -0.5, 2, 0.25], np.float32), result.shape).astype(result.dtype)


def check_gradients(record, xp, images):
    """Gradients are those of a contiguous dy, whatever layout dy has.

    ``record(move)`` makes the arguments that get a gradient and a result from them, `move` being what makes
    their arrays; `images` says whether those of several axes are "channels-last".
    """

    def place(values):
        return xp.asarray(channels_last(values) if images == "channels-last" and values.ndim > 2 else values)

    def gradients(dy):
        tensors, result = record(place)
        result.backward(dy)
        return [xp.asnumpy(tensor.grad.data) for tensor in tensors]

    for name, arranged in arrangements(xp.asarray, weights_of(record(place)[1])):
        contiguous = xp.asarray(np.array(xp.asnumpy(arranged), order="C"))
        for found, wanted in zip(gradients(arranged), gradients(contiguous), strict=True):
            assert found.dtype == wanted.dtype
            # NumPy and CuPy, which make some sums, add in an order of their own for each layout.
            values = found.astype(np.float64), wanted.astype(np.float64)
            scale = 1 + np.abs(values[1][np.isfinite(values[1])]).max(initial=0)
            bound = 256 * UNIT.get(wanted.dtype.type, 0.0) * scale
            np.testing.assert_allclose(*values, rtol=0, atol=bound, err_msg=f"dy {name}")

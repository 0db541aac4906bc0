"""Convolutions that are large enough for several threads: the same bits on any number of them."""

from __future__ import annotations

import numpy as np
import pytest

from brasa import _cpu, ops

# (N, C, H, W), (O, C / groups, KH, KW), arguments; above a million multiply-adds, where calls go parallel
CASES = {
    "first layer": ((3, 3, 33, 35), (24, 3, 7, 7), {"stride": 2, "padding": 3}),
    "few channels": ((9, 2, 28, 28), (9, 2, 5, 5), {"padding": 2}),
    "rows of taps fill vectors": ((9, 6, 14, 14), (16, 6, 5, 5), {}),
    "many channels": ((2, 33, 14, 13), (70, 33, 3, 3), {"padding": 1}),
    "one panel, low blocks": ((1, 16, 32, 32), (16, 16, 3, 3), {"padding": 1}),
    "one image, many panels": ((1, 48, 7, 7), (260, 48, 3, 3), {"padding": 1}),
    "1x1": ((2, 130, 9, 9), (80, 130, 1, 1), {}),
    "1x1 with stride": ((2, 130, 18, 17), (80, 130, 1, 1), {"stride": 2}),
    "stride": ((2, 40, 15, 16), (36, 40, 3, 3), {"stride": 2, "padding": 1}),
    "groups": ((2, 66, 9, 9), (68, 33, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((4, 67, 24, 24), (67, 1, 3, 3), {"groups": 67, "padding": 1}),
}


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_on_every_number_of_threads(name, dtype, set_threads):
    x, weight, arguments = CASES[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(dtype) for s in (x, weight))
    bias = rng.standard_normal(weight.shape[0]).astype(dtype)
    before, results = _cpu.isa(), {}
    try:
        for isa in ("scalar", before):
            _cpu._set_isa(isa)
            for threads in (1, 2, 3):
                set_threads(threads)
                for image in (x, channels_last(x)):
                    y = ops.conv2d(image, weight, bias, **arguments, activation="relu")
                    packed = ops.prepack(weight, "conv2d", arguments.get("groups", 1))
                    z = ops.conv2d(image, packed, bias, **arguments, activation="relu")
                    assert z.tobytes() == y.tobytes()
                    found = [y, *ops.conv2d_backward(y, image, weight, **arguments)[:3]]
                    bits = [np.ascontiguousarray(a).tobytes() for a in found]
                    results.setdefault((threads, isa), []).append(bits)
    finally:
        _cpu._set_isa(before)
    first = results[1, before]
    for (_, isa), found in results.items():
        if before != "baseline" or isa == before:  # baseline rounds a product and a sum apart
            assert found == first
    assert first[0][:2] == first[1][:2]

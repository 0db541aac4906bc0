"""Pixel shuffle beyond the properties that all operators share: every path, layouts, gradients, torch."""

from __future__ import annotations

import numpy as np
import pytest

from brasa import Tensor, _backend, ops
from descriptors.shuffle import shuffled, unshuffled

layouts = pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
# (N, C, H, W) of the small image without its sub-pixels: one element, vectors and what is left of them.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 4, 5),
    (1, 16, 3, 2),
    (2, 17, 2, 33),
    (1, 35, 5, 16),
    (3, 8, 7, 15),
    (1, 64, 1, 1),
]


def laid_out(x, layout):
    if layout == "contiguous":
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def numbered(shape, dtype):
    """Every element another number."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@layouts
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_element_is_in_its_place(xp, shape, factor, layout, dtype):
    if xp.name != "cpu":
        shape = (shape[0], min(shape[1], 3), *shape[2:])
    n, c, h, w = shape
    x = numbered((n, c * factor * factor, h, w), dtype)
    small = xp.asarray(laid_out(x, layout))
    large = ops.pixel_shuffle(small, factor)
    assert large.dtype == dtype
    kept = "channels-last" if _backend.layout(small) == _backend.CHANNELS_LAST else "contiguous"
    assert _backend.layout(large) == _backend.layout(xp.asarray(laid_out(shuffled(x, factor), kept)))
    np.testing.assert_array_equal(xp.asnumpy(large), shuffled(x, factor))
    image = numbered((n, c, h * factor, w * factor), dtype)
    reduced = ops.pixel_unshuffle(xp.asarray(laid_out(image, layout)), factor)
    np.testing.assert_array_equal(xp.asnumpy(reduced), unshuffled(image, factor))
    np.testing.assert_array_equal(xp.asnumpy(ops.pixel_unshuffle(large, factor)), x)


@layouts
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_instruction_set_moves_alike(isa, set_threads, shape, factor, layout, dtype):
    n, c, h, w = shape
    x = numbered((n, c * factor * factor, h, w), dtype)
    for threads in (1, 3):
        set_threads(threads)
        large = ops.pixel_shuffle(laid_out(x, layout), factor)
        np.testing.assert_array_equal(large, shuffled(x, factor))
        np.testing.assert_array_equal(ops.pixel_unshuffle(laid_out(large, layout), factor), x)


@layouts
@pytest.mark.parametrize("factor", [9, 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_sub_pixels_than_lanes(isa, factor, layout, dtype):
    x = numbered((1, 2 * factor**2, 2, 19), dtype)
    large = ops.pixel_shuffle(laid_out(x, layout), factor)
    np.testing.assert_array_equal(large, shuffled(x, factor))
    np.testing.assert_array_equal(ops.pixel_unshuffle(large, factor), x)


@layouts
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("width", [64, 65])
def test_results_that_exceed_the_caches(isa, width, factor, layout):
    """From 16 MiB on, whole vectors are stored past the caches."""
    shape = (1, 64 * factor**2, 4 * 256 // factor**2, width)
    x = laid_out(numbered(shape, np.float32), layout)
    large = ops.pixel_shuffle(x, factor)
    np.testing.assert_array_equal(large, shuffled(x, factor))
    np.testing.assert_array_equal(ops.pixel_unshuffle(large, factor), x)


@layouts
@pytest.mark.parametrize("dy_layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_is_the_gradient_of_the_other(xp, layout, dy_layout, channels):
    small, large = numbered((2, 4 * channels, 3, 5), np.float32), numbered((2, channels, 6, 10), np.float32)
    for operator, x, dy, expected in (
        (ops.pixel_shuffle, small, large, unshuffled(large, 2)),
        (ops.pixel_unshuffle, large, small, shuffled(small, 2)),
    ):
        t = Tensor(xp.asarray(laid_out(x, layout)), requires_grad=True)
        operator(t, 2).backward(Tensor(xp.asarray(laid_out(dy, dy_layout))))
        np.testing.assert_array_equal(xp.asnumpy(t.grad.data), expected)
        assert _backend.layout(t.grad.data) == _backend.layout(t.data)


def test_empty_images():
    assert ops.pixel_shuffle(np.zeros((0, 4, 3, 3), np.float32), 2).shape == (0, 1, 6, 6)
    assert ops.pixel_shuffle(np.zeros((2, 0, 3, 3), np.float32), 2).shape == (2, 0, 6, 6)
    assert ops.pixel_unshuffle(np.zeros((2, 1, 0, 4), np.float32), 2).shape == (2, 4, 0, 2)


def test_shapes_that_do_not_divide():
    x = np.zeros((1, 6, 4, 9), np.float32)
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        ops.pixel_shuffle(x, 2)
    with pytest.raises(ValueError, match="multiples of the factor 2"):
        ops.pixel_unshuffle(x, 2)
    for operator in (ops.pixel_shuffle, ops.pixel_unshuffle):
        with pytest.raises(ValueError, match="at least 1"):
            operator(x, 0)
        with pytest.raises(ValueError, match="expected 4 dimensions"):
            operator(x[0], 1)


@pytest.mark.torch
@layouts
@pytest.mark.parametrize("factor", [2, 3])
def test_agrees_with_torch(layout, factor):
    torch = pytest.importorskip("torch")
    x = laid_out(numbered((2, 2 * factor**2, 6, 12), np.float32), layout)
    functional = torch.nn.functional
    expected = functional.pixel_shuffle(torch.from_numpy(x), factor).numpy()
    np.testing.assert_array_equal(ops.pixel_shuffle(x, factor), expected)
    expected = functional.pixel_unshuffle(torch.from_numpy(x), factor).numpy()
    np.testing.assert_array_equal(ops.pixel_unshuffle(x, factor), expected)

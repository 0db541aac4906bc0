"""Pooling in float64 NumPy: the windows are lists of row and column numbers."""

from __future__ import annotations

import numpy as np


def pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def regular_windows(size, kernel, stride, padding, dilation, ceil_mode):
    """For every window the inputs it would read, those in the padding included."""
    steps = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride
    count = int(np.ceil(steps) if ceil_mode else np.floor(steps)) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:  # it would begin in the trailing padding
        count -= 1
    return [[o * stride - padding + j * dilation for j in range(kernel)] for o in range(count)]


def adaptive_windows(size, count):
    return [
        list(range(o * size // count, -(-(o + 1) * size // count)))
        for o in range(size if count is None else count)
    ]


def both_windows(x, kernel_size, stride, padding, dilation, ceil_mode):
    kernels, paddings, dilations = pair(kernel_size), pair(padding), pair(dilation)
    strides = kernels if stride is None else pair(stride)
    return [
        regular_windows(x.shape[2 + i], kernels[i], strides[i], paddings[i], dilations[i], ceil_mode)
        for i in range(2)
    ]


def both_adaptive(x, output_size):
    sizes = pair(output_size)
    return [
        adaptive_windows(x.shape[2 + i], x.shape[2 + i] if sizes[i] is None else sizes[i]) for i in range(2)
    ]


def inside(window, size):
    return [i for i in window if 0 <= i < size]


def maxima(x, rows, columns):
    """(y, indices): torch's rules for NaN (the last one wins) and ties (the first)."""
    height, width = x.shape[2:]
    y = np.full((*x.shape[:2], len(rows), len(columns)), -np.inf)
    indices = np.full(y.shape, -1, np.int64)
    for i, j in np.ndindex(*y.shape[2:]):
        best, where = y[:, :, i, j], indices[:, :, i, j]
        for h in inside(rows[i], height):
            for w in inside(columns[j], width):
                value = x[:, :, h, w]
                wins = (where < 0) | (value > best) | np.isnan(value)
                best[wins], where[wins] = value[wins], h * width + w
    return y, indices


def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    result = maxima(x, *both_windows(x, kernel_size, stride, padding, dilation, ceil_mode))
    return result if return_indices else result[0]


def adaptive_max_pool2d(x, output_size, return_indices=False):
    result = maxima(x, *both_adaptive(x, output_size))
    return result if return_indices else result[0]


def global_max_pool2d(x):
    return x.max(axis=(2, 3), keepdims=True)


def means(x, rows, columns, divisor):
    y = np.empty((*x.shape[:2], len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            h, w = inside(row, x.shape[2]), inside(column, x.shape[3])
            y[:, :, i, j] = x[:, :, h][:, :, :, w].sum(axis=(2, 3)) / divisor(row, column)
    return y


def window_divisor(x, padding, count_include_pad, divisor_override):
    """The function of (row numbers, column numbers) that `avg_pool2d` divides by."""
    height, width = x.shape[2:]
    pad_h, pad_w = pair(padding)

    def divisor(row, column):
        if divisor_override is not None:
            return divisor_override
        if not count_include_pad:
            return len(inside(row, height)) * len(inside(column, width))
        return sum(i < height + pad_h for i in row) * sum(i < width + pad_w for i in column)

    return divisor


def avg_pool2d(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    divisor = window_divisor(x, padding, count_include_pad, divisor_override)
    return means(x, *both_windows(x, kernel_size, stride, padding, 1, ceil_mode), divisor)


def adaptive_avg_pool2d(x, output_size):
    return means(x, *both_adaptive(x, output_size), lambda row, column: len(row) * len(column))


def global_avg_pool2d(x):
    return x.mean(axis=(2, 3), keepdims=True)


def max_pool2d_backward(dy, indices, shape):
    """Every winner gets the gradient of its window; -1 stands for no winner."""
    dx = np.zeros(shape)
    for n, c, i, j in np.argwhere(indices >= 0):
        dx[(n, c, *divmod(indices[n, c, i, j], shape[3]))] += dy[n, c, i, j]
    return dx


def avg_pool2d_backward(
    dy, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    divisor = window_divisor(x, padding, count_include_pad, divisor_override)
    rows, columns = both_windows(x, kernel_size, stride, padding, 1, ceil_mode)
    dx = np.zeros(x.shape)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            for h in inside(row, x.shape[2]):
                for w in inside(column, x.shape[3]):
                    dx[:, :, h, w] += dy[:, :, i, j] / divisor(row, column)
    return dx

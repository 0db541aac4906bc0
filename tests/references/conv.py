"""Convolution by the definition, in float64 NumPy: one product per tap."""

from __future__ import annotations

import numpy as np


def pairs(padding, kernel=(), dilation=()):
    """((before, after), (before, after))."""
    if padding == "valid":
        return ((0, 0), (0, 0))
    if padding == "same":
        return tuple(
            ((d * (k - 1)) // 2, (d * (k - 1) + 1) // 2) for k, d in zip(kernel, dilation, strict=True)
        )
    if isinstance(padding, int):
        return ((padding, padding),) * 2
    return tuple((p, p) if isinstance(p, int) else p for p in padding)


def both(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def geometry(x, weight, stride, padding, dilation):
    stride, dilation = both(stride), both(dilation)
    pad = pairs(padding, weight.shape[2:], dilation)
    out = [
        (x.shape[2 + d] + sum(pad[d]) - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    ]
    return stride, dilation, pad, out


def taps(weight, stride, dilation, out):
    """Each tap (p, q) with the slices of the padded image that meet it."""
    for p in range(weight.shape[2]):
        for q in range(weight.shape[3]):
            rows = slice(p * dilation[0], p * dilation[0] + (out[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(q * dilation[1], q * dilation[1] + (out[1] - 1) * stride[1] + 1, stride[1])
            yield p, q, rows, columns


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, residual=None):
    """The sum before any activation."""
    stride, dilation, pad, out = geometry(x, weight, stride, padding, dilation)
    padded = np.pad(x, ((0, 0), (0, 0), *pad))
    n, o = x.shape[0], weight.shape[0]
    y = np.zeros((n, groups, o // groups, *out))
    for p, q, rows, columns in taps(weight, stride, dilation, out):
        seen = padded[:, :, rows, columns].reshape(n, groups, -1, *out)
        w = weight[:, :, p, q].reshape(groups, o // groups, -1)
        y += np.einsum("ngchw,goc->ngohw", seen, w)
    y = y.reshape(n, o, *out)
    if bias is not None:
        y += bias[:, None, None]
    return y if residual is None else y + residual


def conv2d_backward(dy, x, weight, stride=1, padding=0, dilation=1, groups=1):
    """dx, dweight, dbias."""
    stride, dilation, pad, out = geometry(x, weight, stride, padding, dilation)
    padded = np.pad(x, ((0, 0), (0, 0), *pad))
    n, o = x.shape[0], weight.shape[0]
    dpadded, dweight = np.zeros(padded.shape), np.zeros(weight.shape)
    g = dy.reshape(n, groups, o // groups, *out)
    for p, q, rows, columns in taps(weight, stride, dilation, out):
        seen = padded[:, :, rows, columns].reshape(n, groups, -1, *out)
        w = weight[:, :, p, q].reshape(groups, o // groups, -1)
        dweight[:, :, p, q] = np.einsum("ngohw,ngchw->goc", g, seen).reshape(o, -1)
        dpadded[:, :, rows, columns] += np.einsum("ngohw,goc->ngchw", g, w).reshape(n, -1, *out)
    (top, _), (left, _) = pad
    return dpadded[:, :, top : top + x.shape[2], left : left + x.shape[3]], dweight, dy.sum((0, 2, 3))

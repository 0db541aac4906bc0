"""Normalisation in float64 NumPy, from its definition."""

from __future__ import annotations

import numpy as np


def over_channels(vector, x):
    """(C,) as it broadcasts against (N, C, ...)."""
    return np.reshape(vector, (1, -1) + (1,) * (x.ndim - 2))


def batch_statistics(x):
    """Mean and biased variance of every channel."""
    axes = (0, *range(2, x.ndim))
    return x.mean(axis=axes), x.var(axis=axes)


def batch_norm(
    x, weight=None, bias=None, running_mean=None, running_var=None, training=False, eps=1e-5, residual=None
):
    mean, var = batch_statistics(x) if training else (running_mean, running_var)
    y = (x - over_channels(mean, x)) / np.sqrt(over_channels(var, x) + eps)
    y = y if weight is None else y * over_channels(weight, x)
    y = y if bias is None else y + over_channels(bias, x)
    return y if residual is None else y + residual


def layer_norm(x, weight=None, bias=None, eps=1e-5, normalized_ndim=1, residual=None):
    axes = tuple(range(x.ndim - normalized_ndim, x.ndim))
    y = (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y if residual is None else y + residual


def error_bound(x, mean, var, eps, count, gain, y, residual, unit):
    """What rounding may do: the mean and the deviation err by a few units per level of the sums' trees."""
    distance = np.abs(x - mean)
    error = (4 + count / 16) * unit * (distance + 4 * distance.max(initial=0) + 2 * np.abs(mean))
    return error / np.sqrt(var + eps) * np.abs(gain) + 4 * unit * (np.abs(y) + np.abs(residual))


def backward(dy, x, axes, mean, rstd, gain, fixed=False):
    """dx and xhat, where `gain` multiplies xhat; with fixed statistics they are constants."""
    xhat = (x - mean) * rstd
    g = dy * gain
    if fixed:
        return g * rstd, xhat
    of_mean = g.mean(axis=axes, keepdims=True)
    of_deviation = (g * xhat).mean(axis=axes, keepdims=True)
    return rstd * (g - of_mean - xhat * of_deviation), xhat


def backward_bound(dy, xhat, mean, rstd, gain, axes, count, unit):
    """Sums of `count` terms in 16 lanes; an error of xhat, half a unit of the mean, enters dx up to twice."""
    largest = np.abs(dy * gain).max(axis=axes, keepdims=True, initial=0)
    reach = (2 + np.abs(xhat).max(axis=axes, keepdims=True, initial=0)) * (1 + np.abs(mean) * rstd)
    return (16 + count / 16) * unit * rstd * largest * (2 + np.abs(xhat)) * reach

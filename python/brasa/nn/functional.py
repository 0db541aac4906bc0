"""The functions behind the layers, under the names of ``torch.nn.functional``.

Most are the operators of ``brasa.ops`` themselves. Here are those whose torch signature differs, and the
losses that are built from a Tensor's arithmetic: they run over one value per sample or target, where no
kernel pays.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from brasa import ops, random
from brasa._autocast import in_float32
from brasa._backend import device_of, namespace
from brasa._tape import differentiable, is_floating
from brasa.ops import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    celu,
    conv2d,
    elu,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    mish,
    pixel_shuffle,
    pixel_unshuffle,
    relu,
    selu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from brasa.tensor import Tensor, where

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "conv2d",
    "cross_entropy",
    "ctc_loss",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "huber_loss",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mish",
    "mse_loss",
    "nll_loss",
    "pixel_shuffle",
    "pixel_unshuffle",
    "relu",
    "scaled_dot_product_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]

REDUCTIONS = ("mean", "sum", "none")


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``x @ weight.T + bias`` for x (..., I), weight (O, I), bias (O,).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa.nn import functional as F
    >>> F.linear(np.float32([[1, 2]]), np.float32([[3, 4]]), np.float32([5]))
    array([[16.]], dtype=float32)
    """
    return ops.matmul(x, weight, bias, transpose_b=True)


def check_probability(p: float) -> float:
    """Return ``p`` if it lies in [0, 1], else raise a ValueError."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p: expected a probability in [0, 1], got {p}")
    return float(p)


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """Set elements of ``x`` to 0 with probability ``p`` and scale the rest by 1/(1-p), if ``training``."""
    check_probability(p)
    if not training or p == 0.0:
        return x
    seed, offset = random.default_generator().next(x.size)
    return ops.dropout(x, p, seed, offset)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Any:
    """``softmax(scale * query @ key.T + attn_mask) @ value`` by ``ops.attention``; bools say who may attend."""
    seed = offset = 0
    if check_probability(dropout_p):
        batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        scores = prod((*batch, query.shape[-2], key.shape[-2]))
        seed, offset = random.default_generator().next(scores)
    return ops.attention(
        query, key, value, attn_mask, is_causal, scale=scale, dropout_p=dropout_p, seed=seed, offset=offset
    )


def softmax(x: Any, dim: int = -1) -> Any:
    """``exp(x) / sum(exp(x))`` along ``dim``."""
    return ops.softmax(x, dim)


def log_softmax(x: Any, dim: int = -1) -> Any:
    """``x - log(sum(exp(x)))`` along ``dim``."""
    return ops.log_softmax(x, dim)


def gelu(x: Any, approximate: str = "none") -> Any:
    """``x * Phi(x)``, or with ``approximate="tanh"`` its approximation."""
    return ops.gelu(x, approximate=approximate)


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of every window of ``x`` (N, C, H, W); with ``return_indices`` a pair (y, indices)."""
    return ops.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices)


def embedding(indices: Any, weight: Any, padding_idx: int | None = None) -> Any:
    """``weight[indices]``, (..., D) for indices (...) and weight (V, D); row ``padding_idx`` gets no gradient."""
    return ops.embedding(indices, weight, padding_idx=padding_idx)


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Normalise ``x`` (N, C, ...) per channel; in training the running statistics are changed in place."""
    return ops.batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)


def layer_norm(
    x: Any, normalized_shape: tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Normalise ``x`` (..., *normalized_shape) over its last dimensions."""
    size = tuple(normalized_shape)
    if tuple(x.shape[-len(size) :]) != size:
        raise ValueError(f"x: expected last dimensions {size}, got shape {x.shape}")
    return ops.layer_norm(x, weight, bias, eps, normalized_ndim=len(size))


# --- losses ---------------------------------------------------------------------------------------


def check_reduction(reduction: str) -> str:
    """Return ``reduction`` if it is a known one, else raise a ValueError."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
    return reduction


def _reduced(losses: Any, reduction: str) -> Any:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _pair(x: Any, target: Any, reduction: str) -> tuple[Any, Any]:
    """Check a prediction and its target of the same shape; returns Tensors."""
    check_reduction(reduction)
    x, target = (in_float32(v if isinstance(v, Tensor) else Tensor(v)) for v in (x, target))
    if x.shape != target.shape:
        raise ValueError(f"target: expected the input's shape {x.shape}, got {target.shape}")
    if not is_floating(target.dtype):
        target = target.astype(x.dtype)
    if x.dtype != target.dtype:
        raise TypeError(f"target: expected the input's dtype {x.dtype}, got {target.dtype}")
    return x, target


def cross_entropy(
    x: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """``-log(softmax(x)[target])`` for logits x (N, C, ...) and classes (N, ...) or shares (N, C, ...)."""
    return ops.cross_entropy(
        x,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """-log of the probability that log_probs (T, N, C) spell targets (N, S), over all alignments."""
    return ops.ctc_loss(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction=reduction,
        zero_infinity=zero_infinity,
    )


def mse_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
    """``(x - target)**2`` for x and target of one shape, any; averaged, summed or as it is."""
    x, target = _pair(x, target, reduction)
    difference = x - target
    return _reduced(difference * difference, reduction)


def l1_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
    """``|x - target|`` for x and target of one shape, any; averaged, summed or as it is."""
    x, target = _pair(x, target, reduction)
    return _reduced((x - target).abs(), reduction)


def huber_loss(x: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """``d**2 / 2`` where d = |x - target| <= delta, ``delta * (d - delta / 2)`` beyond."""
    if not delta > 0:
        raise ValueError(f"delta: expected more than 0, got {delta}")
    x, target = _pair(x, target, reduction)
    distance = (x - target).abs()
    inner = distance.clip(None, delta)
    # Beyond delta, inner is delta: one formula for both sides, and no 0 * inf where the other side overflows.
    return _reduced(inner * (distance - inner * 0.5), reduction)


def smooth_l1_loss(x: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """``d**2 / (2 beta)`` where d = |x - target| < beta, ``d - beta / 2`` beyond; 0 gives ``l1_loss``."""
    if beta == 0:
        return l1_loss(x, target, reduction)
    return huber_loss(x, target, reduction, delta=beta) * (1.0 / beta)


def _bce(x: Any, target: Any) -> Any:
    """Binary cross-entropy per element; logarithms stop at -100, so that a wrong 0 or 1 costs 100."""
    xp = namespace(x)
    with np.errstate(divide="ignore"):
        return -(target * xp.maximum(xp.log(x), -100) + (1 - target) * xp.maximum(xp.log1p(-x), -100))


def _bce_backward(dy: Any, x: Any, target: Any) -> Any:
    return dy * (x - target) / namespace(x).maximum((1 - x) * x, 1e-12)


_bce_elements = differentiable(_bce, _bce_backward)


def binary_cross_entropy(x: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """``-weight * (target * log(x) + (1 - target) * log(1 - x))`` for x and target of one shape.

    Raises
    ------
    ValueError
        On the CPU, for an element of ``x`` outside [0, 1]; on another device its loss is NaN.
    """
    x, target = _pair(x, target, reduction)
    if x.device == "cpu" and not ((x.data >= 0) & (x.data <= 1) | np.isnan(x.data)).all():
        raise ValueError(
            f"x: expected probabilities in [0, 1], got values in [{x.data.min()}, {x.data.max()}]"
        )
    losses = _bce_elements(x, target)
    return _reduced(losses if weight is None else losses * weight, reduction)


def binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """``binary_cross_entropy(sigmoid(x), target)``, exact for logits x of any size.

    ``pos_weight``, broadcast against ``x``, multiplies the positive term ``-target * log(sigmoid(x))``.
    """
    x, target = _pair(x, target, reduction)
    # -log(sigmoid(x)) = softplus(-x) and -log(1 - sigmoid(x)) = x + softplus(-x).
    positive = ops.softplus(-x)
    if pos_weight is not None:
        positive = positive * (target * (pos_weight - 1.0) + 1.0)
    losses = (1.0 - target) * x + positive
    return _reduced(losses if weight is None else losses * weight, reduction)


def nll_loss(
    x: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """Negative log-likelihood: ``-weight[target] * x[n, target]``.

    Parameters
    ----------
    x : Tensor or array
        Log-probabilities (N, C, ...).
    target : Tensor or array
        Integers in [0, C), (N, ...).
    weight : Tensor or array, optional
        (C,). The mean divides by the sum of the weights used.
    ignore_index : int, default: -100
        A target that counts for nothing.
    reduction : "mean", "sum" or "none", default: "mean"
        With "none" the losses come back in the shape of ``target``.

    Raises
    ------
    ValueError
        Where the shapes do not fit, or, on the CPU, a target is out of range.
    TypeError
        If ``target`` does not hold integers.
    """
    check_reduction(reduction)
    x = in_float32(x if isinstance(x, Tensor) else Tensor(x))
    labels = target.data if isinstance(target, Tensor) else target
    if x.ndim < 2 or tuple(labels.shape) != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"target: expected shape (N, ...) for input {x.shape} (N, C, ...), got {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target: expected integers, got {labels.dtype}")
    classes, flat = x.shape[1], labels.reshape(-1)
    xp = namespace(flat)
    used = flat != ignore_index
    inside = (flat >= 0) & (flat < classes)
    if device_of(flat) == "cpu" and not (inside | ~used).all():
        at = int(np.flatnonzero(~inside & used)[0])
        raise ValueError(f"target: expected classes in [0, {classes}), got {flat[at]} at position {at}")
    rows = x.transpose(0, *range(2, x.ndim), 1).reshape(-1, classes)
    index = xp.where(inside & used, flat, 0)
    scale = _row_weights(weight, index, x.data.dtype, xp) * used
    # An ignored row may hold infinities, and 0 * inf would be NaN.
    picked = where(used, rows[xp.arange(flat.size), index], 0.0)
    losses = -picked * xp.where(inside | ~used, scale, xp.nan).astype(x.data.dtype)
    if reduction == "none":
        return losses.reshape(*labels.shape)
    return losses.sum() * (1.0 / scale.sum()) if reduction == "mean" else losses.sum()


def _row_weights(weight: Any, index: Any, dtype: Any, xp: Any) -> Any:
    if weight is None:
        return xp.ones(index.shape, dtype)
    return (weight.data if isinstance(weight, Tensor) else weight)[index]

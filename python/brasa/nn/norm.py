"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import _capture, ops
from brasa._backend import is_narrow
from brasa.nn import init
from brasa.nn._arguments import (
    ActivationName,
    activation_repr,
    check_activation,
    check_positive,
    new_parameter,
)
from brasa.nn._state import HostCount
from brasa.nn.module import Module
from brasa.tensor import Tensor

__all__ = ["BatchNorm1d", "BatchNorm2d", "LayerNorm"]


def _dtype_of_vectors(dtype: Any) -> np.dtype[Any]:
    """What weights and statistics of a layer for arrays of `dtype` are kept in."""
    dtype = np.dtype(np.float32 if dtype is None else dtype)
    return np.dtype(np.float32) if is_narrow(dtype) else dtype


class _BatchNorm(Module):
    """What the batch normalisations share; they differ in the input they take."""

    _stays_float32 = True
    _ranks: tuple[int, ...]
    _shapes: str
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | None = None,
        dtype: Any = None,
        activation: ActivationName | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_positive("num_features", num_features)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.activation = check_activation(activation)
        dtype = _dtype_of_vectors(dtype)
        self.weight = new_parameter((num_features,), dtype) if affine else None
        self.bias = new_parameter((num_features,), dtype) if affine else None
        kept = track_running_stats
        self.register_buffer("running_mean", np.zeros(num_features, dtype) if kept else None)
        self.register_buffer("running_var", np.ones(num_features, dtype) if kept else None)
        self.register_buffer("num_batches_tracked", HostCount(np.zeros((), np.int64)) if kept else None)
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def reset_parameters(self) -> None:
        """Set scale 1 and shift 0."""
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Normalise ``x``; ``residual``, of its shape, is added before the activation."""
        return self.fused(x, self.activation, residual)

    def fused(self, x: Any, activation: ActivationName | None, residual: Any = None) -> Any:
        """Apply the layer with another activation; ``Sequential`` calls it."""
        if len(x.shape) not in self._ranks:
            raise ValueError(f"x: {type(self).__name__} expects {self._shapes}, got shape {x.shape}")
        mean, var = self.running_mean, self.running_var
        momentum = self._count_batch() if self.training and mean is not None else 0.0
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            None if mean is None else mean.data,
            None if var is None else var.data,
            self.training or mean is None,
            momentum,
            self.eps,
            activation,
            residual=residual,
        )

    def _count_batch(self) -> float:
        """Count one more batch and return its share in the running statistics."""
        self._count_one()
        recording = _capture.current()
        if recording is not None and type(self.num_batches_tracked.data) is np.ndarray:
            if self.momentum is None:
                raise RuntimeError("graph: momentum=None weighs every batch differently, which no graph can")
            recording.repeat(self._count_one)
        return 1.0 / float(self.num_batches_tracked.data) if self.momentum is None else self.momentum

    def _count_one(self) -> None:
        count = self.num_batches_tracked.data
        count += 1

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}{activation_repr(self.activation)}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of vectors or sequences.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` for each channel. In training, mean and variance
    are those of the batch, and the running ones move towards them; in eval the running ones are used.

    Parameters
    ----------
    num_features : int
        ``C``.
    eps : float, default: 1e-5
        Added to the variance.
    momentum : float or None, default: 0.1
        Share of the new batch in the running statistics; None keeps the plain mean over all batches.
    affine : bool, default: True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default: True
        Whether running statistics are kept; without them eval uses the batch's.
    device, dtype
        As for ``Linear``.
    activation : str or tuple, optional
        One of ``ops.ACTIVATIONS``, applied to the result.

    Attributes
    ----------
    weight, bias : Parameter or None
        (C,), initially 1 and 0.
    running_mean, running_var : Tensor or None
        (C,), the latter unbiased; initially 0 and 1.
    num_batches_tracked : Tensor or None
        (), int64; stays on the host, where it is counted.

    Notes
    -----
    Input and output (N, C) or (N, C, L).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.BatchNorm1d(1)(np.array([[0.0], [2.0], [4.0]], np.float32)).numpy().round(3).ravel()
    array([-1.225,  0.   ,  1.225], dtype=float32)
    """

    _ranks = (2, 3)
    _shapes = "(N, C) or (N, C, L)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` for each channel. In training, mean and variance
    are those of the batch, and the running ones move towards them; in eval the running ones are used.

    Parameters
    ----------
    num_features : int
        ``C``.
    eps : float, default: 1e-5
        Added to the variance.
    momentum : float or None, default: 0.1
        Share of the new batch in the running statistics; None keeps the plain mean over all batches.
    affine : bool, default: True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default: True
        Whether running statistics are kept; without them eval uses the batch's.
    device, dtype
        As for ``Linear``.
    activation : str or tuple, optional
        One of ``ops.ACTIVATIONS``, applied to the result.

    Attributes
    ----------
    weight, bias : Parameter or None
        (C,), initially 1 and 0.
    running_mean, running_var : Tensor or None
        (C,), the latter unbiased; initially 0 and 1.
    num_batches_tracked : Tensor or None
        (), int64; stays on the host, where it is counted.

    Notes
    -----
    Input and output (N, C, H, W).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.BatchNorm2d(8, activation="relu")(np.zeros((4, 8, 5, 5), np.float32)).shape
    (4, 8, 5, 5)
    """

    _ranks = (4,)
    _shapes = "(N, C, H, W)"


class LayerNorm(Module):
    """Normalisation of each sample over its last dimensions.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        ``S``: the last dimensions of the input.
    eps : float, default: 1e-5
        Added to the variance.
    elementwise_affine : bool, default: True
        Whether there are ``weight`` and ``bias``.
    bias : bool, default: True
        Whether there is a ``bias``.
    device, dtype
        As for ``Linear``.
    activation : str or tuple, optional
        One of ``ops.ACTIVATIONS``, applied to the result.

    Attributes
    ----------
    weight, bias : Parameter or None
        (*S,), initially 1 and 0.

    Notes
    -----
    Input and output (..., *S).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.LayerNorm(3)(np.array([[0.0, 2.0, 4.0]], np.float32)).numpy().round(3)
    array([[-1.225,  0.   ,  1.225]], dtype=float32)
    """

    _stays_float32 = True

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
        activation: ActivationName | None = None,
    ) -> None:
        super().__init__()
        sizes = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        self.normalized_shape = tuple(check_positive("normalized_shape", size) for size in sizes)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.activation = check_activation(activation)
        shape, dtype = self.normalized_shape, _dtype_of_vectors(dtype)
        self.weight = new_parameter(shape, dtype) if elementwise_affine else None
        self.bias = new_parameter(shape, dtype) if elementwise_affine and bias else None
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def reset_parameters(self) -> None:
        """Set scale 1 and shift 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Normalise ``x`` (..., *S); ``residual``, of its shape, is added before the activation."""
        return self.fused(x, self.activation, residual)

    def fused(self, x: Any, activation: ActivationName | None, residual: Any = None) -> Any:
        """Apply the layer with another activation; ``Sequential`` calls it."""
        if x.shape[-len(self.normalized_shape) :] != self.normalized_shape:
            raise ValueError(f"x: expected last dimensions {self.normalized_shape}, got shape {x.shape}")
        return ops.layer_norm(
            x,
            self.weight,
            self.bias,
            self.eps,
            normalized_ndim=len(self.normalized_shape),
            activation=activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}{activation_repr(self.activation)}"
        )

"""What a Tensor computes: arithmetic, comparisons, elementwise functions, reductions, shapes.

`Tensor` inherits these methods; its state, its gradients and its hooks are in `tensor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from brasa import _elementary, _elementwise, _reduction, _shape
from brasa._backend import as_array, device_of, is_array, to_device
from brasa._tape import _tensors, differentiable, is_floating, is_tensor

_SCALARS = frozenset((int, float, bool))
Axis = int | tuple[int, ...] | None
_ops: Any = None


def _operators() -> Any:
    """`brasa.ops`, imported when it is first called for."""
    global _ops
    if _ops is None:
        from brasa import ops

        _ops = ops
    return _ops


def _plain(value: Any) -> Any:
    return value.data if is_tensor(value) else value


def _subtract_from(x: Any, c: float) -> Any:
    return _elementwise.shift(_elementwise.negative(x), c)


def _pair(x: Any, other: Any, arrays: Callable[..., Any], scalar: Callable[..., Any]) -> Any:
    """``arrays(x, other)``, or ``scalar(x, other)`` where `other` is a number."""
    if type(other) in _SCALARS:
        return scalar(x, other)
    if type(other) in _tensors or is_array(other):
        return arrays(x, other)
    if isinstance(other, np.generic):
        return scalar(x, other.item())
    if other is None or isinstance(other, str):
        return NotImplemented
    array = as_array(other)
    if isinstance(other, list | tuple) and is_floating(array.dtype) and is_floating(x.dtype):
        array = array.astype(x.dtype)
    return arrays(x, array)


def _transfer(x: Any, device: str, *, save: bool = False) -> Any:
    """`x` on another device."""
    y = to_device(x, device)
    return (y, device_of(x)) if save else y


def _copy(x: Any) -> Any:
    """`x` in memory of its own."""
    return x.copy()


def _transfer_backward(dy: Any, saved: str) -> Any:
    return transfer(dy, saved)


def _copy_backward(dy: Any) -> Any:
    return dy


transfer = differentiable(_transfer, _transfer_backward)
copy = differentiable(_copy, _copy_backward)


class TensorMethods:
    """The methods of `Tensor` that compute."""

    __slots__ = ()
    __hash__ = object.__hash__

    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents."""
        return self.data.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    # Arithmetic

    def __add__(self, other: Any) -> Any:
        return _pair(self, other, _elementwise.add, _elementwise.shift)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return _pair(self, other, _elementwise.subtract, lambda x, c: _elementwise.shift(x, -c))

    def __rsub__(self, other: Any) -> Any:
        return _pair(self, other, lambda x, y: _elementwise.subtract(y, x), _subtract_from)

    def __mul__(self, other: Any) -> Any:
        return _pair(self, other, _elementwise.multiply, _elementwise.scale)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return _pair(self, other, _elementwise.divide, _elementwise.divide_by)

    def __rtruediv__(self, other: Any) -> Any:
        return _pair(self, other, lambda x, y: _elementwise.divide(y, x), _elementwise.divide_into)

    def __pow__(self, other: Any) -> Any:
        return _pair(self, other, _elementwise.power, _elementwise.raise_to)

    def __rpow__(self, other: Any) -> Any:
        return _pair(self, other, lambda x, y: _elementwise.power(y, x), _elementwise.raise_from)

    def __matmul__(self, other: Any) -> Any:
        return _operators().matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return _operators().matmul(other, self)

    def __neg__(self) -> Any:
        return _elementwise.negative(self)

    def __abs__(self) -> Any:
        return _elementwise.absolute(self)

    def __eq__(self, other: Any) -> Any:
        return self.data == _plain(other)

    def __ne__(self, other: Any) -> Any:
        return self.data != _plain(other)

    def __lt__(self, other: Any) -> Any:
        return self.data < _plain(other)

    def __le__(self, other: Any) -> Any:
        return self.data <= _plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.data > _plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.data >= _plain(other)

    # Elementwise

    def exp(self) -> Any:
        """The exponential of every element."""
        return _elementary.exp(_elementwise.floating(self))

    def expm1(self) -> Any:
        """``exp(x) - 1``, exact for small x."""
        return _elementary.expm1(_elementwise.floating(self))

    def log(self) -> Any:
        """The natural logarithm of every element."""
        return _elementary.log(_elementwise.floating(self))

    def log1p(self) -> Any:
        """``log(1 + x)``, exact for small x."""
        return _elementary.log1p(_elementwise.floating(self))

    def sqrt(self) -> Any:
        """The square root of every element."""
        return _elementwise.sqrt(self)

    def sin(self) -> Any:
        """The sine of every element."""
        return _elementwise.sin(self)

    def cos(self) -> Any:
        """The cosine of every element."""
        return _elementwise.cos(self)

    def abs(self) -> Any:
        """The absolute value of every element; the slope at 0 is 0."""
        return _elementwise.absolute(self)

    def relu(self) -> Any:
        """``max(x, 0)``."""
        return _operators().relu(self)

    def sigmoid(self) -> Any:
        """``1 / (1 + exp(-x))``."""
        return _operators().sigmoid(self)

    def tanh(self) -> Any:
        """The hyperbolic tangent."""
        return _operators().tanh(self)

    def softmax(self, axis: int = -1) -> Any:
        """Exponentials over `axis`, divided by their sum."""
        return _operators().softmax(self, axis)

    def log_softmax(self, axis: int = -1) -> Any:
        """The logarithm of `softmax`."""
        return _operators().log_softmax(self, axis)

    def clip(self, low: float | None = None, high: float | None = None) -> Any:
        """Every element within [low, high]; None is no bound. Outside the gradient is 0."""
        if low is None and high is None:
            raise ValueError("clip: low, high or both must be given")
        return _elementwise.clip(self, low, high)

    clamp = clip

    def astype(self, dtype: Any) -> Any:
        """The elements as `dtype`; the gradient comes back in the dtype of this Tensor."""
        return _elementwise.astype(self, np.dtype(dtype))

    def to(self, target: Any) -> Any:
        """On another device ("cpu", "cuda", "cuda:1") or with another dtype; itself where nothing changes."""
        if isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda"):
            return self if device_of(self.data) == target else transfer(self, target)
        return self if self.dtype == np.dtype(target) else self.astype(target)

    def copy(self) -> Any:
        """The same values in memory of their own; the gradient passes through."""
        return copy(self)

    # Reductions

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The sum over `axis`."""
        return _reduction.sum_over(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The mean over `axis`; of integers as float32."""
        return _reduction.mean_over(self, axis, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The largest element over `axis`; equal ones share the gradient."""
        return _reduction.max_over(self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The smallest element over `axis`; equal ones share the gradient."""
        return _reduction.min_over(self, axis, keepdims)

    def prod(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """The product over `axis`."""
        return _reduction.prod(self, axis, keepdims)

    def var(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
        """The variance over `axis`: squared distances from the mean, divided by their number less `ddof`."""
        return _reduction.var(self, axis, ddof, keepdims)

    def std(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
        """The square root of `var`."""
        return _reduction.std(self, axis, ddof, keepdims)

    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> Any:
        """``log(sum(exp(x)))`` over `axis`, without overflow."""
        return _reduction.logsumexp(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Any:
        """The index of the largest element over `axis`, an array of integers."""
        return self.data.argmax(axis=axis)

    def argmin(self, axis: int | None = None) -> Any:
        """The index of the smallest element over `axis`, an array of integers."""
        return self.data.argmin(axis=axis)

    # Shape

    def __getitem__(self, index: Any) -> Any:
        return _shape.getitem(self, _shape.plain_index(index))

    def reshape(self, *shape: Any) -> Any:
        """The elements, in C order, in another shape; one extent may be -1."""
        return _shape.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    view = reshape

    def flatten(self, start: int = 0, end: int = -1) -> Any:
        """The axes from `start` to `end` as one."""
        if not self.ndim:
            return self.reshape(1)
        first, last = start % self.ndim, end % self.ndim
        shape = self.shape
        extent = 1
        for n in shape[first : last + 1]:
            extent *= n
        return _shape.reshape(self, (*shape[:first], extent, *shape[last + 1 :]))

    def transpose(self, *axes: Any) -> Any:
        """The axes in another order; without arguments reversed. It is a view."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        order = tuple(order) if order else tuple(reversed(range(self.ndim)))
        if len(order) != self.ndim:
            raise ValueError(f"transpose: {self.ndim} axes are needed, got {order}; swapaxes exchanges two")
        return _shape.transpose(self, order)

    permute = transpose

    @property
    def T(self) -> Any:
        """The axes in reversed order."""
        return self.transpose()

    def swapaxes(self, first: int, second: int) -> Any:
        """Two axes exchanged."""
        order = list(range(self.ndim))
        order[first], order[second] = order[second], order[first]
        return _shape.transpose(self, tuple(order))

    def squeeze(self, axis: Axis = None) -> Any:
        """Without the axes of extent 1, or without those named."""
        return _shape.reshape(self, self.data.squeeze(axis).shape)

    def unsqueeze(self, axis: int) -> Any:
        """With a new axis of extent 1 before `axis`."""
        if not -self.ndim - 1 <= axis <= self.ndim:
            raise ValueError(f"unsqueeze: axis {axis} is out of range for {self.ndim} dimensions")
        place = axis % (self.ndim + 1)
        return _shape.reshape(self, (*self.shape[:place], 1, *self.shape[place:]))

    def broadcast_to(self, *shape: Any) -> Any:
        """Repeated along new axes and axes of extent 1, as a read-only view."""
        return _shape.broadcast_to(
            self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        )

    def split(self, sections: Any, axis: int = 0) -> list[Any]:
        """Cut along `axis` into parts of extent `sections`, or of the extents listed."""
        return _shape.split(self, sections, axis)

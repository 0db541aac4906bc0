"""Matrix products with a fused epilogue, and their gradients.

One kernel takes operands of any strides, so a transposed operand, given by ``transpose_a`` or as a view
such as ``x.T``, costs no copy. It also sums over batch dimensions that the result does not have, which is
how a gradient undoes broadcasting.
"""

from __future__ import annotations

from math import prod
from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check
from brasa.ops.activation import activation_backward, native_activation, needs_input
from brasa.ops.prepack import PackedWeight, check_packed

__all__ = ["matmul", "matmul_backward"]


def _as_matrices(a: Any, b: Any) -> tuple[Any, Any]:
    """Vectors as a matrix of one row and of one column; NumPy's rule."""
    return (a[None, :] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)


def _batch_shape(a: Any, b: Any) -> tuple[int, ...]:
    first, second = a.shape[:-2], b.shape[:-2]
    if first == second or not second:
        return first
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    shorter = (1,) * (len(longer) - len(shorter)) + shorter
    if any(i != j and i != 1 and j != 1 for i, j in zip(longer, shorter)):
        raise ValueError(f"b: its batch dimensions {second} do not broadcast with {first} of a")
    return tuple(j if i == 1 else i for i, j in zip(longer, shorter))


def _result_shape(a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> tuple[int, ...]:
    """The shape of the product of two arrays of at least two dimensions."""
    m, depth = a.shape[-2:] if not transpose_a else a.shape[:-3:-1]
    k, n = b.shape[-2:] if not transpose_b else b.shape[:-3:-1]
    if k != depth:
        flags = "".join(
            f", {x}=True" for x, on in (("transpose_a", transpose_a), ("transpose_b", transpose_b)) if on
        )
        raise ValueError(
            f"b: expected an inner dimension of {depth} as a has{flags}, got a {a.shape}, b {b.shape}"
        )
    if a.ndim == b.ndim == 2:
        return (m, n)
    return (*_batch_shape(a, b), m, n)


def _check_operands(a: Any, b: Any, transpose_b: bool) -> tuple[Any, Any]:
    a = _check.any_floating("a", a)
    if type(b) is PackedWeight:
        check_packed(b, a, transpose_b)
    else:
        b = _check.any_floating("b", b)
    if not a.ndim or not b.ndim:
        raise ValueError(f"{'b' if a.ndim else 'a'}: expected at least 1 dimension, got shape ()")
    return a, b


def _plain_product(
    a: Any, b: Any, bias: Any, native: Any, transpose_a: bool, transpose_b: bool, out: Any
) -> Any:
    """The product of two matrices of one kind and dtype, with nothing in between: most calls are this one,
    and small ones last no longer than the checks. None for any other; the general way then words the error.
    """
    try:
        rows, columns = a.shape
        b_rows, b_columns = b.shape
        dtype = a.dtype
        if dtype is not b.dtype:
            return None
        backend = _backend.backend_of(a)
        shape = columns if transpose_a else rows, b_rows if transpose_b else b_columns
        if type(b) is not type(a):
            check_packed(b, a, transpose_b)
            b, transpose_b = b.operand, b.transposed
        if out is None:
            y = backend.empty(shape, dtype, False)
        elif type(out) is type(a) and out.shape == shape:
            y = out
        else:
            return None
        backend.kernels.matmul(a, b, bias, None, y, None, transpose_a, transpose_b, native)
    except _check.UNUSUAL:
        return None
    return y


def _plain_gradients(
    dy: Any, a: Any, b: Any, bias: Any, source: Any, native: Any, transposed: tuple[bool, bool], mask: Any
) -> tuple[Any, Any, Any, Any] | None:
    """The gradients where `_plain_product` was the product, or None: the general way then words the error."""
    try:
        kind = type(a)
        if type(dy) is not kind or type(b) is not kind or a.ndim != 2 or b.ndim != 2:
            return None
        if dy.shape != _result_shape(a, b, *transposed):
            return None
        backend = _backend.backend_of(a)
        kernels, ds = backend.kernels, dy
        if native is not None:
            if type(source) is not kind:
                return None
            ds = backend.empty_like(dy)
            kernels.activation_backward(dy, source, ds, native)
        da = _gradient_of_a(ds, a, b, *transposed) if mask[0] else None
        db = _gradient_of_b(ds, a, b, *transposed) if mask[1] else None
        dbias = None
        if mask[2]:
            dbias = backend.empty(dy.shape[1:], bias.dtype, False)
            kernels.column_sums(ds, dbias)
        return da, db, dbias, ds if mask[3] else None
    except _check.UNUSUAL:
        return None


def _matmul(
    a: Any,
    b: Any,
    bias: Any = None,
    activation: Any = None,
    *,
    residual: Any = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    save: bool = False,
    out: Any = None,
) -> Any:
    """The product of two matrices, ``activation(a @ b + bias + residual)``.

    Parameters
    ----------
    a : array or Tensor
        (..., m, k), or (..., k, m) with `transpose_a`, or (k,). float32, float64, float16 or bfloat16.
    b : array, Tensor or PackedWeight
        (..., k, n), or (..., n, k) with `transpose_b`, or (k,). A constant matrix may be what `prepack` made
        of it.
    bias : array or Tensor, optional
        (n,), added to every row. May be float32 beside 16-bit arrays.
    activation : str or tuple, optional
        One of `ACTIVATIONS`, or ``(name, alpha[, beta])``.
    residual : array or Tensor, optional
        The shape of the result, added before the activation.
    transpose_a, transpose_b : bool
        The last two dimensions are swapped. A vector stays as it is.
    save : bool
        Return also what `matmul_backward` needs as ``saved``.
    out : array, optional
        Where the result goes.

    Returns
    -------
    array or Tensor
        (..., m, n), batch dimensions broadcast; m is missing where `a` is a vector, n where `b` is. With
        `save` a pair of it and the input of the activation, None where the derivative is known from the
        result.

    Raises
    ------
    ValueError
        When shapes do not fit, the activation has no such name, or `out` overlaps an input.
    TypeError
        For another dtype, or arrays of several dtypes or devices.

    Notes
    -----
    Arrays of 16 bits are multiplied and summed in float32, and each result is rounded once. On CUDA they go
    to tensor cores; so do float32 arrays where `brasa.set_matmul_precision` allows it.

    Every element is one chain of fused multiply-adds over ascending k per block of 512 (float64: 256): a
    row of a batch has the same bits as the row alone, on any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> matmul(a, a, np.float32([-10, 0]), "relu", transpose_b=True)
    array([[ 0., 14.],
           [ 4., 50.]], dtype=float32)
    """
    native = None if activation is None else native_activation(activation)
    keeps_input = save and native is not None and needs_input(native)
    if residual is None and not keeps_input:
        y = _plain_product(a, b, bias, native, transpose_a, transpose_b, out)
        if y is not None:
            return (y, None) if save else y
    a, b = _check_operands(a, b, transpose_b)
    a2, b2 = _as_matrices(a, b)
    transpose_a, transpose_b = bool(transpose_a) and a.ndim > 1, bool(transpose_b) and b.ndim > 1
    full_shape = _result_shape(a2, b2, transpose_a, transpose_b)
    shape = full_shape
    if a.ndim == 1 or b.ndim == 1:
        shape = full_shape[:-2] + full_shape[-2:-1] * (a.ndim > 1) + full_shape[-1:] * (b.ndim > 1)
    if bias is not None:
        bias = _backend.contiguous(_check.any_floating("bias", bias))
        _check.shape("bias", bias, full_shape[-1:], "one per column of the result")
    if residual is not None:
        residual = _check.any_floating("residual", residual)
        _check.shape("residual", residual, shape, "the shape of the result")
        residual = _backend.contiguous(residual).reshape(full_shape)
    if type(b) is PackedWeight:
        b, b2, transpose_b = None, b.operand, b.transposed
    _check.same_dtype_but_bias(bias, a=a, b=b, residual=residual)
    target = out
    if out is not None:
        _check.output(out, a, shape, a, b, bias, residual)
        target = out.reshape(full_shape) if out.flags.c_contiguous else None
    y = _backend.empty(a, full_shape) if target is None else target
    saved = _backend.empty(a, full_shape) if keeps_input else None
    _run(a2, b2, bias, residual, y, saved, transpose_a, transpose_b, native)
    if shape != full_shape:
        y, saved = y.reshape(shape), None if saved is None else saved.reshape(shape)
    if out is not None:
        if target is None:
            out[...] = y
        y = out
    return (y, saved) if save else y


def _product(a: Any, b: Any, shape: tuple[int, ...], transpose_a: bool, transpose_b: bool) -> Any:
    """The product, summed over the batch dimensions that `shape` does not have."""
    y = _backend.empty(a, shape)
    _run(a, b, None, None, y, None, transpose_a, transpose_b, None)
    return y


def _run(
    a: Any, b: Any, bias: Any, residual: Any, y: Any, saved: Any, transpose_a: bool, transpose_b: bool, f: Any
) -> None:
    """The kernel. The CPU has none for 16-bit dtypes: there operands are widened and results rounded once."""
    kernels, results = _backend.backend_of(a).kernels, (y, saved)
    narrow = _check.in_float32(a)
    if narrow:
        a, b, bias, residual = (_check.widened(x) for x in (a, b, bias, residual))
        y, saved = (None if x is None else _backend.empty(a, x.shape) for x in results)
    kernels.matmul(a, b, bias, residual, y, saved, transpose_a, transpose_b, f)
    if not narrow:
        return
    for result, wide in zip(results, (y, saved)):
        if result is not wide:
            result[...] = wide


def matmul_backward(
    dy: Any,
    a: Any,
    b: Any,
    bias: Any = None,
    activation: Any = None,
    *,
    y: Any = None,
    saved: Any = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    mask: tuple[bool, bool, bool, bool] = (True, True, True, True),
) -> tuple[Any, Any, Any, Any]:
    """The gradients of `matmul`.

    Parameters
    ----------
    dy : array
        The gradient of the result, of its shape.
    a, b, bias, activation, transpose_a, transpose_b
        As `matmul` got them.
    y : array, optional
        The result; needed with an activation whose ``needs`` is "y".
    saved : array, optional
        What `matmul` returned with ``save=True``; needed with any other activation.
    mask : tuple of bool
        Which of the four gradients to compute.

    Returns
    -------
    da, db, dbias, dresidual : array or None
        Each of the shape of its argument. None where `mask` is False, and for an absent bias. `dresidual`
        is `dy` itself where there is no activation.

    Raises
    ------
    ValueError
        When shapes do not fit, or `y` or `saved` is missing.
    TypeError
        For another dtype, or arrays of several dtypes or devices.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    >>> da, db, _, _ = matmul_backward(np.ones((2, 4), np.float32), a, b)
    >>> da[0], db[0]
    (array([4., 4., 4.], dtype=float32), array([2., 2., 2., 2.], dtype=float32))
    """
    if type(b) is PackedWeight:
        raise TypeError("b: a packed weight is a constant without gradient; pass the weight itself")
    native = native_activation(activation)
    source = saved if native is not None and needs_input(native) else y
    mask = _check.mask(mask, 4)
    wanted = (mask[0], mask[1], mask[2] and bias is not None, mask[3])
    plain = _plain_gradients(dy, a, b, bias, source, native, (transpose_a, transpose_b), wanted)
    if plain is not None:
        return plain
    a, b = _check_operands(a, b, transpose_b)
    dy = _check.any_floating("dy", dy)
    _check.same_dtype(a=a, b=b, dy=dy)
    a2, b2 = _as_matrices(a, b)
    transpose_a, transpose_b = bool(transpose_a) and a.ndim > 1, bool(transpose_b) and b.ndim > 1
    full_shape = _result_shape(a2, b2, transpose_a, transpose_b)
    shape = full_shape[:-2] + full_shape[-2:-1] * (a.ndim > 1) + full_shape[-1:] * (b.ndim > 1)
    _check.shape("dy", dy, shape, "the shape of the result")
    if bias is not None:
        bias = _check.any_floating("bias", bias)
        _check.shape("bias", bias, full_shape[-1:], "one per column of the result")
        _check.same_dtype_but_bias(bias, a=a)
    ds = dy
    if native is not None:
        name = "saved" if needs_input(native) else "y"
        if source is None:
            raise ValueError(f"{name}: needed for the gradient of {activation!r}")
        source = _check.any_floating(name, source)
        _check.shape(name, source, shape, "the shape of the result")
        _check.same_dtype(**{"a": a, name: source})
        ds = _gradient_of_sum(dy, _backend.contiguous(source), activation)
    ds2 = _shaped(ds, full_shape)
    da = db = dbias = None
    if mask[0]:
        da = _gradient_of_a(ds2, a2, b2, transpose_a, transpose_b)
        da = _shaped(da, a.shape)
    if mask[1]:
        db = _gradient_of_b(ds2, a2, b2, transpose_a, transpose_b)
        db = _shaped(db, b.shape)
    if mask[2] and bias is not None:
        rows = _shaped(_backend.contiguous(ds2), (prod(full_shape[:-1]), full_shape[-1]))
        dbias = _column_sums(rows, bias.dtype)
    return da, db, dbias, ds if mask[3] else None


def _gradient_of_sum(dy: Any, source: Any, activation: Any) -> Any:
    """dy through the activation."""
    if _check.in_float32(dy):
        return activation_backward(_check.widened(dy), _check.widened(source), activation).astype(dy.dtype)
    return activation_backward(dy, source, activation)


def _column_sums(rows: Any, dtype: Any) -> Any:
    if _check.in_float32(rows):
        return _column_sums(_check.widened(rows), _check.widened(rows).dtype).astype(dtype)
    sums = _backend.empty(rows, rows.shape[1:], dtype)
    _backend.backend_of(rows).kernels.column_sums(rows, sums)
    return sums


def _shaped(array: Any, shape: tuple[int, ...]) -> Any:
    """`array` itself where it has this shape: the tape copies a view that it would keep."""
    return array if array.shape == shape else array.reshape(shape)


def _gradient_of_a(ds: Any, a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Any:
    if transpose_a:
        return _product(b, ds, a.shape, transpose_b, True)
    return _product(ds, b, a.shape, False, not transpose_b)


def _gradient_of_b(ds: Any, a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Any:
    if b.ndim == 2 and a.ndim > 2 and not transpose_a:  # rows of a batch are rows of one product
        rows = prod(ds.shape[:-1])
        ds, a = ds.reshape(rows, ds.shape[-1]), a.reshape(rows, a.shape[-1])
    if transpose_b:
        return _product(ds, a, b.shape, True, transpose_a)
    return _product(a, ds, b.shape, not transpose_a, False)


matmul = differentiable(_matmul, matmul_backward, arrays=("a", "b", "bias", "residual"))

"""Cases of matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from brasa import _cpu, ops
from brasa._bench.cases.contestants import (
    BYTES,
    UNITS,
    Peers,
    array,
    by_setting,
    in_precision,
    jax_call,
    library,
    tensor,
    torch_dtype,
)
from brasa._bench.harness import Call, Case
from brasa.tensor import Tensor

_BEYOND_CACHES = 48e6  # bytes


def _case(
    family: str, name: str, make: object, m: int, k: int, n: int, batch: int = 1, precision: str = "float32"
) -> Case:
    size = BYTES[precision] * batch
    nbytes = size * (m * k + k * n + m * n)
    few = size * m * n < 0.1 * nbytes  # hardly anything is written
    traffic = "read" if few and nbytes > _BEYOND_CACHES else "copy"
    unit = UNITS[precision]
    return Case(family, name, make, 2.0 * batch * m * k * n, nbytes, traffic, unit=unit)  # type: ignore[arg-type]


def _by_torch(
    a: Any,
    b: Any,
    transposed_a: bool,
    transposed: bool,
    epilogue: Any,
    precision: str,
    recorded: bool = False,
) -> Call:
    """PyTorch's product, of the same memory; with an epilogue its layer and the activation behind it."""
    import torch

    dtype, functional = torch_dtype(precision), torch.nn.functional
    ta, tb = (tensor(x) if dtype is None else tensor(x).to(dtype) for x in (a, b))
    if recorded:
        left, right = ta.requires_grad_(), tb.requires_grad_()
        return lambda: torch.matmul(
            left.mT if transposed_a else left, right.mT if transposed else right
        ).detach()
    if epilogue is not None:
        bias = tensor(epilogue) if dtype is None else tensor(epilogue).to(dtype)
        return lambda: functional.gelu(functional.linear(ta, tb, bias))
    ta, tb = ta.mT if transposed_a else ta, tb.mT if transposed else tb
    return lambda: torch.matmul(ta, tb)


def matmul(
    m: int,
    k: int,
    n: int,
    against: Peers,
    *,
    transposed: bool = False,
    transposed_a: bool = False,
    family: str = "matmul",
    label: str = "",
    launches: bool = False,
    precision: str = "float32",
    gelu: bool = False,
    into: bool = False,
    recorded: bool = False,
) -> Case:
    """(m, k) x (k, n); `transposed` stores the second operand (n, k) as a linear layer's weight is.

    In "float32", "bfloat16" or (on a GPU, of float32 arrays) "tf32" or "tf32x3"; with `gelu` a bias and that
    activation follow. `into` an array that is there, or `recorded` on the tape.
    """

    def make() -> dict[str, Call]:
        a = array(*((k, m) if transposed_a else (m, k)))
        b = array(*((n, k) if transposed else (k, n)), seed=1)
        bias = array(n, seed=2) if gelu else None
        ours = in_precision(a, precision), in_precision(b, precision), bias, "gelu" if gelu else None
        flags = {"transpose_a": transposed_a, "transpose_b": transposed}
        calls: dict[str, Call] = {"brasa": lambda: ops.matmul(*ours, **flags)}
        if into:
            y = np.empty_like(a, shape=(m, n))
            calls["brasa"] = lambda: ops.matmul(*ours, **flags, out=y)
        if recorded:
            leaves = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
            calls["brasa"] = lambda: ops.matmul(*leaves, **flags).data
        own = library(against)
        if own and precision == "float32" and not gelu:
            left, right = a.T if transposed_a else a, b.T if transposed else b
            out = np.empty_like(a, shape=(m, n))
            calls[own] = lambda: np.matmul(left, right, out=out)
        if "torch" in against:
            calls["torch"] = _by_torch(a, b, transposed_a, transposed, bias, precision, recorded)
        if "jax" in against:
            calls["jax"] = jax_call(
                lambda x, y: (x.T if transposed_a else x) @ (y.T if transposed else y), a, b
            )
        return by_setting(calls, precision)

    shape = f"{m}x{k}{'^T' if transposed_a else ''} @ {k}x{n}{'^T' if transposed else ''}{' gelu' * gelu}"
    shape += " out=" * into + " recorded" * recorded
    name = f"{label} {shape}".strip()
    return replace(_case(*_named(family, name, precision), make, m, k, n, 1, precision), launches=launches)


def _named(family: str, name: str, precision: str) -> tuple[str, str]:
    """The family and the row's name: the products of a precision other than float32 are a family of their own."""
    return (family, name) if precision == "float32" else (f"matmul {precision}", f"{name} {precision}")


def native_matmul(n: int, against: Peers) -> Case:
    """A small cube by the kernel's binding, without the checks of `ops`, into an array that is there."""

    def make() -> dict[str, Call]:
        a, b, out = array(n, n), array(n, n, seed=1), np.empty((n, n), np.float32)
        ours = np.empty_like(out)

        def native() -> np.ndarray:
            _cpu.matmul(a, b, None, None, ours, None, False, False, None)
            return ours

        calls: dict[str, Call] = {"brasa": native}
        if "numpy" in against:
            calls["numpy"] = lambda: np.matmul(a, b, out=out)
        if "torch" in against:
            import torch

            ta, tb, tout = torch.from_numpy(a), torch.from_numpy(b), torch.empty(n, n)
            calls["torch"] = lambda: torch.matmul(ta, tb, out=tout)
        return calls

    return _case("matmul native", f"{n}x{n} @ {n}x{n} native call, out=", make, n, n, n)


def packed_matmul(m: int, k: int, n: int, against: Peers, *, label: str = "") -> Case:
    """(m, k) x (k, n)^T with a constant second operand, which brasa has packed once, as for inference."""

    def make() -> dict[str, Call]:
        a, b = array(m, k), array(n, k, seed=1)
        packed, out = ops.prepack(b, "linear"), np.empty((m, n), np.float32)
        calls: dict[str, Call] = {"brasa": lambda: ops.matmul(a, packed, transpose_b=True)}
        if "numpy" in against:
            calls["numpy"] = lambda: np.matmul(a, b.T, out=out)
        if "torch" in against:
            import torch

            ta, tb = torch.from_numpy(a), torch.from_numpy(b)
            calls["torch"] = lambda: torch.nn.functional.linear(ta, tb)
        return calls

    return _case("matmul packed", f"{label} {m}x{k} @ {k}x{n}^T packed once".strip(), make, m, k, n)


def batched_matmul(
    batch: int,
    m: int,
    k: int,
    n: int,
    against: Peers,
    *,
    transposed: bool = False,
    precision: str = "float32",
) -> Case:
    """`batch` products of (m, k) x (k, n), or with the second operands stored (n, k), as attention needs."""

    def make() -> dict[str, Call]:
        a, b = array(batch, m, k), array(*((batch, n, k) if transposed else (batch, k, n)), seed=1)
        ours = in_precision(a, precision), in_precision(b, precision)
        calls: dict[str, Call] = {"brasa": lambda: ops.matmul(*ours, transpose_b=transposed)}
        own = library(against)
        if own and precision == "float32":
            out, right = np.empty_like(a, shape=(batch, m, n)), b.swapaxes(1, 2) if transposed else b
            calls[own] = lambda: np.matmul(a, right, out=out)
        if "torch" in against:
            calls["torch"] = _by_torch(a, b, False, transposed, None, precision)
        return by_setting(calls, precision)

    name = f"{batch} x ({m}x{k} @ {k}x{n}{'^T' if transposed else ''})"
    return _case(*_named("matmul batched", name, precision), make, m, k, n, batch, precision)

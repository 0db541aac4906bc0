"""Cases of matrix products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from brasa import _cpu, ops
from brasa._bench.cases.contestants import Peers, array, jax_call, library, tensor
from brasa._bench.harness import Call, Case

_BEYOND_CACHES = 48e6  # bytes


def _case(family: str, name: str, make: object, m: int, k: int, n: int, batch: int = 1) -> Case:
    nbytes = 4.0 * batch * (m * k + k * n + m * n)
    few = 4.0 * batch * m * n < 0.1 * nbytes  # hardly anything is written
    traffic = "read" if few and nbytes > _BEYOND_CACHES else "copy"
    return Case(family, name, make, 2.0 * batch * m * k * n, nbytes, traffic)  # type: ignore[arg-type]


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
) -> Case:
    """(m, k) x (k, n); `transposed` stores the second operand (n, k) as a linear layer's weight is."""

    def make() -> dict[str, Call]:
        a = array(*((k, m) if transposed_a else (m, k)))
        b = array(*((n, k) if transposed else (k, n)), seed=1)
        out = np.empty_like(a, shape=(m, n))
        left, right = a.T if transposed_a else a, b.T if transposed else b
        calls: dict[str, Call] = {
            "brasa": lambda: ops.matmul(a, b, transpose_a=transposed_a, transpose_b=transposed)
        }
        own = library(against)
        if own:
            calls[own] = lambda: np.matmul(left, right, out=out)
        if "torch" in against:
            import torch

            ta, tb = tensor(a), tensor(b)
            ta, tb = ta.T if transposed_a else ta, tb.T if transposed else tb
            calls["torch"] = lambda: torch.matmul(ta, tb)
        if "jax" in against:
            calls["jax"] = jax_call(
                lambda x, y: (x.T if transposed_a else x) @ (y.T if transposed else y), a, b
            )
        return calls

    shape = f"{m}x{k}{'^T' if transposed_a else ''} @ {k}x{n}{'^T' if transposed else ''}"
    return replace(_case(family, f"{label} {shape}".strip(), make, m, k, n), launches=launches)


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


def batched_matmul(batch: int, m: int, k: int, n: int, against: Peers, *, transposed: bool = False) -> Case:
    """`batch` products of (m, k) x (k, n), or with the second operands stored (n, k), as attention needs."""

    def make() -> dict[str, Call]:
        a, b = array(batch, m, k), array(*((batch, n, k) if transposed else (batch, k, n)), seed=1)
        out = np.empty_like(a, shape=(batch, m, n))
        right = b.swapaxes(1, 2) if transposed else b
        calls: dict[str, Call] = {"brasa": lambda: ops.matmul(a, b, transpose_b=transposed)}
        own = library(against)
        if own:
            calls[own] = lambda: np.matmul(a, right, out=out)
        if "torch" in against:
            import torch

            ta, tb = tensor(a), tensor(b)
            tb = tb.transpose(1, 2) if transposed else tb
            calls["torch"] = lambda: torch.bmm(ta, tb)
        return calls

    name = f"{batch} x ({m}x{k} @ {k}x{n}{'^T' if transposed else ''})"
    return _case("matmul batched", name, make, m, k, n, batch)

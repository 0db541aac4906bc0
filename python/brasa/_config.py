"""What this build and this machine offer, and the few settings there are."""

from __future__ import annotations

from brasa import _backend, _cpu
from brasa.ops._check import integer

__all__ = [
    "empty_cache",
    "get_num_threads",
    "matmul_precision",
    "memory_stats",
    "set_matmul_precision",
    "set_num_threads",
    "show_config",
    "supported_isas",
]

_PRECISIONS = ("ieee", "tf32", "tf32x3")  # in the order of MathMode in csrc/core/context.h


def set_num_threads(n: int) -> None:
    """Use at most `n` threads in CPU kernels, from now on. Results do not depend on it.

    Before the first call it is ``BRASA_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the CPUs in the
    affinity mask, capped by the cgroup quota.

    Raises
    ------
    ValueError
        When `n` is not between 1 and 4096.
    """
    _cpu.set_num_threads(integer("n", n, minimum=1, maximum=4096))


def get_num_threads() -> int:
    """The most threads a CPU kernel uses.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    return _cpu.num_threads()


def set_matmul_precision(precision: str) -> None:
    """How products of float32 arrays are made on a GPU, in matrix products, convolutions and attention, from now on.

    ``"ieee"``, the default, multiplies in float32. ``"tf32"`` uses tensor cores, eight times as fast: operands
    are cut to 10 bits after the point, which is an error of up to 2^-10 of each, and summed in float32.
    ``"tf32x3"`` has the accuracy of float32 on tensor cores: each operand is two numbers of tf32, and three of
    their products are summed. It is for large matrix products, and with them fully connected layers, the input
    products of recurrent ones and convolutions of one tap; whatever else there is stays ``"ieee"``, and so do
    products that would be slower, which depends on their shape and on the GPU.
    float64, 16-bit arrays and the CPU do not change.

    A CUDA graph keeps the precision it was captured in.

    Notes
    -----
    In ``"tf32x3"`` a result is off by at most ``(58 + K / 16) 2^-24 sum |a b|``; below K = 64 products are
    ``"ieee"``, whose bound is ``(K + 2) 2^-24 sum |a b|``.
    Infinite operands and NaN give what they give in float32. A product within 1 part in 1000 of the largest float
    may overflow, and what overflows may be NaN in place of infinite. Operands below 2^-103 lose digits and below
    2^-126 may count as zero. Operands are copied into scratch memory of twice their size.

    Raises
    ------
    ValueError
        For any other precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision: expected 'ieee', 'tf32' or 'tf32x3', got {precision!r}")
    _backend.set_math_mode(_PRECISIONS.index(precision))


def matmul_precision() -> str:
    """What `set_matmul_precision` has set.

    Examples
    --------
    >>> matmul_precision()
    'ieee'
    """
    return _PRECISIONS[_backend.math_mode()]


def supported_isas() -> list[str]:
    """The instruction sets this build has kernels for and this CPU can run, slowest first.

    Examples
    --------
    >>> supported_isas()[0]
    'scalar'
    """
    return _cpu.supported_isas()


def show_config() -> None:
    """Print what this build contains and what it uses on this machine; ``brasa info`` says more."""
    from brasa import __version__

    used = _cpu.isa()
    print(f"brasa {__version__}: {used} of {', '.join(supported_isas())}; {get_num_threads()} threads")


def memory_stats() -> dict[str, int]:
    """Bytes of CPU memory in results (``in_use``), kept for reuse (``cached``) and in ``scratch`` blocks.

    Only large results count, which come from brasa's pool; small ones are NumPy's.

    Examples
    --------
    >>> sorted(memory_stats())
    ['cached', 'in_use', 'scratch']
    """
    return _cpu.memory_stats()


def empty_cache() -> None:
    """Give memory that is kept for reuse back to the operating system."""
    _cpu.empty_cache()

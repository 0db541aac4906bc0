"""Elementary functions, element by element.

Arrays of any shape, float32 or float64; those of 16 bits are computed in float32. A result is within 1 ULP of the
exact value for float32 `exp` and `log`, within 2 for the others.
"""

from __future__ import annotations

from brasa._elementary import erf, exp, expm1, log, log1p

__all__ = ["erf", "exp", "expm1", "log", "log1p"]

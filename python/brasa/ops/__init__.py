"""Operators: functions of arrays, and of Tensors where gradients are wanted.

One module per family of kernels. A function checks what its arguments mean, allocates the result and calls
the kernel of the device that the arrays are on; its backward stands beside it.
"""

from __future__ import annotations

from brasa.ops import (
    activation as _activation,
)

_families = (_activation,)
__all__ = [name for family in _families for name in family.__all__]

for _family in _families:
    globals().update({name: getattr(_family, name) for name in _family.__all__})

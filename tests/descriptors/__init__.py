"""One descriptor per public operator: what the generic tests and the benchmark need to know of it.

`tests/test_operators.py` runs every descriptor through every property; a test there fails when a public
operator has none. A family's descriptors stand in the module of its name, in the list ``OPERATORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}  # half a unit in the last place of 1


@dataclass(frozen=True)
class Operator:
    """What is known of ``brasa.ops.<name>``."""

    name: str
    # Arguments of one call, by name, of small shapes that vary with the generator: (rng, dtype) -> dict.
    sample: Callable[[np.random.Generator, type], dict[str, Any]]
    # The result(s) in float64, from the same arguments in float64; written independently of the library.
    reference: Callable[..., Any]
    # Largest error of each element: (arguments in float64, reference result, unit roundoff) -> array.
    bound: Callable[[dict[str, Any], Any, float], Any]
    gradients: tuple[str, ...] = ()  # array arguments that receive a gradient
    batched: tuple[str, ...] = ()  # array arguments whose axis 0 is the batch; rows are independent
    indices: tuple[str, ...] = ()  # array arguments of integers
    layouts: bool = True  # C order and channels-last, strided and offset copies give the same bits
    options: dict[str, Any] = field(default_factory=dict)  # keywords for gradcheck, such as points to avoid

    def arrays(self, arguments: dict[str, Any]) -> dict[str, np.ndarray]:
        """The array arguments of a call."""
        return {name: a for name, a in arguments.items() if isinstance(a, np.ndarray)}

    def __str__(self) -> str:
        return self.name


def all_operators() -> list[Operator]:
    """Every descriptor of every family."""
    families = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")
    return [op for family in families for op in import_module(f"descriptors.{family}").OPERATORS]

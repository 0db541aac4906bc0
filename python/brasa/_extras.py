"""Optional packages: imported where they are used, and named with their extra where missing."""

from __future__ import annotations

import importlib
from typing import Any

from ._backend import distribution

__all__ = ["MissingExtra", "require"]


class MissingExtra(ImportError):
    """A feature needs a package that one of brasa's extras installs."""


def require(module: str, extra: str, purpose: str) -> Any:
    """Import `module`, or say which extra installs it.

    Parameters
    ----------
    module : str
        The module's full name.
    extra : str
        The extra that installs it, such as ``"plot"``.
    purpose : str
        What needs it, as the end of a sentence: ``"to draw pictures"``.

    Raises
    ------
    MissingExtra
        The package is not installed.

    Examples
    --------
    >>> require("math", "plot", "to count").floor(2.5)
    2
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there; something it needs itself is not
        package = module.split(".")[0]
        raise MissingExtra(
            f"{package} is needed {purpose}: pip install '{distribution()}[{extra}]'"
        ) from None

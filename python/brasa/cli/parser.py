"""An argument parser whose errors are one line with the closest option."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from .errors import UsageError, closest

__all__ = ["Parser", "integer", "number"]


class _HelpShown(Exception):
    """--help was given."""


class Parser(argparse.ArgumentParser):
    """`argparse` that raises `UsageError` instead of leaving the process."""

    def __init__(self, prog: str, description: str) -> None:
        # An abbreviation that works today is ambiguous when an option is added tomorrow.
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """Parse; None if help was asked for and shown.

        Raises
        ------
        UsageError
            An option is unknown or has a wrong value.
        """
        try:
            options, unknown = self.parse_known_args(list(arguments))
        except _HelpShown:
            return None
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            first = unknown[0].split("=")[0]
            kind = "option" if first.startswith("-") else "place for"
            hint = closest(first, known) if first.startswith("-") else ""
            raise UsageError(f"there is no {kind} {first!r}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        raise UsageError(message.removeprefix("argument "))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Come back from --help."""
        raise _HelpShown


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An option's value: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"need an integer of at least {low}, got {text!r}")
        return int(text)

    return parse


def number(low: float) -> Callable[[str], float]:
    """An option's value: a finite number above `low`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value < float("inf"):
            raise argparse.ArgumentTypeError(f"need a number above {low:g}, got {text!r}")
        return value

    return parse

"""What the user can correct, and how it is said."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["UsageError", "closest", "one_line", "user_input"]


class UsageError(Exception):
    """A wrong name, option, file or image; the message is one clear sentence."""


@contextmanager
def user_input(what: str = "") -> Iterator[None]:
    """Report what the library refuses inside the block as the user's to correct.

    For steps that only check or read what the user gave; an error in anything else is a bug, and
    its traceback must not be lost.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read the output has gone; `main` knows what to do
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        else:
            message = str(error)
        raise UsageError(f"{what}: {message}" if what else message) from error


def closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'train'?``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(message: str) -> str:
    """Put a message into one line."""
    return " ".join(message.split())

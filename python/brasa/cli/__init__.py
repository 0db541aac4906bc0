"""The command ``brasa``.

Each command is a module here with ``add_arguments(parser)`` and ``run(options)``. What a user can
correct ends in one line on stderr and status 2: commands turn it into a `UsageError`, and files
that cannot be read or written are reported here. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .errors import UsageError, closest, one_line
from .parser import Parser

__all__ = ["main"]

_COMMANDS = {
    "train": "train a network on a data set",
    "predict": "tell what is on images",
    "generate": "go on with a text",
    "summary": "list a network's layers and parameters",
    "info": "show what this machine and this build can do",
    "bench": "measure this machine's speed",
}

_FAILED, _INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default the process's.

    Returns
    -------
    int
        0; 2 for what the user can correct; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _report(str(error))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        return _report(str(reason))
    except MemoryError:
        return _report("not enough memory; a smaller --batch-size needs less")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        import brasa

        print(f"brasa {brasa.__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        raise UsageError(f"there is no command {name!r}{closest(name, _COMMANDS)}; see brasa --help")
    if name == "bench":
        from brasa import _bench

        return int(_bench.main(rest) or 0)
    command = import_module(f"brasa.cli.{name}")
    parser = Parser(f"brasa {name}", _COMMANDS[name])
    command.add_arguments(parser)
    options = parser.parse(rest)
    if options is None:  # --help was asked for, and shown
        return 0
    command.run(options)
    return 0


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: brasa COMMAND ... | --version | --help",
            "",
            *lines,
            "",
            "brasa COMMAND --help has the options; brasa train alone trains a LeNet on digits.",
        ]
    )


def _report(message: str) -> int:
    print(f"brasa: error: {one_line(message)}", file=sys.stderr)
    return _FAILED

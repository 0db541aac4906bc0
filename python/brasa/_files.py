"""Whole-file writes: a file is the old version or the new one, never half of either.

The new content goes to a temporary file in the same folder (so that the rename stays within one
file system), is flushed and synced to the disk, takes the old file's mode and replaces it with one
``rename``; then the folder is synced, or a power cut could undo the rename. On any error the
temporary file is removed and the old file is untouched. Only a killed process can leave the
temporary file behind; nothing ever reads it.

Everything that differs between operating systems when files are written lives here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["atomic_write", "write_bytes", "write_text"]

# O_BINARY exists on Windows only, where leaving it out would rewrite newlines.
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file for writing that replaces `path` only when the block ends well.

    A symbolic link stays a link: its target is replaced. A new file gets the mode that ``open``
    would give it, an existing one keeps its own.

    Parameters
    ----------
    path : path-like
        The file to create or replace. Its folder must exist.

    Yields
    ------
    file
        The temporary file; closing it inside the block is an error.

    Raises
    ------
    OSError
        The folder is missing or read-only, the disk is full: `path` is as it was.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with atomic_write(f"{folder}/a.bin") as file:
    ...     _ = file.write(b"new")
    >>> os.listdir(folder)
    ['a.bin']
    """
    target = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(target)
    _refuse_special(target)
    temporary = os.path.join(folder, f".{name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    # The mode is left to the umask by the kernel; asking for the umask is not thread-safe.
    descriptor = os.open(temporary, _CREATE_FLAGS, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` by `content`, all or nothing."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Replace the file at `path` by `content` in UTF-8 with Unix newlines, all or nothing."""
    write_bytes(path, content.encode("utf-8"))


def _refuse_special(target: str) -> None:
    """A rename would replace a device or a pipe by a plain file, for everybody on the machine."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", target)


def _sync_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut, where the system can say so."""
    if os.name == "nt":  # Windows cannot open a folder, and its journal orders renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder; the file itself is synced
    finally:
        os.close(descriptor)

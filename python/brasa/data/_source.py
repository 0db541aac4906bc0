"""Finding the files of a published set, and reading them without trusting them.

Every reader here and beside it bounds what it will hold before it reads: sizes come from files, and
a file may lie. What is wrong with a file is a ValueError that starts with the file's path.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PathLike: TypeAlias = "str | os.PathLike[str]"

BUNDLED = Path(__file__).parent / "files"

# No set read into memory as a whole may be larger: CIFAR-10's training part is 147 MiB.
MAX_BYTES = 1 << 30

_CHUNK = 1 << 20


class DatasetNotFoundError(FileNotFoundError):
    """A set's files are not in the folder looked in; the message says how to get them."""


def folder(root: PathLike | None, name: str, how: str) -> Path:
    """Return `root` as a path, or say in one line what the set `name` needs (`how`)."""
    if root is None:
        raise DatasetNotFoundError(f"{name} is read from a folder, and none was given (root): {how}")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DatasetNotFoundError(f"{name}: there is no folder {path}: {how}")
    return path


def find(root: Path, candidates: list[str], name: str, how: str) -> Path:
    """Return the first of `candidates` that is a file in `root`."""
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    raise DatasetNotFoundError(f"{name}: there is no {' or '.join(candidates)} in {root}: {how}")


def read_exactly(stream: io.BufferedIOBase, size: int, path: Path) -> bytearray:
    """Read `size` bytes in chunks, so that a short file never costs more memory than it has."""
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(_CHUNK, size - len(content)))
        if not chunk:
            raise ValueError(f"{path}: the file is truncated ({len(content)} of {size} bytes)")
        content += chunk
    return content


def read_bundled(name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return ``x`` and ``y`` of an archive that comes with the package."""
    with np.load(BUNDLED / name, allow_pickle=False) as archive:
        return archive["x"], archive["y"]


def every_fifth(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark every fifth sample of each class (the 5th, the 10th, ...): the fixed test part."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), bool)
    chosen[order] = rank_in_class % 5 == 4
    return chosen

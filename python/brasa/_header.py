"""The header of a safetensors file, parsed and bounded before any tensor is allocated.

A file is 8 bytes of little-endian header length, that many bytes of JSON, and the tensors' bytes:

    {"__metadata__": {name: text, ...}, "weight": {"dtype": "F32", "shape": [2, 3],
     "data_offsets": [0, 24]}, ...}

The file may come from anywhere, so nothing in it is believed: sizes have limits, names occur once,
a shape's product is the byte length, and the byte ranges cover the rest of the file exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

__all__ = [
    "DTYPES",
    "MAX_DEPTH",
    "MAX_METADATA_BYTES",
    "CheckpointError",
    "Entry",
    "Header",
    "depth_of",
    "parse_header",
    "parse_json",
]

MAX_HEADER_BYTES = 16 << 20
MAX_METADATA_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_RANK = 32
MAX_NAME_LENGTH = 1024

# safetensors dtype -> (NumPy name, bytes per element)
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}

# A string (or what is left of one), or a bracket. Possessive, so that no input makes it backtrack.
_TOKENS = re.compile(r'(?s)"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]')


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or is not what its checksum says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself; `data_start` is the offset of the first tensor byte."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


def parse_header(data: bytes | memoryview, file_size: int) -> Header:
    """Parse and check the header at the start of `data`.

    Parameters
    ----------
    data : bytes-like
        At least the first ``8 + header length`` bytes of the file.
    file_size : int
        The size of the whole file, which the tensors' ranges have to fill.

    Returns
    -------
    Header

    Raises
    ------
    CheckpointError
        Anything is malformed, too large, repeated, of an unknown dtype, or leaves holes.
    """
    length = header_length(data, file_size)
    try:
        text = bytes(data[8 : 8 + length]).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("the header is not UTF-8 text") from None
    table = parse_json(text, "the header")
    if not isinstance(table, dict):
        raise CheckpointError("the header is no JSON object")
    metadata = _checked_metadata(table.pop("__metadata__", {}))
    entries = {_checked_name(name): _checked_entry(name, item) for name, item in table.items()}
    _check_ranges(entries, file_size - 8 - length)
    return Header(entries, metadata, 8 + length)


def header_length(data: bytes | memoryview, file_size: int) -> int:
    """Read the length field, which must fit the file and the limit."""
    if len(data) < 8:
        raise CheckpointError(f"a file of {file_size} bytes is too short to be a checkpoint")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"not a checkpoint, or damaged: a header of {length} bytes")
    if length > file_size - 8:
        raise CheckpointError(f"the file ends within its header of {length} bytes")
    return length


def parse_json(text: str, what: str) -> Any:
    """Parse JSON with unique keys and no NaN, at most `MAX_DEPTH` deep; `what` names the text."""
    import json

    # Before the parser, whose stack is the process's own.
    if depth_of(text) > MAX_DEPTH:
        raise CheckpointError(f"{what} is nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{what} is no valid JSON") from None


def depth_of(text: str) -> int:
    """Nesting depth of JSON text: brackets outside strings."""
    depth = deepest = 0
    for token in _TOKENS.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"the name {twice[:80]!r} occurs twice")
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise CheckpointError(f"{name} is no JSON number")


def _checked_metadata(table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError("the metadata is no table of texts")
    try:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in table.items())
    except UnicodeEncodeError:
        raise CheckpointError("the metadata is no valid text") from None
    if size > MAX_METADATA_BYTES:
        raise CheckpointError(f"the metadata has {size} bytes, more than {MAX_METADATA_BYTES}")
    return table


def _checked_name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise CheckpointError(f"{name[:80]!r} is no name for a tensor")
    return name


def _checked_entry(name: str, item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"tensor {name[:80]!r} needs dtype, shape and data_offsets, no more")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"tensor {name[:80]!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"tensor {name[:80]!r} has an impossible shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"tensor {name[:80]!r} has an impossible byte range")
    begin, end = offsets
    if end - begin != prod(shape) * DTYPES[dtype][1]:
        raise CheckpointError(f"tensor {name[:80]!r} has a byte range that is not its shape's")
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_ranges(entries: dict[str, Entry], data_size: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise CheckpointError(f"the bytes of tensor {name[:80]!r} overlap others or leave a gap")
        position = entry.end
    if position != data_size:
        raise CheckpointError(f"the tensors need {position} bytes, the file has {data_size}")

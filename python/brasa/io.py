"""Weights and checkpoints as safetensors files.

A file written here is a plain safetensors file that any reader opens. Beside the caller's metadata
(one JSON text per name) it carries the format's version and a SHA-256 over everything a reader
uses: metadata, names, dtypes, shapes and tensor bytes. Files without that, such as those that other
libraries write, load unchecked; the header's own limits (`brasa._header`) hold for every file.

Arrays are stored in C order whatever their strides: the safetensors library writes a strided array
in memory order, which is another array. No file is ever executed: there is no pickle.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _files
from ._header import (
    DTYPES,
    MAX_DEPTH,
    MAX_METADATA_BYTES,
    CheckpointError,
    Header,
    depth_of,
    parse_header,
    parse_json,
)

if TYPE_CHECKING:
    from .nn import Module

__all__ = ["CheckpointError", "load", "load_metadata", "load_state", "save"]

FORMAT_VERSION = 1
# A trainer's checkpoint holds its model's tensors under this prefix.
MODEL_PREFIX = "model."

_RESERVED = "brasa."
_FORMAT_KEY = "brasa.format"
_SHA_KEY = "brasa.sha256"
_KIND_KEY = "brasa.kind"
_NO_SHA = "0" * 64
_KNOWN_DTYPES = {name for name, _ in DTYPES.values()}


def save(
    model: Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's weights, or any named arrays, to one safetensors file.

    The file at `path` is replaced in one step: after an error, a full disk or a kill it is the old
    file or the new one.

    Parameters
    ----------
    model : Module or mapping of str to array
        A module (its ``state_dict()`` is written, with PyTorch's names), or named arrays: NumPy,
        CuPy, Tensors, or anything NumPy can convert, of any shape, 0-d and empty included.
    path : path-like
        The file to create or replace.
    metadata : mapping, optional
        JSON values (numbers, texts, lists, mappings with text keys) by name: at most 1 MB and 8
        levels. `load_metadata` gives them back.

    Raises
    ------
    ValueError
        A name or the metadata is too long or too deep, or starts with ``"brasa."``.
    TypeError
        An array's dtype, or a metadata value, cannot be stored.
    OSError
        The file cannot be written; the old one is untouched.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/two.safetensors"
    >>> save({"a": np.arange(3, dtype="float32")}, path, metadata={"epoch": 4})
    >>> load_state(path)["a"], load_metadata(path)
    (array([0., 1., 2.], dtype=float32), {'epoch': 4})
    """
    state = model if isinstance(model, Mapping) else model.state_dict()
    write(state, path, metadata or {}, kind="weights")


def load(model: Module, path: str | os.PathLike[str], strict: bool = True) -> Module:
    """Read weights into `model`, from a weights file or from a trainer's checkpoint.

    Parameters
    ----------
    model : Module
        Its parameters and buffers are overwritten in place.
    path : path-like
        A safetensors file with PyTorch's names, ours or another library's.
    strict : bool, default True
        Whether a missing or unknown name is an error.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    CheckpointError
        The file is damaged or no safetensors file.
    ValueError
        Names or shapes differ from the model's; the message lists them.
    OSError
        The file cannot be read.
    """
    tensors, _, kind = read(path)
    if kind == "checkpoint":
        tensors = model_tensors(tensors)
    model.load_state_dict(tensors, strict=strict)
    return model


def load_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every array of a safetensors file.

    Parameters
    ----------
    path : path-like
        A file written by `save`, by a trainer, or by another library.

    Returns
    -------
    dict of str to ndarray
        Writable C-ordered arrays, on the host.

    Raises
    ------
    CheckpointError
        The file is damaged or no safetensors file.
    OSError
        The file cannot be read.
    """
    return read(path)[0]


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file's metadata: `save`'s values again, or another library's texts as they are.

    The whole file is read, because the checksum covers all of it.
    """
    return read(path)[1]


def model_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's part of a checkpoint's tensors, under PyTorch's names."""
    start = len(MODEL_PREFIX)
    return {k[start:]: v for k, v in tensors.items() if k.startswith(MODEL_PREFIX)}


def write(
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    kind: str,
) -> None:
    """Write named arrays and metadata; `kind` is "weights" or "checkpoint"."""
    content, data_start = _serialise(state, _encode_metadata(metadata, kind))
    with _files.atomic_write(path) as file:
        file.write(_signed_header(content, data_start))
        file.write(memoryview(content)[data_start:])


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Read and check a file: its arrays, its metadata and its kind ("" in a foreign file)."""
    content = _read_file(path)
    try:
        header = parse_header(content, len(content))
        kind, metadata = _decode_metadata(header, content)
        return _arrays(content, header), metadata, kind
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None


def _read_file(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{os.fspath(path)}: not a regular file")
        return file.read()


def _encode_metadata(metadata: Mapping[str, Any], kind: str) -> dict[str, str]:
    import json

    texts = {_FORMAT_KEY: str(FORMAT_VERSION), _KIND_KEY: kind, _SHA_KEY: _NO_SHA}
    for name, value in metadata.items():
        if not isinstance(name, str) or name.startswith(_RESERVED):
            raise ValueError(f"metadata: {name!r} is no usable name")
        try:
            texts[name] = json.dumps(value, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"metadata[{name!r}] cannot be stored as JSON: {error}") from None
        if depth_of(texts[name]) > MAX_DEPTH:
            raise ValueError(f"metadata[{name!r}] is nested more than {MAX_DEPTH} deep")
    size = sum(len(k.encode()) + len(v.encode()) for k, v in texts.items())
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"metadata has {size} bytes, the limit is {MAX_METADATA_BYTES}")
    return texts


def _decode_metadata(header: Header, content: bytes) -> tuple[str, dict[str, Any]]:
    texts = header.metadata
    if not any(name.startswith(_RESERVED) for name in texts):
        return "", dict(texts)
    version, kind, sha = (texts.get(key, "") for key in (_FORMAT_KEY, _KIND_KEY, _SHA_KEY))
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise CheckpointError(f"written by a newer brasa (format {version})")
    if version != str(FORMAT_VERSION) or sha != _digest(header, content):
        raise CheckpointError("the checksum does not match: the file is damaged")
    own = {k: v for k, v in texts.items() if not k.startswith(_RESERVED)}
    return kind, {k: parse_json(v, f"metadata[{k!r}]") for k, v in own.items()}


def _serialise(state: Mapping[str, Any], texts: dict[str, str]) -> tuple[bytes, int]:
    """The file's bytes, with zeros for the checksum, and where the tensors start in them.

    The checksum is taken from these bytes and not from the arrays, so that a thread that trains on
    while another saves cannot make a file that contradicts itself.
    """
    from safetensors.numpy import save as serialise

    arrays = {name: _storable(name, value) for name, value in state.items()}
    content = serialise(arrays, metadata=texts)
    return content, 8 + int.from_bytes(content[:8], "little")


def _storable(name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 1024:
        raise ValueError(f"{name!r} is no name for an array: a printable text is needed")
    array = value.numpy() if hasattr(value, "numpy") else value
    if hasattr(array, "__cuda_array_interface__"):
        array = array.get()
    # np.ascontiguousarray would turn a 0-d array into one of shape (1,).
    array = np.asarray(array, order="C")
    if array.dtype.name not in _KNOWN_DTYPES:
        raise TypeError(f"{name!r} has dtype {array.dtype}, which no safetensors file can hold")
    return array


def _signed_header(content: bytes, data_start: int) -> bytes:
    header = parse_header(content[:data_start], len(content))
    sha = _digest(header, content)
    # The pattern cannot occur elsewhere: a quote inside a JSON text is escaped.
    unsigned, signed = (f'"{_SHA_KEY}":"{text}"'.encode() for text in (_NO_SHA, sha))
    return content[:data_start].replace(unsigned, signed)


def _digest(header: Header, content: bytes) -> str:
    """SHA-256, in hex, of the metadata, of every tensor's description and of its bytes."""
    import json

    texts = {k: v for k, v in header.metadata.items() if k != _SHA_KEY}
    names = sorted(header.entries)
    table = [(n, header.entries[n].dtype, header.entries[n].shape) for n in names]
    sha = hashlib.sha256(json.dumps([texts, table], sort_keys=True).encode())
    view = memoryview(content)[header.data_start :]
    for name in names:
        entry = header.entries[name]
        sha.update(view[entry.begin : entry.end])
    return sha.hexdigest()


def _arrays(content: bytes, header: Header) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        items = deserialize(content)
    except SafetensorError as error:
        raise CheckpointError(str(error)) from None
    return {name: _array(item) for name, item in items if name in header.entries}


def _array(item: dict[str, Any]) -> np.ndarray:
    name = DTYPES[item["dtype"]][0]
    if name == "bool":  # any byte but 0 is True; NumPy expects to find only 0 and 1
        flat = np.frombuffer(item["data"], dtype=np.uint8).astype(bool)
    else:
        dtype = _bfloat16() if name == "bfloat16" else np.dtype(name)
        flat = np.frombuffer(item["data"], dtype=dtype).copy()
    return flat.reshape(item["shape"])


def _bfloat16() -> np.dtype:
    from ._extras import require

    return np.dtype(require("ml_dtypes", "bf16", "to read bfloat16 tensors").bfloat16)

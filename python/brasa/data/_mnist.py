"""MNIST and Fashion-MNIST, in the IDX format of their publishers, and the sample that ships.

IDX: two zero bytes, one byte for the type (8: unsigned byte), one for the number of dimensions,
the dimensions as big-endian 32-bit integers, then the values, last dimension fastest.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._source import MAX_BYTES, PathLike, every_fifth, find, folder, read_bundled, read_exactly
from .dataset import ArrayDataset

_UNSIGNED_BYTE = 8

# DEFLATE cannot expand further (RFC 1951: 258 bytes from 2 bits); gzip's header only lowers it.
_MAX_GZIP_RATIO = 1032

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_FILES = (
    "its four files are {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz; they are published at "
)
_GET_MNIST = _FILES + "http://yann.lecun.com/exdb/mnist/"
_GET_FASHION = (
    _FILES + "https://github.com/zalandoresearch/fashion-mnist"
    " (on Debian and Ubuntu also in the package dataset-fashion-mnist, which puts them in"
    " /usr/share/datasets/fashion-mnist)"
)


def mnist(root: PathLike | None = None) -> tuple[ArrayDataset, ArrayDataset]:
    """Handwritten digits, 28 x 28, ten classes.

    Parameters
    ----------
    root : path, optional
        Folder with the four published files, plain or ``.gz``: 60,000 training and 10,000 test
        images. None is the sample that comes with the package: 5,000 of the training images, 500 a
        digit, of which every fifth of each digit (1,000 in all) is the test part.

    Returns
    -------
    train, test : ArrayDataset
        x float32 (N, 1, 28, 28) in [0, 1], y int64 (N,).

    Raises
    ------
    DatasetNotFoundError
        If a file is missing; the message says where to get it.
    ValueError
        If a file is not what it should be; the message names it.

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.mnist()
    >>> train[0][0].shape, test.classes[3]
    ((1, 28, 28), '3')
    """
    if root is not None:
        return _published(root, "MNIST", _GET_MNIST, _DIGITS)
    images, labels = read_bundled("mnist_5k.npz")
    test = every_fifth(labels)
    images = images[:, None]
    return (
        ArrayDataset(images[~test], labels[~test], _DIGITS),
        ArrayDataset(images[test], labels[test], _DIGITS),
    )


def fashion_mnist(root: PathLike | None = None) -> tuple[ArrayDataset, ArrayDataset]:
    """Pictures of clothes, 28 x 28, ten classes: 60,000 to train, 10,000 to test.

    Parameters
    ----------
    root : path
        Folder with the four published files, plain or ``.gz``. The set does not come with the
        package: None raises the message that says where to get it.

    Returns
    -------
    train, test : ArrayDataset
        x float32 (N, 1, 28, 28) in [0, 1], y int64 (N,).

    Raises
    ------
    DatasetNotFoundError
        If a file is missing; the message says where to get it.
    ValueError
        If a file is not what it should be; the message names it.

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.fashion_mnist("/usr/share/datasets/fashion-mnist")  # doctest: +SKIP
    """
    return _published(root, "Fashion-MNIST", _GET_FASHION, _CLOTHES)


def _published(
    root: PathLike | None, name: str, how: str, classes: tuple[str, ...]
) -> tuple[ArrayDataset, ArrayDataset]:
    path = folder(root, name, how)
    # All four are looked for before the first is read.
    files = [
        find(path, [f"{part}-{kind}-ubyte", f"{part}-{kind}-ubyte.gz"], name, how)
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return _part(files[0], files[1], classes), _part(files[2], files[3], classes)


def _part(image_file: Path, label_file: Path, classes: tuple[str, ...]) -> ArrayDataset:
    images = read_idx(image_file, (None, 28, 28))
    labels = read_idx(label_file, (None,))
    if len(images) != len(labels):
        raise ValueError(
            f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file.name}"
        )
    if labels.size and labels.max() >= len(classes):
        raise ValueError(f"{label_file}: label {labels.max()}, expected 0 to {len(classes) - 1}")
    return ArrayDataset(images[:, None], labels, classes)


def read_idx(path: Path, shape: tuple[int | None, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or (by its name) ``.gz``.

    Parameters
    ----------
    path : Path
        The file.
    shape : tuple
        Extents that the file must have, None where any will do.

    Returns
    -------
    numpy.ndarray
        uint8, of the shape that the file declares.

    Raises
    ------
    ValueError
        If the file is truncated, too long, damaged, or of another type or shape.
    """
    size_on_disk = path.stat().st_size
    if path.suffix != ".gz":
        with path.open("rb") as plain:
            return _read_idx(plain, path, shape, size_on_disk)
    import gzip
    import zlib

    try:
        with gzip.open(path) as unpacked:
            return _read_idx(unpacked, path, shape, size_on_disk * _MAX_GZIP_RATIO)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def _read_idx(
    stream: io.BufferedIOBase, path: Path, shape: tuple[int | None, ...], largest: int
) -> NDArray[np.uint8]:
    head = 4 + 4 * len(shape)
    header = read_exactly(stream, head, path)
    magic = bytes([0, 0, _UNSIGNED_BYTE, len(shape)])
    if header[:4] != magic:
        raise ValueError(f"{path}: starts with {header[:4].hex(' ')}, expected {magic.hex(' ')}")
    found = struct.unpack(f">{len(shape)}I", header[4:])
    if any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        wanted = " x ".join("N" if want is None else str(want) for want in shape)
        raise ValueError(f"{path}: shape {' x '.join(map(str, found))}, expected {wanted}")
    size = math.prod(found)
    if size > MAX_BYTES:
        raise ValueError(f"{path}: declares {size} bytes, more than the {MAX_BYTES} that are read")
    if size + head > largest:
        raise ValueError(f"{path}: the file is truncated (it declares {size} bytes of values)")
    values = read_exactly(stream, size, path)
    if stream.read(1):
        raise ValueError(f"{path}: goes on after the {size} bytes of values that it declares")
    return np.frombuffer(values, np.uint8).reshape(found)

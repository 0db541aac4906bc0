"""CIFAR-10, in its binary version and as one PNG a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._images import open_image, pixels
from ._source import DatasetNotFoundError, PathLike, find, folder, read_exactly
from .dataset import ArrayDataset

_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_SHAPE = (3, 32, 32)
_VALUES = 3 * 32 * 32
_RECORD = 1 + _VALUES  # a label, then the image: red, green and blue planes
_MAX_IMAGES = 10_000  # a file's images in the published set
_MAX_LABEL_BYTES = 1 << 20

_HOW = (
    "its files are data_batch_{1..5}.bin and test_batch.bin (the binary version, published at"
    " https://www.cs.toronto.edu/~kriz/cifar.html), or data_batch_{1..5}.png and test_batch.png with"
    " train_lables.json and test_lables.json"
)
_TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
_TEST = ["test_batch"]


def cifar10(root: PathLike | None = None) -> tuple[ArrayDataset, ArrayDataset]:
    """Small colour photographs, 32 x 32, ten classes: 50,000 to train, 10,000 to test.

    Parameters
    ----------
    root : path
        Folder with the binary version, or the folder above it (what unpacking the archive gives),
        or a folder with the PNG form: one image of 1024 x 10000 pixels a batch, each row a picture.
        The pickled version is refused: reading it would run code from the file. The set does not
        come with the package: None raises the message that says where to get it.

    Returns
    -------
    train, test : ArrayDataset
        x float32 (N, 3, 32, 32) in [0, 1], y int64 (N,).

    Raises
    ------
    DatasetNotFoundError
        If a file is missing; the message says where to get it.
    ValueError
        If a file is not what it should be, or only the pickled version is there.
    ImportError
        If the PNG form is read and pillow is missing.

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.cifar10("cifar-10-batches-bin")  # doctest: +SKIP
    """
    path = folder(root, "CIFAR-10", _HOW)
    for place in (path, path / "cifar-10-batches-bin"):
        if (place / "data_batch_1.bin").is_file():
            return _binary_part(place, _TRAIN), _binary_part(place, _TEST)
    if (path / "data_batch_1.png").is_file():
        return _png_part(path, _TRAIN, "train_lables"), _png_part(path, _TEST, "test_lables")
    for place in (path, path / "cifar-10-batches-py"):
        if (place / "data_batch_1").is_file():
            raise ValueError(
                f"{place}: this is the pickled version of CIFAR-10, which runs code when it is read,"
                f" and is refused: {_HOW}"
            )
    raise DatasetNotFoundError(
        f"CIFAR-10: there is no data_batch_1.bin or data_batch_1.png in {path}: {_HOW}"
    )


def _binary_part(root: Path, names: list[str]) -> ArrayDataset:
    files = [find(root, [f"{name}.bin"], "CIFAR-10", _HOW) for name in names]
    records = np.concatenate([_read_records(file) for file in files])
    return ArrayDataset(records[:, 1:].reshape(-1, *_SHAPE), records[:, 0], _CLASSES)


def _read_records(path: Path) -> NDArray[np.uint8]:
    size = path.stat().st_size
    if size == 0 or size % _RECORD or size > _MAX_IMAGES * _RECORD:
        raise ValueError(
            f"{path}: {size} bytes, expected {_RECORD} for each of 1 to {_MAX_IMAGES} images"
            " (is the file truncated?)"
        )
    with path.open("rb") as stream:
        records = np.frombuffer(read_exactly(stream, size, path), np.uint8).reshape(-1, _RECORD)
    _check_labels(records[:, 0], path)
    return records


def _png_part(root: Path, names: list[str], label_name: str) -> ArrayDataset:
    files = [find(root, [f"{name}.png"], "CIFAR-10", _HOW) for name in names]
    label_file = find(root, [f"{label_name}.json"], "CIFAR-10", _HOW)
    labels = _read_labels(label_file)
    images = np.concatenate([_read_rows(file) for file in files])
    if len(images) != len(labels):
        raise ValueError(f"{label_file}: {len(labels)} labels for {len(images)} images")
    return ArrayDataset(images, labels, _CLASSES)


def _read_rows(path: Path) -> NDArray[np.uint8]:
    """Read a picture of which every row of 1024 pixels is an image of 32 x 32."""
    with open_image(path) as picture:
        width, height = picture.size
    if width != 32 * 32 or height > _MAX_IMAGES:
        raise ValueError(f"{path}: {width} x {height} pixels, expected 1024 x (up to {_MAX_IMAGES})")
    rows = pixels(path, grey=False)  # (3, N, 1024)
    return rows.reshape(3, height, 32, 32).transpose(1, 0, 2, 3)


def _read_labels(path: Path) -> NDArray[np.uint8]:
    import json

    if path.stat().st_size > _MAX_LABEL_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than a list of labels needs")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not (isinstance(values, list) and all(type(v) is int and 0 <= v < 256 for v in values)):
        raise ValueError(f"{path}: expected a list of labels from 0 to 9")
    labels = np.array(values, np.uint8)
    _check_labels(labels, path)
    return labels


def _check_labels(labels: NDArray[np.uint8], path: Path) -> None:
    if labels.size and labels.max() >= len(_CLASSES):
        raise ValueError(f"{path}: label {labels.max()}, expected 0 to {len(_CLASSES) - 1}")

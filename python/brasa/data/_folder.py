"""A folder of images with one subfolder for each class."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._images import is_grey, open_image, pixels
from ._source import MAX_BYTES, DatasetNotFoundError, PathLike, folder
from .dataset import ArrayDataset, as_index

_HOW = "the folder must hold one subfolder of images for each class, named after it"
_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class ImageFolder:
    """Images in files, one subfolder a class, unpacked each time they are asked for.

    Use `image_folder`, which keeps what fits in memory; this is for what does not.

    Parameters
    ----------
    root : path
        Folder whose subfolders are the classes, in the order of their names. Images are found at
        any depth below them, by their suffix; hidden files are left out.
    size : int or (int, int), optional
        Height and width that every image is scaled to. None: they must all have the same.

    Raises
    ------
    DatasetNotFoundError
        If there is no such folder, or there are no images in it.
    ValueError
        If a file is not a whole image, or sizes differ and `size` is None; the message names it.
    ImportError
        If pillow is missing.

    Examples
    --------
    >>> from brasa import data
    >>> birds = data.ImageFolder("birds", size=224)  # doctest: +SKIP
    """

    def __init__(self, root: PathLike | None, size: int | tuple[int, int] | None = None) -> None:
        self.root = folder(root, "image folder", _HOW)
        self._files, labels = [], []
        places = sorted(p for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        for label, place in enumerate(places):
            found = _image_files(place)
            if not found:
                raise DatasetNotFoundError(f"image folder: there are no images in {place}: {_HOW}")
            self._files += found
            labels += [label] * len(found)
        if not self._files:
            raise DatasetNotFoundError(f"image folder: there are no classes in {self.root}: {_HOW}")
        self.classes = tuple(place.name for place in places)
        self.targets = np.array(labels, np.int64)
        self._scale_to = _as_size(size)
        self._size, self._grey = _common_form(self._files, self._scale_to)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels (1 if all images are grey, else 3), height and width."""
        return (1 if self._grey else 3, *self._size)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        index = as_index(index, len(self))
        x, y = self._read(np.arange(len(self))[index]), self.targets[index]
        return np.divide(x, np.float32(255), dtype=np.float32), y

    def in_memory(self) -> ArrayDataset:
        """Unpack all images once (uint8)."""
        return ArrayDataset(self._read(np.arange(len(self))), self.targets, self.classes)

    @property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """All images and all labels."""
        return self[:]

    def _read(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((*chosen.shape, *self.shape), np.uint8)
        for place, position in zip(images.reshape(-1, *self.shape), chosen.flat, strict=True):
            path = self._files[position]
            image = pixels(path, grey=self._grey, size=self._scale_to)
            if image.shape != self.shape:  # the file was changed, or its camera was held upright
                raise ValueError(
                    f"{path}: the image has shape {image.shape} (C, H, W), expected {self.shape}:"
                    " give the size that all are to be scaled to"
                )
            place[...] = image
        return images

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"ImageFolder({len(self)} images of shape ({shape}), {len(self.classes)} classes)"


def image_folder(
    root: PathLike | None, size: int | tuple[int, int] | None = None
) -> ArrayDataset | ImageFolder:
    """Read a folder of images with one subfolder for each class.

    Up to 1 GiB of pixels is unpacked once and kept (uint8); of more, each batch is unpacked when
    it is asked for. Use `split` to set a test part aside.

    Parameters
    ----------
    root : path
        Folder whose subfolders are the classes, in the order of their names.
    size : int or (int, int), optional
        Height and width that every image is scaled to. None: they must all have the same.

    Returns
    -------
    ArrayDataset or ImageFolder
        x float32 (N, C, H, W) in [0, 1], C = 1 if all images are grey, else 3; y int64 (N,).

    Raises
    ------
    DatasetNotFoundError
        If there is no such folder, or there are no images in it.
    ValueError
        If a file is not a whole image, or sizes differ and `size` is None; the message names it.
    ImportError
        If pillow is missing.

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.split(data.image_folder("birds", size=64), 0.8)  # doctest: +SKIP
    """
    images = ImageFolder(root, size)
    total = len(images) * int(np.prod(images.shape))
    return images.in_memory() if total <= MAX_BYTES else images


def _image_files(place: Path) -> list[Path]:
    return sorted(
        path
        for path in place.rglob("*")
        if path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()
    )


def _as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = size if isinstance(size, tuple) else (size, size)
    try:
        height, width = map(operator.index, pair)
    except (TypeError, ValueError):
        raise TypeError(f"size must be an integer or a pair of them, got {size!r}") from None
    if height < 1 or width < 1 or height * width > MAX_BYTES:
        raise ValueError(f"size must be at least 1 and fit in memory, got {size}")
    return height, width


def _common_form(files: list[Path], size: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Return the size of all images, and whether all are grey, from the heads of the files."""
    grey = True
    sizes: list[tuple[int, int]] = []
    for path in files:
        with open_image(path) as image:
            grey = grey and is_grey(image)
            sizes.append(image.size[::-1])
        if size is None and sizes[-1] != sizes[0]:
            raise ValueError(
                f"{path}: {sizes[-1]} (height, width), but {files[0].name} has {sizes[0]}:"
                " give the size that all are to be scaled to"
            )
    return size or sizes[0], grey

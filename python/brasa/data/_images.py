"""Reading image files through pillow, which is imported here and nowhere else in the package's data."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What an image may hold once unpacked: a few kilobytes of file can claim gigabytes.
MAX_PIXELS = 1 << 26

# What pillow raises for damaged files; warnings are among it where they are errors.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error),
    Warning,
)
# By content, whatever the suffix says: pillow knows more, and hands some to other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B")


def pillow() -> tuple[ModuleType, ModuleType]:
    """Return ``PIL.Image`` and ``PIL.ImageOps``, or say which extra brings them."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        message = "reading images needs pillow: install brasa's extra 'image'"
        raise ImportError(message) from None
    return Image, ImageOps


def open_image(path: Path) -> Any:
    """Open an image file and check its size; nothing is unpacked yet.

    Raises
    ------
    ValueError
        If the file is no image or the image is too large; the message starts with the path.
    """
    image_module, _ = pillow()
    try:
        image = image_module.open(path, formats=_FORMATS)
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, image_module.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image that can be read ({_reason(error)})") from None
    width, height = image.size
    if width * height > MAX_PIXELS or image.mode == "F":
        image.close()
        raise ValueError(
            f"{path}: {width} x {height} pixels of mode {image.mode}, but at most {MAX_PIXELS}"
            " pixels are read, and no floating ones"
        )
    return image


def is_grey(image: Any) -> bool:
    """Tell whether an open image has one channel (transparency aside)."""
    return image.mode in _GREY_MODES


def pixels(path: Path, *, grey: bool, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return the image in `path`, turned as its camera noted, as uint8 (C, H, W).

    Parameters
    ----------
    path : Path
        The file.
    grey : bool
        One channel, or three (red, green, blue).
    size : (int, int), optional
        Height and width to scale to, with antialiasing.

    Raises
    ------
    ValueError
        If the image is damaged, truncated or too large; the message starts with the path.
    """
    image_module, operations = pillow()
    with open_image(path) as image:
        try:
            upright = operations.exif_transpose(_eight_bits(image, image_module))
            converted = upright.convert("L" if grey else "RGB")
            if size is not None and converted.size != size[::-1]:
                converted = converted.resize(size[::-1], image_module.Resampling.BILINEAR)
        except _UNREADABLE as error:
            raise ValueError(f"{path}: the image is damaged ({_reason(error)})") from None
    array = np.asarray(converted)
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def _eight_bits(image: Any, image_module: ModuleType) -> Any:
    """Return the image with 8 bits a channel: pillow clips 16-bit grey to 255, this scales it."""
    if not (image.mode == "I" or image.mode.startswith("I;16")):
        return image
    wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return image_module.fromarray((wide >> 8).astype(np.uint8))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

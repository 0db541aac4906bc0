"""Random changes of a batch of images, and normalisation, in vectorised NumPy.

A transform is called by the loader as ``transform(x, y, rng) -> (x, y)``. The ones here change the
images only, and never in place: `apply` is that part alone, for use outside a loader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

# Values interpolated at a time, so that temporaries stay in the cache and out of fresh pages: in
# one piece a batch of 32 x 3 x 224 x 224 takes 3 to 4 times as long (167 ms against 45).
_BLOCK = 1 << 16


class Transform:
    """A change of the images of a batch that leaves the targets as they are.

    Subclasses define ``apply(x, rng) -> x`` with x of shape (N, C, H, W); all they draw comes from
    `rng`.

    Examples
    --------
    >>> from brasa import data
    >>> class Noise(data.Transform):
    ...     def apply(self, x, rng):
    ...         return x + 0.1 * rng.standard_normal(x.shape, dtype=x.dtype)
    >>> loader = data.DataLoader(data.digits()[0], transform=Noise())
    """

    def apply(self, x: Array, rng: np.random.Generator) -> Array:
        """Return the changed images."""
        raise NotImplementedError(f"{type(self).__name__} does not define apply(x, rng)")

    def __call__(self, x: Array, y: Any, rng: np.random.Generator) -> tuple[Array, Any]:
        """Return the changed images and `y` as it is."""
        return self.apply(x, rng), y


class Compose:
    """Transforms applied one after another.

    Parameters
    ----------
    *transforms : callable
        Each is ``transform(x, y, rng) -> (x, y)``; they share one `rng`.

    Examples
    --------
    >>> from brasa import data
    >>> data.Compose(data.RandomCrop(4), data.RandomHorizontalFlip())
    Compose(RandomCrop(padding=4), RandomHorizontalFlip(p=0.5))
    """

    def __init__(self, *transforms: Any) -> None:
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"a transform must be callable, got {type(transform).__name__}")
        self.transforms = transforms

    def __call__(self, x: Any, y: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        """Return what the last transform makes of the batch."""
        for transform in self.transforms:
            x, y = transform(x, y, rng)
        return x, y

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


@dataclass(frozen=True)
class RandomAffine(Transform):
    """Turn, shift and scale each image by amounts of its own, with bilinear interpolation.

    Outside the image is 0, so this comes before `Normalize`. The defaults suit small images of one
    object: LeNet trained on the bundled MNIST sample gets 98.7 % of MNIST's own 10,000 test images
    right with them (mean of three seeds), 98.6 % with 12 degrees, 0.1 and (0.9, 1.1).

    Parameters
    ----------
    degrees : float
        Turns are uniform in ``[-degrees, degrees]``, about the centre.
    translate : float
        Shifts are uniform in ``[-translate, translate]`` times the height and the width, and need
        not be whole pixels.
    scale : (float, float)
        Factors are uniform between the two; above 1 enlarges.

    Raises
    ------
    ValueError
        If an amount is negative or not finite, or `scale` is not an increasing pair above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import data
    >>> x = np.ones((8, 1, 28, 28), np.float32)
    >>> data.RandomAffine(degrees=12).apply(x, np.random.default_rng(0)).shape
    (8, 1, 28, 28)
    """

    degrees: float = 15.0
    translate: float = 0.07
    scale: tuple[float, float] = (0.85, 1.15)

    def __post_init__(self) -> None:
        for name in ("degrees", "translate"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {self.scale}")

    def apply(self, x: Array, rng: np.random.Generator) -> Array:
        """Return the changed images, of the shape and dtype of `x`."""
        _check_images(x)
        column, row = self._sources(x.shape, rng)
        result = np.empty_like(x, order="C")
        step = max(1, _BLOCK // max(1, math.prod(x.shape[1:])))
        for start in range(0, len(x), step):
            block = slice(start, start + step)
            result[block] = _sample_bilinear(x[block], column[block], row[block])
        return result

    def _sources(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the column and row, (N, H, W), that each output pixel is read from.

        Forward, a pixel at p from the centre goes to ``factor * R(angle) p + shift``; this is the
        inverse. A coordinate is a term of the output's column plus a term of its row, so one
        broadcast addition makes each of the two arrays.
        """
        n, _, h, w = shape
        angle = rng.uniform(-self.degrees, self.degrees, n) * (math.pi / 180)
        factor = rng.uniform(*self.scale, n)
        down = rng.uniform(-self.translate, self.translate, n) * h
        right = rng.uniform(-self.translate, self.translate, n) * w
        cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
        x_out = np.arange(w) - (w - 1) / 2 - right[:, None]
        y_out = np.arange(h) - (h - 1) / 2 - down[:, None]
        column = _outer_sum(cos[:, None] * x_out, sin[:, None] * y_out + (w - 1) / 2)
        row = _outer_sum(-sin[:, None] * x_out, cos[:, None] * y_out + (h - 1) / 2)
        return column, row


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """Mirror each image left to right, with probability `p`.

    Raises
    ------
    ValueError
        If `p` is not between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import data
    >>> data.RandomHorizontalFlip(1).apply(np.arange(3.0).reshape(1, 1, 1, 3), np.random.default_rng(0))
    array([[[[2., 1., 0.]]]])
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must lie between 0 and 1, got {self.p}")

    def apply(self, x: Array, rng: np.random.Generator) -> Array:
        """Return the images, some of them mirrored."""
        _check_images(x)
        mirrored = rng.random(len(x)) < self.p
        return np.where(mirrored[:, None, None, None], x[..., ::-1], x)


@dataclass(frozen=True)
class RandomCrop(Transform):
    """Surround each image by `padding` zeros on every side and cut its size out at a random place.

    Raises
    ------
    TypeError
        If `padding` is not an integer.
    ValueError
        If `padding` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import data
    >>> data.RandomCrop(4).apply(np.ones((2, 3, 32, 32), np.float32), np.random.default_rng(0)).shape
    (2, 3, 32, 32)
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.padding, int):
            raise TypeError(f"padding must be an integer, got {self.padding!r}")
        if self.padding < 0:
            raise ValueError(f"padding must be 0 or more, got {self.padding}")

    def apply(self, x: Array, rng: np.random.Generator) -> Array:
        """Return the images, each shifted by whole pixels."""
        _check_images(x)
        p = self.padding
        down, right = rng.integers(0, 2 * p + 1, (2, len(x)))
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        windows = sliding_window_view(padded, x.shape[2:], axis=(2, 3))
        return windows[np.arange(len(x)), :, down, right]


@dataclass(frozen=True)
class Normalize(Transform):
    """Subtract the mean and divide by the standard deviation, per channel.

    Draws nothing: ``Normalize(mean, std).apply(x)`` prepares images for prediction.

    Parameters
    ----------
    mean, std : float or sequence of float, length C
        One for all channels, or one for each.

    Raises
    ------
    ValueError
        If a standard deviation is not above 0, or the number of channels differs.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import data
    >>> data.Normalize(0.5, 0.25).apply(np.ones((1, 1, 1, 2), np.float32))
    array([[[[2., 2.]]]], dtype=float32)
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.std) > 0):
            raise ValueError(f"std must be above 0, got {self.std}")

    def apply(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """Return ``(x - mean) / std`` in the dtype of `x`."""
        _check_images(x)
        mean, std = (self._per_channel(values, x) for values in (self.mean, self.std))
        result: Array = (x - mean) / std
        return result

    @staticmethod
    def _per_channel(values: float | Sequence[float], x: Array) -> Array:
        array = np.asarray(values, x.dtype).reshape(-1, 1, 1)
        if len(array) not in (1, x.shape[1]):
            raise ValueError(f"{len(array)} values were given for the {x.shape[1]} channels of x")
        return array


def _check_images(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {x.shape}")
    if x.dtype.kind != "f":
        raise TypeError(f"x must be floating, got {x.dtype}")


def _outer_sum(columns: Array, rows: Array) -> Array:
    """Return ``rows[n, i] + columns[n, j]`` as (N, H, W) float32."""
    return rows.astype(np.float32)[:, :, None] + columns.astype(np.float32)[:, None, :]


def _sample_bilinear(x: Array, column: Array, row: Array) -> Array:
    """Read images (N, C, H, W) at fractional places (N, H, W); beyond the edge they are 0.

    The images get a border of zeros, and places are held within it: then all four neighbours exist
    and no place needs a test. Channels share the places and weights of their image.
    """
    n, c, h, w = x.shape
    padded = np.zeros((n, c, h + 3, w + 3), x.dtype)
    padded[:, :, 1 : h + 1, 1 : w + 1] = x
    column = np.clip(column + np.float32(1), 0, w + 1)
    row = np.clip(row + np.float32(1), 0, h + 1)
    left, top = np.floor(column), np.floor(row)
    right_weight, lower_weight = (column - left)[:, None], (row - top)[:, None]
    images = np.arange(n * c).reshape(n, c, 1, 1) * ((h + 3) * (w + 3))
    place = (top.astype(np.intp) * (w + 3) + left.astype(np.intp))[:, None] + images
    flat = padded.reshape(-1)
    upper = _mix(flat[place], flat[place + 1], right_weight)
    place += w + 3
    lower = _mix(flat[place], flat[place + 1], right_weight)
    return _mix(upper, lower, lower_weight)


def _mix(first: Array, second: Array, weight: Array) -> Array:
    """Return ``first + weight * (second - first)``; `second` is overwritten where its dtype allows."""
    second = np.subtract(second, first, out=second)
    result: Array = first + weight * second
    return result

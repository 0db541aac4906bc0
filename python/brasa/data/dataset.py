"""What a dataset is, and the ones that are made from arrays and from other datasets."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]


@runtime_checkable
class Dataset(Protocol):
    """Anything with a length that is indexed by integers, slices and index arrays.

    ``ds[i]`` gives one sample ``(x, y)``; ``ds[slice]`` and ``ds[index_array]`` give a batch, with
    the samples along a new first axis of ``x`` and ``y``. The loader asks for batches only.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: Any, /) -> tuple[Any, Any]:
        """Return a sample, or a batch of samples."""
        ...


class ArrayDataset:
    """Samples that are rows of two arrays.

    Parameters
    ----------
    x : array_like, shape (N, ...)
        Inputs, numbers of any dtype. uint8 stays uint8 in memory, and what is read from the
        dataset is float32 in [0, 1] (``x / 255``); every other dtype is passed on as it is.
    y : array_like, shape (N, ...)
        Targets. Integers and booleans become int64, floating targets keep their dtype.
    classes : sequence of str, optional
        Names of the classes; the label ``k`` means ``classes[k]``.

    Raises
    ------
    TypeError
        If `x` or `y` does not hold numbers.
    ValueError
        If the lengths differ, an array has no first axis, or a label has no class.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa.data import ArrayDataset
    >>> ds = ArrayDataset(np.full((4, 1, 2, 2), 255, np.uint8), [0, 1, 0, 1], classes=["cat", "dog"])
    >>> x, y = ds[1:3]
    >>> x.shape, x.max(), y
    ((2, 1, 2, 2), np.float32(1.0), array([1, 0]))
    """

    def __init__(self, x: ArrayLike, y: ArrayLike, classes: Sequence[str] | None = None) -> None:
        self._x = _numeric(x, "x")
        self._y = _numeric(y, "y")
        if self._y.dtype.kind in "bui":
            self._y = self._y.astype(np.int64, copy=False)
        if len(self._x) != len(self._y):
            raise ValueError(f"x has {len(self._x)} samples and y has {len(self._y)}: they must agree")
        self.classes = None if classes is None else tuple(classes)
        if self.classes is not None:
            _check_labels(self._y, self.classes)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        index = as_index(index, len(self))
        return _as_input(self._x[index]), self._y[index]

    @property
    def arrays(self) -> tuple[Array, Array]:
        """All inputs and all targets, as ``ds[:]`` gives them: uint8 inputs are scaled to float32."""
        return self[:]

    @property
    def targets(self) -> Array:
        """All targets, without touching the inputs."""
        return self._y

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self._x.shape[1:]))
        return f"ArrayDataset({len(self)} samples of shape ({shape}), {_class_count(self.classes)})"


class Subset:
    """Some samples of a dataset, in a given order; nothing is copied.

    Parameters
    ----------
    dataset : Dataset
        Where the samples are.
    indices : array_like of int, shape (N,)
        Which samples, in which order.

    Raises
    ------
    TypeError
        If `indices` does not hold integers.
    ValueError
        If `indices` is not one-dimensional or points outside the dataset.

    Examples
    --------
    >>> from brasa import data
    >>> train, _ = data.mnist()
    >>> len(data.Subset(train, [0, 10, 20]))
    3
    """

    def __init__(self, dataset: Dataset, indices: ArrayLike) -> None:
        index = np.asarray(indices)
        if index.ndim != 1:
            raise ValueError(f"indices must have one dimension, got shape {index.shape}")
        if index.size and index.dtype.kind not in "ui":
            raise TypeError(f"indices must be integers, got {index.dtype}")
        index = index.astype(np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(dataset)):
            raise ValueError(f"indices must lie in 0..{len(dataset) - 1}, got {index.min()}..{index.max()}")
        self.dataset = dataset
        self.indices = index

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        chosen = self.indices[as_index(index, len(self))]
        return self.dataset[int(chosen) if chosen.ndim == 0 else chosen]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, as in the dataset underneath."""
        return getattr(self.dataset, "classes", None)

    @property
    def arrays(self) -> tuple[Array, Array]:
        """All inputs and all targets of the subset."""
        return self[:]

    @property
    def targets(self) -> Array:
        """All targets of the subset, without touching the inputs where the dataset allows it."""
        return np.asarray(targets_of(self.dataset)[self.indices])

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.dataset!r})"


def split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Divide a dataset in two at random, with the same mix of classes in both parts.

    Where the targets are one integer label a sample, every class is divided by `fraction`, and the
    left-over single samples go where they bring the size of the first part closest to
    ``fraction * N``. Other targets are drawn without regard to their value. Samples keep their order.

    Parameters
    ----------
    dataset : Dataset
        What to divide.
    fraction : float
        Share of the first part, above 0 and below 1.
    seed : int
        The same seed gives the same parts.

    Returns
    -------
    first, second : Subset
        ``fraction`` of the samples, and the rest.

    Raises
    ------
    ValueError
        If `fraction` is not between 0 and 1, or a part would be empty.

    Examples
    --------
    >>> from brasa import data
    >>> train, validation = data.split(data.mnist()[0], 0.9)
    >>> len(train), len(validation)
    (3600, 400)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    labels = targets_of(dataset)
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        labels = np.zeros(len(dataset), np.int64)
    first = np.zeros(len(labels), bool)
    first[_stratified_draw(labels, fraction, philox(seed))] = True
    if first.all() or not first.any():
        raise ValueError(f"fraction {fraction} of {len(labels)} samples leaves an empty part")
    return Subset(dataset, np.flatnonzero(first)), Subset(dataset, np.flatnonzero(~first))


def _stratified_draw(labels: Array, fraction: float, bits: np.random.Philox) -> Array:
    """Choose ``fraction`` of each class (largest remainders rounded up); return the indices."""
    _, label_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # A random order within each class: sorted by class first, by a random key second.
    order = np.lexsort((bits.random_raw(len(labels)), label_of))
    share = counts * fraction
    take = np.floor(share + 1e-9).astype(np.int64)
    missing = round(float(share.sum())) - int(take.sum())
    take[np.argsort(take - share, kind="stable")[: max(missing, 0)]] += 1
    starts = np.cumsum(counts) - counts
    rank_in_class = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[rank_in_class < np.repeat(take, counts)]


def targets_of(dataset: Dataset) -> Array:
    """Return all targets of a dataset, by its ``targets`` where it has them."""
    known = getattr(dataset, "targets", None)
    return np.asarray(dataset[:][1] if known is None else known)


def philox(seed: int, epoch: int = 0, *, counter: tuple[int, int, int] = (0, 0, 0)) -> np.random.Philox:
    """Return the random bits of (seed, epoch), at the start of the sub-stream named by `counter`.

    A bit generator's output is frozen in NumPy, the methods of ``Generator`` are not: what has to
    be the same for ever (orders, splits) is computed from raw bits.
    """
    if not 0 <= operator.index(seed) < 2**64:
        raise ValueError(f"seed must lie in 0..2**64 - 1, got {seed}")
    # The lowest word counts the draws; 2**64 of them fit before a neighbour's stream is touched.
    return np.random.Philox(key=[seed, epoch], counter=[0, *counter])


def as_index(index: Any, length: int) -> int | slice | Array:
    """Check the index of a dataset: an integer, a slice, or an array of integers or booleans."""
    if isinstance(index, slice):
        return index
    chosen = np.asarray(index)
    if isinstance(index, tuple) or (chosen.size and chosen.dtype.kind not in "uib"):
        raise TypeError(f"a dataset is indexed by integers, slices and index arrays, not {index!r}")
    if chosen.ndim == 0:
        position = operator.index(index)
        if not -length <= position < length:
            raise IndexError(f"index {position} is out of range for {length} samples")
        return position
    if chosen.ndim != 1:
        raise ValueError(f"an index array must have one dimension, got shape {chosen.shape}")
    return chosen if chosen.size else chosen.astype(np.int64)


def _numeric(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values)
    if array.dtype.kind in "OSUMm" or array.dtype.names is not None:
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have samples along its first axis, got a single number")
    return array


def _check_labels(labels: Array, classes: tuple[str, ...]) -> None:
    if labels.ndim == 1 and labels.dtype.kind == "i" and labels.size:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            raise ValueError(f"y has labels from {low} to {high}, but there are {len(classes)} classes")


def _as_input(x: Array) -> Array:
    if x.dtype != np.uint8:
        return x
    # Division, not a product with 1/255: every value is the correctly rounded one, and 255 is 1.
    return np.divide(x, np.float32(255), dtype=np.float32)


def _class_count(classes: tuple[str, ...] | None) -> str:
    return "no class names" if classes is None else f"{len(classes)} classes"

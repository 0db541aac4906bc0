"""Turning what a user calls data into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from brasa.data import ArrayDataset, DataLoader, Dataset

__all__ = ["as_batches", "describe_data", "is_dataset", "open_batches", "sample_count"]


def as_batches(
    data: Any,
    name: str,
    batch_size: int,
    *,
    shuffle: bool = False,
    transform: Any = None,
    seed: int = 0,
) -> Iterable[tuple[Any, Any]]:
    """Make a loader of a dataset or a pair of arrays; what gives batches itself stays as it is.

    Parameters
    ----------
    data : Dataset, DataLoader, tuple (x, y) of arrays, or iterable of (x, y) batches
        The data.
    name : str
        The argument's name, for the error message.
    batch_size, shuffle, transform, seed
        As for `DataLoader`; not used where `data` gives batches of its own.

    Raises
    ------
    TypeError
        `data` is none of these.
    """
    if isinstance(data, tuple) and len(data) == 2:
        data = ArrayDataset(*data)
    if isinstance(data, DataLoader):
        return data
    if is_dataset(data):
        return DataLoader(data, batch_size, shuffle, transform=transform, seed=seed)
    if isinstance(data, Iterable) and not hasattr(data, "dtype"):
        return data
    raise TypeError(
        f"{name} must be a dataset, a DataLoader, a pair (x, y) of arrays or an iterable of (x, y) "
        f"batches, got {type(data).__name__}"
    )


def is_dataset(data: Any) -> bool:
    """Whether `data` is a dataset; arrays and lists can be indexed like one, but are none."""
    return isinstance(data, Dataset) and not isinstance(data, list | tuple) and not hasattr(data, "dtype")


@contextmanager
def open_batches(batches: Iterable[Any], skip: int = 0) -> Iterator[Iterator[Any]]:
    """Iterate over batches, without the first `skip`, and end the iterator's threads afterwards."""
    iterator: Any = iter(batches)
    for _ in range(skip):
        next(iterator, None)
    if hasattr(iterator, "close"):
        with closing(iterator):
            yield iterator
    else:
        yield iterator


def sample_count(batches: Iterable[Any]) -> int | None:
    """How many samples an epoch has, where the data tells."""
    return len(batches.dataset) if isinstance(batches, DataLoader) else None


def describe_data(batches: Iterable[Any]) -> dict[str, Any]:
    """What a checkpoint says about the data: the classes' names, the shape of a sample."""
    if not isinstance(batches, DataLoader) or not len(batches.dataset):
        return {}
    about: dict[str, Any] = {"input_shape": list(batches.dataset[0][0].shape)}
    classes = getattr(batches.dataset, "classes", None)
    if classes is not None:
        about["classes"] = [str(c) for c in classes]
    return about

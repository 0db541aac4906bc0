"""The small digits of the UCI repository, which ship with the package."""

from __future__ import annotations

import numpy as np

from ._source import every_fifth, read_bundled
from .dataset import ArrayDataset

_MAX_VALUE = 16  # a pixel counts the set points of a 4 x 4 block


def digits() -> tuple[ArrayDataset, ArrayDataset]:
    """Handwritten digits, 8 x 8, ten classes: small enough for an example that runs in a second.

    Every fifth image of each digit (355 in all) is the test part, the other 1,442 train.

    Returns
    -------
    train, test : ArrayDataset
        x float32 (N, 1, 8, 8) in [0, 1], y int64 (N,).

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.digits()
    >>> len(train), len(test), train[0][0].shape
    (1442, 355, (1, 8, 8))
    """
    images, labels = read_bundled("digits.npz")
    x = images[:, None] / np.float32(_MAX_VALUE)
    test = every_fifth(labels)
    classes = tuple("0123456789")
    train, rest = ((x[part], labels[part], classes) for part in (~test, test))
    return ArrayDataset(*train), ArrayDataset(*rest)

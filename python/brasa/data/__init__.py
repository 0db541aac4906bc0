"""Datasets, the loader that turns them into batches, and random image transforms.

A dataset has a length and is indexed: ``ds[i]`` is one sample ``(x, y)``, ``ds[slice]`` and
``ds[index_array]`` are batches. Images are float32 in [0, 1], shape (N, C, H, W); labels are int64.

>>> from brasa import data
>>> train, test = data.mnist()
>>> len(train), len(test)
(4000, 1000)
>>> x, y = next(iter(data.DataLoader(train, batch_size=32, shuffle=True)))
>>> x.shape, x.dtype.name, y.dtype.name
((32, 1, 28, 28), 'float32', 'int64')
"""

from __future__ import annotations

from ._cifar import cifar10
from ._csv import csv
from ._digits import digits
from ._folder import ImageFolder, image_folder
from ._mnist import fashion_mnist, mnist
from ._source import DatasetNotFoundError
from ._text import Text, TextBatches, Vocabulary, fortunes_br, text
from .dataset import ArrayDataset, Dataset, Subset, split
from .loader import DataLoader
from .transforms import (
    Compose,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    Transform,
)

__all__ = [
    "ArrayDataset",
    "Compose",
    "DataLoader",
    "Dataset",
    "DatasetNotFoundError",
    "ImageFolder",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "Subset",
    "Text",
    "TextBatches",
    "Transform",
    "Vocabulary",
    "cifar10",
    "csv",
    "digits",
    "fashion_mnist",
    "fortunes_br",
    "image_folder",
    "mnist",
    "split",
    "text",
]

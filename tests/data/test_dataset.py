"""Array datasets, subsets and splits."""

from __future__ import annotations

import numpy as np
import pytest

from brasa.data import ArrayDataset, Dataset, Subset, split


def numbered(n: int, classes: int = 3) -> ArrayDataset:
    """Samples that carry their own number; labels go round."""
    return ArrayDataset(np.arange(n, dtype=np.float32)[:, None], np.arange(n) % classes)


def test_uint8_is_scaled_per_batch_and_exactly():
    every_value = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    ds = ArrayDataset(every_value, np.zeros(256, np.uint8))
    x, y = ds[:]
    np.testing.assert_array_equal(x.ravel(), (np.arange(256) / 255).astype(np.float32))
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert x.min() == 0.0
    assert x.max() == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int32])
def test_other_inputs_keep_their_dtype(dtype):
    x, _ = ArrayDataset(np.ones((3, 2), dtype), [0, 1, 2])[:2]
    assert x.dtype == dtype


@pytest.mark.parametrize(
    ("given", "kept"),
    [(np.bool_, np.int64), (np.uint8, np.int64), (np.int32, np.int64), (np.float32, np.float32)],
)
def test_targets_are_int64_or_floating(given, kept):
    assert ArrayDataset(np.ones((2, 1)), np.ones(2, given))[:][1].dtype == kept


@pytest.mark.parametrize(
    "index",
    [slice(1, 4), slice(None, None, -2), [4, 0, 4], np.array([True, False, True, False, True]), []],
)
def test_batches_are_the_rows_that_the_index_names(index):
    ds = numbered(5)
    x, y = ds[index]
    rows = np.arange(5)[np.zeros(0, int) if isinstance(index, list) and not index else index]
    np.testing.assert_array_equal(x[:, 0], rows)
    np.testing.assert_array_equal(y, rows % 3)


def test_one_sample_has_no_batch_axis():
    x, y = ArrayDataset(np.full((3, 1, 2, 2), 51, np.uint8), [5, 6, 7])[-1]
    assert x.shape == (1, 2, 2)
    assert x.dtype == np.float32
    assert x[0, 0, 0] == np.float32(0.2)
    assert y == 7


def test_iterating_a_dataset_ends():
    assert [int(y) for _, y in numbered(4)] == [0, 1, 2, 0]


def test_arrays_are_all_samples():
    x, y = ArrayDataset(np.full((2, 1), 255, np.uint8), [0, 1]).arrays
    np.testing.assert_array_equal(x, np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(y, [0, 1])


@pytest.mark.parametrize("index", [(0, 1), 1.5, "a", None, [0.5]])
def test_an_index_that_is_none_is_a_type_error(index):
    with pytest.raises(TypeError, match="indexed by"):
        numbered(5)[index]


@pytest.mark.parametrize("index", [5, -6, 2**62, [5], [-6]])
def test_an_index_outside_is_an_index_error(index):
    with pytest.raises(IndexError):
        numbered(5)[index]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="x has 3 samples and y has 2"):
        ArrayDataset(np.ones((3, 1)), [0, 1])
    with pytest.raises(ValueError, match="labels from 0 to 2, but there are 2 classes"):
        ArrayDataset(np.ones((3, 1)), [0, 1, 2], classes=["a", "b"])
    with pytest.raises(ValueError, match="single number"):
        ArrayDataset(np.ones(()), [0])
    with pytest.raises(TypeError, match="x must hold numbers"):
        ArrayDataset(np.array(["a"]), [0])
    with pytest.raises(TypeError, match="y must hold numbers"):
        ArrayDataset(np.ones((1, 1)), np.array([None]))


def test_what_has_a_length_and_is_indexed_is_a_dataset():
    assert isinstance(numbered(3), Dataset)
    assert isinstance(Subset(numbered(3), [0]), Dataset)
    assert not isinstance(iter([1]), Dataset)


def test_subset_maps_indices_and_keeps_classes():
    ds = ArrayDataset(np.arange(10)[:, None], np.zeros(10, int), classes=["only"])
    part = Subset(ds, [7, 3, 5])
    assert part[1][0] == [3]
    np.testing.assert_array_equal(part[1:][0].ravel(), [3, 5])
    np.testing.assert_array_equal(part[np.array([2, 0])][0].ravel(), [5, 7])
    np.testing.assert_array_equal(Subset(part, [2]).arrays[0].ravel(), [5])
    assert part.classes == ("only",)
    assert len(part) == 3


@pytest.mark.parametrize("indices", [[10], [-1], [[0]], np.zeros((1, 1), int)])
def test_subset_indices_must_lie_in_the_dataset(indices):
    with pytest.raises(ValueError, match="indices"):
        Subset(numbered(10), indices)


def test_subset_indices_must_be_integers():
    with pytest.raises(TypeError, match="float64"):
        Subset(numbered(10), [0.5])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("counts", [[40, 40], [100, 7, 13], [1, 2, 3, 50]])
def test_split_keeps_the_mix_of_classes(fraction, counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    ds = ArrayDataset(np.arange(len(labels))[:, None], labels)
    first, rest = split(ds, fraction, seed=3)
    assert len(first) == round(fraction * len(labels))
    for label, count in enumerate(counts):
        assert abs(int((first.targets == label).sum()) - fraction * count) < 1
    together = np.concatenate([first.indices, rest.indices])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
    assert (np.diff(first.indices) > 0).all()


def test_split_is_a_function_of_the_seed():
    ds = numbered(100)
    one, same, other = (split(ds, 0.5, seed)[0].indices for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_split_of_a_set_without_labels():
    ds = ArrayDataset(np.arange(10)[:, None], np.linspace(0, 1, 10))
    first, rest = split(ds, 0.3)
    assert (len(first), len(rest)) == (3, 7)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, float("nan"), 0.01])
def test_split_needs_two_parts(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split(numbered(10), fraction)


def test_split_needs_a_seed_that_is_not_negative():
    with pytest.raises(ValueError, match="seed"):
        split(numbered(10), 0.5, seed=-1)

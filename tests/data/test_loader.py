"""Order, resuming, shards, the worker thread and transforms of the loader."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from brasa.data import ArrayDataset, DataLoader

# The first two epochs of 12 samples with seed 5.
FROZEN = [
    [9, 10, 2, 4, 3, 1, 5, 0, 6, 11, 7, 8],
    [10, 7, 4, 5, 1, 9, 11, 6, 8, 0, 2, 3],
]


def numbered(n: int) -> ArrayDataset:
    """Samples whose input and target are their own number."""
    return ArrayDataset(np.arange(n, dtype=np.float32)[:, None], np.arange(n))


def seen(loader: DataLoader) -> list[list[int]]:
    """Run an epoch; return the samples of each batch."""
    batches = []
    for x, y in loader:
        np.testing.assert_array_equal(x[:, 0], y)
        batches.append(y.tolist())
    return batches


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


def noise(x, y, rng):
    return x + rng.random(x.shape, dtype=np.float32), y


def workers() -> int:
    return sum(thread.name == "brasa-loader" for thread in threading.enumerate())


@pytest.mark.parametrize("prefetch", [0, 1, 2, 50])
def test_without_shuffle_the_order_is_the_dataset(prefetch):
    loader = DataLoader(numbered(10), 4, prefetch=prefetch)
    assert seen(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_drop_last():
    loader = DataLoader(numbered(10), 4, drop_last=True)
    assert seen(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 2


@pytest.mark.parametrize(("n", "batch_size", "length"), [(0, 4, 0), (1, 4, 1), (8, 4, 2), (9, 4, 3)])
def test_length_is_the_number_of_batches(n, batch_size, length):
    loader = DataLoader(numbered(n), batch_size)
    assert len(loader) == len(seen(loader)) == length


def test_shuffled_epochs_are_permutations_and_differ():
    loader = DataLoader(numbered(100), 7, shuffle=True)
    first, second = flat(seen(loader)), flat(seen(loader))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != sorted(first)


def test_the_order_is_frozen():
    """Bits of Philox sorted: these orders must be the same for every version and machine."""
    loader = DataLoader(numbered(12), 12, shuffle=True, seed=5)
    assert seen(loader) + seen(loader) == FROZEN


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    def epoch(number: int, seed: int = 3, **options) -> list[int]:
        loader = DataLoader(numbered(50), shuffle=True, seed=seed, **options)
        loader.set_epoch(number)
        return flat(seen(loader))

    running = DataLoader(numbered(50), 8, shuffle=True, seed=3)
    np.random.seed(0)  # noqa: NPY002  the global state must not matter
    history = [flat(seen(running)) for _ in range(4)]
    assert [epoch(e, batch_size=11) for e in range(4)] == history
    assert epoch(2, prefetch=0) == history[2]
    assert epoch(2, transform=noise_free) == history[2]
    assert epoch(2, seed=4) != history[2]


def noise_free(x, y, rng):
    rng.random(100)
    return x, y


def test_a_new_iteration_starts_again_after_one_that_was_left():
    loader = DataLoader(numbered(10), 2, shuffle=True)
    whole = seen(loader)
    loader.set_epoch(0)
    peeked = next(iter(loader))[1].tolist()
    assert peeked == whole[0]
    assert loader.epoch == 0
    assert seen(loader) == whole
    assert loader.epoch == 1


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("done", range(6))
def test_resuming_gives_exactly_the_remaining_batches(done, prefetch):
    def make() -> DataLoader:
        return DataLoader(numbered(19), 4, shuffle=True, seed=9, transform=noise, prefetch=prefetch)

    def batches(iterator) -> list[bytes]:
        return [x.tobytes() + y.tobytes() for x, y in iterator]

    reference = make()
    epochs = [batches(reference) for _ in range(3)]
    interrupted = make()
    batches(interrupted)
    iterator = iter(interrupted)
    for _ in range(done):
        next(iterator)
    state = interrupted.state_dict()
    assert (state["epoch"], state["batch"]) == (1, done)
    resumed = make()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)  # what a training loop does; it must not throw the position away
    assert resumed.state_dict() == state
    assert batches(resumed) == epochs[1][done:]
    assert batches(resumed) == epochs[2]


def test_resuming_an_epoch_that_was_at_its_end():
    loader = DataLoader(numbered(4), 2, shuffle=True)
    iterator = iter(loader)
    states = [loader.state_dict() for _ in iterator]
    assert states[-1]["batch"] == 2
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    loader.load_state_dict(states[-1])
    assert seen(loader) == []
    assert loader.epoch == 1
    assert len(seen(loader)) == 2


def test_set_epoch_drops_a_position_in_another_epoch():
    loader = DataLoader(numbered(8), 2)
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "batch": 2})
    loader.set_epoch(4)
    assert len(seen(loader)) == 4


def test_a_state_is_made_of_plain_numbers():
    assert {type(v) for v in DataLoader(numbered(8), np.int64(2)).state_dict().values()} <= {
        int,
        bool,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=1, not 0"),
        ({"batch_size": 3}, "batch_size=3"),
        ({"shuffle": True}, "shuffle=True"),
        ({"samples": 9}, "samples=9"),
        ({"shards": 2}, "shards=2"),
        ({"batch": 5}, "batch 5 of an epoch of 4"),
        ({"batch": -1}, "batch must be at least 0"),
        ({"epoch": -1}, "epoch must be at least 0"),
    ],
)
def test_a_state_of_another_loader_is_refused(change, message):
    loader = DataLoader(numbered(8), 2)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**loader.state_dict(), **change})
    assert loader.state_dict()["epoch"] == loader.state_dict()["batch"] == 0


def test_an_incomplete_state_is_refused():
    with pytest.raises(ValueError, match="lacks batch, batch_size"):
        DataLoader(numbered(8)).load_state_dict({"epoch": 0})


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("n", [24, 25])
def test_shards_together_are_one_loader_with_larger_batches(n, size):
    whole = seen(DataLoader(numbered(n), 2 * size, shuffle=True, seed=1))
    shards = [
        seen(DataLoader(numbered(n), 2, shuffle=True, seed=1, shard=(rank, size))) for rank in range(size)
    ]
    assert len({tuple(map(len, shard)) for shard in shards}) == 1
    merged = [
        [sample for samples in zip(*batches, strict=True) for sample in samples]
        for batches in zip(*shards, strict=True)
    ]
    order = flat(whole)
    padding = -n % size
    assert flat(merged) == order + order[:padding]


def test_shards_with_drop_last_leave_samples_out_and_repeat_none():
    shards = [flat(seen(DataLoader(numbered(11), 1, drop_last=True, shard=(r, 3)))) for r in range(3)]
    assert sorted(flat(shards)) == list(range(9))


def test_more_shards_than_samples():
    shards = [seen(DataLoader(numbered(2), 4, shard=(r, 5))) for r in range(5)]
    assert shards == [[[0]], [[1]], [[0]], [[1]], [[0]]]


def test_transforms_draw_apart_in_every_epoch_batch_and_shard():
    drawn = []

    def record(x, y, rng):
        drawn.append(rng.random())
        return x, y

    for rank in range(2):
        loader = DataLoader(numbered(8), 1, transform=record, shard=(rank, 2), prefetch=0)
        seen(loader)
        seen(loader)
    assert len(set(drawn)) == len(drawn) == 16
    again = DataLoader(numbered(8), 1, transform=record, shard=(1, 2), prefetch=3)
    seen(again)
    assert drawn[16:] == drawn[8:12]


def test_a_transform_may_change_targets():
    loader = DataLoader(numbered(4), 2, transform=lambda x, y, _: (x, -y))
    assert [y.tolist() for _, y in loader] == [[0, -1], [-2, -3]]


def test_batches_are_the_callers_own():
    ds = numbered(4)
    for x, _ in DataLoader(ds, 4):
        x[...] = -1
    np.testing.assert_array_equal(ds.arrays[0].ravel(), np.arange(4))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_in_a_transform_reaches_the_caller(prefetch):
    def fail_at_6(x, y, _):
        if 6 in y:
            message = "six"
            raise ZeroDivisionError(message)
        return x, y

    iterator = iter(DataLoader(numbered(10), 2, transform=fail_at_6, prefetch=prefetch))
    assert [next(iterator)[1].tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ZeroDivisionError, match="six"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    assert workers() == 0


def test_a_transform_must_return_a_pair():
    with pytest.raises(TypeError, match=r"must return \(x, y\), got ndarray"):
        next(iter(DataLoader(numbered(4), transform=lambda x, y, _: x)))


def test_leaving_an_epoch_ends_its_worker():
    loader = DataLoader(numbered(1000), 1, prefetch=2)
    iterator = iter(loader)
    next(iterator)
    assert workers() == 1
    iterator.close()
    assert workers() == 0
    for _ in loader:
        break
    assert workers() == 0


def test_the_worker_is_at_most_prefetch_batches_ahead():
    made = []

    def count(x, y, _):
        made.append(int(y[0]))
        return x, y

    iterator = iter(DataLoader(numbered(100), 1, transform=count, prefetch=3))
    next(iterator)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    iterator.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_an_error_and_may_start_anew():
    loader = DataLoader(numbered(100), 1, prefetch=1)
    iterator = iter(loader)
    next(iterator)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in iterator:
                pass
        except RuntimeError:
            code = 0 if len(seen(loader)) == 100 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(iterator)) == 99


def test_batches_are_made_in_another_thread():
    names = set()

    def record(x, y, _):
        names.add(threading.current_thread().name)
        return x, y

    seen(DataLoader(numbered(4), transform=record))
    assert names == {"brasa-loader"}


def test_two_iterations_at_once_do_not_disturb_each_other():
    loader = DataLoader(numbered(30), 4, shuffle=True, transform=noise)
    pairs = list(zip(loader, loader, strict=True))
    assert len(pairs) == 8
    for (x, y), (x2, y2) in pairs:
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"prefetch": -1}, ValueError, "prefetch"),
        ({"shard": (2, 2)}, ValueError, "rank must be below its size"),
        ({"shard": (0, 0)}, ValueError, "size must be at least 1"),
        ({"shard": 1}, TypeError, "shard must be a pair"),
        ({"transform": 3}, TypeError, "transform must be callable"),
        ({"batch_size": 9, "drop_last": True}, ValueError, "drop_last leaves no batch"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        DataLoader(numbered(8), **options)


def test_the_dataset_must_be_indexed():
    with pytest.raises(TypeError, match="dataset must have a length"):
        DataLoader(iter([1, 2]))

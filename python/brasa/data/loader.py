"""Batches of a dataset, in an order that can be named, left and taken up again.

Everything random is drawn from counter-based bits keyed by (seed, epoch): the order of the samples,
and for each batch and shard a sub-stream of its own for the transform. Batch `b` of epoch `e` can
therefore be made without making the ones before it, which is what makes resuming exact, and what
lets a worker thread run ahead without changing anything.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset, philox

Batch: TypeAlias = tuple[Any, Any]
# In quotes, because naming it imports numpy.random: 12 ms.
BatchTransform: TypeAlias = "Callable[[Any, Any, np.random.Generator], Batch]"

# Sub-streams of one (seed, epoch): the last word of the counter.
_ORDER, _TRANSFORM = 0, 1


class DataLoader:
    """Iterate over a dataset in mini-batches.

    Every ``iter(loader)`` runs through one epoch; a finished epoch is followed by the next, in
    another order where `shuffle` is set. An epoch that was left early starts again from its
    beginning, unless it is taken up with `load_state_dict`.

    Parameters
    ----------
    dataset : Dataset
        Where the samples are.
    batch_size : int
        Samples in a batch; the last one of an epoch may be shorter.
    shuffle : bool
        Draw a new order for each epoch, a function of `seed` and the epoch alone.
    drop_last : bool
        Leave out a last batch that would be shorter.
    transform : callable, optional
        ``transform(x, y, rng) -> x, y`` is applied to each batch in the worker thread. `rng` is a
        ``numpy.random.Generator`` that depends on `seed`, the epoch, the batch and the shard
        alone; a transform that draws from nothing else gives the same batches in every run.
    seed : int
        Seed of the order and of the transforms, 0 or more.
    shard : (int, int)
        ``(rank, size)``: this loader takes the samples ``rank, rank + size, ...`` of the order.
        Together, the b-th batches of all shards hold the samples of the b-th batch of one loader
        with ``size`` times the batch size. All shards have the same length: where `size` does not
        divide the number of samples, the first ones of the order are used again (with
        `drop_last`, the last ones are left out).
    prefetch : int
        Batches made ahead by a worker thread; 0 makes each one when it is asked for.

    Raises
    ------
    TypeError
        If `dataset` is not indexed, or a number is not an integer.
    ValueError
        If a number is out of its range, or no batch would be left.

    Examples
    --------
    >>> from brasa import data
    >>> train, _ = data.digits()
    >>> loader = data.DataLoader(train, batch_size=100, shuffle=True, seed=7)
    >>> len(loader), sum(len(y) for x, y in loader)
    (15, 1442)
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        transform: BatchTransform | None = None,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        prefetch: int = 2,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"dataset must have a length and be indexed, got {type(dataset).__name__}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable, got {type(transform).__name__}")
        self.dataset = dataset
        self.batch_size = _integer(batch_size, "batch_size", 1)
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.transform = transform
        self.seed = _integer(seed, "seed", 0)
        self.shard = _check_shard(shard)
        self.prefetch = _integer(prefetch, "prefetch", 0)
        if len(dataset) and not len(self):
            raise ValueError(
                f"drop_last leaves no batch: batch_size is {batch_size} and a shard has"
                f" {self._shard_length()} samples"
            )
        self._epoch = 0
        self._position = 0  # batches handed out in this epoch
        self._resume_at = 0  # where the next iteration starts

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(self._shard_length(), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch that is running, or the next one to run."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to run.

        Naming the present epoch changes nothing: a position that `load_state_dict` restored is kept.

        Raises
        ------
        ValueError
            If `epoch` is negative.
        """
        epoch = _integer(epoch, "epoch", 0)
        if epoch != self._epoch:
            self._epoch, self._position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, int | bool]:
        """Return the epoch, the number of its batches handed out so far, and what they depend on.

        Batches that were made ahead but not handed out do not count. Every value is an int or bool.
        """
        return {"epoch": self._epoch, "batch": self._position, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another loader of the same dataset and settings was: with its next batch.

        Raises
        ------
        ValueError
            If the state is incomplete, or comes from a loader with other settings.
        """
        mine = self._settings()
        if missing := {"epoch", "batch", *mine} - state.keys():
            raise ValueError(f"the loader's state lacks {', '.join(sorted(missing))}")
        for name, value in mine.items():
            if state[name] != value:
                raise ValueError(f"the state is of a loader with {name}={state[name]}, not {value}")
        epoch, batch = _integer(state["epoch"], "epoch", 0), _integer(state["batch"], "batch", 0)
        if batch > len(self):
            raise ValueError(f"the state is at batch {batch} of an epoch of {len(self)}")
        self._epoch, self._position, self._resume_at = epoch, batch, batch

    def __iter__(self) -> Iterator[Batch]:
        # The position is read here, when the iteration is asked for, not at its first batch.
        first, self._resume_at = self._resume_at, 0
        self._position = first
        return self._run(self._epoch, first)

    def _run(self, epoch: int, first: int) -> Generator[Batch, None, None]:
        order = self._order(epoch)
        numbers = range(first, len(self))

        def make(number: int) -> Batch:
            return self._make_batch(order, epoch, number)

        ahead = _make_ahead(make, numbers, self.prefetch) if self.prefetch else None
        with closing(ahead) if ahead is not None else nullcontext():
            for number in numbers:
                batch = make(number) if ahead is None else next(ahead)
                self._epoch, self._position = epoch, number + 1
                yield batch
        self._epoch, self._position = epoch + 1, 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples of this shard, in the order of `epoch`."""
        length = len(self.dataset)
        if self.shuffle:
            keys = philox(self.seed, epoch, counter=(0, 0, _ORDER)).random_raw(length)
            order = np.argsort(keys, kind="stable")
        else:
            order = np.arange(length)
        rank, size = self.shard
        # resize repeats from the beginning, or cuts, to the same length for every shard.
        return np.resize(order, self._shard_length() * size)[rank::size]

    def _make_batch(self, order: NDArray[np.int64], epoch: int, number: int) -> Batch:
        x, y = self.dataset[order[number * self.batch_size : (number + 1) * self.batch_size]]
        if self.transform is None:
            return x, y
        bits = philox(self.seed, epoch, counter=(self.shard[0], number, _TRANSFORM))
        result = self.transform(x, y, np.random.Generator(bits))
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"transform must return (x, y), got {type(result).__name__}")
        return result

    def _shard_length(self) -> int:
        length, size = len(self.dataset), self.shard[1]
        return length // size if self.drop_last else -(-length // size)

    def _settings(self) -> dict[str, int | bool]:
        """Return what an order depends on; a shard's rank is left out, so one state serves all."""
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shards": self.shard[1],
            "samples": len(self.dataset),
        }


def _make_ahead(make: Callable[[int], Batch], numbers: range, depth: int) -> Generator[Batch, None, None]:
    """Yield ``make(n)`` for each number, made by one thread that is at most `depth` batches ahead."""
    made: SimpleQueue[Batch | BaseException] = SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for number in numbers:
                room.acquire()
                if stop.is_set():
                    return
                made.put(make(number))
        except BaseException as error:
            made.put(error)

    worker = threading.Thread(target=work, name="brasa-loader", daemon=True)
    worker.start()
    try:
        for _ in numbers:
            # Threads do not survive a fork: a child that goes on iterating would wait for ever.
            if not worker.is_alive() and made.empty():
                message = "the loader's worker is gone: start a new iteration after a fork"
                raise RuntimeError(message)
            batch = made.get()
            if isinstance(batch, BaseException):
                raise batch
            room.release()
            yield batch
    finally:
        stop.set()
        room.release()
        worker.join()


def _integer(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not least <= number < 2**63:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    if not (isinstance(shard, tuple) and len(shard) == 2):
        raise TypeError(f"shard must be a pair (rank, size), got {shard!r}")
    rank, size = _integer(shard[0], "shard's rank", 0), _integer(shard[1], "shard's size", 1)
    if rank >= size:
        raise ValueError(f"shard's rank must be below its size, got {shard}")
    return rank, size

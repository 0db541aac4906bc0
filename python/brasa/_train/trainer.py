"""The training loop.

Between two batches the state is whole: there Ctrl-C is obeyed, and from there a run can be resumed
such that nothing tells it from one that was never interrupted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from brasa._backend import as_array, to_numpy
from brasa._scaler import GradScaler
from brasa.data import DataLoader
from brasa.nn import Module
from brasa.optim import LRScheduler, Optimizer, ReduceLROnPlateau

from .batches import as_batches, describe_data, is_dataset, open_batches, sample_count
from .callbacks import Callback
from .checkpoint import load_checkpoint, save_checkpoint
from .engine import Engine
from .graphs import CapturedSteps, require_capturable
from .history import History
from .interrupt import Interrupt
from .metrics import Metric, named_metrics
from .progress import Progress
from .updates import Updates

__all__ = ["Trainer"]

_log = logging.getLogger("brasa")


class _Interrupted(Exception):
    """Ctrl-C was pressed, and the state is whole."""


class Trainer:
    r"""Train a model, measure it, and use it.

    Parameters
    ----------
    model : Module
        What is trained.
    optimizer : Optimizer
        Over the model's parameters.
    loss : callable
        ``loss(output, target) -> Tensor`` with one element, such as ``nn.CrossEntropyLoss()``.
    scheduler : LRScheduler or ReduceLROnPlateau, optional
        Stepped after each epoch or after each update, as its `interval` says. A plateau is told,
        after each epoch, the validation loss (or the loss), with ``mode="max"`` the first metric.
    metrics : mapping or sequence of metrics, optional
        Functions ``metric(output, target)`` or their names. None: accuracy for classification.
    callbacks : sequence of Callback
        See `brasa.callbacks`.
    l2 : float, default 0.0
        :math:`\lambda`: adds :math:`\frac{\lambda}{2T} \sum w^2`, over the weights with two or
        more dimensions (no biases, no norms) and with T training samples, to the training loss.
    clip_norm : float, optional
        Gradients are scaled down where their common norm exceeds this.
    accumulate : int, default 1
        Batches whose mean gradient makes one update.
    device : str, optional
        Where model and batches go: ``"cpu"``, ``"cuda"``, ``"cuda:1"``. None: the model's.
    precision : {"float32", "float64", "bf16", "fp16"}
        Model and floating inputs are converted to the first two. The others are mixed precision, on
        CUDA: weights stay float32, and model and loss are computed within `autocast`; with "fp16" the
        loss is scaled by a `GradScaler`, and updates in which gradients overflow are skipped.
    graph : bool, default False
        Capture the step of each shape of batch in a CUDA graph and repeat that (`brasa.cuda.graph`): the
        same results, without the time that Python takes to launch the kernels. For models on a GPU whose
        steps read no value and branch on none; not with `accumulate`. With "fp16", a schedule that is stepped
        after updates waits for the device at every one, to learn whether it was skipped.
    seed : int, default 0
        Of the order and the transforms. Dropout draws from the generator of ``br.manual_seed``.
    progress : bool, default True
        Show a bar on a terminal, and a line per epoch.

    Attributes
    ----------
    history : History
        The measures of all epochs so far.
    epoch, batch : int
        Epochs that are complete, and batches done in the present one.
    stop : bool
        A callback sets it to end the training after the epoch.
    scaler : GradScaler or None
        That of "fp16". The updates skipped so far are the measure ``"skipped"``.
    about : dict
        JSON values that checkpoints carry: the model's name, classes, the shape of an input.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> from brasa import nn, optim
    >>> x = np.random.default_rng(0).standard_normal((64, 2)).astype("float32")
    >>> y = (x[:, 0] > 0).astype("int64")
    >>> model = nn.Linear(2, 2)
    >>> trainer = br.Trainer(
    ...     model, optim.Adam(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), progress=False
    ... )
    >>> history = trainer.fit((x, y), epochs=10)
    >>> history["accuracy"][-1] > 0.9
    True
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Any,
        *,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        metrics: Mapping[str, Metric] | Iterable[str | Metric] | None = None,
        callbacks: Sequence[Callback] = (),
        l2: float = 0.0,
        clip_norm: float | None = None,
        accumulate: int = 1,
        device: str | None = None,
        precision: str = "float32",
        graph: bool = False,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        _check_arguments(model, optimizer, loss, callbacks)
        self.model, self.optimizer, self.loss, self.scheduler = model, optimizer, loss, scheduler
        self.metrics = named_metrics(metrics, loss)
        self.engine = Engine(model, loss, self.metrics, device=device, precision=precision)
        self.callbacks = list(callbacks)
        self.scaler = GradScaler() if precision == "fp16" else None
        self.updates = Updates(
            model, optimizer, l2=l2, clip_norm=clip_norm, accumulate=accumulate, scaler=self.scaler
        )
        self.seed = seed
        self.history = History()
        self.epoch = self.batch = 0
        self.stop = False
        self.about: dict[str, Any] = {}
        self._progress_wanted = progress
        self._graph_wanted = bool(graph)
        if graph:
            require_capturable(self.engine.device, accumulate)
        self._captured: CapturedSteps | None = None  # during a fit
        self._interrupt = Interrupt()
        self._loader_state: dict[str, Any] | None = None
        self._means = self.engine.new_means()

    def fit(
        self,
        train: Any,
        *,
        validation: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        transform: Any = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for some epochs.

        Parameters
        ----------
        train : Dataset, DataLoader, tuple (x, y) of arrays, or iterable of (x, y) batches
            The training samples.
        validation : as `train`, optional
            Measured after each epoch, in evaluation mode, as ``val_...``.
        epochs : int, default 1
            How many epochs to train; with `resume`, the number of epochs of the whole run.
        batch_size : int, default 32
            Samples in a batch.
        shuffle : bool, default True
            Draw a new order for each epoch.
        transform : callable, optional
            ``transform(x, y, rng) -> (x, y)`` on each training batch.
        resume : path, optional
            A checkpoint of the same run: trains from there exactly as the run would have gone on.

        Returns
        -------
        History
            `self.history`, with the epochs of earlier calls too.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C was pressed. The running batch was finished, and callbacks have saved.
        CheckpointError
            `resume` is no checkpoint, or damaged.
        ValueError
            The checkpoint is of another model, optimiser, schedule or data; a value is wrong.
        """
        batches = as_batches(train, "train", batch_size, shuffle=shuffle, transform=transform, seed=self.seed)
        if epochs > 1 and isinstance(batches, Iterator):
            raise ValueError("train can be iterated only once: it cannot be used for several epochs")
        if resume is not None:
            self.load(resume)
            if self.epoch or self.batch:
                _set_position(batches, self._loader_state)
        else:
            self._begin_anew(batches, owned=batches is not train)
        self.about = {**describe_data(batches), **self.about}
        self.updates.samples = sample_count(batches)
        self._run(batches, validation, epochs if resume is not None else self.epoch + epochs)
        return self.history

    def evaluate(self, data: Any, *, batch_size: int = 256) -> dict[str, float]:
        """Measure the loss and the metrics on `data`, in evaluation mode.

        Parameters
        ----------
        data : Dataset, DataLoader, tuple (x, y) of arrays, or iterable of (x, y) batches
            The samples.
        batch_size : int, default 256
            Samples in a batch.

        Returns
        -------
        dict of str to float
            ``"loss"``, without the L2 term, and the metrics: means over the samples.
        """
        means = self.engine.new_means()
        batches = as_batches(data, "data", batch_size)
        with self.engine.evaluating(), open_batches(batches) as iterator:
            for x, y, _ in self.engine.batches(iterator):
                y = self.engine.on_device(y)
                output = self.engine.forward(x)
                means.add(self.engine.totals(output, y, self.engine.loss_of(output, y).data))
                self._obey_interrupt()
        return means.values()

    def predict(self, x: Any, *, batch_size: int = 256) -> np.ndarray:
        """Compute the model's outputs, in evaluation mode.

        Parameters
        ----------
        x : array of shape (N, ...), Dataset or DataLoader
            Inputs; of a dataset the targets are left aside.
        batch_size : int, default 256
            Samples in a batch.

        Returns
        -------
        ndarray of shape (N, ...)
            The outputs, such as logits, on the host.
        """
        if is_dataset(x) or isinstance(x, DataLoader):
            inputs = (batch[0] for batch in as_batches(x, "x", batch_size))
        else:
            x = as_array(x)
            starts = range(0, max(len(x), 1), batch_size)
            inputs = (x[i : i + batch_size] for i in starts)
        with self.engine.evaluating():
            outputs = (self.engine.values(self.engine.forward(part)) for part in inputs)
            return np.concatenate([to_numpy(values) for values in outputs])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model, optimiser, schedule, random state, position, history and callbacks' state.

        The file at `path` is replaced in one step. ``br.load`` reads the model's weights from it.
        """
        save_checkpoint(self, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over everything that `save` wrote, into a trainer that is made alike.

        Raises
        ------
        CheckpointError
            The file is damaged, or holds weights alone.
        ValueError
            Model, optimiser, schedule or callbacks are not those of the file.
        """
        load_checkpoint(self, path)

    # --- one run ----------------------------------------------------------------------------------

    def _run(self, batches: Iterable[Any], validation: Any, last: int) -> None:
        progress = Progress(last, visible=self._progress_wanted)
        was_training = self.model.training
        if self._graph_wanted:
            self._captured = CapturedSteps(self._whole_step)
        with Interrupt() as self._interrupt:
            try:
                self._tell("on_fit_begin")
                while self.epoch < last and not self.stop:
                    self._run_epoch(batches, validation, progress)
                    self._obey_interrupt()
                self._tell("on_fit_end")
            except _Interrupted:
                progress.close()
                self._tell("on_interrupt")
                raise KeyboardInterrupt from None
            finally:
                progress.close()
                self.model.train(was_training)
                self._interrupt = Interrupt()
                self._captured = None

    def _run_epoch(self, batches: Iterable[Any], validation: Any, progress: Progress) -> None:
        self._tell("on_epoch_begin")
        self.model.train()
        loader = batches if isinstance(batches, DataLoader) else None
        count = len(batches) if isinstance(batches, Sized) else None
        progress.begin(self.epoch + 1, count, self.batch)
        with open_batches(batches, self.batch if loader is None else 0) as iterator:
            position = loader.state_dict if loader is not None else lambda: None
            for x, y, behind in self.engine.batches(iterator, position):
                self._train_batch(x, y)
                self.batch += 1
                self._loader_state = behind
                progress.advance(self._means.values)
                self._tell("on_batch_end")
                self._obey_interrupt()
        if self.batch == 0:
            raise ValueError("train has no samples")
        self._step_after_update(self.updates.flush())
        measures = self._means.values()
        if self.scaler is not None:
            measures["skipped"] = float(self.scaler.skipped)
        if validation is not None:
            result = self.evaluate(validation)
            measures.update({f"val_{name}": value for name, value in result.items()})
        self._end_epoch(measures, None if loader is None else loader.state_dict())
        progress.end(self.history.last())

    def _end_epoch(self, measures: dict[str, float], loader_state: dict[str, Any] | None) -> None:
        if not np.isfinite(measures["loss"]):
            _log.warning("epoch %d: the loss is %s", self.epoch + 1, measures["loss"])
        self._tell("on_epoch_end", measures)
        self._step_after_epoch(measures)
        self.history.append(measures)
        self.epoch += 1
        self.batch = 0
        self._loader_state = loader_state
        self._means = self.engine.new_means()
        self._tell("after_epoch")

    def _step_after_epoch(self, measures: Mapping[str, float]) -> None:
        schedule = self.scheduler
        if isinstance(schedule, ReduceLROnPlateau):
            name = "loss" if schedule.mode == "min" else next(iter(self.metrics), "loss")
            schedule.step(measures.get(f"val_{name}", measures[name]))
        elif schedule is not None and schedule.interval == "epoch":
            schedule.step()

    def _step_after_update(self, updated: bool) -> None:
        schedule = self.scheduler
        if updated and isinstance(schedule, LRScheduler) and schedule.interval == "batch":
            schedule.step()

    def _tell(self, moment: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *args)

    def _obey_interrupt(self) -> None:
        if self._interrupt.requested:
            raise _Interrupted

    # --- one batch --------------------------------------------------------------------------------

    def _train_batch(self, x: Any, y: Any) -> None:
        y, inputs = self.engine.on_device(y), self.engine.inputs(x)
        if self._captured is None:
            self._means.add(self._measured_gradient(y, *inputs))
            updated = self.updates.add_batch()
        else:
            updated = self._repeat_step(self._captured, y, *inputs)
        self._step_after_update(updated)

    def _measured_gradient(self, y: Any, *inputs: Any) -> dict[str, tuple[Any, int]]:
        """Forward and backward; returns what the batch adds to the means."""
        output = self.engine.call(*inputs)
        loss = self.engine.loss_of(output, y)
        self.updates.backward(loss)
        return self.engine.totals(output, y, self.updates.with_penalty(loss.data))

    def _whole_step(self, y: Any, *inputs: Any) -> dict[str, tuple[Any, int]]:
        """What a graph holds: a batch and its update."""
        totals = self._measured_gradient(y, *inputs)
        self.updates.add_batch()
        return totals

    def _repeat_step(self, captured: CapturedSteps, *arrays: Any) -> bool:
        """Make a whole step; tell whether it updated, where a schedule asks, because that waits for the device."""
        schedule = self.scheduler
        scaler = self.scaler if isinstance(schedule, LRScheduler) and schedule.interval == "batch" else None
        before = scaler.skipped if scaler is not None else 0
        self._means.add(captured(*arrays))
        return scaler is None or scaler.skipped == before

    # --- position ---------------------------------------------------------------------------------

    def _begin_anew(self, batches: Iterable[Any], *, owned: bool) -> None:
        """Start with a whole epoch; what an interrupted one had measured is dropped."""
        self.batch = 0
        self.stop = False
        self.updates.discard()
        self._loader_state = None
        self._means = self.engine.new_means()
        if owned and isinstance(batches, DataLoader):
            batches.set_epoch(self.epoch)

    def position(self) -> dict[str, Any]:
        """Where the training stands, as JSON values."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "pending": self.updates.pending,
            "stop": self.stop,
            "loader": self._loader_state,
            "means": self._means.state_dict(),
        }

    def load_position(self, position: Mapping[str, Any]) -> None:
        """Stand where `position` was taken."""
        self._means.load_state_dict(position["means"])
        self.epoch, self.batch = int(position["epoch"]), int(position["batch"])
        self.updates.pending, self.stop = int(position["pending"]), bool(position["stop"])
        self._loader_state = position["loader"]


def _set_position(batches: Iterable[Any], state: Mapping[str, Any] | None) -> None:
    if isinstance(batches, DataLoader) and state is not None:
        batches.load_state_dict(state)
    elif isinstance(batches, DataLoader) or state is not None:
        raise ValueError("train: the checkpoint is of a run with another kind of data")


def _check_arguments(model: Any, optimizer: Any, loss: Any, callbacks: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    if not callable(loss):
        raise TypeError(f"loss must be callable, got {type(loss).__name__}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must hold Callbacks, got {type(callback).__name__}")

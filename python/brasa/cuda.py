"""CUDA graphs: a step is run once in Python, and then repeated without it.

Python needs longer to launch the kernels of a small network than the GPU to run them. `graph` captures all
launches of a step in one CUDA graph, which a single call starts.

>>> import brasa as br
>>> step = br.cuda.graph(train_step)                 # doctest: +SKIP
>>> for x, y in batches:                             # doctest: +SKIP
...     loss = step(x, y)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from brasa import _autocast, _backend, _capture
from brasa._capture import StaleCapture
from brasa.tensor import Tensor

__all__ = ["Graph", "StaleCapture", "graph"]


def graph(function: Callable[..., Any], *, warmup: int = 1) -> Graph:
    """A function that does what `function` does, from the second call on by one launch of a CUDA graph.

    The first calls run `function` as it is, on the real inputs, and fill the graph's own memory pool. The
    next one captures what it launches; that call and all later ones copy their inputs into the captured
    ones and launch the graph. Every call counts as one step: dropout draws the numbers that it would have
    drawn, optimisers count their steps and read the learning rate that schedules have written since. So
    the results have the bits of calls of `function`.

    Parameters
    ----------
    function : callable
        A step: a forward pass, or also a backward pass and an update. What it does to device arrays is
        repeated; what else it does happens in the first calls only, such as printing, stepping a
        schedule, or choosing a branch. It may read no value of an array (``item()``, ``float()``,
        ``print``), and begins or ends by forgetting the gradients, where it has any. A `GradScaler` in it
        leaves out updates on the device: see there.
    warmup : int, default 1
        Calls before the capture.

    Returns
    -------
    Graph
        To be called with the arguments of `function`: arrays and Tensors, of the shapes and dtypes of the
        first call (NumPy arrays are copied to the device), and constants.

    Examples
    --------
    >>> import brasa as br
    >>> from brasa import nn, optim
    >>> def train_step(x, y):                                     # doctest: +SKIP
    ...     optimizer.zero_grad()
    ...     loss = nn.functional.cross_entropy(model(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> step = br.cuda.graph(train_step)                          # doctest: +SKIP
    """
    return Graph(function, warmup=warmup)


class Graph:
    """What `graph` returns: a step and, once it was captured, its CUDA graph.

    The results of a call are the graph's own arrays: the next call overwrites them. Copy what is to be kept,
    and read values (``loss.item()``) only where they are needed, because reading waits for the device.

    Memory that the step takes stays with the graph, also between its calls. A graph belongs to one device
    and to the thread that calls it.

    Attributes
    ----------
    is_captured : bool
        Whether calls launch the graph.

    Raises
    ------
    ValueError
        A call with other shapes, dtypes or constants than the first one's.
    TypeError
        A call with arrays of the host alone, or with an input that requires a gradient.
    RuntimeError
        The step waits for the device, or copies from the host, while it is captured.
    StaleCapture
        What the graph updates was replaced: parameters that moved, a loaded state.
    """

    def __init__(self, function: Callable[..., Any], *, warmup: int = 1) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        if not isinstance(warmup, int) or warmup < 1:
            raise ValueError(f"warmup: expected an int of at least 1, got {warmup!r}")
        self._function = function
        self._left = warmup
        self._inputs: list[Any] | None = None  # device arrays, and constants
        self._arguments: tuple[Any, ...] = ()  # the same with Tensors where Tensors were passed
        self._backend: Any = None
        self._graph: Any = None
        self._recording: Any = None
        self._results: Any = None

    @property
    def is_captured(self) -> bool:
        """Whether calls launch the graph."""
        return self._graph is not None

    def __call__(self, *arguments: Any) -> Any:
        if self._inputs is None:
            self._prepare(arguments)
        self._check(arguments)
        if self._graph is not None:
            self._recording.advance()  # first: where it raises, nothing has happened
        self._fill(arguments)
        if self._graph is None:
            if self._left:
                with self._own_memory():
                    results = self._run()
                self._left -= 1
                return results
            self._capture()
        self._recording.store()
        self._graph.launch(self._cuda.get_current_stream())
        return self._results

    # --- inputs -----------------------------------------------------------------------------------

    @property
    def _cuda(self) -> Any:
        return self._backend.namespace.cuda

    def _prepare(self, arguments: Sequence[Any]) -> None:
        """Take the first call's inputs for the shapes of all."""
        arrays = [_array_of(value) for value in arguments]
        on_device = [a for a in arrays if a is not None and type(a) is not np.ndarray]
        if any(a is not None for a in arrays) and not on_device:
            raise TypeError(
                "graph: a CUDA graph needs an input on a GPU, and all arrays are NumPy's; "
                "move the model and one of the inputs with .to('cuda')"
            )
        self._backend = _backend.backend_of(on_device[0]) if on_device else _backend.cuda_backend()
        self._stream = self._cuda.Stream(non_blocking=True)
        self._pool = self._cuda.MemoryPool()
        inputs, passed = [], []
        with self._own_memory():
            for value, array in zip(arguments, arrays, strict=True):
                if isinstance(value, Tensor) and value.requires_grad:
                    raise TypeError("graph: an input requires a gradient; pass it .detach()")
                own = value if array is None else self._backend.empty(array.shape, array.dtype, False)
                if array is not None and _is_channels_last(array):
                    own = self._backend.empty(array.shape, array.dtype, True)
                inputs.append(own)
                passed.append(Tensor(own) if isinstance(value, Tensor) else own)
        self._inputs, self._arguments = inputs, tuple(passed)

    def _check(self, arguments: Sequence[Any]) -> None:
        """The call is one like the first."""
        assert self._inputs is not None
        if len(arguments) != len(self._inputs):
            raise ValueError(f"graph: captured with {len(self._inputs)} inputs, got {len(arguments)}")
        for i, (value, own) in enumerate(zip(arguments, self._inputs, strict=True)):
            array = _array_of(value)
            if array is None:
                if not (value is own or value == own):
                    raise ValueError(f"graph: input {i} was {own!r} when captured, got {value!r}")
            elif array.shape != own.shape or array.dtype != own.dtype:
                raise ValueError(
                    f"graph: input {i} was captured with shape {own.shape} and {own.dtype}, got "
                    f"{array.shape} and {array.dtype}; another shape needs a graph of its own"
                )

    def _fill(self, arguments: Sequence[Any]) -> None:
        """Copy the inputs of this call to where the graph reads them."""
        for value, own in zip(arguments, self._inputs, strict=True):  # type: ignore[arg-type]
            array = _array_of(value)
            if array is not None and array is not own:
                own[...] = _backend.beside(array, own)

    # --- capture ----------------------------------------------------------------------------------

    @contextmanager
    def _own_memory(self) -> Iterator[None]:
        """Work on the graph's stream and from its pool, between what was and what comes on the caller's."""
        caller = self._cuda.get_current_stream()
        self._stream.wait_event(caller.record())
        with self._cuda.using_allocator(self._pool.malloc), self._stream:
            yield
        caller.wait_event(self._stream.record())

    def _run(self) -> Any:
        """Call the function, its casts of weights within `autocast` its own."""
        with _autocast.with_own_casts():
            return self._function(*self._arguments)

    def _capture(self) -> None:
        """Run the function for what it launches; nothing is computed."""
        caller = self._cuda.get_current_stream()
        with self._own_memory():
            self._recording = _capture.Recording(self._backend, caller)
        with (
            self._cuda.using_allocator(self._pool.malloc),
            self._stream,
            _capture.record(self._recording),
        ):
            self._stream.begin_capture()
            try:
                results = self._run()
                self._recording.end()
            except BaseException as error:
                with suppress(Exception):
                    self._stream.end_capture()
                explained = _explained(error)
                if explained is error:
                    raise
                raise explained from error
            self._graph = self._stream.end_capture()
        self._results = _without_history(results)


def _array_of(value: Any) -> Any:
    """The array that an argument is or holds, or None for a constant."""
    if isinstance(value, Tensor):
        return value.data
    if _backend.is_array(value):
        return value
    return _backend.as_array(value) if hasattr(type(value), "__dlpack__") else None


def _is_channels_last(array: Any) -> bool:
    return _backend.layout(array) == _backend.CHANNELS_LAST


def _without_history(results: Any) -> Any:
    """The results, Tensors among them detached: what they were computed from is the graph's."""
    if isinstance(results, Tensor):
        return results.detach()
    if type(results) in (tuple, list):
        return type(results)(_without_history(r) for r in results)
    if type(results) is dict:
        return {name: _without_history(r) for name, r in results.items()}
    return results


def _explained(error: BaseException) -> BaseException:
    """`error`, or what it means where CUDA refused something during a capture."""
    if "stream is capturing" not in str(error).lower() and "StreamCapture" not in str(error):
        return error
    return RuntimeError(
        f"graph: the step cannot be captured, because it waits for the device ({error}). Inside a captured "
        "step no value may be read: no item(), float(), bool(), numpy() or print of a Tensor, and no check "
        "of indices by BRASA_CHECK=1; return the Tensor and read it outside"
    )

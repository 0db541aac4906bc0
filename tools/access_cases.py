"""The cases of tools/access_lint.py: small, everyday shapes that between them reach every CUDA kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Case = Callable[[Any], None]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Add a function of `xp.asarray` to the cases."""

    def add(function: Case) -> Case:
        CASES[name] = function
        return function

    return add


def numbers(to: Any, *shape: int, dtype: Any = np.float32, channels_last: bool = False) -> Any:
    """Normal numbers on the device."""
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return to(x)


def indices(to: Any, high: int, *shape: int) -> Any:
    """Whole numbers of [0, high) on the device."""
    return to(np.random.default_rng(1).integers(0, high, shape))


def both_ways(function: Callable[..., Any], *arrays: Any) -> None:
    """A function's forward and backward pass."""
    import brasa as br

    tensors = [br.Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y = function(*tensors)
    y.backward(br.Tensor(y.data.copy()))


@contextlib.contextmanager
def pretending(**options: int) -> Iterator[None]:
    """Another GPU meanwhile: its `capability` and its number of `multiprocessors`; tf32 is allowed."""
    import brasa
    import emulated

    given = {"capability": 90, "multiprocessors": 132}
    brasa.set_matmul_precision("tf32")
    try:
        for name, value in options.items():
            emulated.kernels.set_option(name, value)
        yield
    finally:
        brasa.set_matmul_precision("ieee")
        for name, value in given.items():
            emulated.kernels.set_option(name, value)


def fill_cases() -> None:
    """The cases of all families."""
    from brasa import nn, ops

    F = nn.functional

    def operator(
        name: str,
        function: Callable[..., Any],
        image: tuple[int, ...],
        *shapes: tuple[int, ...],
        gpu: dict[str, int] | None = None,
        dtype: Any = np.float32,
        channels_last: bool = False,
    ) -> None:
        @case(name)
        def _run(to: Any) -> None:
            with pretending(**gpu) if gpu else contextlib.nullcontext():
                x = numbers(to, *image, dtype=dtype, channels_last=channels_last)
                both_ways(function, x, *(numbers(to, *shape, dtype=dtype) for shape in shapes))

    operator("gelu", ops.gelu, (4, 1030))
    operator("softmax of 1000", ops.softmax, (6, 1000))
    operator("softmax of 10", ops.softmax, (64, 10))
    operator("log softmax", ops.log_softmax, (6, 1000))
    operator("layer norm", lambda x, w, b: ops.layer_norm(x, w, b), (6, 768), (768,), (768,))
    operator("layer norm of long rows", lambda x, w, b: ops.layer_norm(x, w, b), (3, 9000), (9000,), (9000,))
    for layout in (False, True):
        where = "channels-last" if layout else "contiguous"

        def norm(x: Any) -> Any:
            return ops.batch_norm(x, training=True)

        operator(f"batch norm, {where}", norm, (4, 32, 14, 14), channels_last=layout)
        for pool in (ops.max_pool2d, ops.avg_pool2d):
            kind = pool.__name__.replace("_pool2d", " pool")
            operator(
                f"{kind}, {where}", lambda x, pool=pool: pool(x, 2), (2, 32, 16, 16), channels_last=layout
            )
            operator(
                f"{kind} of 3x2, {where}",
                lambda x, pool=pool: pool(x, (3, 2), (2, 1), padding=(1, 0)),
                (2, 32, 13, 16),
                channels_last=layout,
            )
        operator(
            f"pixel shuffle, {where}", lambda x: ops.pixel_shuffle(x, 2), (2, 32, 8, 8), channels_last=layout
        )
    operator("max pool of 32x32", lambda x: ops.max_pool2d(x, 32), (2, 8, 32, 32))
    operator("avg pool of 32x32", lambda x: ops.avg_pool2d(x, 32), (2, 8, 32, 32))
    case("max pool, indices")(
        lambda to: ops.max_pool2d(numbers(to, 2, 32, 16, 16), 3, 2, padding=1, return_indices=True)
    )
    operator("matmul", ops.matmul, (130, 72), (72, 140))
    operator("matmul by a weight", lambda x, w: ops.matmul(x, w, transpose_b=True), (130, 72), (140, 72))
    operator("matmul of 8 rows", lambda x, w: ops.matmul(x, w, transpose_b=True), (8, 256), (96, 256))
    operator("matmul of 16 bits", ops.matmul, (128, 128), (128, 128), dtype=np.float16)
    hopper, ampere = {"capability": 90, "multiprocessors": 1}, {"capability": 80}
    half: Any = {"dtype": np.float16}
    operator("matmul of 16 bits, Hopper", ops.matmul, (128, 128), (128, 128), gpu=hopper, **half)
    operator("matmul in tf32, Hopper", ops.matmul, (128, 128), (128, 128), gpu=hopper)
    operator("matmul of 16 bits, odd", ops.matmul, (33, 17), (17, 35), gpu=ampere, **half)
    operator("conv 3x3", lambda x, w: ops.conv2d(x, w, padding=1), (2, 16, 12, 12), (32, 16, 3, 3))
    operator("conv 1x1", ops.conv2d, (2, 32, 12, 12), (64, 32, 1, 1))
    operator(
        "conv, depthwise", lambda x, w: ops.conv2d(x, w, padding=1, groups=32), (2, 32, 12, 12), (32, 1, 3, 3)
    )
    operator(
        "conv, groups of 2 channels",
        lambda x, w: ops.conv2d(x, w, padding=1, groups=4),
        (2, 8, 12, 12),
        (8, 2, 3, 3),
    )

    def conv(x: Any, w: Any, b: Any) -> Any:
        return ops.conv2d(x, w, b, padding=1, stride=2)

    images, filters = (2, 64, 12, 12), ((64, 64, 3, 3), (64,))
    for name, gpu in (("", ampere), (", Hopper", hopper)):
        on_hopper = gpu is hopper
        operator(f"conv of 16 bits{name}", conv, images, *filters, channels_last=on_hopper, gpu=gpu, **half)
        operator(f"conv in tf32{name}", conv, images, *filters, gpu=gpu)
    operator("conv of 3 channels", conv, (2, 3, 20, 20), (64, 3, 5, 5), (64,), gpu=hopper, **half)
    operator("attention", ops.attention, (2, 70, 32), (2, 70, 32), (2, 70, 32))
    operator("attention of 16 bits", ops.attention, *[(2, 70, 64)] * 3, gpu=ampere, **half)
    operator("attention of 16 bits, Hopper", ops.attention, *[(2, 70, 64)] * 3, gpu=hopper, **half)
    operator("dropout", lambda x: ops.dropout(x, 0.4, 1, 0), (4, 1030))
    case("cross entropy")(
        lambda to: both_ways(lambda x, y: F.cross_entropy(x, y), numbers(to, 64, 100), indices(to, 100, 64))
    )
    case("cross entropy, smoothed")(
        lambda to: both_ways(
            lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
            numbers(to, 64, 100),
            indices(to, 100, 64),
        )
    )
    case("embedding")(
        lambda to: both_ways(lambda i, w: ops.embedding(i, w), indices(to, 50, 40), numbers(to, 50, 64))
    )

    @case("adam")
    def _adam(to: Any) -> None:
        from brasa import Tensor, optim

        weight = Tensor(numbers(to, 70, 65), requires_grad=True)
        weight.grad = Tensor(numbers(to, 70, 65))
        optim.Adam([weight]).step()

    @case("elements and copies")
    def _elements(to: Any) -> None:
        from brasa import _backend

        x = numbers(to, 4, 1030)
        kernels = _backend.backend_of(x).kernels
        kernels.exp_forward(x, numbers(to, 4, 1030))
        kernels.add(x, x, numbers(to, 4, 1030))
        _backend.cast(_backend.cast(x, np.float16), np.float32)
        _backend.to_channels_last(numbers(to, 2, 3, 20, 20))
        kernels._store_words(np.arange(9), to(np.zeros(9, np.int64)))

    @case("unscale")
    def _unscale(to: Any) -> None:
        from brasa import GradScaler, Tensor, _backend, optim

        weight = Tensor(numbers(to, 70, 65), requires_grad=True)
        weight.grad = Tensor(numbers(to, 70, 65))
        GradScaler().unscale_(optim.SGD([weight], 0.1))
        state, guards = to(np.array([2.0, 0.0, 2.0, 0.5, 3.0])), to(np.zeros((1, 2), np.int32))
        _backend.backend_of(state).kernels.update_scale(state, guards)

    def recurrent(layer: Any, to: Any, dtype: Any = np.float32) -> None:
        for parameter in layer.parameters():
            parameter.data = to(parameter.data.astype(dtype))
        both_ways(lambda x: layer(x)[0], numbers(to, 4, 16, 32, dtype=dtype))

    case("lstm")(lambda to: recurrent(nn.LSTM(32, 64), to))
    # Resident on the emulator, which has room for 6 blocks, and streamed.
    case("lstm of 16 bits")(lambda to: recurrent(nn.LSTM(32, 48), to, np.float16))
    case("lstm of 16 bits, streamed")(lambda to: recurrent(nn.LSTM(32, 64), to, np.float16))

    @case("ctc loss")
    def _ctc(to: Any) -> None:
        scores = ops.log_softmax(numbers(to, 20, 4, 12))
        lengths = np.full(4, 20), np.full(4, 6)
        both_ways(lambda x: ops.ctc_loss(x, 1 + indices(to, 11, 4, 6), *map(to, lengths)), scores)

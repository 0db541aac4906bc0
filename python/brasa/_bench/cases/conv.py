"""Cases of convolutions: forward, both gradients, and the three together."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import (
    BYTES,
    UNITS,
    Peers,
    array,
    by_setting,
    channels_last,
    in_precision,
    jax_call,
    tensor,
    torch_autograd,
    torch_dtype,
    torch_formats,
)
from brasa._bench.geometry import output_size, taps_inside
from brasa._bench.harness import Call, Case

PASSES = ("fwd", "bwd-data", "bwd-weight", "fwd+bwd")
_MASKS = {"bwd-data": (True, False, False, False), "bwd-weight": (False, True, True, False)}
_OF_WEIGHT = (False, True, False, False)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _by_torch(
    direction: str, options: dict[str, Any], function: str = "conv2d"
) -> Callable[[list[Any]], Call]:
    """Makes PyTorch's call of the function from x, weight, bias (or None) and dy."""
    import torch

    forward = getattr(torch.nn.functional, function)

    def make(tensors: list[Any]) -> Call:
        x, weight, bias, dy = tensors
        if direction == "fwd":
            return lambda: forward(x, weight, bias, **options)
        if direction == "fwd+bwd":
            leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
            return torch_autograd(lambda *leaves: forward(*leaves, **options), leaves, dy)
        data, with_bias = direction == "bwd-data", direction == "bwd-weight" and bias is not None
        stride, padding, dilation, extra = (
            _each(value, x.ndim - 2) for value in (options["stride"], options.get("padding", 0), 1, 0)
        )
        transposed, groups = "transpose" in function, options.get("groups", 1)
        numbers = [dy.shape[1]], stride, padding, dilation, transposed, extra, groups
        backward = torch.ops.aten.convolution_backward
        mask = [data, not data, with_bias]
        return lambda: [
            gradient for gradient in backward(dy, x, weight, *numbers, mask) if gradient is not None
        ]

    return make


def _by_jax(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, options: dict[str, Any]) -> Call:
    """JAX's forward, channels last and with the weights' channels last: what is fastest on a CPU."""
    import jax

    stride, (vertical, horizontal) = _pair(options["stride"]), _pair(options["padding"])

    def forward(images: Any, kernel: Any, shift: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            images,
            kernel,
            stride,
            ((vertical, vertical), (horizontal, horizontal)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=options["groups"],
        )
        return y + shift

    inner = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    return jax_call(forward, *inner, bias)


def _by_brasa(direction: str, arrays: list[Any], options: dict[str, Any]) -> Call:
    x, weight, bias, dy = arrays
    if direction == "fwd":
        return lambda: ops.conv2d(x, weight, bias, **options)
    if direction in _MASKS:
        mask = _MASKS[direction]
        return lambda: [
            gradient
            for gradient in ops.conv2d_backward(dy, x, weight, mask=mask, **options)
            if gradient is not None
        ]

    def both() -> Any:
        ops.conv2d(x, weight, bias, **options)
        return ops.conv2d_backward(dy, x, weight, **options)[:3]

    return both


def conv2d(
    layer: dict[str, Any],
    against: Peers,
    *,
    direction: str = "fwd",
    label: str = "",
    nchw: bool = False,
    precision: str = "float32",
) -> Case:
    """A convolution of a network: ``N C H W O kernel stride padding groups``, in one of `PASSES`.

    With `nchw` images and gradients are C-contiguous, for PyTorch too; else they are channels-last and PyTorch may
    choose. In `precision` "bfloat16" arrays are of that dtype, in "tf32" (on a GPU) products are made in that.
    """
    n, c, h, w, outputs = (layer[key] for key in "NCHWO")
    kernel, stride = _pair(layer["kernel"]), _pair(layer.get("stride", 1))
    padding, groups = _pair(layer.get("padding", 0)), layer.get("groups", 1)
    options = {"stride": stride, "padding": padding, "groups": groups}
    dimensions = list(zip((h, w), kernel, stride, padding, strict=True))
    height, width = (output_size(*dimension) for dimension in dimensions)
    taps = prod(taps_inside(*dimension) for dimension in dimensions)

    def make() -> dict[str, Call]:
        x, weight = array(n, c, h, w), array(outputs, c // groups, *kernel, seed=1)
        weight /= np.float32(np.sqrt(weight[0].size))
        bias, dy = array(outputs, seed=2), array(n, outputs, height, width, seed=3)
        images = (x, dy) if nchw else (channels_last(x), channels_last(dy))
        ours = [in_precision(a, precision) for a in (images[0], weight, bias, images[1])]
        calls = {"brasa": _by_brasa(direction, ours, options)}
        if "torch" in against:
            dtype = torch_dtype(precision)
            theirs = torch_formats(_by_torch(direction, options), x, weight, bias, dy, dtype=dtype)
            calls |= {"torch": theirs["torch/contiguous"]} if nchw else theirs
        if "jax" in against and direction == "fwd" and not nchw:
            calls["jax"] = _by_jax(x, weight, bias, options)
        return by_setting(calls, precision)

    shape = f"{n}x{c}x{h}x{w} -> {outputs}, {kernel[0]}x{kernel[1]}/{stride[0]}"
    way = "" if precision == "float32" else f"{UNITS[precision]} "
    kind = "NCHW " if nchw else way
    name = f"{label or shape}{f' g{groups}' if groups > 1 and not label else ''} {way}{direction}"
    sizes = n * c * h * w, outputs * c // groups * kernel[0] * kernel[1], n * outputs * height * width
    passes = 3 if direction == "fwd+bwd" else 1
    return Case(
        f"conv {kind}{direction}",
        name,
        make,
        passes * 2.0 * n * outputs * c // groups * taps,
        passes * BYTES[precision] * sum(sizes),
        unit=UNITS[precision],
    )


def conv1d(
    n: int,
    c: int,
    length: int,
    outputs: int,
    kernel: int,
    stride: int,
    against: Peers,
    *,
    direction: str = "fwd",
) -> Case:
    """A convolution over time, which brasa computes as one of images of one row; in one of `PASSES`."""
    steps = output_size(length, kernel, stride, 0)

    def make() -> dict[str, Call]:
        x, weight, bias = array(n, c, length), array(outputs, c, kernel, seed=1), array(outputs, seed=2)
        weight /= np.float32(np.sqrt(c * kernel))
        dy = array(n, outputs, steps, seed=3)
        images = [channels_last(x[:, :, None]), weight[:, :, None], bias, channels_last(dy[:, :, None])]
        options = {"stride": (1, stride), "padding": 0, "groups": 1}
        calls: dict[str, Call] = {"brasa": _without_rows(_by_brasa(direction, images, options))}
        if "torch" in against:
            by_torch = _by_torch(direction, {"stride": stride}, "conv1d")
            calls["torch"] = by_torch([tensor(a) for a in (x, weight, bias, dy)])
        return calls

    name = f"conv1d {n}x{c}x{length} -> {outputs}, {kernel}/{stride} {direction}"
    passes = 3 if direction == "fwd+bwd" else 1
    nbytes = 4.0 * (n * c * length + outputs * c * kernel + n * outputs * steps)
    flops = 2.0 * n * outputs * steps * c * kernel
    return Case(f"conv 1d {direction}", name, make, passes * flops, passes * nbytes)


def _without_rows(call: Call) -> Call:
    """The call's arrays, images of one row without that dimension."""

    def flat(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return x[:, :, 0] if x.ndim == 4 else x
        return [flat(part) for part in x]

    return lambda: flat(call())


def conv_transpose2d(
    n: int,
    c: int,
    size: int,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    against: Peers,
    *,
    direction: str = "fwd",
) -> Case:
    """A transposed convolution, which is the gradient of a convolution for its input; in one of `PASSES`."""
    large = (size - 1) * stride - 2 * padding + kernel

    def make() -> dict[str, Call]:
        x, weight = array(n, c, size, size), array(c, outputs, kernel, kernel, seed=1)
        weight /= np.float32(np.sqrt(c * kernel * kernel))
        dy = array(n, outputs, large, large, seed=3)
        images = channels_last(x), weight, channels_last(dy)
        calls: dict[str, Call] = {"brasa": _transposed_by_brasa(direction, *images, stride, padding)}
        if "torch" in against:
            options = {"stride": stride, "padding": padding}
            by_torch = _by_torch(direction, options, "conv_transpose2d")
            calls |= torch_formats(lambda t: by_torch([t[0], t[1], None, t[2]]), x, weight, dy)
        return calls

    name = f"transposed {n}x{c}x{size}x{size} -> {outputs}, {kernel}x{kernel}/{stride} {direction}"
    passes = 3 if direction == "fwd+bwd" else 1
    flops = 2.0 * n * c * outputs * taps_inside(large, kernel, stride, padding) ** 2
    nbytes = 4.0 * (n * c * size * size + c * outputs * kernel * kernel + n * outputs * large * large)
    return Case(f"conv transposed {direction}", name, make, passes * flops, passes * nbytes)


def _transposed_by_brasa(direction: str, x: Any, weight: Any, dy: Any, stride: int, padding: int) -> Call:
    """The convolution of `dy` is the gradient for `x`, and has the same gradient for the weights."""

    def forward() -> Any:
        return ops.conv2d_backward(x, dy, weight, stride, padding, mask=_MASKS["bwd-data"])[0]

    def for_data() -> Any:
        return ops.conv2d(dy, weight, None, stride, padding)

    def for_weight() -> Any:
        return ops.conv2d_backward(x, dy, weight, stride, padding, mask=_OF_WEIGHT)[1]

    def both() -> Any:
        forward()
        return for_data(), for_weight()

    return {"fwd": forward, "bwd-data": for_data, "bwd-weight": for_weight, "fwd+bwd": both}[direction]

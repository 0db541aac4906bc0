"""Cases of convolutions: forward, both gradients, and the three together."""

from __future__ import annotations

from collections.abc import Callable
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
from brasa._bench.harness import Call, Case

PASSES = ("fwd", "bwd-data", "bwd-weight", "fwd+bwd")
_MASKS = {"bwd-data": (True, False, False, False), "bwd-weight": (False, True, True, False)}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _by_torch(direction: str, options: dict[str, Any]) -> Callable[[list[Any]], Call]:
    """Makes PyTorch's call from x, weight, bias and dy."""
    import torch

    forward = torch.nn.functional.conv2d
    groups, stride, padding = options["groups"], _pair(options["stride"]), _pair(options["padding"])

    def make(tensors: list[Any]) -> Call:
        x, weight, bias, dy = tensors
        if direction == "fwd":
            return lambda: forward(x, weight, bias, **options)
        if direction == "fwd+bwd":
            return torch_autograd(lambda *leaves: forward(*leaves, **options), [x, weight, bias], dy)
        mask = [direction == "bwd-data", direction == "bwd-weight", direction == "bwd-weight"]
        backward = torch.ops.aten.convolution_backward
        arguments = (dy, x, weight, [weight.shape[0]], stride, padding, (1, 1), False, (0, 0), groups, mask)
        return lambda: [gradient for gradient in backward(*arguments) if gradient is not None]

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
    height, width = ((size + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i, size in enumerate((h, w)))

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
        passes * 2.0 * sizes[2] * sizes[1] / outputs,
        passes * BYTES[precision] * sum(sizes),
        unit=UNITS[precision],
    )


def conv1d(n: int, c: int, length: int, outputs: int, kernel: int, stride: int, against: Peers) -> Case:
    """A convolution over time, which brasa computes as one of images of one row."""

    def make() -> dict[str, Call]:
        x, weight, bias = array(n, c, length), array(outputs, c, kernel, seed=1), array(outputs, seed=2)
        weight /= np.float32(np.sqrt(c * kernel))
        image, taps = channels_last(x[:, :, None]), weight[:, :, None]
        calls: dict[str, Call] = {"brasa": lambda: ops.conv2d(image, taps, bias, (1, stride))[:, :, 0]}
        if "torch" in against:
            import torch

            tx, tw, tb = (tensor(a) for a in (x, weight, bias))
            calls["torch"] = lambda: torch.nn.functional.conv1d(tx, tw, tb, stride)
        return calls

    size = n * outputs * ((length - kernel) // stride + 1)
    name = f"conv1d {n}x{c}x{length} -> {outputs}, {kernel}/{stride} fwd"
    nbytes = 4.0 * (n * c * length + outputs * c * kernel + size)
    return Case("conv 1d", name, make, 2.0 * size * c * kernel, nbytes)


def conv_transpose2d(
    n: int, c: int, size: int, outputs: int, kernel: int, stride: int, padding: int, against: Peers
) -> Case:
    """A transposed convolution, which is the gradient of a convolution for its input."""
    large = (size - 1) * stride - 2 * padding + kernel

    def make() -> dict[str, Call]:
        x, weight = array(n, c, size, size), array(c, outputs, kernel, kernel, seed=1)
        weight /= np.float32(np.sqrt(c * kernel * kernel))
        like, dy = channels_last(array(n, outputs, large, large)), channels_last(x)
        mask = _MASKS["bwd-data"]
        calls: dict[str, Call] = {
            "brasa": lambda: ops.conv2d_backward(dy, like, weight, stride, padding, mask=mask)[0]
        }
        if "torch" in against:
            import torch

            calls |= torch_formats(
                lambda t: lambda: torch.nn.functional.conv_transpose2d(t[0], t[1], None, stride, padding),
                x,
                weight,
            )
        return calls

    name = f"transposed {n}x{c}x{size}x{size} -> {outputs}, {kernel}x{kernel}/{stride} fwd"
    pixels, taps = n * c * size * size, c * outputs * kernel * kernel
    nbytes = 4.0 * (pixels + taps + n * outputs * large * large)
    return Case("conv transposed", name, make, 2.0 * pixels * taps / c, nbytes)

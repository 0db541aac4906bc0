"""The networks of the benchmark in JAX, each step one compiled function.

Images are channels-last and kernels (height, width, in, out), which XLA prefers on a CPU. Adam is written out; the
buffers of parameters and moments are donated, so that it works in place.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brasa._bench import networks
from brasa._bench.harness import Call
from brasa._bench.networks import NETWORKS

_RATE, _BETA1, _BETA2, _EPS = 1e-3, 0.9, 0.999, 1e-8  # of Adam
_MOMENTUM = 0.1  # of the running statistics of batch norm


def _conv(layer: networks.Conv, x: Any, take: Any) -> Any:
    y = jax.lax.conv_general_dilated(
        x,
        take(),
        (layer.stride, layer.stride),
        ((layer.padding, layer.padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + take() if layer.bias else y


def _max_pool(layer: networks.MaxPool, x: Any) -> Any:
    padding = ((0, 0), *((layer.padding, layer.padding),) * 2, (0, 0))
    window, stride = (1, layer.kernel, layer.kernel, 1), (1, layer.stride, layer.stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, stride, padding)


def _shuffle(layer: networks.PixelShuffle, x: Any) -> Any:
    n, h, w, c = x.shape
    r = layer.factor
    x = x.reshape(n, h, w, c // r**2, r, r).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * r, w * r, c // r**2)


class _Run:
    """One traced execution: hands out parameters in order and collects running statistics."""

    def __init__(self, parameters: list[Any], statistics: list[Any], train: bool, key: Any) -> None:
        self.take = iter(parameters).__next__
        self.statistics = iter(statistics)
        self.updated: list[Any] = []
        self.train, self.key = train, key

    def layers(self, layers: tuple[Any, ...], x: Any) -> Any:
        for layer in layers:
            x = self.layer(layer, x)
        return x

    def layer(self, layer: Any, x: Any) -> Any:
        apply = {
            networks.Conv: lambda: _conv(layer, x, self.take),
            networks.Norm: lambda: self.norm(x),
            networks.Relu: lambda: jax.nn.relu(x),
            networks.MaxPool: lambda: _max_pool(layer, x),
            networks.GlobalMean: lambda: x.mean((1, 2), keepdims=True),
            networks.Flatten: lambda: x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1),
            networks.Linear: lambda: x @ self.take().T + self.take(),
            networks.Dropout: lambda: self.dropout(layer.p, x),
            networks.PixelShuffle: lambda: _shuffle(layer, x),
            networks.Subsample: lambda: jnp.pad(
                x[:, ::2, ::2], ((0, 0),) * 3 + ((layer.new_channels // 2, (layer.new_channels + 1) // 2),)
            ),
            networks.Residual: lambda: jax.nn.relu(
                self.layers(layer.body, x) + self.layers(layer.shortcut, x)
            ),
        }
        return apply[type(layer)]()

    def norm(self, x: Any) -> Any:
        weight, bias = self.take(), self.take()
        mean, var = next(self.statistics)
        if self.train:
            old, count = (mean, var), x.size // x.shape[-1]
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new = mean, var * (count / (count - 1))
            self.updated.append(tuple((1 - _MOMENTUM) * a + _MOMENTUM * b for a, b in zip(old, new)))
        return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * weight) + bias

    def dropout(self, p: float, x: Any) -> Any:
        if not self.train:
            return x
        self.key, key = jax.random.split(self.key)
        return jnp.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)


def _norm_channels(layers: tuple[Any, ...]) -> list[int]:
    found = []
    for layer in layers:
        if isinstance(layer, networks.Residual):
            found += _norm_channels(layer.body) + _norm_channels(layer.shortcut)
        elif isinstance(layer, networks.Norm):
            found.append(layer.channels)
    return found


def _inputs(name: str, x: np.ndarray, values: list[np.ndarray]) -> tuple[Any, list[Any], list[Any]]:
    """Images, parameters and statistics as JAX wants them."""
    images = jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)
    parameters = [jnp.array(v.transpose(2, 3, 1, 0) if v.ndim == 4 else v) for v in values]
    statistics = [(jnp.zeros(c), jnp.ones(c)) for c in _norm_channels(NETWORKS[name].layers)]
    return images, parameters, statistics


def _loss(name: str, parameters: Any, statistics: Any, key: Any, x: Any, target: Any) -> Any:
    run = _Run(parameters, statistics, True, key)
    y = run.layers(NETWORKS[name].layers, x)
    if NETWORKS[name].classes is None:
        return ((y - x) ** 2).mean(), run.updated
    chosen = jnp.take_along_axis(jax.nn.log_softmax(y), target[:, None], 1)
    return -chosen.mean(), run.updated


@partial(jax.jit, static_argnums=0, donate_argnums=(1,))
def _step(name: str, state: Any, x: Any, target: Any) -> Any:
    parameters, first, second, statistics, count, key = state
    key, now = jax.random.split(key)
    gradients_of = jax.value_and_grad(partial(_loss, name), has_aux=True)
    (loss, statistics), gradients = gradients_of(parameters, statistics, now, x, target)
    count += 1
    rate = _RATE / (1 - _BETA1**count)
    root = jnp.sqrt(1 - _BETA2**count)
    first = [_BETA1 * m + (1 - _BETA1) * g for m, g in zip(first, gradients)]
    second = [_BETA2 * v + (1 - _BETA2) * g * g for v, g in zip(second, gradients)]
    parameters = [p - rate * m / (jnp.sqrt(v) / root + _EPS) for p, m, v in zip(parameters, first, second)]
    return loss, (parameters, first, second, statistics, count, key)


def steps(name: str, x: np.ndarray, target: np.ndarray, values: list[np.ndarray]) -> dict[str, Call]:
    """A training step; the call returns the loss when everything is computed."""
    images, parameters, statistics = _inputs(name, x, values)
    moments = [[jnp.zeros_like(p) for p in parameters] for _ in range(2)]
    state = [(parameters, *moments, statistics, jnp.float32(0), jax.random.key(0))]
    classes = images if NETWORKS[name].classes is None else jnp.asarray(target.astype(np.int32))

    def run() -> Any:
        loss, state[0] = _step(name, state[0], images, classes)
        jax.block_until_ready(state[0])
        return loss

    return {"jax": run}


@partial(jax.jit, static_argnums=0)
def _infer(name: str, parameters: Any, statistics: Any, x: Any) -> Any:
    return _Run(parameters, statistics, False, None).layers(NETWORKS[name].layers, x)


def inferences(name: str, x: np.ndarray, target: np.ndarray, values: list[np.ndarray]) -> dict[str, Call]:
    """Inference; the call returns the result (of images: channels-last) when it is there."""
    images, parameters, statistics = _inputs(name, x, values)
    return {"jax": lambda: jax.block_until_ready(_infer(name, parameters, statistics, images))}

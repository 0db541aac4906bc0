"""Cases of the benchmark: all can be named, and small ones agree with their peers."""

from __future__ import annotations

import sys
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import families

from brasa import ops
from brasa._bench import cases, geometry, networks
from brasa._bench.cases import contestants
from brasa._bench.cases.contestants import array
from brasa._bench.cases.conv import PASSES

PEERS = ("numpy", "torch", "jax")


def parts(result):
    """A call's result as a list of arrays or tensors."""
    if isinstance(result, (tuple, list)):
        return [part for item in result for part in parts(item)]
    if result is None:
        return []
    if not hasattr(result, "detach"):
        return [result]
    return [result.detach().float() if str(result.dtype) == "torch.bfloat16" else result.detach()]


def arrays(result):
    """A call's result as a list of NumPy arrays."""
    found = [np.asarray(part) for part in parts(result)]
    return [part.astype(np.float32) if part.dtype.name == "bfloat16" else part for part in found]


def on_gpu(x):
    """An array of CuPy, or a tensor, as a tensor; bfloat16 in float32."""
    import torch

    if getattr(x.dtype, "name", "") != "bfloat16":
        return torch.as_tensor(x, device="cuda")
    return torch.as_tensor(x.view(np.int16), device="cuda").view(torch.bfloat16).float()


def check(case, peer, tolerance=2e-4):
    """Every contestant computes what brasa computes."""
    calls = case.make()
    expected = arrays(calls["brasa"]())
    assert all(np.isfinite(array).all() for array in expected)
    others = [name for name in calls if name.partition("/")[0] == peer]
    assert others
    for name in others:
        found = arrays(calls[name]())
        assert len(found) == len(expected)
        for theirs, ours in zip(found, expected, strict=True):
            if peer == "jax" and theirs.ndim == 4:
                theirs = theirs.transpose(0, 3, 1, 2)
            assert theirs.shape == ours.shape
            np.testing.assert_allclose(theirs, ours, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("passes", [PASSES, ()])
def test_every_case_has_its_own_name(passes):
    everything = families.selected(["all"], PEERS, passes)
    assert len(everything) > 900
    names = [(case.family, case.name) for case in everything]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert all(case.nbytes > 0 or case.flops > 0 for case in everything)


def test_conv_stands_for_its_networks_and_only_filters():
    everything = families.selected(["conv"], (), ("fwd",))
    assert {case.family for case in everything} == {
        f"conv {kind}fwd" for kind in ("", "NCHW ", "1d ", "transposed ")
    }
    chosen = families.selected(["conv/lenet", "conv"], (), ("bwd-data",), only="data lenet 1 1->6 5x5 28 bwd")
    assert [case.name for case in chosen] == ["lenet 1 1->6 5x5 28 bwd-data"]
    with pytest.raises(ValueError, match="conf"):
        families.chosen(["conf"])


def test_the_gradients_of_some_networks_are_measured_alone_too():
    def kinds(name):
        return {case.family for case in families.selected([name], (), ())}

    assert kinds("conv/resnet50") == {f"conv {direction}" for direction in PASSES}
    assert kinds("conv/alexnet") == {"conv fwd", "conv fwd+bwd"}
    assert "conv 1d fwd+bwd" in kinds("conv/other")


@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (1, 2, 3), (5, 2, 2), (2, 3, 0)])
def test_taps_in_the_padding_do_not_count(size, kernel, stride, padding):
    inside = np.pad(np.ones(size, int), padding)
    windows = range(0, len(inside) - kernel + 1, stride)
    assert geometry.output_size(size, kernel, stride, padding) == len(windows)
    assert geometry.taps_inside(size, kernel, stride, padding) == sum(
        inside[i : i + kernel].sum() for i in windows
    )


def test_operations_of_a_convolution():
    layer = {"N": 16, "C": 2048, "H": 7, "W": 7, "O": 512, "kernel": 1, "stride": 2, "padding": 3}
    assert cases.conv2d(layer, ()).flops == 2.0 * 16 * 2048 * 512 * 3 * 3  # of 7 x 7 outputs
    assert cases.conv1d(2, 3, 20, 4, 5, 2, (), direction="fwd+bwd").flops == 3 * 2.0 * 2 * 3 * 4 * 5 * 8
    assert cases.conv_transpose2d(2, 6, 4, 3, 2, 2, 0, ()).flops == 2.0 * 2 * 6 * 3 * 2 * 2 * 4 * 4


def test_large_arrays_repeat_their_numbers():
    array(4)[...] = 7  # an array is its case's own
    assert 7 not in array(4)
    large = array(3, 1 << 20)
    assert large.shape == (3, 1 << 20)
    assert large.std() == pytest.approx(1, abs=0.01)
    assert not np.array_equal(large[0], large[1])


LAYER = {"N": 2, "C": 4, "H": 7, "W": 6, "O": 6, "kernel": 3, "stride": 2, "padding": 1, "groups": 2}
SMALL = {
    "matmul": lambda peers: cases.matmul(3, 5, 4, peers),
    "matmul transposed": lambda peers: cases.matmul(3, 5, 4, peers, transposed=True, transposed_a=True),
    "matmul native": lambda peers: cases.native_matmul(8, peers),
    "matmul packed": lambda peers: cases.packed_matmul(3, 5, 4, peers),
    "matmul batched": lambda peers: cases.batched_matmul(2, 3, 5, 4, peers, transposed=True),
    **{f"conv {d}": lambda peers, d=d: cases.conv2d(LAYER, peers, direction=d) for d in PASSES},
    "conv bf16": lambda peers: cases.conv2d(LAYER, peers, precision="bfloat16"),
    "conv tf32": lambda peers: cases.conv2d(LAYER, peers, precision="tf32"),
    "matmul bf16": lambda peers: cases.matmul(3, 5, 4, peers, transposed=True, precision="bfloat16"),
    "matmul tf32": lambda peers: cases.matmul(3, 5, 4, peers, transposed_a=True, precision="tf32"),
    "matmul tf32x3": lambda peers: cases.matmul(3, 5, 4, peers, transposed=True, precision="tf32x3"),
    "matmul gelu": lambda peers: cases.matmul(3, 5, 4, peers, transposed=True, gelu=True),
    "matmul batched bf16": lambda peers: cases.batched_matmul(2, 3, 5, 4, peers, precision="bfloat16"),
    **{
        f"{kind} {d}": lambda peers, make=make, d=d: make(peers, d)
        for d in PASSES
        for kind, make in {
            "conv NCHW": lambda peers, d: cases.conv2d(LAYER, peers, nchw=True, direction=d),
            "conv1d": lambda peers, d: cases.conv1d(2, 3, 20, 4, 5, 2, peers, direction=d),
            "conv transposed": lambda p, d: cases.conv_transpose2d(2, 6, 4, 3, 4, 2, 1, p, direction=d),
        }.items()
    },
    "softmax": lambda peers: cases.softmax(3, 7, peers),
    "softmax backward": lambda peers: cases.softmax(3, 7, peers, backward=True),
    "layer norm": lambda peers: cases.layer_norm(3, 7, peers),
    "layer norm backward": lambda peers: cases.layer_norm(3, 7, peers, backward=True),
    "attention": lambda peers: cases.attention(2, 2, 5, 3, peers),
    "attention backward": lambda peers: cases.attention(2, 2, 5, 3, peers, causal=True, backward=True),
    "batch norm": lambda peers: cases.batch_norm(2, 3, 4, peers, layout="contiguous"),
    "batch norm backward": lambda p: cases.batch_norm(2, 3, 4, p, layout="channels-last", backward=True),
    "embedding": lambda peers: cases.embedding(5, 7, 3, peers),
    "embedding backward": lambda peers: cases.embedding(5, 7, 3, peers, backward=True),
    **{
        f"{cell}{' backward' * both}": lambda p, c=cell, b=both: cases.recurrent(c, 3, 2, 4, 5, p, backward=b)
        for cell in ("lstm", "gru", "rnn")
        for both in (False, True)
    },
    "tanh": lambda peers: cases.activation("tanh", peers, shape=(3, 50)),
    "relu": lambda peers: cases.activation("relu", peers, shape=(3, 50)),
}
BY_NUMPY = (
    "matmul",
    "matmul transposed",
    "matmul native",
    "matmul batched",
    "softmax",
    "embedding",
    "tanh",
    "relu",
)


@pytest.mark.parametrize("name", BY_NUMPY)
def test_agrees_with_numpy(name):
    check(SMALL[name](("numpy",)), "numpy")


@pytest.mark.torch
@pytest.mark.parametrize("name", SMALL)
def test_agrees_with_torch(name):
    pytest.importorskip("torch")
    check(SMALL[name](("torch",)), "torch", 2.0**-7 if "bf16" in name else 2e-4)


ON_GPU = families.selected(
    ["matmul", "conv", "pool", "activation", "norm", "attention", "loss", "embedding", "rnn"],
    ("torch",),
    ("fwd", "bwd-data", "bwd-weight"),
    device="cuda",
)


def tolerance_on_gpu(case):
    """Of a difference, relative to the norm: float32 sums differ by less than 1e-4, what is rounded to bfloat16 by less
    than two roundings; operands in tf32 are cut or rounded, to 2^-10 each. In attention weights and slopes are rounded
    as well as results, but each on its own: the norm sees 3e-3. torch adds logarithms of CTC, about 1,100 after 400
    steps: roundings of 2^-14 of a probability, 20 of them where their signs are random. Against float64 its gradient
    is off by 2.9e-4, brasa's by 5e-7. In recurrent layers roundings pass through the steps: after 40 of them brasa is
    off by up to 8e-3 and torch (on the CPU) by 1.2e-2.
    """
    if case.family == "rnn bfloat16":
        return 2.0**-5
    if case.unit == "tf32":
        return 2.0**-9
    if case.unit == "bf16" or "bfloat16" in case.family:
        return 2.0**-7
    return 20 * 2.0**-14 if case.name.startswith("ctc_loss fwd+bwd 400x64x32") else 1e-4


@pytest.mark.torch
@pytest.mark.parametrize("case", ON_GPU, ids=lambda case: f"{case.family}: {case.name}")
def test_large_cases_on_cupy_agree_with_torch(case, cupy_arrays, monkeypatch):
    """What a GPU is measured on is also computed right."""
    pytest.importorskip("torch")
    from brasa._bench import cuda

    monkeypatch.setattr(contestants, "_device", "cuda")
    cuda.prepare_torch()
    calls = case.make()
    (ours, *others) = ([on_gpu(x) for x in parts(call())] for call in calls.values())
    tolerance = tolerance_on_gpu(case)
    assert others
    for theirs in others:
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            assert float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.torch
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activations_agree_with_torch(name, backward):
    pytest.importorskip("torch")
    if backward and name in ("step", "sign"):
        pytest.skip("the derivative is 0")
    check(cases.activation(name, ("torch",), backward=backward, shape=(4, 33)), "torch")


@pytest.mark.torch
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_agrees_with_torch(kind, backward):
    pytest.importorskip("torch")
    shape = (2, 3, 8)
    check(cases.pool(kind, 2, 2, 0, ("torch",), "channels-last", backward=backward, shape=shape), "torch")


@pytest.mark.torch
@pytest.mark.parametrize("backward", [False, True])
def test_pixel_shuffle_agrees_with_torch(backward):
    pytest.importorskip("torch")
    check(cases.pixel_shuffle((2, 3, 8), 2, ("torch",), "channels-last", backward=backward), "torch")


@pytest.mark.parametrize("name", ["conv fwd", "softmax", "tanh", "relu", "matmul"])
def test_agrees_with_jax(name):
    pytest.importorskip("jax")
    layer = {**LAYER, "groups": 1}
    case = cases.conv2d(layer, ("jax",)) if name == "conv fwd" else SMALL[name](("jax",))
    check(case, "jax")


SIZES = {"mlp": 669_706, "lenet": 61_706, "resnet20": 269_722, "resnet18": 11_689_512, "vgg11": 132_863_336}


@pytest.mark.parametrize("name", SIZES)
def test_descriptions_have_the_networks_parameters(name):
    shapes = cases.model_sizes(name)
    assert sum(map(prod, shapes)) == SIZES[name]
    if SIZES[name] < 1e6:
        assert Counter(shapes) == Counter(tuple(p.shape) for p in networks.in_brasa(name).parameters())


def test_operations_of_a_forward():
    first = 28 * 5 - 2 * (
        2 + 1
    )  # taps along a side: two of the first output are in the padding, one of the next
    lenet = 2 * (6 * first**2 + 16 * 100 * 150 + 400 * 120 + 120 * 84 + 84 * 10)
    assert networks.forward_flops("lenet") == lenet
    # The papers count taps in the padding too: 1.8e9 and 7.6e9 multiply-adds.
    assert 0.92 * 3.63e9 < networks.forward_flops("resnet18") < 3.63e9
    assert 0.95 * 15.2e9 < networks.forward_flops("vgg11") < 15.2e9
    lstm = 4 * 256 * (64 + 256) + 4 * 256 * (256 + 256)  # multiply-adds of a character in both layers
    assert networks.forward_flops("char_lstm") == 2 * 64 * (lstm + 256 * 100)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("mlp", "torch"),
        ("lenet", "torch"),
        ("resnet20", "torch"),
        ("autoencoder", "torch"),
        ("char_lstm", "torch"),
        ("char_gru", "torch"),
        ("lenet", "jax"),
        ("autoencoder", "jax"),
    ],
)
def test_steps_agree_with_peers(name, peer):
    """The same losses for two steps from the same weights: forward, backward and Adam are the same."""
    pytest.importorskip(peer)
    case = cases.training_step(name, 2, families.step_peers("steps", name, (peer,)))
    calls = case.make()
    for tolerance in (1e-4, 5e-3):
        losses = {who: float(np.asarray(arrays(call())[0])) for who, call in calls.items()}
        for loss in losses.values():
            assert loss == pytest.approx(losses["brasa"], rel=tolerance)


@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_inference_agrees_with_peers(peer):
    pytest.importorskip(peer)
    check(cases.inference("resnet20", 2, families.step_peers("inferences", "resnet20", (peer,))), peer, 1e-3)


def test_optimiser_steps_run():
    calls = cases.optimizer_step("adamw", "tiny", [(3, 4), (4,)], ()).make()
    assert calls["brasa"]() is None

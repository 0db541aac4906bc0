"""Properties that every operator has, from its descriptor (`tests/descriptors`)."""

from __future__ import annotations

import hashlib
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brasa as br
from brasa import _cpu, ops
from brasa.tensor import Tensor
from brasa.testing import gradcheck
from descriptors import UNIT, Operator, all_operators
from fuzz_calls import public_calls
from hostile import HOSTILE_ARRAYS, HOSTILE_NUMBERS, misaligned
from layouts import check_gradients, weights_of

OPERATORS = all_operators()
every_operator = pytest.mark.parametrize("op", OPERATORS, ids=str)
differentiable_operator = pytest.mark.parametrize("op", [op for op in OPERATORS if op.gradients], ids=str)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])


def call(op: Operator, arguments, xp=None):
    """The operator's results as a list of NumPy arrays; arrays pass through `xp`."""
    if xp is not None:
        arguments = {k: xp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    results = getattr(ops, op.name)(**arguments)
    results = results if isinstance(results, tuple) else (results,)
    return [xp.asnumpy(r) if xp is not None else np.asarray(r) for r in results]


def gradients(op: Operator, arguments, xp=None):
    """The gradients of the sum of the results times fixed numbers, as a list of NumPy arrays."""
    move = (lambda a: a) if xp is None else xp.asarray
    given, result = recorded(op, arguments, move)
    result.backward(move(weights_of(result)))
    back = np.asarray if xp is None else xp.asnumpy
    return [back(given[name].grad.data) for name in op.gradients]


def recorded(op: Operator, arguments, move):
    """The arguments, those that get gradients as Tensors, and the first result."""
    given = {k: move(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    given |= {name: Tensor(given[name], requires_grad=True) for name in op.gradients}
    result = getattr(ops, op.name)(**given)
    return given, result[0] if isinstance(result, tuple) else result


def sample(op: Operator, seed: int, dtype=np.float32):
    return op.sample(np.random.default_rng(seed), dtype)


def wide(arguments):
    return {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
        for k, v in arguments.items()
    }


def same_bits(first, second):
    return len(first) == len(second) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def test_every_public_operator_has_a_descriptor():
    described = {op.name for op in OPERATORS}
    callables = {name for name in ops.__all__ if callable(getattr(ops, name))}
    special = {name for name in callables if name.endswith(("_backward", "_step"))}
    special |= {"activation", "PackedWeight", "prepack"}
    assert callables - special == described
    assert {name for name, *_ in public_calls(random.Random(0))} == callables  # the fuzz leaves none out


@every_operator
@given(seed=seeds, dtype=dtypes)
def test_result_is_within_its_bound(op, xp, seed, dtype):
    arguments = sample(op, seed, dtype)
    before = {k: hashlib.sha256(a.tobytes()).digest() for k, a in op.arrays(arguments).items()}
    results = call(op, arguments, xp)
    expected = op.reference(**wide(arguments))
    expected = expected if isinstance(expected, tuple) else (expected,)
    with np.errstate(all="ignore"):
        bound = op.bound(wide(arguments), expected if len(expected) > 1 else expected[0], UNIT[dtype])
    for got, want in zip(results, expected, strict=True):
        assert got.shape == want.shape
        assert got.dtype == (dtype if want.dtype.kind == "f" else want.dtype)
        error = np.abs(got.astype(np.float64) - want)
        assert np.all((error <= bound) | (np.isnan(got) & np.isnan(want))), (error / bound).max()
    after = {k: hashlib.sha256(a.tobytes()).digest() for k, a in op.arrays(arguments).items()}
    assert before == after, "an input was changed"


forward_and_backward = pytest.mark.parametrize(
    ("op", "compute"),
    [(op, call) for op in OPERATORS] + [(op, gradients) for op in OPERATORS if op.gradients],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)


@forward_and_backward
@given(seed=seeds)
def test_same_bits_for_any_number_of_threads(op, compute, seed):
    arguments, before = sample(op, seed), _cpu.num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            br.set_num_threads(n)
            results.append(compute(op, arguments))
    finally:
        br.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@forward_and_backward
@given(seed=seeds, dtype=dtypes)
def test_same_bits_on_every_instruction_set_with_fma(op, compute, seed, dtype):
    arguments, before = sample(op, seed, dtype), _cpu.isa()
    results = {}
    try:
        for name in _cpu.supported_isas():
            _cpu._set_isa(name)
            results[name] = compute(op, arguments)
    finally:
        _cpu._set_isa(before)
    for name in results.keys() & {"avx2", "avx512"}:
        assert same_bits(results["scalar"], results[name]), name


@every_operator
@given(seed=seeds)
def test_same_bits_for_any_place_in_memory(op, seed):
    if not op.layouts:
        pytest.skip("this operator promises less")
    arguments = sample(op, seed)
    expected = call(op, arguments)
    for change in (misaligned, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], np.copy):
        changed = {k: change(v) if isinstance(v, np.ndarray) and v.ndim else v for k, v in arguments.items()}
        assert same_bits(expected, call(op, changed))


@every_operator
@given(seed=seeds)
def test_a_sample_alone_is_the_sample_in_a_batch(op, seed):
    if not op.batched:
        pytest.skip("no batch axis")
    arguments = sample(op, seed)
    whole = call(op, arguments)
    for i in range(min(3, len(arguments[op.batched[0]]))):
        alone = arguments | {name: arguments[name][i : i + 1] for name in op.batched}
        assert same_bits([r[i : i + 1] for r in whole], call(op, alone))


@differentiable_operator
@given(seed=seeds)
def test_the_gradient_of_a_sample_alone_is_that_in_a_batch(op, seed):
    names = [name for name in op.batched if name in op.gradients]
    if not names:
        pytest.skip("no batch axis")
    arguments = sample(op, seed)
    whole = dict(zip(op.gradients, gradients(op, arguments), strict=True))
    count = len(arguments[op.batched[0]])
    # The numbers that the results are weighted with start anew for the sample alone: only the first is equal.
    alone = arguments | {name: arguments[name][:1] for name in op.batched}
    single = dict(zip(op.gradients, gradients(op, alone), strict=True))
    assert count == 0 or same_bits([whole[n][:1] for n in names], [single[n] for n in names])


@differentiable_operator
@pytest.mark.parametrize("images", ["C order", "channels-last"])
@given(seed=seeds, dtype=dtypes)
@settings(max_examples=5)
def test_gradients_are_the_same_for_any_layout_of_dy(op, xp, images, seed, dtype):
    """Reductions pass repeated numbers back, views transposed ones, and neither lies as the arguments do."""
    arguments = sample(op, seed, dtype)

    def record(move):
        given, result = recorded(op, arguments, move)
        return [given[name] for name in op.gradients], result

    check_gradients(record, xp, images)


@differentiable_operator
@given(seed=seeds, dtype=dtypes)
@settings(max_examples=10)
def test_gradients_agree_between_the_devices(op, device, seed, dtype):
    arguments = sample(op, seed, dtype)
    for ours, theirs in zip(gradients(op, arguments), gradients(op, arguments, device), strict=True):
        scale = 1 + np.abs(ours).max(initial=0)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=256 * UNIT[dtype] * scale)


@differentiable_operator
@given(seed=seeds)
@settings(max_examples=10)  # a gradcheck costs thirty times a call
def test_gradients_agree_with_finite_differences(op, seed):
    arguments = sample(op, seed, np.float64)
    inputs = [arguments[name] for name in op.gradients]

    def function(*tensors):
        given = dict(zip(op.gradients, tensors, strict=True))
        result = getattr(ops, op.name)(**(arguments | given))
        return result[0] if isinstance(result, tuple) else result

    threads = _cpu.num_threads()
    br.set_num_threads(1)  # hundreds of tiny calls: threads would only wait for each other
    try:
        assert gradcheck(function, inputs, **op.options)
    finally:
        br.set_num_threads(threads)


@every_operator
def test_tensors_give_what_arrays_give(op):
    arguments = sample(op, 1)
    first = next(iter(op.arrays(arguments)))
    with_tensor = arguments | {first: Tensor(arguments[first])}
    results = getattr(ops, op.name)(**with_tensor)
    results = results if isinstance(results, tuple) else (results,)
    assert all(isinstance(r, Tensor) for r in results)
    assert same_bits(call(op, arguments), [r.numpy() for r in results])


@every_operator
@pytest.mark.parametrize("kind", HOSTILE_ARRAYS)
def test_hostile_arrays(op, kind):
    """A result, or an exception that says what is wrong; never a crash."""
    for name in op.arrays(sample(op, 2)):
        arguments = sample(op, 2)
        arguments[name] = HOSTILE_ARRAYS[kind](arguments[name])
        try:
            call(op, arguments)
        except (ValueError, TypeError) as error:
            assert len(str(error)) > 10


def test_memory_of_objects_is_never_handed_out():
    """Left as it comes it would be pointers to anywhere, which the first look at them follows."""
    array = np.ones(5000, object)
    for make in (lambda: _cpu.empty_like(array), lambda: _cpu.empty((5000,), array.dtype, False)):
        with pytest.raises(TypeError, match="object"):
            make()


@every_operator
def test_arrays_of_objects_beside_a_second_hostile_argument(op):
    arguments = sample(op, 2)
    for name, array in op.arrays(arguments).items():
        large = np.ones((*array.shape[:-1], 1025), object)
        for other in arguments.keys() - {name}:
            for value in (*HOSTILE_NUMBERS[:11], large):
                with pytest.raises((TypeError, ValueError, MemoryError)):
                    getattr(ops, op.name)(**(arguments | {name: large, other: value}))


def test_results_that_memory_does_not_hold_are_refused_with_their_shape():
    with pytest.raises(MemoryError, match=r"shape \(1125899906842624,\)"):
        ops.relu(np.broadcast_to(np.float32(1), (2**50,)))


@pytest.mark.parametrize("mask", [1, (True,) * 3, [True] * 5, ({}, 1, 1, 1), {}, None])
@pytest.mark.parametrize("name", ["matmul", "conv2d", "batch_norm", "layer_norm"])
def test_a_mask_of_another_kind_is_refused_by_name(name, mask):
    calls = {name: (function, arguments) for name, function, arguments in public_calls(random.Random(0))}
    function, arguments = calls[f"{name}_backward"]
    with pytest.raises((TypeError, ValueError), match="mask"):
        function(**(arguments | {"mask": mask}))


def test_what_save_returned_is_refused_by_name_where_it_is_something_else():
    for name, function, arguments in public_calls(random.Random(0)):
        if name.startswith(("conv2d", "matmul")) or arguments.get("saved") is None:
            continue  # these look at it only where their activation needs it
        for saved in (7, {}, np.ones((2, 2, 2)), (1, 2), (None,) * 4, [np.ones(3)] * 4, "saved"):
            with pytest.raises((TypeError, ValueError), match=r"saved"):
                function(**(arguments | {"saved": saved}))


@every_operator
def test_hostile_numbers(op):
    numbers = [k for k, v in sample(op, 3).items() if not isinstance(v, np.ndarray)]
    for name in numbers:
        for value in HOSTILE_NUMBERS:
            arguments = sample(op, 3) | {name: value}
            start = time.perf_counter()
            try:
                call(op, arguments)
            except (ValueError, TypeError, MemoryError) as error:
                assert str(error) or isinstance(error, MemoryError)
            assert time.perf_counter() - start < 1, (name, value)


@every_operator
def test_mixed_devices_are_a_type_error(op, device):
    arguments = sample(op, 4)
    arrays = list(op.arrays(arguments))
    if len(arrays) < 2:
        pytest.skip("one array")
    arguments[arrays[-1]] = device.asarray(arguments[arrays[-1]])
    with pytest.raises(TypeError, match="device"):
        getattr(ops, op.name)(**arguments)


@every_operator
def test_infinities_and_nan_do_not_crash(op):
    for value in (np.nan, np.inf, -np.inf, 1e38, 1e-42):
        arguments = sample(op, 5)
        for array in op.arrays(arguments).values():
            if array.dtype.kind == "f":
                array[...] = value
        assert call(op, arguments)

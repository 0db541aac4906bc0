"""The tape with toy operators: what is recorded, what a backward is given, what errors say."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from brasa import _tape, ops
from brasa._backend import CHANNELS_LAST, add_to, layout
from brasa._profiler import detect_anomaly, profile
from brasa._tape import differentiable
from brasa.autograd import enable_grad, grad, is_grad_enabled, no_grad
from brasa.tensor import Tensor


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


calls: list[dict] = []


def _affine(x, weight, bias=None, factor=1.0, *, residual=None, save=False, out=None):
    y = x * weight * factor
    y = y if bias is None else y + bias
    y = y if residual is None else y + residual
    if out is not None:
        out[...] = y
        y = out
    return (y, "kept aside") if save else y


def affine_backward(dy, x, weight, factor, *, y, saved, mask):
    calls.append({"dy": dy, "x": x, "weight": weight, "factor": factor, "y": y, "saved": saved, "mask": mask})
    return (
        dy * weight * factor if mask[0] else None,
        dy * x * factor if mask[1] else None,
        dy if mask[2] else None,
        dy if mask[3] else None,
    )


affine = differentiable(_affine, affine_backward, arrays=("x", "weight", "bias", "residual"))
double = differentiable(lambda x: x * 2, lambda dy: dy * 2, name="double")


def _divide_round(x, n):
    return x // n, x % n, (x > 0).astype(np.int64)


divide_round = differentiable(
    _divide_round, lambda dquotient, drest, n: drest if drest is not None else dquotient * 0.0
)


# Arrays and Tensors


def test_arrays_give_arrays_and_nothing_is_recorded():
    x = np.ones(3)
    assert type(affine(x, x)) is np.ndarray
    _, saved = affine(x, x, save=True)
    assert saved == "kept aside"
    out = np.empty(3)
    assert affine(x, x, out=out) is out


@pytest.mark.parametrize("wrapped", range(4))
def test_one_tensor_makes_the_result_a_tensor(wrapped):
    arguments = [np.arange(3.0), np.ones(3), np.ones(3), np.ones(3)]
    arguments[wrapped] = Tensor(arguments[wrapped])
    x, weight, bias, residual = arguments
    y = affine(x, weight, bias, residual=residual)
    assert type(y) is Tensor
    assert not y.requires_grad
    np.testing.assert_array_equal(y.numpy(), [2, 3, 4])


def test_a_subclass_is_a_tensor_and_results_are_plain():
    class Special(Tensor):
        pass

    y = double(Special([1.0, 2.0], requires_grad=True))
    assert type(y) is Tensor
    assert y.requires_grad


@pytest.mark.parametrize("option", [{"save": True}, {"out": np.empty(1)}])
def test_save_and_out_are_for_arrays(option):
    with pytest.raises(TypeError, match=r"affine: .*is for arrays"):
        affine(leaf(1), leaf(1), **option)
    with pytest.raises(TypeError, match="out"):
        affine(np.ones(1), np.ones(1), out=leaf(1))


def test_signature_and_docstring_are_those_of_the_forward():
    import inspect

    assert list(inspect.signature(affine).parameters) == [
        "x", "weight", "bias", "factor", "residual", "save", "out",
    ]  # fmt: skip
    assert affine.__name__ == "affine"
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieght'"):
        affine(np.ones(1), wieght=np.ones(1))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        affine(leaf(1))


# What a backward is given


def test_backward_receives_what_its_parameters_name():
    x, weight = leaf(1, 2), leaf(3, 4)
    y = affine(x, weight, factor=5.0)
    y.backward(np.array([1.0, 10.0]))
    given = calls[-1]
    assert given["mask"] == (True, True, False, False)
    assert given["saved"] == "kept aside"
    assert given["factor"] == 5.0
    np.testing.assert_array_equal(given["y"], [15, 40])
    np.testing.assert_array_equal(x.grad.numpy(), [15, 200])
    np.testing.assert_array_equal(weight.grad.numpy(), [5, 100])


def test_mask_is_false_where_no_gradient_is_needed():
    x, bias = leaf(1), leaf(2)
    affine(x.detach(), np.ones(1), bias).backward()
    assert calls[-1]["mask"] == (False, False, True, False)
    weight = leaf(3)
    grad(affine(x, weight, bias), [weight])
    assert calls[-1]["mask"] == (False, True, False, False)


def test_several_results_give_one_gradient_each():
    x = leaf(5, 7)
    quotient, rest, positive = divide_round(x, 4)
    assert positive.requires_grad is False
    assert quotient.requires_grad
    rest.backward(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(x.grad.numpy(), [1, 2])
    x.grad = None
    divide_round(x, 4)[0].sum().backward()  # the gradient of the rest is None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0])


def test_a_lone_dy_beside_several_results_is_a_tuple():
    seen = []
    halves = differentiable(
        lambda x: [x[:1] * 1, x[1:] * 1],
        lambda dy: seen.append(dy) or np.concatenate([d if d is not None else np.zeros(1) for d in dy]),
    )
    x = leaf(1, 2)
    halves(x)[1].backward()
    assert seen[0][0] is None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 1])


def test_a_gradient_required_of_a_constant_is_an_error():
    scaled = differentiable(lambda x, c: x * c, lambda dy, c: dy * c, name="scaled")
    with pytest.raises(TypeError, match="scaled: 'c' requires a gradient"):
        scaled(leaf(1), leaf(2))
    assert scaled(leaf(1), Tensor(np.ones(1))).requires_grad


def test_without_backward_nothing_requires_a_gradient():
    rounded = differentiable(lambda x: np.round(x), None)
    assert not rounded(leaf(1.4)).requires_grad


def test_wrong_pairs_are_refused_at_registration():
    with pytest.raises(TypeError, match=r"not clear what .*strange"):
        differentiable(lambda x: x, lambda dy, x, strange: dy)
    with pytest.raises(TypeError, match="no parameter 'save'"):
        differentiable(lambda x: x, lambda dy, saved: dy)
    with pytest.raises(TypeError, match="keyword-only"):
        differentiable(lambda x, save: x, lambda dy: dy)
    with pytest.raises(TypeError, match="must name parameters"):
        differentiable(lambda x: x, lambda dy: dy, arrays=("w",))


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda dy: dy[:1], r"wrong.*shape \(1,\).*'x'.*shape \(2,\)"),
        (lambda dy: dy.astype(np.float32), "wrong.*float32.*float64"),
        (lambda dy: (dy, dy), "wrong.*2 gradients for 1"),
    ],
)
def test_a_wrong_gradient_is_an_error_that_names_the_operator(backward, message):
    wrong = differentiable(lambda x: x * 1, backward, name="wrong")
    with pytest.raises(RuntimeError, match=message):
        wrong(leaf(1, 2)).sum().backward()


# Backward passes


def test_second_use_of_a_node_adds_up():
    x = leaf(1, 2)
    y = double(x)
    (double(y) + y + y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [8, 8])


def test_an_argument_used_twice_in_one_call():
    x = leaf(3)
    affine(x, x, x, residual=x).backward()
    assert x.grad.item() == 8


def test_gradients_add_up_over_passes_and_retain_graph():
    x = leaf(1)
    y = double(x)
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 4
    with pytest.raises(RuntimeError, match=r"second time through 'double'.*retain_graph"):
        y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        double(y).backward()


def test_a_diamond_visits_each_node_once():
    count = []
    counted = differentiable(lambda x: x * 1, lambda dy: count.append(1) or dy * 1)
    x = leaf(1)
    y = counted(x)
    for _ in range(20):
        y = y + y
    y.backward()
    assert x.grad.item() == 2**20
    assert len(count) == 1


def test_a_long_chain_needs_no_recursion():
    x = leaf(1)
    y = x
    for _ in range(50_000):
        y = _tape_identity(y)
    y.backward()
    assert x.grad.item() == 1
    del y
    gc.collect()


_tape_identity = differentiable(lambda x: x * 1, lambda dy: dy, name="identity")


def test_backward_frees_what_was_saved():
    class Witness(np.ndarray):
        pass

    saved = np.zeros(3).view(Witness)
    alive = weakref.ref(saved)
    keeps = differentiable(
        lambda x, *, save=False: (x * 1, saved) if save else x * 1, lambda dy, saved: dy * 1, name="keeps"
    )
    y = keeps(leaf(1))
    y.backward()
    keeps = saved = None
    gc.collect()
    assert alive() is None
    assert y.item() == 1


def test_no_reference_cycles():
    gc.collect()
    gc.disable()
    try:
        x = leaf(1, 2)
        y = (affine(x, x, x) * 2).exp().sum()
        alive = weakref.ref(y), weakref.ref(x)
        y.backward()
        x.grad = None
        calls.clear()
        del x, y
        assert [r() for r in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("use", ["one backward", "two passes", "caller's gradient", "view", "saved"])
def test_gradients_never_share_memory(use):
    a, b = leaf(1, 2), leaf(3, 4)
    dy = np.ones(2)
    if use == "one backward":
        affine(np.ones(2), np.ones(2), a, residual=b).backward(dy)
    elif use == "two passes":
        for _ in range(2):
            _tape_identity(a).backward(dy)
            _tape_identity(b).backward(dy)
    elif use == "caller's gradient":
        (a + b).backward(dy)
    elif use == "view":
        affine(np.ones(2), np.ones(2), a.reshape(2, 1).reshape(2), residual=b[:]).backward(dy)
    else:
        store = np.ones(2)
        held = differentiable(
            lambda x, *, save=False: (x * 1, store) if save else x * 1, lambda dy, saved: saved
        )
        held(a).backward(dy)
        held(b).backward(dy)
        assert not np.shares_memory(a.grad.data, store)
    assert not np.shares_memory(a.grad.data, b.grad.data)
    assert not np.shares_memory(a.grad.data, dy)
    first = a.grad.data.copy()
    b.grad.data[...] = 99
    dy[...] = 77
    np.testing.assert_array_equal(a.grad.data, first)


def test_sums_in_place_do_not_touch_arrays_of_others():
    x = leaf(1, 2)
    dy = np.ones(2)
    (x + x + x + x).backward(dy)
    np.testing.assert_array_equal(dy, [1, 1])
    np.testing.assert_array_equal(x.grad.numpy(), [4, 4])
    y = x * 1
    z = y + y
    w = z + y + z * 1 + y
    w.backward(dy)
    np.testing.assert_array_equal(dy, [1, 1])
    np.testing.assert_array_equal(x.grad.numpy(), [4 + 6, 4 + 6])


# Changes in place


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layouts", ["CC", "LL", "CL", "SC"])  # channels-last, strided
def test_gradients_of_any_layout_are_added(xp, isa, dtype, layouts):
    rng = np.random.default_rng(3)
    for width in (5, 66):  # the larger ones by the kernel
        shape = (4, 5, width, width)
        total, other = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        lying, expected = [], total + other
        for values, lying_as in zip((total, other), layouts, strict=True):
            array = xp.asarray(values)
            if lying_as == "L":
                array = xp.asarray(np.ascontiguousarray(values.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
            elif lying_as == "S":
                array = xp.asarray(np.repeat(values, 2, axis=3))[..., ::2]
            lying.append(array)
        add_to(*lying)
        np.testing.assert_array_equal(xp.asnumpy(lying[0]), expected)
        np.testing.assert_array_equal(xp.asnumpy(lying[1]), other)


def test_the_gradient_just_made_takes_the_sum():
    """What an operator made for one use is added to in place; what came from elsewhere is not touched."""
    passed = []

    def pass_on(dy):
        passed.append(dy)
        return dy

    same = differentiable(lambda x: x.copy(), pass_on, name="same")
    double = differentiable(lambda x: x * 2, lambda dy: dy * 2, name="double")
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    hidden = x * 1
    (double(hidden) + same(hidden)).backward(np.ones(3, np.float32))
    np.testing.assert_array_equal(x.grad.numpy(), [3, 3, 3])
    np.testing.assert_array_equal(passed[0], [1, 1, 1])


@pytest.mark.parametrize("kept", [False, True])
def test_a_view_takes_the_sum_if_nobody_else_holds_its_memory(kept):
    """A new channels-last array is a view of one in the order of memory."""
    owners, made = [], []

    def channels_last(dy):
        owner = np.zeros((2, 4, 4, 3), np.float32)
        dx = owner.transpose(0, 3, 1, 2)
        dx[...] = dy
        made.append(dx.ctypes.data)
        if kept:
            owners.append(owner)
        return dx

    op = differentiable(lambda x: x.copy(), channels_last, name="channels_last")
    x = Tensor(np.ones((2, 3, 4, 4), np.float32), requires_grad=True)
    hidden = x * 1
    hidden.register_hook(lambda gradient: made.append(gradient.data.ctypes.data))
    (op(hidden) + op(hidden)).backward(np.ones(x.shape, np.float32))
    np.testing.assert_array_equal(x.grad.numpy(), np.full(x.shape, 2))
    assert (made[2] in made[:2]) is not kept
    for owner in owners:
        np.testing.assert_array_equal(owner, np.ones_like(owner))


@pytest.mark.parametrize("width", [3, 96])
def test_sums_of_images_keep_their_layout(xp, width):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal((2, width, width, 8)).astype(np.float32) for _ in range(2))
    total = Tensor(xp.asarray(a).transpose(0, 3, 1, 2)) + Tensor(xp.asarray(b).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(total.numpy(), (a + b).transpose(0, 3, 1, 2))
    assert layout(total.data) == CHANNELS_LAST


def test_a_changed_argument_is_found():
    x, weight = leaf(1), leaf(2)
    y = affine(x, weight)
    with no_grad():
        weight[0] = 5.0
    with pytest.raises(RuntimeError, match="'affine' needs 'weight'"):
        y.backward()


def test_a_changed_result_is_found():
    x = leaf(1)
    y = x.exp()
    with no_grad():
        y.detach()[0] = 0.0
    with pytest.raises(RuntimeError, match="'exp' needs 'y'"):
        y.backward()


def test_a_change_through_a_view_is_found():
    x = leaf(1, 2)
    y = x * x
    with no_grad():
        x.reshape(2, 1)[0] = 3.0
    with pytest.raises(RuntimeError, match="'multiply' needs 'a' and 'b'"):
        y.sum().backward()


def test_a_change_of_what_is_not_needed_is_no_error():
    x, bias = leaf(1), leaf(2)
    y = affine(x, x, bias)
    bias.version += 1
    y.backward()
    assert bias.grad.item() == 1


# Grad mode


def test_no_grad_stops_recording_not_wrapping():
    x = leaf(1)
    with no_grad():
        y = double(x)
        assert type(y) is Tensor
        assert not y.requires_grad
        with enable_grad():
            assert double(x).requires_grad
        assert not is_grad_enabled()
    assert double(x).requires_grad


def test_no_grad_decorates_and_nests():
    @no_grad()
    def inference(depth):
        return [is_grad_enabled()] + (inference(depth - 1) if depth else [])

    assert inference(2) == [False] * 3
    assert is_grad_enabled()
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_grad_mode_is_per_thread():
    inside, seen = threading.Event(), []
    done = threading.Event()

    def other():
        inside.wait()
        seen.append(is_grad_enabled())
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with no_grad():
        inside.set()
        done.wait()
    thread.join()
    assert seen == [True]


def test_grad_mode_is_per_task():
    import asyncio

    async def quiet(event):
        with no_grad():
            event.set()
            await asyncio.sleep(0)
            return is_grad_enabled()

    async def loud(event):
        await event.wait()
        return is_grad_enabled()

    async def both():
        event = asyncio.Event()
        return await asyncio.gather(quiet(event), loud(event))

    assert asyncio.run(both()) == [False, True]


def test_threads_share_a_leaf():
    x = leaf(*np.ones(100))

    def work():
        for _ in range(50):
            (double(x) * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(x.grad.numpy(), np.full(100, 800.0))


# Gradients of gradients


def test_create_graph_names_an_operator_that_cannot():
    opaque = differentiable(lambda x: np.exp(x), lambda dy, y: np.multiply(dy, np.asarray(y)), name="opaque")
    x = leaf(1)
    with pytest.raises(NotImplementedError, match="opaque"):
        opaque(x).backward(create_graph=True)


def test_create_graph_is_not_lost_through_an_array():
    sneaky = differentiable(lambda x: x * x, lambda dy, x: dy * np.asarray(x) * 2, name="sneaky")
    x = leaf(3)
    with pytest.raises(NotImplementedError, match="sneaky"):
        sneaky(x).backward(create_graph=True)
    sneaky(x).backward()
    assert x.grad.item() == 6


def test_create_graph_passes_a_constant_part():
    linear = differentiable(lambda x, c: np.multiply(x, c), lambda dy, c: np.multiply(dy, c), name="linear")
    x = leaf(3)
    (g,) = grad(linear(x, np.array([2.0])), x, create_graph=True)
    assert g.item() == 2


def test_third_derivative():
    x = leaf(2)
    y = x**4
    for expected in (32, 48, 48):
        (y,) = grad(y, x, create_graph=True)
        assert y.item() == expected


# Hooks


def test_hooks_change_and_observe():
    x = leaf(1, 2)
    y = double(x)
    seen = []
    y.register_hook(lambda g: seen.append(g.numpy().copy()))
    handle = y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    y.sum().backward()
    np.testing.assert_array_equal(seen[0], [1, 1])
    np.testing.assert_array_equal(x.grad.numpy(), [21, 21])
    handle.remove()
    handle.remove()


def test_leaf_hook_sees_the_complete_gradient_once():
    x = leaf(1)
    seen, after = [], []
    x.register_hook(lambda g: seen.append(g.item()))
    handle = x.register_post_accumulate_grad_hook(lambda t: after.append(t.grad.item()))
    (double(x) + double(double(x))).backward()
    assert seen == [6]
    assert after == [6]
    handle.remove()
    double(x).backward()
    assert seen == [6, 2]
    assert after == [6]


def test_a_leaf_is_complete_before_the_pass_ends():
    order = []
    noted = differentiable(lambda x: x * 1, lambda dy: order.append("early layer") or dy, name="noted")
    first, last = leaf(1), leaf(1)
    last.register_post_accumulate_grad_hook(lambda t: order.append("last weight"))
    (noted(first) * last).backward()
    assert order == ["last weight", "early layer"]


def test_retain_grad():
    x = leaf(1)
    y = double(x)
    y.retain_grad()
    double(y).backward()
    assert y.grad.item() == 2


# grad()


def test_grad_adds_nothing_to_leaves():
    x, w = leaf(1, 2), leaf(3, 4)
    y = x * w
    gx, gy = grad(y.sum() * 2, [x, y])
    np.testing.assert_array_equal(gx.numpy(), [6, 8])
    np.testing.assert_array_equal(gy.numpy(), [2, 2])
    assert x.grad is None
    assert w.grad is None


def test_grad_of_a_function():
    assert grad(lambda x: (x * x).sum(), np.array([1.0, 3.0])).tolist() == [2, 6]
    gx, gw = grad(lambda x, w: (x * w).sum(), Tensor([2.0]), np.float32([3.0]))
    assert (gx.item(), gw.item()) == (3, 2)
    assert isinstance(gw, Tensor)


def test_grad_of_unreached_inputs():
    x, w = leaf(1), leaf(2)
    with pytest.raises(RuntimeError, match=r"inputs\[1\]"):
        grad(double(x), [x, w])
    assert grad(double(x), [x, w], allow_unused=True)[1] is None
    with pytest.raises(RuntimeError, match=r"outputs\[0\] does not require"):
        grad(double(x.detach()), x)


def test_grad_with_equal_inputs_and_outputs():
    x = leaf(2)
    y = x * x
    assert [g.item() for g in grad([y, y], [x, x, y])] == [8, 8, 2]
    assert grad(x * 1, x, grad_outputs=np.array([3.0]))[0].item() == 3
    assert grad(x, x)[0].item() == 1


# Interception


def test_precall_casts_in_one_place():
    seen = []

    def halve(op, values):
        seen.append(op.name)
        return [v.astype(np.float16) if isinstance(v, (Tensor, np.ndarray)) and v.dtype == np.float32 else v
                for v in values] if op.name == "double" else values  # fmt: skip

    x = Tensor([1.0, 2.0], requires_grad=True)
    with _tape.precall(halve):
        y = double(x)
        assert double(np.float32([1])).dtype == np.float16
    assert y.dtype == np.float16
    assert double(x).dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32
    assert "double" in seen


def test_an_array_in_the_place_of_a_tensor_is_a_cast_of_it():
    def halve(op, values):
        if op.name != "scaled":
            return values
        return [v.data.astype(np.float16) if isinstance(v, Tensor) else v for v in values]

    def forward(a, b):
        return a * b

    def backward(dy, a, b):
        assert a.dtype == b.dtype == dy.dtype == np.float16
        return dy * b, dy * a

    scaled = _tape.differentiable(forward, backward, arrays=("a", "b"), name="scaled")
    x, y = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    with _tape.precall(halve):
        z = scaled(x, y) + scaled(x, x.detach())
        array = scaled(np.float32([1]), np.float32([2]))
    assert z.dtype == np.float16
    assert type(array) is np.ndarray
    x.data[...] = 7  # the backward has casts of its own
    x.version += 1
    z.sum().backward()
    assert x.grad.dtype == y.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.data, [4, 6])
    np.testing.assert_array_equal(y.grad.data, [1, 2])

    def wrong(dy, x):
        return dy.astype(np.float16)

    with pytest.raises(RuntimeError, match="dtype"):
        _tape.differentiable(lambda x: x * 2, wrong, name="wrong")(x).sum().backward()


def test_profile_counts_calls_in_both_directions():
    x = leaf(1, 2)
    with profile() as measured:
        for _ in range(3):
            double(x).sum().backward()
        double(np.ones(2))
    double(x)
    rows = {row.operator: row for row in measured.rows}
    assert rows["double"].calls == 4
    assert rows["double backward"].calls == 3
    assert all(row.seconds > 0 for row in measured.rows)
    assert measured.seconds == pytest.approx(sum(row.seconds for row in measured.rows))
    lines = str(measured).splitlines()
    assert lines[0].split() == ["operator", "calls", "time", "per", "call", "share", "limit"]
    assert lines[-1].split()[:2] == ["total", str(sum(row.calls for row in measured.rows))]
    times = [row.seconds for row in measured.rows]
    assert times == sorted(times, reverse=True)


def test_profile_counts_the_work():
    x = Tensor(np.ones((2, 3, 8, 8), np.float32))
    kernel = Tensor(np.ones((4, 3, 3, 3), np.float32), requires_grad=True)
    matrix = Tensor(np.ones((5, 4 * 36), np.float32), requires_grad=True)
    with profile() as measured:
        y = ops.conv2d(x, kernel).reshape(2, 4 * 36)
        ops.matmul(y, matrix, transpose_b=True).sum().backward()
    flops = {row.operator: row.flops for row in measured.rows}
    convolution, product = 2 * (2 * 4 * 36) * 27, 2 * 2 * 5 * (4 * 36)
    assert flops["conv2d"] == flops["conv2d backward"] == convolution  # x is data: one gradient
    assert (flops["matmul"], flops["matmul backward"]) == (product, 2 * product)
    assert flops["reshape"] == 0
    row = next(row for row in measured.rows if row.operator == "conv2d")
    assert row.nbytes == 4 * (x.size + kernel.size + 2 * 4 * 36)
    assert row.share_of_limit(peak=convolution / row.seconds, bandwidth=1e30) == pytest.approx(1.0)


def test_profile_counts_the_work_of_sequences():
    steps, batch, inputs, hidden, queries, keys, features = 5, 2, 3, 4, 6, 7, 8
    x = np.ones((steps, batch, inputs), np.float32)
    w_ih = Tensor(np.ones((4 * hidden, inputs), np.float32), requires_grad=True)
    w_hh = Tensor(np.ones((4 * hidden, hidden), np.float32), requires_grad=True)
    q, k, v = (
        Tensor(np.ones((2, length, features), np.float32), requires_grad=True)
        for length in (queries, keys, keys)
    )
    with profile() as measured:
        ops.lstm(x, None, None, w_ih, w_hh)[0].sum().backward()
        ops.attention(q, k, v).sum().backward()
    flops = {row.operator: row.flops for row in measured.rows}
    per_row = 2 * steps * batch * 4 * hidden
    assert flops["lstm"] == per_row * (inputs + hidden)
    assert flops["lstm backward"] == per_row * (inputs + 2 * hidden)  # x is data: no gradient
    scores = 2 * 2 * queries * keys * features
    assert (flops["attention"], flops["attention backward"]) == (2 * scores, 5 * scores)


def test_profile_charges_own_time_only():
    import time

    inner = differentiable(lambda x: time.sleep(0.02) or x * 1, lambda dy: dy, name="inner")
    outer = differentiable(lambda x: inner(x), lambda dy: dy, name="outer")
    with profile() as measured:
        outer(np.ones(1))
    rows = {row.operator: row.seconds for row in measured.rows}
    assert rows["inner"] >= 0.02
    assert rows["outer"] < 0.01


def test_detect_anomaly_names_the_forward_and_the_backward():
    with np.errstate(all="ignore"):
        with pytest.raises(RuntimeError, match="log made NaN in its result"), detect_anomaly():
            (leaf(1, 4) - 2.0).log()
        poison = differentiable(lambda x: x * 1, lambda dy: dy * np.nan, name="poison")
        y = poison(leaf(1)).exp()
        message = "backward of poison made NaN in the gradient of 'x'"
        with pytest.raises(RuntimeError, match=message), detect_anomaly():
            y.backward()


def test_detect_anomaly_tells_data_from_operators():
    with pytest.raises(RuntimeError, match="'x' of double holds NaN"), detect_anomaly():
        double(Tensor([float("nan")]))
    with detect_anomaly():
        assert double(np.array([-np.inf]))[0] == -np.inf  # an attention mask

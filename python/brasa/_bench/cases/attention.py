"""Cases of attention: the operator, and the layer that projects around it."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa._bench.cases.contestants import (
    BYTES,
    UNITS,
    Peers,
    array,
    in_precision,
    jax_call,
    tensor,
    torch_autograd,
)
from brasa._bench.harness import Call, Case


def attention(
    batch: int,
    heads: int,
    length: int,
    features: int,
    against: Peers,
    *,
    causal: bool = False,
    backward: bool = False,
    dtype: str = "float32",
) -> Case:
    """Attention of as many keys as queries, forward or with all gradients; PyTorch's is its fused one."""
    narrow = dtype != "float32"

    def make() -> dict[str, Call]:
        shape = batch, heads, length, features
        drawn = [array(*shape, seed=i) for i in range(4)]
        q, k, v, dy = (in_precision(x, dtype) for x in drawn)

        def both() -> Any:
            y, saved = ops.attention(q, k, v, causal=causal, save=True)
            return ops.attention_backward(dy, q, k, v, causal, y=y, saved=saved)

        calls: dict[str, Call] = {
            "brasa": both if backward else lambda: ops.attention(q, k, v, causal=causal)
        }
        if "torch" in against:
            import torch

            *leaves, slope = (tensor(x).to(getattr(torch, dtype)) for x in drawn)

            def theirs(q: Any, k: Any, v: Any) -> Any:
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

            calls["torch"] = lambda: theirs(*leaves)
            if backward:
                calls["torch"] = torch_autograd(theirs, leaves, slope)
        if "jax" in against and not backward:
            import jax

            turned = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]  # JAX's own wants (N, L, H, E)

            def in_jax(*x: Any) -> Any:
                return jax.nn.dot_product_attention(*x, is_causal=causal).transpose(0, 2, 1, 3)

            calls["jax"] = jax_call(in_jax, *turned)
        return calls

    pairs = batch * heads * (length * (length + 1) // 2 if causal else length * length)
    products = 7 if backward else 2  # of the matrix of scores' size, two flops a multiply-add
    kind = f"{dtype + ' ' if narrow else ''}{'causal ' if causal else ''}{'fwd+bwd ' if backward else ''}"
    size = BYTES[dtype] * batch * heads * length * features
    name = f"attention {kind}{batch}x{heads}x{length}x{features}"
    family = f"attention{f' {dtype}' * narrow}"
    work = 2.0 * products * pairs * features
    return Case(family, name, make, work, (12 if backward else 4) * size, unit=UNITS[dtype])

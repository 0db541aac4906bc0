"""Cases of losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import (
    Peers,
    array,
    library,
    placed,
    tensor,
    torch_autograd,
    whole_numbers,
)
from brasa._bench.harness import Call, Case


def loss(rows: int, classes: int, against: Peers, *, smoothing: float = 0.0) -> Case:
    """Cross-entropy against classes, forward and backward."""
    options: dict[str, Any] = {"label_smoothing": smoothing}

    def make() -> dict[str, Call]:
        logits, one = array(rows, classes), placed(np.ones((), np.float32))
        targets, positions = whole_numbers(classes, rows), placed(np.arange(rows))

        def both() -> Any:
            _, saved = ops.cross_entropy(logits, targets, save=True, **options)
            return [ops.cross_entropy_backward(one, logits, targets, saved=saved, **options)]

        def by_numpy() -> Any:
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            e /= e.sum(axis=1, keepdims=True)
            _ = -np.log(e[positions, targets]).mean()
            e[positions, targets] -= 1
            e /= rows
            return [e]

        calls: dict[str, Call] = {"brasa": both}
        own = library(against)
        if own and not smoothing:
            calls[own] = by_numpy
        if "torch" in against:
            import torch

            theirs, function = tensor(targets), torch.nn.functional.cross_entropy
            calls["torch"] = torch_autograd(lambda t: function(t, theirs, **options), [tensor(logits)])
        return calls

    name = f"cross_entropy fwd+bwd {rows}x{classes}{f' smoothing {smoothing}' if smoothing else ''}"
    return Case("loss", name, make, 0, 12.0 * rows * classes)


def ctc(steps: int, samples: int, classes: int, labels: int, against: Peers) -> Case:
    """CTC of the log-softmax of logits, forward and backward by the logits."""

    def make() -> dict[str, Call]:
        logits, one = array(steps, samples, classes), placed(np.ones((), np.float32))
        targets = (whole_numbers(classes - 1, samples * labels) + 1).reshape(samples, labels)
        lengths = placed(np.full(samples, steps)), placed(np.full(samples, labels))

        def both() -> Any:
            log_probs = ops.log_softmax(logits)
            _, saved = ops.ctc_loss(log_probs, targets, *lengths, save=True)
            gradient = ops.ctc_loss_backward(one, log_probs, targets, *lengths, saved=saved)
            return [ops.log_softmax_backward(gradient, log_probs)]

        calls: dict[str, Call] = {"brasa": both}
        if "torch" in against:
            import torch

            theirs, function = [tensor(a) for a in (targets, *lengths)], torch.nn.functional.ctc_loss
            calls["torch"] = torch_autograd(lambda t: function(t.log_softmax(-1), *theirs), [tensor(logits)])
        return calls

    name = f"ctc_loss fwd+bwd {steps}x{samples}x{classes} labels {labels}"
    return Case("loss", name, make, 0, 24.0 * steps * samples * classes)

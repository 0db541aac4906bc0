"""The Markov chain, against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import data
from brasa.models import MarkovChain

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def by_definition(text, context, symbols, order):
    """The probabilities after a context, by the formula of the docstring and nothing else."""
    result = np.full(symbols, 1 / symbols)
    for length in range(min(order, len(context)) + 1):
        tail = list(context[len(context) - length :])
        after = [text[i] for i in range(length, len(text)) if text[i - length : i] == tail]
        if after:
            counts = np.bincount(after, minlength=symbols)
            different = np.count_nonzero(counts)
            result = (counts + different * result) / (len(after) + different)
    return result


@given(text=TEXTS, context=st.lists(st.integers(0, 3), max_size=6), order=st.integers(0, 4))
def test_probabilities_are_the_formula(text, context, order):
    chain = MarkovChain(order, 4).fit(text)
    found = chain.probabilities(context)
    # A level takes three operations, each of which rounds once, here and in the definition.
    bound = 2 * 3 * (order + 2) * 2**-53
    np.testing.assert_allclose(found, by_definition(text, context, 4, order), rtol=bound)
    assert (found > 0).all()
    assert found.sum() == pytest.approx(1, abs=1e-12)


@given(text=TEXTS, other=TEXTS, order=st.integers(0, 3))
def test_perplexity_is_that_of_the_probabilities(text, other, order):
    chain = MarkovChain(order, 4).fit(text)
    logs = [math.log(chain.probabilities(other[:i])[symbol]) for i, symbol in enumerate(other)]
    assert chain.perplexity(other) == pytest.approx(math.exp(-np.mean(logs)), rel=1e-12)


def test_two_texts_count_together_but_do_not_touch():
    both = MarkovChain(1, 3).fit([0, 1]).fit([2, 0])
    assert both.probabilities([1]).argmax() == 0  # nothing followed 1: by frequency alone
    np.testing.assert_allclose(both.probabilities([1]), both.probabilities([]))


def test_samples_follow_the_probabilities():
    chain = MarkovChain(1, 3).fit([0, 1, 0, 2, 0, 1, 0, 1])
    first = chain.sample(4000, prompt=[0], seed=3)
    np.testing.assert_array_equal(first, chain.sample(4000, prompt=[0], seed=3))
    after = first[1:][first[:-1] == 0]
    share = np.bincount(after, minlength=3) / len(after)
    # Five standard deviations of a share of some 1,500 draws.
    np.testing.assert_allclose(share, chain.probabilities([0]), atol=5 * math.sqrt(0.25 / len(after)))


def test_longer_contexts_predict_the_novel_better():
    train, test = data.text()
    found = [
        MarkovChain(order, len(train.vocabulary)).fit(train.ids[:100_000]).perplexity(test.ids[:10_000])
        for order in range(4)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] < 25
    assert found[3] < 6.5


def test_bad_input():
    for order, symbols in ((-1, 3), (1, 0)):
        with pytest.raises(ValueError, match="at least"):
            MarkovChain(order, symbols)
    chain = MarkovChain(2, 3)
    for ids in ([3], [0, -1]):
        for call in (chain.fit, chain.probabilities, chain.perplexity):
            with pytest.raises(ValueError, match=r"ids must lie in 0\.\.2"):
                call(ids)
    with pytest.raises(ValueError, match="no perplexity"):
        chain.perplexity([])
    np.testing.assert_allclose(chain.probabilities(), 1 / 3)  # nothing was counted

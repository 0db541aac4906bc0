"""Character models: what they carry from batch to batch, and what they write."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import data, models, nn, optim

CELLS = ("lstm", "gru", "rnn")


@pytest.fixture(params=CELLS)
def model(request):
    """A small network of each kind, in evaluation mode."""
    br.manual_seed(0)
    return models.CharacterModel(request.param, 7, hidden=16, layers=2, embedding=5).eval()


def test_a_text_in_pieces_is_the_whole_text(model):
    x = np.random.default_rng(0).integers(0, 7, (12, 3))
    with br.no_grad():
        whole = model(x).numpy().reshape(12, 3, 7)
        model.reset()
        pieces = [model(part).numpy().reshape(-1, 3, 7) for part in (x[:5], x[5:6], x[6:])]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_change_of_mode_begins_a_new_text(model):
    x = np.array([[1], [2]])
    with br.no_grad():
        first = model(x).numpy()
        assert not np.array_equal(model(x).numpy(), first)  # goes on
        for begin in (model.reset, model.eval, lambda: model.train(False), lambda: model.train().eval()):
            begin()
            np.testing.assert_array_equal(model(x).numpy(), first)


def test_the_gradient_stops_where_a_batch_begins(model):
    x = np.array([[1], [2], [3]])
    model(x)
    carried = model(x)
    carried.sum().backward()
    through = {name: p.grad.numpy() for name, p in model.named_parameters()}
    # The state before the second batch as a constant gives the same gradients.
    model.zero_grad()
    model.reset()
    with br.no_grad():
        model(x)
    model(x).sum().backward()
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.grad.numpy(), through[name])


def test_generation_is_drawn_from_the_network(model):
    ids = model.generate([1, 2, 3], 20, seed=4)
    assert (ids.shape, ids.dtype) == ((20,), np.int64)
    np.testing.assert_array_equal(model.generate([1, 2, 3], 20, seed=4), ids)
    assert not np.array_equal(model.generate([1, 2, 3], 20, seed=5), ids)
    likeliest = model.generate([1, 2, 3], 8, top_k=1, seed=6)
    np.testing.assert_array_equal(model.generate([1, 2, 3], 8, temperature=1e-6), likeliest)
    text = [1, 2, 3]
    with br.no_grad():
        for expected in likeliest:
            model.reset()
            assert model(np.array(text)[:, None]).numpy()[-1].argmax() == expected
            text.append(expected)


def test_temperature_and_top_k_shape_the_draws():
    br.manual_seed(0)
    model = models.char_rnn(7, hidden=4).eval()
    with br.no_grad():
        for p in model.parameters():
            p.data[...] = 0  # every character depends on the last layer's bias alone
        model.decoder.bias.data[:] = np.log([8, 4, 2, 1, 1, 1, 1])
    for options, weights in (
        ({}, [8, 4, 2, 1, 1, 1, 1]),
        ({"temperature": 0.5}, [64, 16, 4, 1, 1, 1, 1]),
        ({"top_k": 4}, [8, 4, 2, 1, 0, 0, 0]),  # of four that are equal, the first
        ({"top_k": 99}, [8, 4, 2, 1, 1, 1, 1]),
    ):
        ids = model.generate([0], 4000, seed=1, **options)
        share = np.bincount(ids, minlength=7) / len(ids)
        # Five standard deviations of a share of 4,000 draws.
        np.testing.assert_allclose(share, np.array(weights) / sum(weights), atol=5 * (0.25 / 4000) ** 0.5)
        assert not share[np.array(weights) == 0].any()


def test_generation_leaves_the_mode_and_begins_anew(model):
    model.train()
    one = model.generate([1], 5)
    assert model.training
    model(np.array([[1], [2]]))  # a state that must not matter
    np.testing.assert_array_equal(model.generate([1], 5), one)
    assert model.generate([1], 0).shape == (0,)
    model.train()
    with pytest.raises(ValueError, match="temperature"):
        model.generate([1], 5, temperature=0)
    assert model.training


def test_bad_input(model):
    with pytest.raises(ValueError, match="prompt: need at least one"):
        model.generate([], 5)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            model.generate([1], 5, temperature=temperature)
    with pytest.raises(ValueError, match="top_k"):
        model.generate([1], 5, top_k=0)
    with pytest.raises(ValueError, match="length: expected at least 0, got -2"):
        model.generate([1], -2)
    for prompt, length, word in (([1.5], 5, "prompt: expected integers"), ([1], 2.5, "length")):
        with pytest.raises(TypeError, match=word):
            model.generate(prompt, length)
    with pytest.raises(ValueError, match="7"):
        model.generate([7], 5)
    with pytest.raises(ValueError, match="cell: need one of lstm, gru, rnn, got 'gated'"):
        models.CharacterModel("gated", 7)


def test_a_network_that_diverged_writes_nothing(model):
    model.decoder.bias.data[0] = np.nan
    with pytest.raises(ValueError, match="expected log-probabilities, got nan"):
        model.generate([1], 5)


def test_batches_train_it_as_they_are():
    text = data.Text("o rato roeu a roupa do rei de roma; " * 30)
    br.manual_seed(0)
    model = models.char_gru(len(text.vocabulary), hidden=48, dropout=0.0)
    trainer = br.Trainer(
        model, optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss(), progress=False
    )
    batches = data.TextBatches(text, batch_size=4, steps=16)
    history = trainer.fit(batches, validation=batches, epochs=15)
    assert history["val_accuracy"][-1] > 0.95
    prompt = text.vocabulary.encode("o rato ")
    assert text.vocabulary.decode(model.generate(prompt, 18, top_k=1)) == "roeu a roupa do re"

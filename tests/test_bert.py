"""A loaded model answers, alone or in a batch, and says what it cannot take."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.bert import Bert
from bert_jax.errors import UserError
from tests import reference
from tests.conftest import MODEL


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.pieces) + 3, initializer_range=0.3)
    return Bert(config, bert_jax.heads.init_params(config, jax.random.key(0)), tokenizer)


def test_fill_mask_gives_the_likeliest_pieces_of_the_reference(bert):
    guesses = bert.fill_mask("alpha [MASK] charlie [MASK].", top_k=7)
    specials, pieces = bert.tokenizer.specials, bert.tokenizer.pieces
    parts = [part.ids for part in bert.tokenizer.encode(["alpha", "charlie", "."])]
    ids = np.concatenate([[specials.cls], parts[0], [specials.mask], parts[1], [specials.mask], parts[2], [specials.sep]])
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), bert.params)
    hidden, _ = reference.encode_one(bert.config, params["bert"], ids, 0 * ids)
    probabilities = reference.softmax(reference.word_logits(bert.config, params, hidden[ids == specials.mask])[:, : len(pieces)])
    assert len(guesses) == 2
    for place, row in zip(guesses, probabilities, strict=True):
        best = np.argsort(-row)[:7]
        assert [guess.piece for guess in place] == [pieces[number] for number in best]
        np.testing.assert_allclose([guess.probability for guess in place], row[best], rtol=1e-4)


def test_encoding_alone_or_in_a_batch_is_the_same(bert):
    texts = ["alpha", ("bravo charlie delta.", "echo"), "golf hotel india juliett kilo lima"]
    together = bert.encode(texts)
    for row, text in enumerate(texts):
        alone = bert.encode([text])
        length = alone.hidden.shape[1]
        np.testing.assert_allclose(together.hidden[row, :length], alone.hidden[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(together.pooled[row], alone.pooled[0], rtol=1e-5, atol=1e-5)
    assert together.pooled.shape == (3, bert.config.hidden_size)


def test_the_second_text_has_the_second_type(bert):
    pair, joined = bert.encode([("alpha", "bravo")]), bert.encode(["alpha"])
    assert pair.hidden.shape[1] == joined.hidden.shape[1] + len(bert.tokenizer.encode(["bravo"])[0].ids) + 1
    batch = bert._batch([bert._ids(("alpha", "bravo"))])
    first = 2 + len(bert.tokenizer.encode(["alpha"])[0].ids)
    np.testing.assert_array_equal(batch["types"][0], np.arange(batch["types"].shape[1]) >= first)


def test_refusals(bert):
    with pytest.raises(UserError, match="no \\[MASK\\]"):
        bert.fill_mask("alpha")
    with pytest.raises(UserError, match="top_k is 0"):
        bert.fill_mask("[MASK]", top_k=0)
    with pytest.raises(UserError, match="the model has 64 positions"):
        bert.encode(["alpha " * 100])


def test_load_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        bert_jax.load(tmp_path / "none")
    with pytest.raises(UserError, match="holds no checkpoint"):
        bert_jax.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_trained_run_is_loaded(run_config):
    bert_jax.pretrain(run_config)
    bert = bert_jax.load(run_config.run)
    assert bert.config == run_config.model
    guesses = bert.fill_mask("alpha [MASK] charlie.")[0]
    assert len(guesses) == 5
    assert 0 < sum(guess.probability for guess in guesses) <= 1

"""Tokens that a user adds: their ids, their rows, and what every format keeps of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import transformers

import bert_jax
from bert_jax import tokenizers
from bert_jax.errors import UserError
from bert_jax.models import init_params
from bert_jax.models.vocabulary import add_tokens
from bert_jax.tokenizers import AddedToken
from tests.conftest import MODEL

TEXTS = ["a catat [E1] sat", "CatAt x y ran [e1]", "a cat"]
ADDED = ("catat", "cat", AddedToken("[E1]"), AddedToken("x y", special=False, lstrip=True))


def make(kind="wordpiece", **changes):
    texts = ["a cat sat on a mat", "a dog ran x y"]
    tokenizer = tokenizers.train(lambda: texts * 9, kind=kind, size=45 if kind == "wordpiece" else 20)
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens), **changes)
    return bert_jax.Bert(config, init_params(config, jax.random.key(3)), tokenizer)


def test_new_rows_are_the_mean_of_their_parts():
    bert = make(tie_word_embeddings=False)
    bert.params["mlm"]["bias"] = np.arange(bert.config.vocab_size, dtype=np.float32)
    larger = add_tokens(bert, ADDED)
    tokens, old = larger.tokenizer.tokens, bert.config.vocab_size
    assert tokens[old:] == ["catat", "[E1]", "x y"]
    assert larger.config.vocab_size == old + 3
    tables = [(model.params["bert"]["embeddings"]["word"], model.params["mlm"]["decoder"]) for model in (bert, larger)]
    tables = [[*pair, model.params["mlm"]["bias"]] for pair, model in zip(tables, (bert, larger), strict=True)]
    for before, after in zip(*tables, strict=True):
        np.testing.assert_array_equal(after[:old], before)
        for row, token in ((old, "catat"), (old + 2, "x y")):
            ids = bert.tokenizer.encode([token])[0].ids
            assert len(ids) > 1
            np.testing.assert_allclose(after[row], np.asarray(before)[ids].mean(axis=0), rtol=1e-6)
        # Nothing of "[E1]" but unknown tokens is in the vocabulary.
        np.testing.assert_allclose(after[old + 1], before[bert.tokenizer.special_tokens.unk], rtol=1e-6)
    # A token of the vocabulary keeps its id and row, and a second time nothing changes.
    assert tokens.index("cat") == bert.tokenizer.tokens.index("cat")
    assert add_tokens(larger, ["catat", "cat"]).tokenizer.tokens == tokens


def test_a_table_that_is_too_small_grows_for_all_tokens():
    bert = make()
    larger = add_tokens(bert, ["catat"])
    small = dataclasses.replace(larger, config=bert.config, params=bert.params)
    with pytest.raises(UserError, match=r"'catat' with the id .*; load the model with added_tokens"):
        small.embed(["a catat"])
    grown = add_tokens(small, ["catat"])
    np.testing.assert_array_equal(grown.embed(TEXTS), larger.embed(TEXTS))


@pytest.mark.parametrize("to", ["hf", "google", "flax", "orbax"])
def test_every_format_keeps_added_tokens(tmp_path, to):
    bert_jax.save(make(), tmp_path / "before", to="hf")
    larger = bert_jax.load(tmp_path / "before", added_tokens=ADDED)
    bert_jax.save(larger, tmp_path / "after", to=to)
    loaded = bert_jax.load(tmp_path / "after")
    ids = [row.ids.tolist() for row in larger.tokenizer.encode(TEXTS)]
    assert [row.ids.tolist() for row in loaded.tokenizer.encode(TEXTS)] == ids
    np.testing.assert_array_equal(loaded.embed(TEXTS), larger.embed(TEXTS))
    if to == "hf":
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "after")
        assert theirs(TEXTS, add_special_tokens=False)["input_ids"] == ids


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_takes_added_tokens(tmp_path, kind):
    bert = make(kind)
    larger = add_tokens(bert, ["[E1]", "catat"])
    assert larger.config.vocab_size == bert.config.vocab_size + 2
    ids = [row.ids.tolist() for row in larger.tokenizer.encode(TEXTS)]
    assert bert.config.vocab_size + 1 in ids[0]
    bert_jax.save(larger, tmp_path / "exported", to="hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert theirs(TEXTS, add_special_tokens=False)["input_ids"] == ids
    with pytest.raises(UserError, match="lstrip or rstrip, which need a WordPiece"):
        add_tokens(bert, [AddedToken("x y", lstrip=True)])


@pytest.mark.parametrize("added", ["catat", [""]])
def test_what_is_no_list_of_tokens_is_refused(added):
    with pytest.raises(UserError, match="give a list of strings"):
        add_tokens(make(), added)

"""Tokens that a user adds, and extended vocabularies: their ids, their rows, and what every format keeps of them."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import bert_jax
from bert_jax import tokenizers
from bert_jax.errors import UserError
from bert_jax.models import init_params
from bert_jax.models.vocabulary import add_tokens, extend
from bert_jax.tokenizers import AddedToken, WordPiece
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


# "cat" is a token, "log" and "##log" are not, and "ß" is in no token.
LETTERS = "acdglnorst"
LINES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "cat"]
NEW = ["[PAD]", "catalog", *LINES[2:], "##alog", "dog", "ß"]
PARTS = {
    "catalog": ["cat", "##a", "##l", "##o", "##g"],
    "##alog": ["##a", "##l", "##o", "##g"],
    "dog": ["d", "##o", "##g"],
    "ß": ["[UNK]"],
}


def make_vocab(lines, path=None, **config):
    content = json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True} | config).encode()
    tokenizer = WordPiece({"vocab.txt": "".join(f"{line}\n" for line in lines).encode(), "tokenizer_config.json": content})
    if path is not None:
        tokenizers.create(tokenizer, path)
    return tokenizer


def make_with_slots(**changes):
    config = dataclasses.replace(MODEL, vocab_size=len(LINES), initializer_range=0.3, **changes)
    bert = bert_jax.Bert(config, init_params(config, jax.random.key(3)), make_vocab(LINES))
    bert.params["mlm"]["bias"] = np.arange(bert.config.vocab_size, dtype=np.float32)
    return bert


@pytest.mark.parametrize("rows", [len(LINES), len(LINES) + 2, len(LINES) + 9])
def test_rows_of_an_extension_are_the_mean_of_their_parts(rows):
    """Also where the tables have rows without tokens."""
    bert = make_with_slots(tie_word_embeddings=False)
    bert = dataclasses.replace(bert, config=dataclasses.replace(bert.config, vocab_size=rows), params=grown(bert.params, rows))
    larger = extend(bert, make_vocab(NEW))
    assert larger.tokenizer.tokens == NEW
    assert larger.config.vocab_size == max(rows, len(NEW))
    for before, after in zip(tables(bert.params), tables(larger.params), strict=True):
        assert len(after) == max(rows, len(NEW))
        for row, token in enumerate(NEW):
            if token in PARTS:
                expected = np.mean([before[LINES.index(part)] for part in PARTS[token]], axis=0, dtype=np.float64)
                np.testing.assert_allclose(after[row], expected, rtol=1e-6, err_msg=token)
            else:
                np.testing.assert_array_equal(after[row], before[row], err_msg=token)
        np.testing.assert_array_equal(after[len(NEW) :], before[len(NEW) :])
    others = [{name: tree for name, tree in model.params["bert"].items() if name != "embeddings"} for model in (bert, larger)]
    jax.tree.map(np.testing.assert_array_equal, *others)


def tables(params):
    return [np.asarray(table) for table in (params["bert"]["embeddings"]["word"], params["mlm"]["decoder"], params["mlm"]["bias"])]


def grown(params, rows):
    word, decoder, bias = (np.concatenate([table, np.full_like(table, 7)])[:rows] for table in tables(params))
    bert = {**params["bert"], "embeddings": {**params["bert"]["embeddings"], "word": word}}
    return {**params, "bert": bert, "mlm": {**params["mlm"], "decoder": decoder, "bias": bias}}


@pytest.mark.parametrize("to", ["hf", "google", "flax", "orbax"])
def test_every_format_keeps_an_extension(tmp_path, to):
    bert = make_with_slots()
    bert_jax.save(bert, tmp_path / "before", to="hf")
    make_vocab(NEW, tmp_path / "vocab")
    # What is added afterwards, comes after it.
    larger = bert_jax.load(tmp_path / "before", vocab=tmp_path / "vocab", added_tokens=["[E1]"])
    assert larger.tokenizer.tokens == [*NEW, "[E1]"]
    bert_jax.save(larger, tmp_path / "after", to=to)
    loaded = bert_jax.load(tmp_path / "after")
    old, new = ["a cat sat", "so cats", "[MASK] lot"], ["a catalog", "Dogs, analog [E1]", "ß"]
    encoded = [[row.ids.tolist() for row in model.tokenizer.encode(old + new)] for model in (bert, larger, loaded)]
    assert encoded[1] == encoded[2]
    assert encoded[0][: len(old)] == encoded[1][: len(old)]
    assert NEW.index("catalog") in encoded[1][3]
    assert NEW.index("##alog") in encoded[1][4]
    np.testing.assert_array_equal(loaded.embed(old + new), larger.embed(old + new))
    np.testing.assert_array_equal(loaded.embed(old), bert_jax.load(tmp_path / "before").embed(old))
    if to == "hf":
        check_with_transformers(tmp_path, old, new, encoded[1])


def check_with_transformers(path, old, new, ids):
    """Ids of the exported tokenizer, and outputs for old texts, which are those of the exported model before the extension."""
    readers = [
        (transformers.AutoTokenizer.from_pretrained(path / name), transformers.BertForMaskedLM.from_pretrained(path / name).eval())
        for name in ("before", "after")
    ]
    assert readers[1][0](old + new, add_special_tokens=False)["input_ids"] == ids
    for text in old:
        inputs = [tokenizer(text, return_tensors="pt") for tokenizer, _ in readers]
        assert inputs[0]["input_ids"].tolist() == inputs[1]["input_ids"].tolist()
        with torch.no_grad():
            before, after = (model(**inputs[0], output_hidden_states=True) for _, model in readers)
        assert torch.equal(before.hidden_states[-1], after.hidden_states[-1])
        kept = [row for row, token in enumerate(NEW) if token not in PARTS]
        torch.testing.assert_close(after.logits[..., kept], before.logits[..., kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lines", "config", "sentence"),
    [
        ([*LINES[:8], "new", *LINES[9:]], {}, "the token with the id 8 is 'new', in the model 'd'"),
        ([*LINES[:9], *LINES[10:], "g", "new"], {}, "the token with the id 9 is 'l', in the model 'g'"),
        (LINES[:-1], {}, f"it has only {len(LINES) - 1} of its {len(LINES)} tokens"),
        ([*LINES, "cat"], {}, f"'cat' has the id {len(LINES)}, in the model {len(LINES) - 1}"),
        ([*LINES, "Cat"], {"do_lower_case": False}, "its do_lower_case is False, that of the model True"),
        (LINES[:-1], {"added_tokens_decoder": {len(LINES) - 1: "cat"}}, "'cat' is an added token there"),
        (
            LINES,
            {"additional_special_tokens": ["[E1]"]},
            r"'\[E1\]' is an added token there; give it to the model",
        ),
    ],
)
def test_what_is_no_extension_is_refused(tmp_path, lines, config, sentence):
    bert_jax.save(make_with_slots(), tmp_path / "model", to="hf")
    make_vocab(lines, tmp_path / "other", **config)
    with pytest.raises(UserError, match=rf"^The vocabulary .*other is not an extension of the model's vocabulary: {sentence}"):
        bert_jax.load(tmp_path / "model", vocab=tmp_path / "other")


def test_an_extension_needs_wordpiece():
    with pytest.raises(UserError, match="A SentencePiece vocabulary cannot be extended"):
        extend(make("bpe"), make_vocab(NEW))
    with pytest.raises(UserError, match="A SentencePiece vocabulary cannot be extended"):
        extend(make_with_slots(), make("bpe").tokenizer)
    with pytest.raises(UserError, match="The model has no vocabulary"):
        extend(dataclasses.replace(make_with_slots(), tokenizer=None), make_vocab(NEW))


def test_added_tokens_of_the_model_remain():
    bert = add_tokens(make_with_slots(), [AddedToken("[E1]"), "alog"])
    extension = tokenizers.extend(bert.tokenizer, ["a catalog, dogs and cats"] * 3, 5)
    larger = extend(bert, extension.tokenizer)
    assert larger.tokenizer.tokens[: len(LINES) + 2] == [LINES[0], extension.tokens[0], *LINES[2:], "[E1]", "alog"]
    assert larger.tokenizer.settings.added == bert.tokenizer.settings.added
    rows = [np.asarray(model.params["bert"]["embeddings"]["word"]) for model in (bert, larger)]
    np.testing.assert_array_equal(rows[1][2 : len(LINES) + 2], rows[0][2:])
    ids = larger.tokenizer.encode(["catalog [E1]"])[0].ids.tolist()
    assert [larger.tokenizer.tokens[row] for row in ids] == ["cat", "alog", "[E1]"]

"""Further tokens in the vocabulary of a model, with rows for them in its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax import tokenizers
from bert_jax.batch import Params
from bert_jax.errors import UserError
from bert_jax.models.loaded import LoadedModel, tokenizer_of
from bert_jax.tokenizers import AddedToken, Tokenizer, extension


def add_tokens(model: LoadedModel, added: Sequence[str | AddedToken]) -> LoadedModel:
    """Add tokens that are found in a text before it is split into words, and enlarge the tables of the model for them.

    A new row of the word embeddings and of the MLM head is the mean of the rows of the tokens that the new one was split into, or
    of all rows where there are none. A token that has no row, because the vocabulary is larger than the tables, gets one too.

    Args:
      model: the model; it is not changed.
      added: tokens; a string is found in the normalized text, for example in lower case. One that is in the vocabulary keeps its
        id and its row.

    Raises:
      UserError: the model has no tokenizer of this package, or a token is empty or cannot be found by it.

    Examples:
      >>> from bert_jax import tokenizers
      >>> from bert_jax.models import init_params
      >>> tokenizer = tokenizers.train(lambda: ["a cat sat", "a dog ran"] * 9, kind="wordpiece", size=40)
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=len(tokenizer.tokens))
      >>> model = bert_jax.Bert(config, init_params(config, jax.random.key(0)), tokenizer)
      >>> larger = add_tokens(model, ["catdog"])
      >>> larger.config.vocab_size - config.vocab_size, larger.tokenizer.tokens[-1]
      (1, 'catdog')
    """
    before = tokenizer_of(model)
    if not isinstance(before, tokenizers.WordPiece | tokenizers.SentencePiece):
        raise UserError(f"Tokens cannot be added to a {type(before).__name__}, only to a WordPiece or SentencePiece vocabulary.")
    if isinstance(added, str) or not all(added):
        raise UserError(f"added_tokens is {added!r}; give a list of strings that are not empty.")
    ids = {token: token_id for token_id, token in enumerate(before.tokens)}
    known = {token.content for token in before.settings.added}
    numbered, size = list[AddedToken](), len(before.tokens)
    for token in added:
        token = AddedToken(token, normalized=True, special=False) if isinstance(token, str) else token
        if token.content not in known:
            token_id = ids.get(token.content, size)
            size = max(size, token_id + 1)
            known.add(token.content)
            numbered.append(token._replace(id=token_id))
    tokenizer = before.with_added(numbered)
    fresh = range(_trained_rows(model), len(tokenizer.tokens))
    return _with_rows(model, tokenizer, fresh, before.split([tokenizer.tokens[token_id] for token_id in fresh]))


def extend(model: LoadedModel, vocabulary: Tokenizer, *, name: str = "The vocabulary") -> LoadedModel:
    """Give a model an extension of its vocabulary, and enlarge its tables.

    The row of a new token, also of one in a slot that was unused, is the mean of the rows of the tokens into which its text was
    split, inside of a word for ``##ing``. Everything else remains, the settings of the model's tokenizer and its added tokens, too.

    Args:
      model: the model; it is not changed.
      vocabulary: made by [`extend`][bert_jax.tokenizers.extension.extend] from the model's vocabulary.
      name: of the vocabulary, in error messages.

    Raises:
      UserError: the model has no WordPiece tokenizer, or the vocabulary is not an extension of it; the message names the first
        difference.

    Examples:
      >>> from bert_jax import tokenizers
      >>> from bert_jax.models import init_params
      >>> tokenizer = tokenizers.train(lambda: ["a cat sat", "a dog ran"] * 9, kind="wordpiece", size=40)
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=len(tokenizer.tokens))
      >>> model = bert_jax.Bert(config, init_params(config, jax.random.key(0)), tokenizer)
      >>> vocabulary = tokenizers.extend(tokenizer, ["the catalogue"], count=1).tokenizer
      >>> larger = extend(model, vocabulary)
      >>> larger.config.vocab_size - config.vocab_size, larger.tokenizer.tokens[-1]
      (1, 'catalogue')
    """
    before = extension.require_wordpiece(tokenizer_of(model))
    tokenizer, slots = extension.join(before, vocabulary, name)
    trained = _trained_rows(model)
    fresh = sorted({*slots, *range(trained, len(tokenizer.tokens))})
    parts = extension.parts(before, [tokenizer.tokens[token_id] for token_id in fresh], rows=trained)
    return _with_rows(model, tokenizer, fresh, [np.array(ids, np.int32) for ids in parts])


def _trained_rows(model: LoadedModel) -> int:
    """Number of the model's tokens that have a row."""
    return min(model.config.vocab_size, len(tokenizer_of(model).tokens))


def _with_rows(model: LoadedModel, tokenizer: Tokenizer, fresh: Sequence[int], parts: Sequence[np.ndarray]) -> LoadedModel:
    """A model with a larger tokenizer, in which the rows of the tokens ``fresh`` are means of the rows of their parts.

    Parts without a row do not count; a token without any other part gets the mean of all rows.
    """
    trained = _trained_rows(model)
    parts = [ids[ids < trained] if (ids < trained).any() else np.arange(trained) for ids in parts]
    config = dataclasses.replace(model.config, vocab_size=max(model.config.vocab_size, len(tokenizer.tokens)))
    params = _enlarge(model.params, fresh, parts, config.vocab_size)
    return dataclasses.replace(model, config=config, params=params, tokenizer=tokenizer)


def _enlarge(params: Params, ids: Sequence[int], parts: Sequence[np.ndarray], size: int) -> Params:
    """Set the rows of tokens in every table over the vocabulary to the mean of those of their parts."""

    def enlarge(table: Any) -> Any:
        values = np.array(table)
        grown = np.zeros((max(size, len(values)), *values.shape[1:]), values.dtype)
        grown[: len(values)] = values
        for token_id, part in zip(ids, parts, strict=True):
            grown[token_id] = values[part].astype(np.float64).mean(axis=0)
        return jnp.asarray(grown)

    bert, mlm = params["bert"], params.get("mlm", {})
    word = {"word": enlarge(bert["embeddings"]["word"])}
    params = {**params, "bert": {**bert, "embeddings": {**bert["embeddings"], **word}}}
    if mlm:
        params["mlm"] = {**mlm, **{name: enlarge(mlm[name]) for name in ("bias", "decoder") if name in mlm}}
    return params

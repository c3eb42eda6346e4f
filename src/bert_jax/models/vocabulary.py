"""Tokens added to the vocabulary of a model, with rows for them in its tables."""

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
from bert_jax.tokenizers import AddedToken


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
    trained = min(model.config.vocab_size, len(before.tokens))
    fresh = range(trained, len(tokenizer.tokens))
    parts = [
        ids[ids < trained] if (ids < trained).any() else np.arange(trained)
        for ids in before.split([tokenizer.tokens[token_id] for token_id in fresh])
    ]
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

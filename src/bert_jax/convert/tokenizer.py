"""The tokenizer beside a file of weights: read, checked against the model, and written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from etils import epath

from bert_jax import tokenizers
from bert_jax.config.model import ModelConfig
from bert_jax.convert.names import Family
from bert_jax.errors import BertWarning, UserError
from bert_jax.io.parsing import parse_object
from bert_jax.tokenizers import Tokenizer, UnsupportedTokenizer

# transformers writes about 1e30 where a tokenizer has no maximum length.
_NO_MAX_LENGTH = 10**9


def read(
    directory: epath.Path, config: ModelConfig, description: Mapping[str, Any], family: Family
) -> tuple[Tokenizer | None, str | None]:
    """Read the tokenizer of a model; contradictions that do not prevent reading are warnings.

    Args:
      directory: directory of the weights.
      config: the model.
      description: content of its ``config.json``.
      family: where the weights come from.

    Returns:
      The tokenizer, None without a vocabulary; and the reason where it is one that this package does not have.

    Raises:
      UserError: a file is damaged.
    """
    if not any((directory / name).exists() for name in tokenizers.VOCABULARIES):
        return None, None
    try:
        tokenizer = tokenizers.load(directory, original=family == "google")
    except UnsupportedTokenizer as error:
        return None, f"The tokenizer in {directory} cannot be used: {error}"
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    for sentence in [*_differences(tokenizer, directory, config, description), *tokenizer.warnings()]:
        warnings.warn(f"{directory}: {sentence}", BertWarning, stacklevel=3)
    return tokenizer, None


def write(tokenizer: Tokenizer, directory: epath.Path, family: Family, max_length: int) -> None:
    """Write the files of a tokenizer beside weights, with every setting as it is in force.

    Args:
      tokenizer: the tokenizer.
      directory: directory of the weights.
      family: "google" writes the files that the original reads, the others those of transformers.
      max_length: number of positions of the model.

    Raises:
      UserError: transformers has no tokenizer with the same ids.
    """
    if family == "google":
        tokenizers.save(tokenizer, directory)
        return
    try:
        files = tokenizers.export(tokenizer, min(max_length, _stored_length(tokenizer) or max_length))
    except UnsupportedTokenizer as error:
        raise UserError(f"The tokenizer cannot be written: {error}") from None
    for name, content in files.items():
        (directory / name).write_bytes(content)


def max_length(tokenizer: Tokenizer | None, config: ModelConfig) -> int:
    """Number of tokens to which transformers truncates texts."""
    stored = _stored_length(tokenizer) if tokenizer is not None else None
    return min(stored or config.max_position_embeddings, config.max_position_embeddings)


def _stored_length(tokenizer: Tokenizer) -> int | None:
    content = tokenizer.files.get(tokenizers.CONFIG)
    stored = parse_object(content, tokenizers.CONFIG).get("model_max_length") if content is not None else None
    return stored if isinstance(stored, int) and 0 < stored < _NO_MAX_LENGTH else None


def _differences(tokenizer: Tokenizer, directory: epath.Path, config: ModelConfig, description: Mapping[str, Any]) -> list[str]:
    """Sentences on what contradicts the config of the model."""
    found, tokens, rows = [], len(tokenizer.tokens), config.vocab_size
    if tokens > rows:
        found.append(
            f"the vocabulary has {tokens:,} tokens, the word embeddings {rows:,} rows; texts with one of the last "
            f"{tokens - rows:,} tokens are refused."
        )
    if tokens < rows:
        found.append(f"the vocabulary has {tokens:,} tokens, the word embeddings {rows:,} rows; the last are never used.")
    pad = description.get("pad_token_id", tokenizer.special_tokens.pad)
    if pad != tokenizer.special_tokens.pad:
        found.append(f"the config has pad_token_id {json.dumps(pad)}, but the vocabulary {tokenizer.special_tokens.pad}.")
    length = _stored_length(tokenizer)
    if length is not None and length > config.max_position_embeddings:
        found.append(f"{tokenizers.CONFIG} allows {length} tokens, but the model has {config.max_position_embeddings} positions.")
    return found

"""What a checkpoint says besides its arrays, as JSON values with a digest."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bert_jax.config import format
from bert_jax.config.model import ModelConfig
from bert_jax.config.validation import build
from bert_jax.models import sentence_transformers
from bert_jax.models.heads import PRETRAINING
from bert_jax.models.loaded import LoadedModel
from bert_jax.tokenizers import Tokenizer

HEADS_OF_VERSION_1 = {
    "classify": "sequence_classification",
    "regress": "regression",
    "tag": "token_classification",
    "span": "question_answering",
    "choose": "multiple_choice",
}
"""Names of heads in format version 1 -> present names."""


class Meta(NamedTuple):
    """The content of a checkpoint besides the arrays."""

    config: dict[str, Any]
    """The run's config, as JSON values."""
    model: ModelConfig
    tokenizer: Tokenizer
    corpus: str
    """Digest of the training data."""
    data: dict[str, Any]
    """State of the data iterator: the position of the next batch."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's outputs."""
    heads: Mapping[str, int] = PRETRAINING
    """Name of each head -> number of its outputs."""
    pooler: bool = True
    """Whether the encoder has a pooler."""
    anomalies: Mapping[str, Any] = MappingProxyType({})
    """What the run has to know about earlier anomalies, as JSON values; empty where there is nothing."""


def describe(
    config: ModelConfig, tokenizer: Tokenizer | None, labels: tuple[str, ...], heads: Mapping[str, int], *, pooler: bool
) -> dict[str, Any]:
    """The description of a model, without its parameters, as JSON values."""
    return {
        format.KEY: format.VERSION,
        "model": dataclasses.asdict(config),
        "tokenizer": {} if tokenizer is None else encode(tokenizer.files),
        "labels": list(labels),
        "heads": dict(heads),
        "pooler": pooler,
    }


def model_config(content: Mapping[str, Any]) -> ModelConfig:
    """The shape of the model that a description is of."""
    # The first checkpoints of version 1 have the model's config only inside the run's config.
    return build(ModelConfig, content["model"] if "model" in content else content["config"]["model"], "model")


def describe_embedding(model: LoadedModel) -> dict[str, Any]:
    """How the model embeds texts, if its files say so."""
    if model.embedding is None:
        return {}
    return {"embedding": encode(sentence_transformers.export(model.embedding, model.config.hidden_size))}


def encode(files: Mapping[str, bytes]) -> dict[str, str]:
    """Contents of files as JSON values.

    Examples:
      >>> decode(encode({"vocab.txt": b"[PAD]"}))
      {'vocab.txt': b'[PAD]'}
    """
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def decode(files: Mapping[str, str]) -> dict[str, bytes]:
    """Inverse of ``encode``."""
    return {name: base64.b64decode(data) for name, data in files.items()}


def digest(content: dict[str, Any]) -> str:
    """A hex digest of a description."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

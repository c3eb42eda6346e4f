"""A model with everything that a model directory contains."""

from __future__ import annotations

import dataclasses

from bert_jax.batch import Params
from bert_jax.config.model import ModelConfig
from bert_jax.errors import UserError
from bert_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A config, parameters that fit it, and the tokenizer and labels that were stored with them.

    Every file format is read into this type and written from it; [`Bert`][bert_jax.Bert] adds methods on texts.
    """

    config: ModelConfig
    """Shape and arithmetic."""
    params: Params
    """The encoder under "bert", and each head under its name."""
    tokenizer: Tokenizer | None = None
    """None where there is no vocabulary beside the weights; then only arrays can be encoded."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's outputs, in order; empty where they are unknown."""


def tokenizer_of(model: LoadedModel) -> Tokenizer:
    """The model's tokenizer.

    Raises:
      UserError: the model has none.
    """
    if model.tokenizer is None:
        raise UserError("The model has no vocabulary; put its vocab.txt beside the weights and load it again.")
    return model.tokenizer

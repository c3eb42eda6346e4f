"""A model with everything that a model directory contains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bert_jax.batch import Params
from bert_jax.config.model import ModelConfig
from bert_jax.errors import UserError
from bert_jax.models.heads import PRETRAINING, heads_of
from bert_jax.models.sentence_embedding import SentenceEmbedding
from bert_jax.tokenizers import Tokenizer

# Parts besides the heads.
_NOT_HEADS = ("tokenizer", "embedding", "labels")


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
    embedding: SentenceEmbedding | None = None
    """How a text becomes one vector; None where the model's files do not say it."""
    problems: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What could not be read, "tokenizer", "embedding", "labels" or a head, and the reason in one sentence."""

    def check(self, *parts: str) -> None:
        """Check that parts of the model are there.

        Args:
          parts: "tokenizer", "embedding", "labels" and names of heads; what the files do not have is an error for heads only.

        Raises:
          UserError: one of them could not be read, and the message gives the reason; or there is no such head.
        """
        for part in parts:
            if part in self.problems:
                raise UserError(self.problems[part])
            if part not in (*_NOT_HEADS, *self.params):
                heads = ", ".join(heads_of(self.params)) or "no heads"
                unread = [reason.removesuffix(".") for name, reason in self.problems.items() if name not in _NOT_HEADS]
                hint = "load a model with the heads of pretraining" if part in PRETRAINING else "fine-tune it first"
                raise UserError(f"{'; '.join([f'The model has no {part} head; it has {heads}', *unread])}; {hint}.")


def tokenizer_of(model: LoadedModel) -> Tokenizer:
    """The model's tokenizer.

    Raises:
      UserError: the model has none.
    """
    model.check("tokenizer")
    if model.tokenizer is None:
        raise UserError("The model has no vocabulary; put its vocab.txt beside the weights and load it again.")
    return model.tokenizer

"""A pretrained model to use: parameters, config and tokenizer together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from bert_jax.checkpoint import Checkpoints
from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.heads import mlm_logits
from bert_jax.model import Batch, Encoded, Params, encode
from bert_jax.tokenizers import MASK, Tokenizer

Text = str | tuple[str, str]


class Guess(NamedTuple):
    """A piece that may stand under a mask."""

    piece: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Bert:
    """What :func:`load` returns."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Encode texts, or pairs of texts, padded to the longest.

        Returns:
          hidden [B, S, D] and pooled [B, D].

        Raises:
          UserError: a text has more pieces than the model has positions.
        """
        hidden, pooled = _encode(self.config, self.params, self._batch([self._ids(text) for text in texts]))
        return Encoded(hidden, pooled[:, 0])

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Guess]]:
        """The ``top_k`` likeliest pieces under each [MASK] of a text, likeliest first.

        Raises:
          UserError: the text has no [MASK], or more pieces than the model has positions.
        """
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; it must be at least 1.")
        if MASK not in text:
            raise UserError(f"The text has no {MASK}.")
        row = self._ids(text)
        places = np.flatnonzero(np.array(row[0]) == self.tokenizer.specials.mask)
        logits = _word_scores(self.config, self.params, self._batch([row]), jnp.asarray(places[None], jnp.int32))
        # Rows of the model beyond the tokenizer's pieces, if any, are padding.
        probabilities = np.asarray(jax.nn.softmax(logits[0, :, : len(self.tokenizer.pieces)], axis=-1))
        best = np.argsort(-probabilities, axis=-1)[:, :top_k]
        return [
            [Guess(self.tokenizer.pieces[piece], float(row[piece])) for piece in pieces]
            for row, pieces in zip(probabilities, best, strict=True)
        ]

    def _ids(self, text: Text) -> tuple[list[int], int]:
        """Ids with special pieces, and how many of them belong to the first segment."""
        specials = self.tokenizer.specials
        first, *second = (text,) if isinstance(text, str) else text
        ids = [specials.cls, *self._pieces(first), specials.sep]
        length = len(ids)
        for part in second:
            ids += [*self._pieces(part), specials.sep]
        if len(ids) > self.config.max_position_embeddings:
            raise UserError(
                f"The text has {len(ids)} pieces, special ones counted; "
                f"the model has {self.config.max_position_embeddings} positions."
            )
        return ids, length

    def _pieces(self, text: str) -> list[int]:
        parts = [pieces.ids.tolist() for pieces in self.tokenizer.encode(text.split(MASK))]
        return functools.reduce(lambda left, right: [*left, self.tokenizer.specials.mask, *right], parts)

    def _batch(self, rows: list[tuple[list[int], int]]) -> Batch:
        column = np.arange(max(len(ids) for ids, _ in rows))
        lengths = np.array([[len(ids), first] for ids, first in rows])
        valid = column < lengths[:, :1]
        padded = np.full(valid.shape, self.tokenizer.specials.pad)
        padded[valid] = np.concatenate([ids for ids, _ in rows])
        arrays = {
            "ids": padded,
            "types": valid & (column >= lengths[:, 1:]),
            "positions": np.where(valid, column, 0),
            "segments": valid,
            "cls_positions": np.zeros((len(rows), 1)),
        }
        return {name: jnp.asarray(values, jnp.int32) for name, values in arrays.items()}


def load(path: epath.PathLike) -> Bert:
    """Load the newest whole checkpoint of a run directory.

    Raises:
      UserError: there is no run, or none of its steps is saved yet.
      Failure: every checkpoint is damaged.
    """
    path = epath.Path(path)
    if not path.is_dir():
        raise UserError(f"There is no directory {path}.")
    checkpoints = Checkpoints(path)
    try:
        restored = checkpoints.restore_params()
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{path} holds no checkpoint; `bert-jax pretrain` makes one.")
    params, meta = restored
    return Bert(meta.config.model, params, meta.tokenizer)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: ModelConfig, params: Params, batch: Batch) -> Encoded:
    return encode(config, params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _word_scores(config: ModelConfig, params: Params, batch: Batch, positions: Array) -> Float[Array, "B M V"]:
    return mlm_logits(config, params, encode(config, params, batch).hidden, positions)

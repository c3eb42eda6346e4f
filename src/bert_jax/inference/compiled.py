"""Inference as compiled functions of a config, parameters and a batch.

Batches are those of [`batches`][bert_jax.data.windows.batches]; one example in a row, so that E = 1.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.models.encoder import Encoded, encode, hidden_states
from bert_jax.models.heads import head_logits, heads_of, mlm_logits
from bert_jax.models.readout import readout
from bert_jax.models.sentence_embedding import Pooling


@functools.partial(jax.jit, static_argnums=0)
def encode_batch(config: ModelConfig, params: Params, batch: Batch) -> Encoded:
    """Last hidden states [B, S, D], zero at padding, and pooled states [B, E, D]."""
    hidden, pooled = encode(config, params, batch)
    return Encoded(jnp.where(batch["segment_ids"][..., None] > 0, hidden, 0), pooled)


@functools.partial(jax.jit, static_argnums=0)
def all_outputs(config: ModelConfig, params: Params, batch: Batch) -> dict[str, Array]:
    """``hidden`` [B, S, D], ``pooled`` [B, E, D] and the logits of each head for every token or example; zero at padding."""
    encoded = encode(config, params, batch)
    valid = batch["segment_ids"][..., None] > 0
    states = readout(config, params, batch) if config.lstm_layers else encoded
    outputs = {"hidden": jnp.where(valid, encoded.hidden, 0), "pooled": encoded.pooled}
    for head in heads_of(params):
        if head == "mlm":
            logits = mlm_logits(config, params, encoded.hidden, batch["position_ids"])
        else:
            logits = head_logits(config, params, head, states)
        outputs[head] = jnp.where(valid, logits, 0) if logits.shape[1] == valid.shape[1] else logits
    return {name: value for name, value in outputs.items() if value is not None}


@functools.partial(jax.jit, static_argnums=0, static_argnames=("mask_id", "max_masks", "vocab_size"))
def mask_probabilities(
    config: ModelConfig, params: Params, batch: Batch, *, mask_id: int, max_masks: int, vocab_size: int
) -> Float[Array, "B M V"]:
    """MLM probabilities at the mask tokens of each row.

    Args:
      config, params: the model.
      batch: with ``keep`` bool [B, S]; mask tokens outside of it are ignored.
      mask_id: id of [MASK].
      max_masks: M, maximum number of mask tokens in a row; a row with fewer is filled up with arbitrary positions.
      vocab_size: V, number of tokens that receive probability, the first of the model's vocabulary.
    """
    is_mask = batch["keep"] & (batch["input_ids"] == mask_id)
    # top_k returns the lower index first among equal values, so positions are in order.
    positions = jax.lax.top_k(is_mask.astype(jnp.int32), max_masks)[1]
    logits = mlm_logits(config, params, encode(config, params, batch).hidden, positions)
    return jax.nn.softmax(logits[..., :vocab_size], axis=-1)


@functools.partial(jax.jit, static_argnums=0, static_argnames="vocab_size")
def label_log_probabilities(config: ModelConfig, params: Params, batch: Batch, *, vocab_size: int) -> Float[Array, "B N"]:
    """MLM log-probabilities of several labels at one position of each row.

    Args:
      config, params: the model.
      batch: with ``labels`` int32 [B, N] and ``keep`` bool [B, S], whose first column is the position.
      vocab_size: number of tokens that receive probability, the first of the model's vocabulary.
    """
    positions = batch["keep"].argmax(axis=1)[:, None]
    logits = mlm_logits(config, params, encode(config, params, batch).hidden, positions)[:, 0, :vocab_size]
    return jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), batch["labels"], axis=1)


@functools.partial(jax.jit, static_argnums=0, static_argnames="layers")
def layer_states(config: ModelConfig, params: Params, batch: Batch, *, layers: tuple[int, ...]) -> Float[Array, "C B S D"]:
    """States after C layers, given by their indices from 0."""
    return hidden_states(config, params, batch)[1:][jnp.array(layers)]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("modes", "first"))
def pool_windows(
    config: ModelConfig, params: Params, batch: Batch, *, modes: tuple[Pooling, ...], first: int = 0
) -> list[Float[Array, "B D"]]:
    """What each window contributes to the vector of its text, for several poolings; of the means, the sum.

    Args:
      config, params: the model.
      batch: with ``keep`` bool [B, S], the tokens that are pooled.
      modes: the poolings.
      first: column whose state "cls" is, where the row has a token there.
    """
    hidden, keep = encode(config, params, batch).hidden.astype(jnp.float32), batch["keep"][..., None]
    columns = jnp.arange(hidden.shape[1])[:, None]

    def contribution(mode: Pooling) -> Float[Array, "B D"]:
        match mode:
            case "cls":
                return jnp.where(batch["segment_ids"][:, first : first + 1] > 0, hidden[:, first], hidden[:, 0])
            case "max":
                return jnp.where(keep, hidden, -jnp.inf).max(1)
            case "lasttoken":
                last = jnp.where(keep, columns, -1).max(1, keepdims=True)
                return jnp.where(keep & (columns == last), hidden, 0.0).sum(1)
            case "weightedmean":
                weights = jnp.where(keep, columns + 1.0, 0.0)
                return (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
            case _:
                return jnp.where(keep, hidden, 0.0).sum(1)

    return [contribution(mode) for mode in modes]

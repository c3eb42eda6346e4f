"""What may be asked of a model and a batch, each a compiled function (config, params, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.config.run import ModelConfig
from bert_jax.models.encoder import Batch, Encoded, Params, encode, hidden_states
from bert_jax.models.heads import head_logits, heads_of, mlm_logits
from bert_jax.models.readout import readout

Pooling = Literal["mean", "cls", "max"]


@functools.partial(jax.jit, static_argnums=0)
def encoded(config: ModelConfig, params: Params, batch: Batch) -> Encoded:
    """Last states, zero at padding, and pooled states."""
    hidden, pooled = encode(config, params, batch)
    return Encoded(jnp.where(batch["segments"][..., None] > 0, hidden, 0), pooled)


@functools.partial(jax.jit, static_argnums=0)
def every(config: ModelConfig, params: Params, batch: Batch) -> dict[str, Array]:
    """Hidden, pooled, and the scores of each head at each token or example; zero at padding."""
    encoded = encode(config, params, batch)
    valid = batch["segments"][..., None] > 0
    read = readout(config, params, batch) if config.lstm_layers else encoded
    outputs = {"hidden": jnp.where(valid, encoded.hidden, 0), "pooled": encoded.pooled}
    for head in heads_of(params):
        if head == "mlm":
            logits = mlm_logits(config, params, encoded.hidden, batch["positions"])
        else:
            logits = head_logits(config, params, head, read)
        outputs[head] = jnp.where(valid, logits, 0) if logits.shape[1] == valid.shape[1] else logits
    return {name: value for name, value in outputs.items() if value is not None}


@functools.partial(jax.jit, static_argnums=0, static_argnames=("mask", "most", "pieces"))
def masked(config: ModelConfig, params: Params, batch: Batch, *, mask: int, most: int, pieces: int) -> Float[Array, "B M V"]:
    """Probabilities of the first ``pieces`` pieces under the first ``most`` kept mask pieces of each row."""
    positions = jax.lax.top_k((batch["keep"] & (batch["ids"] == mask)).astype(jnp.int32), most)[1]
    logits = mlm_logits(config, params, encode(config, params, batch).hidden, positions)
    return jax.nn.softmax(logits[..., :pieces], axis=-1)


@functools.partial(jax.jit, static_argnums=0, static_argnames="layers")
def states(config: ModelConfig, params: Params, batch: Batch, *, layers: tuple[int, ...]) -> Float[Array, "C B S D"]:
    """States after chosen layers, 0 the first."""
    return hidden_states(config, params, batch)[1:][jnp.array(layers)]


@functools.partial(jax.jit, static_argnums=0)
def _mean(config: ModelConfig, params: Params, batch: Batch) -> Float[Array, "B D"]:
    hidden = encode(config, params, batch).hidden.astype(jnp.float32)
    return jnp.where(batch["keep"][..., None], hidden, 0.0).sum(1)


@functools.partial(jax.jit, static_argnums=0)
def _max(config: ModelConfig, params: Params, batch: Batch) -> Float[Array, "B D"]:
    hidden = encode(config, params, batch).hidden.astype(jnp.float32)
    return jnp.where(batch["keep"][..., None], hidden, -jnp.inf).max(1)


@functools.partial(jax.jit, static_argnums=0)
def _cls(config: ModelConfig, params: Params, batch: Batch) -> Float[Array, "B D"]:
    return encode(config, params, batch).hidden[:, 0].astype(jnp.float32)


POOLED: dict[Pooling, Callable[..., Float[Array, "B D"]]] = {"mean": _mean, "max": _max, "cls": _cls}
"""The part of a window in the vector of its text: a sum, a largest value, or the state of [CLS]."""

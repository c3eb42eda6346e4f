"""Scaled dot-product attention within segments (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax import ops


def segment_mask(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Which query may see which key: both in the same segment, padding (segment 0) seen by none."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)


def attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segments: Int[Array, "B S"],
    *,
    keys: Key[Array, "B H"] | None = None,
    dropout: float = 0.0,
) -> Float[Array, "B S H K"]:
    """Mix the values of each query's own segment, in q's dtype with a float32 softmax.

    Padding queries give zeros. Dropout falls on the probabilities, as in the original, so a row of them no
    longer sums to one.

    Args:
      q, k, v: projected queries, keys and values; scaling by 1/sqrt(K) happens here.
      segments: 0 marks padding, other numbers the packed examples of a row.
      keys: dropout keys of each row and head, or None for no dropout.
      dropout: probability that a probability is dropped.
    """
    visible = segment_mask(segments)[:, None]
    scores = ops.einsum("BSHK,BTHK->BHST", q, k, wide=True) * q.shape[-1] ** -0.5
    # The original adds -10000 to hidden scores; a float32 softmax gives exact zeros for either.
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    probabilities = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0.0)
    probabilities = ops.dropout(probabilities, keys, dropout).astype(q.dtype)
    return ops.einsum("BHST,BTHK->BSHK", probabilities, v)

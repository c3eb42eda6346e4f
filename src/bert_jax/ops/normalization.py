"""Layer normalization."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.ops.products import broadcast_bias


def layer_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], *, eps: float) -> Float[Array, "*B D"]:
    """Normalize over the last axis in float32 and return x's dtype (Ba et al. 2016).

    BERT's eps of 1e-12, the default of ``tf.contrib.layers.layer_norm``, is too small for bfloat16 statistics.

    Examples:
      >>> layer_norm(jnp.array([[1.0, 3.0]]), jnp.ones(2), jnp.zeros(2), eps=1e-12).tolist()
      [[-1.0, 1.0]]
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + eps) * broadcast_bias(scale, x) + broadcast_bias(bias, x)).astype(x.dtype)

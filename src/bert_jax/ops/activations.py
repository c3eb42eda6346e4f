"""Activation functions, by the names that configs use."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Exact GELU, x/2 · (1 + erf(x/√2)), computed in float32 (Hendrycks and Gimpel 2016; ``gelu`` in ``modeling.py``).

    ``jax.nn.gelu`` computes it through erfc, which takes three times as long on a CPU; the results differ only where
    they are nearly 0. The backward pass recomputes erf instead of storing it.

    Examples:
      >>> float(gelu(jnp.float32(1.0)))
      0.8413447141647339
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: Array, cotangent: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * jnp.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return ((slope * cotangent).astype(x.dtype),)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
"""Activation functions by the names of [`ModelConfig.hidden_act`][bert_jax.ModelConfig.hidden_act]."""

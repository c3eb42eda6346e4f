"""The small operations every layer is made of: products, layer norm, activations, dropout, lookups.

Axis letters, here and everywhere: ``B`` batch, ``S``/``T`` query/key length, ``D`` hidden, ``H`` heads, ``K`` head size,
``F`` feed-forward, ``V`` vocabulary, ``M`` masked positions, ``E`` examples in a row, ``L`` layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from bert_jax import sharding
from bert_jax.config import Activation

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def einsum(equation: str, x: Array, y: Array, *, axes: tuple[str | None, ...] | None = None, wide: bool = False) -> Array:
    """A product in the operands' dtype, or in float32 where it is ``wide``.

    ``axes`` names the result's logical axes where a sharded axis is summed over.

    float32 operands are multiplied as float32 on every device: TPUs and recent GPUs would otherwise round them
    to fewer bits, and logits would not agree with a reference.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out = None if axes is None else sharding.spec(*axes)
    dtype = jnp.float32 if wide else None
    return jnp.einsum(equation, x, y, precision=precision, out_sharding=out, preferred_element_type=dtype)


def layer_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], *, eps: float) -> Float[Array, "*B D"]:
    """Layer normalisation over the last axis, computed in float32, in x's dtype (Ba et al. 2016).

    BERT's eps is 1e-12, that of tf.contrib.layers.layer_norm, so small that bfloat16 statistics would not do.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def fold_rows(keys: Key[Array, " B"], data: int | Int[Array, ""]) -> Key[Array, " B"]:
    """``jax.random.fold_in`` of one number into the key of each row."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "B *N"], keys: Key[Array, " B"] | Key[Array, "B H"] | None, rate: float) -> Float[Array, "B *N"]:
    """Inverted dropout with one key for each row, or for each row and head; none where ``keys`` is None.

    Keys that belong to the example, not to its place, make the masks the same on every mesh and under ``pmap``,
    and each device draws only its own part.
    """
    if keys is None or rate == 0.0:
        return x
    draw = functools.partial(jax.random.bernoulli, p=1.0 - rate, shape=x.shape[keys.ndim :])
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return jnp.where(draw(keys), x / (1.0 - rate), 0)


def lookup(table: Shaped[Array, "N *D"], ids: Int[Array, "B *S"]) -> Shaped[Array, "B *S *D"]:
    """Rows of a table; an id outside it gives NaN rather than, silently, a neighbour's row."""
    out = sharding.spec("batch", *(None,) * (ids.ndim + table.ndim - 2))
    return sharding.replicate(table).at[ids].get(mode="fill", out_sharding=out)


def gather_positions(hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Hidden states at M positions of each row."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)

"""Rows of tables, and hidden states at chosen positions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from bert_jax import sharding


def lookup(table: Shaped[Array, "N *D"], ids: Int[Array, "B *S"]) -> Shaped[Array, "B *S *D"]:
    """Rows of a table by index; an index outside the table gives NaN, not the nearest row.

    Examples:
      >>> lookup(jnp.array([10.0, 20.0]), jnp.array([[0, 1, 2, -1]])).tolist()
      [[10.0, 20.0, nan, nan]]
    """
    out = sharding.spec("batch", *(None,) * (ids.ndim + table.ndim - 2))
    return sharding.replicate(table).at[ids].get(mode="fill", wrap_negative_indices=False, out_sharding=out)


def gather_positions(hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Hidden states at M positions of each row.

    Examples:
      >>> gather_positions(jnp.arange(4.0).reshape(1, 4, 1), jnp.array([[3, 0]])).tolist()
      [[[3.0], [0.0]]]
    """
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)

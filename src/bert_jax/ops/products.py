"""Matrix products with full float32 precision, and biases that are broadcast over their results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax import sharding
from bert_jax.ops import cpu


def einsum(equation: str, x: Array, y: Array, *, axes: tuple[str | None, ...] | None = None, float32_result: bool = False) -> Array:
    """Multiply two arrays in their dtype.

    float32 operands are multiplied as float32 on every device. TPUs and recent GPUs would round them to fewer bits by
    default, and the logits would differ from a reference.

    Args:
      equation: as for ``jnp.einsum``.
      x, y: operands of one dtype.
      axes: logical axes of the result; needed where the product sums over a sharded axis.
      float32_result: return float32 whatever the operands' dtype.

    Examples:
      >>> einsum("BD,DF->BF", jnp.ones((2, 3)), jnp.ones((3, 4))).shape
      (2, 4)
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out = None if axes is None else sharding.spec(*axes)
    dtype = jnp.float32 if float32_result else None
    return jnp.einsum(equation, x, y, precision=precision, out_sharding=out, preferred_element_type=dtype)


def project(
    equation: str, x: Array, y: Array, *, axes: tuple[str | None, ...] | None = None, float32_result: bool = False
) -> Array:
    """Multiply as ``einsum``, in the forms that are fast on each device, forward and backward.

    Every product of activations and weights is computed here. float32 products need no special form; bfloat16 products do on CPUs
    ([`bert_jax.ops.cpu`][bert_jax.ops.cpu]).
    """
    if x.dtype == jnp.float32:
        return einsum(equation, x, y, axes=axes)
    return cpu.bfloat16_product(x, y, equation, None if axes is None else sharding.spec(*axes), float32_result)


def broadcast_bias(vector: Float[Array, "*N"], like: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Broadcast a bias or a scale over the leading axes of ``like``, in the vector's dtype and in the layout of ``like``.

    Each device sums its own rows of the gradient. Without the layout, the gradient of the whole batch would be gathered first.
    In bfloat16 programs that sum has a form of its own ([`bert_jax.ops.cpu`][bert_jax.ops.cpu]).
    """
    layout = sharding.spec_of(like)
    if like.dtype == jnp.float32:
        return jnp.broadcast_to(vector, like.shape, out_sharding=layout)
    return cpu.broadcast(vector, like.shape, layout)

"""bfloat16 products and bias gradients in the forms that reach a CPU's matrix units.

XLA's CPU compiler uses the processor's bfloat16 instructions only for certain forms of a product. The functions here choose
these forms on a CPU and the plain ones elsewhere, by ``jax.lax.platform_dependent``; ``docs/performance.md`` has the
measurements.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from bert_jax import sharding


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def bfloat16_product(x: Array, y: Array, equation: str, out: P | None, float32_result: bool) -> Array:
    """``jnp.einsum`` of bfloat16 operands with a backward pass whose products are bfloat16 too."""
    return _product(equation, x, y, out, jnp.dtype(jnp.float32) if float32_result else x.dtype)


def _forward(x: Array, y: Array, equation: str, out: P | None, float32_result: bool) -> tuple[Array, tuple[Array, Array]]:
    return bfloat16_product(x, y, equation, out, float32_result), (x, y)


def _backward(
    equation: str, out: P | None, float32_result: bool, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    # A float32 cotangent would make both products float32 ones.
    x, y = operands
    cotangent = cotangent.astype(x.dtype)
    (left, right), result = equation.split("->")[0].split(","), equation.split("->")[1]
    dx = _product(f"{result},{right}->{left}", cotangent, y, sharding.spec_of(x), x.dtype)
    dy = _product(f"{left},{result}->{right}", x, cotangent, sharding.spec_of(y), y.dtype)
    return dx, dy


bfloat16_product.defvjp(_forward, _backward)


def _product(equation: str, x: Array, y: Array, out: P | None, dtype: jnp.dtype) -> Array:
    """Only bfloat16 products with float32 results reach the bfloat16 units of a CPU.

    Batched products, such as attention's, keep their plain form: XLA's CPU runtime aborts in most other forms.
    """

    def cpu(x: Array, y: Array) -> Array:
        inputs, result = equation.split("->")
        left, right = inputs.split(",")
        summed = [letter for letter in left if letter not in result]
        if left[: len(summed)] == "".join(summed) == right[: len(summed)] and len(summed) > 1 and x.shape[1] % 2 == 0:
            # Gradients of kernels sum over leading axes, a form without a fast path. XLA folds a plain transpose back into
            # the product; it does not fold two transposed halves that are concatenated.
            halves = (jnp.moveaxis(half, (0, 1), (-2, -1)) for half in jnp.split(x, 2, axis=1))
            x = jnp.concatenate(list(halves), axis=-1)
            left = left[2:] + left[:2]
        return jnp.einsum(f"{left},{right}->{result}", x, y, out_sharding=out, preferred_element_type=jnp.float32).astype(dtype)

    def other(x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x, y, out_sharding=out, preferred_element_type=dtype)

    left, right, result = equation.replace("->", ",").split(",")
    if set(left) & set(right) & set(result):
        return other(x, y)
    return jax.lax.platform_dependent(x, y, cpu=cpu, default=other)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def broadcast(vector: Array, shape: tuple[int, ...], out: P | None) -> Array:
    """``jnp.broadcast_to`` whose gradient is, on a CPU, a product with ones instead of a reduction."""
    return jnp.broadcast_to(vector, shape, out_sharding=out)


def _broadcast_backward(shape: tuple[int, ...], out: P | None, vector: Array, cotangent: Array) -> tuple[Array]:
    summed = tuple(range(len(shape) - vector.ndim))

    def cpu(cotangent: Array) -> Array:
        ones = sharding.reshard(jnp.ones(shape[: len(summed)], cotangent.dtype), "batch", *(None,) * (len(summed) - 1))
        return jax.lax.dot_general(
            ones,
            cotangent,
            ((summed, summed), ((), ())),
            preferred_element_type=jnp.float32,
            out_sharding=sharding.spec_of(vector),
        )

    def other(cotangent: Array) -> Array:
        return cotangent.sum(summed, dtype=jnp.float32)

    return (jax.lax.platform_dependent(cotangent, cpu=cpu, default=other).astype(vector.dtype),)


broadcast.defvjp(lambda vector, shape, out: (broadcast(vector, shape, out), vector), _broadcast_backward)

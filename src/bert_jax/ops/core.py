"""The small operations every layer is made of: products, layer norm, activations, dropout, lookups.

Axis letters, here and everywhere: ``B`` batch, ``S``/``T`` query/key length, ``D`` hidden, ``H`` heads, ``K`` head size,
``F`` feed-forward, ``V`` vocabulary, ``M`` masked positions, ``E`` examples in a row, ``L`` layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, Shaped, UInt32

from bert_jax import sharding
from bert_jax.config.run import Activation


@jax.custom_vjp
def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """x times the normal distribution function, computed in float32 as x/2 · (1 + erf(x/√2)) (the original's ``gelu``).

    ``jax.nn.gelu`` goes through erfc, two polynomials and an exponential, which takes three times as long on a CPU and
    differs only where the result is nearly 0. The backward pass computes erf again instead of storing it.
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

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": gelu,
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


def project(equation: str, x: Array, y: Array, *, axes: tuple[str | None, ...] | None = None, wide: bool = False) -> Array:
    """:func:`einsum`, forwards and backwards in the forms that reach a processor's matrix units."""
    if x.dtype == jnp.float32:
        return einsum(equation, x, y, axes=axes)
    return _narrow(x, y, equation, None if axes is None else sharding.spec(*axes), wide)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _narrow(x: Array, y: Array, equation: str, out: P | None, wide: bool) -> Array:
    return _product(equation, x, y, out, jnp.dtype(jnp.float32) if wide else x.dtype)


def _narrow_forward(x: Array, y: Array, equation: str, out: P | None, wide: bool) -> tuple[Array, tuple[Array, Array]]:
    return _narrow(x, y, equation, out, wide), (x, y)


def _narrow_backward(
    equation: str, out: P | None, wide: bool, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    # A cotangent in float32 would make both products float32 ones.
    x, y = operands
    cotangent = cotangent.astype(x.dtype)
    (left, right), result = equation.split("->")[0].split(","), equation.split("->")[1]
    dx = _product(f"{result},{right}->{left}", cotangent, y, sharding.spec_of(x), x.dtype)
    dy = _product(f"{left},{result}->{right}", x, cotangent, sharding.spec_of(y), y.dtype)
    return dx, dy


_narrow.defvjp(_narrow_forward, _narrow_backward)


def _product(equation: str, x: Array, y: Array, out: P | None, dtype: jnp.dtype) -> Array:
    """On a CPU only narrow products with float32 results reach the units that multiply bfloat16.

    Batched ones, as attention's, are left alone: most of their forms end a CPU program when they are run.
    """

    def cpu(x: Array, y: Array) -> Array:
        inputs, result = equation.split("->")
        left, right = inputs.split(",")
        summed = [letter for letter in left if letter not in result]
        if left[: len(summed)] == "".join(summed) == right[: len(summed)] and len(summed) > 1 and x.shape[1] % 2 == 0:
            # Gradients of kernels sum over leading axes, a form that has no fast path. Halves joined after a transpose
            # are not folded back into the product, as a plain transpose would be.
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


def spread(vector: Float[Array, "*N"], like: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """A vector broadcast over the leading axes of ``like``, in its own dtype; in programs of narrow numbers, with a fast sum
    backwards."""
    return jnp.broadcast_to(vector, like.shape) if like.dtype == jnp.float32 else _spread(vector, like.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spread(vector: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(vector, shape)


def _spread_backward(shape: tuple[int, ...], vector: Array, cotangent: Array) -> tuple[Array]:
    over = tuple(range(len(shape) - vector.ndim))

    def cpu(cotangent: Array) -> Array:
        ones = sharding.split(jnp.ones(shape[: len(over)], cotangent.dtype), "batch", *(None,) * (len(over) - 1))
        return jax.lax.dot_general(
            ones,
            cotangent,
            ((over, over), ((), ())),
            preferred_element_type=jnp.float32,
            out_sharding=sharding.spec_of(vector),
        )

    def other(cotangent: Array) -> Array:
        return cotangent.sum(over, dtype=jnp.float32)

    return (jax.lax.platform_dependent(cotangent, cpu=cpu, default=other).astype(vector.dtype),)


_spread.defvjp(lambda vector, shape: (_spread(vector, shape), vector), _spread_backward)


def layer_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], *, eps: float) -> Float[Array, "*B D"]:
    """Layer normalisation over the last axis, computed in float32, in x's dtype (Ba et al. 2016).

    BERT's eps is 1e-12, that of tf.contrib.layers.layer_norm, so small that bfloat16 statistics would not do.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + eps) * spread(scale, x) + spread(bias, x)).astype(x.dtype)


def row_keys(key: Key[Array, ""], examples: Int[Array, "B E"]) -> Key[Array, " B"]:
    """A key for each row, which belongs to its first example."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, examples[:, 0])


def fold_rows(keys: Key[Array, " B"], data: int | Int[Array, ""]) -> Key[Array, " B"]:
    """``jax.random.fold_in`` of one number into the key of each row."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "B *N"], keys: Key[Array, " B"] | Key[Array, "B H"] | None, rate: float) -> Float[Array, "B *N"]:
    """Inverted dropout with one key for each row, or for each row and head; none where ``keys`` is None.

    Keys that belong to the example, not to its place, make the masks the same on every mesh and under ``pmap``,
    and each device draws only its own part. A value is kept if a hash of the key and its place in the row is small
    enough: arithmetic on 32-bit integers, forty times cheaper than ``jax.random.bernoulli``, which the compiler fuses with
    what stands around it. Nothing is stored for the backward pass: it computes the hash again.
    """
    if keys is None or rate == 0.0:
        return x
    with jax.named_scope("dropout"):
        return _dropout(x, jax.random.key_data(keys), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: Array, words: Array, rate: float) -> Array:
    axes = x.ndim - words.ndim + 1
    places = jax.lax.iota(jnp.uint32, math.prod(x.shape[-axes:])).reshape(x.shape[-axes:])
    first, second = (words[..., number].reshape(*words.shape[:-1], *(1,) * axes) for number in range(2))
    kept = random_bits(first, second, places) < jnp.uint32(round((1.0 - rate) * 2**32))
    return jnp.where(kept, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


_dropout.defvjp(
    lambda x, words, rate: (_dropout(x, words, rate), words),
    lambda rate, words, cotangent: (_dropout(cotangent, words, rate), None),
)


def random_bits(first: UInt32[Array, "*#N"], second: UInt32[Array, "*#N"], places: UInt32[Array, "*#N"]) -> UInt32[Array, "*N"]:
    """32 random bits for each place, from the two words of a key; arguments are broadcast.

    A Weyl sequence through the two rounds of the 32-bit finalizer "lowbias32" (the hash-prospector project), one word of the
    key before them and one between, and a third multiplication. Not for cryptography.
    """
    bits = places * jnp.uint32(0x9E3779B9) + first
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) + second
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x846CA68B)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x9E3779B1)
    return bits ^ (bits >> 16)


def lookup(table: Shaped[Array, "N *D"], ids: Int[Array, "B *S"]) -> Shaped[Array, "B *S *D"]:
    """Rows of a table; an id outside it gives NaN rather than, silently, a neighbour's row."""
    out = sharding.spec("batch", *(None,) * (ids.ndim + table.ndim - 2))
    return sharding.replicate(table).at[ids].get(mode="fill", out_sharding=out)


def gather_positions(hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Hidden states at M positions of each row."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)

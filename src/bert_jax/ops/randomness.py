"""Random keys that belong to examples, and dropout that is drawn from them.

A key depends on the example, not on its place in a batch or on a device. Masks are therefore the same on every mesh, under
``pmap``, in every process layout and after a resume.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

GENERATOR = "threefry2x32"
"""The generator of a run's keys, whatever ``jax_default_prng_impl`` is; the bits of the others depend on a program's layout."""


def row_keys(key: Key[Array, ""], example_ids: Int[Array, "B E"]) -> Key[Array, " B"]:
    """A key for each row, derived from the id of its first example."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids[:, 0])


def fold_rows(keys: Key[Array, " B"], data: int | Int[Array, ""]) -> Key[Array, " B"]:
    """Apply ``jax.random.fold_in`` with one number to the key of each row."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "B *N"], keys: Key[Array, " B"] | Key[Array, "B H"] | None, rate: float) -> Float[Array, "B *N"]:
    """Inverted dropout with one key for each row, or for each row and head; the identity where ``keys`` is None.

    A value is kept where a hash of the key and of the value's place in the row is below a threshold. The hash is integer
    arithmetic that XLA fuses with its surroundings, about forty times cheaper than ``jax.random.bernoulli`` on a CPU. The
    backward pass recomputes the mask instead of storing it.

    Args:
      x: activations.
      keys: keys [B] or [B, H].
      rate: probability of dropping a value, in [0, 1).

    Examples:
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> dropped = dropout(jnp.ones((2, 1000)), keys, 0.25)
      >>> sorted(set(dropped.ravel().tolist()))
      [0.0, 1.3333333730697632]
    """
    if keys is None or rate == 0.0:
        return x
    with jax.named_scope("dropout"):
        return _dropout(x, jax.random.key_data(keys), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: Array, words: Array, rate: float) -> Array:
    axes = x.ndim - words.ndim + 1
    places = jax.lax.iota(jnp.uint32, math.prod(x.shape[-axes:])).reshape(x.shape[-axes:])
    first, second = (words[..., index].reshape(*words.shape[:-1], *(1,) * axes) for index in range(2))
    kept = random_bits(first, second, places) < jnp.uint32(round((1.0 - rate) * 2**32))
    return jnp.where(kept, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


_dropout.defvjp(
    lambda x, words, rate: (_dropout(x, words, rate), words),
    lambda rate, words, cotangent: (_dropout(cotangent, words, rate), None),
)


def random_bits(first: UInt32[Array, "*#N"], second: UInt32[Array, "*#N"], places: UInt32[Array, "*#N"]) -> UInt32[Array, "*N"]:
    """32 pseudo-random bits for each place, from the two words of a key; the arguments broadcast.

    A Weyl sequence through the rounds of the 32-bit finalizer "lowbias32" of the hash-prospector project, with one word of the
    key before the first round and one between the rounds, and a third multiplication. Not cryptographic.
    """
    bits = places * jnp.uint32(0x9E3779B9) + first
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) + second
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x846CA68B)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x9E3779B1)
    return bits ^ (bits >> 16)

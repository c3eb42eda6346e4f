"""Attention against loops, and that nothing passes between segments."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.attention import attention
from tests.reference import softmax

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])


def qkv(dtype=jnp.float32):
    return (jnp.asarray(x, dtype) for x in np.random.default_rng(0).normal(size=(3, 3, 6, 2, 8)))


def test_is_softmax_within_segments():
    q, k, v = qkv()
    found = np.asarray(attention(q, k, v, jnp.asarray(SEGMENTS)))
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    for b, s, h in np.ndindex(3, 6, 2):
        if SEGMENTS[b, s] == 0:
            np.testing.assert_array_equal(found[b, s, h], 0)
            continue
        mates = np.flatnonzero(SEGMENTS[b] == SEGMENTS[b, s])
        weights = softmax(k[b, mates, h] @ q[b, s, h] / math.sqrt(8))
        np.testing.assert_allclose(found[b, s, h], weights @ v[b, mates, h], atol=1e-6)


def test_no_gradient_passes_between_segments():
    q, k, v = qkv()

    def second_segment(q, k, v):
        return (attention(q, k, v, jnp.asarray(SEGMENTS))[0, 3:5] ** 2).sum()

    for gradient in jax.grad(second_segment, argnums=(0, 1, 2))(q, k, v):
        inside = np.zeros((3, 6), bool)
        inside[0, 3:5] = True
        np.testing.assert_array_equal(np.asarray(gradient)[~inside], 0)
        assert np.abs(np.asarray(gradient)[inside]).min() > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_row_of_padding_is_finite_forwards_and_backwards(dtype):
    q, k, v = qkv(dtype)
    value, gradients = jax.value_and_grad(lambda q: attention(q, k, v, jnp.asarray(SEGMENTS)).astype(jnp.float32).sum())(q)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradients).all()


def test_dropout_falls_on_probabilities():
    q, k, _ = qkv()
    keys = jax.random.split(jax.random.key(0), (3, 2))
    identity = jnp.broadcast_to(jnp.eye(6)[None, :, None], (3, 6, 2, 6))
    identity = jnp.pad(identity, ((0, 0), (0, 0), (0, 0), (0, 2)))
    segments = jnp.ones((3, 6), jnp.int32)
    whole = attention(q, k, identity, segments)[..., :6]
    dropped = attention(q, k, identity, segments, keys=keys, dropout=0.5)[..., :6]
    kept = dropped > 0
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-6)
    assert 0.35 < float(kept.mean()) < 0.65

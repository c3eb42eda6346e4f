"""Small operations against definitions written out in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import ops, positions


def test_layer_norm_is_its_definition():
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 16))
    scale, bias = np.linspace(0.5, 2, 16), np.linspace(-1, 1, 16)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * scale + bias
    found = ops.layer_norm(jnp.float32(x), jnp.float32(scale), jnp.float32(bias), eps=1e-12)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_layer_norm_of_bfloat16_has_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(100.0, 1.0, (2, 512)), jnp.bfloat16)
    found = ops.layer_norm(x, jnp.ones(512), jnp.zeros(512), eps=1e-12)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("relu", lambda x: max(x, 0.0)),
        ("tanh", math.tanh),
    ],
)
def test_activations_are_their_definitions(name, function):
    points = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(ops.ACTIVATIONS[name](jnp.float32(points)), [function(x) for x in points], atol=1e-6)


def test_erf_and_tanh_gelu_differ():
    points = jnp.linspace(-3, 3, 61)
    assert 1e-4 < jnp.abs(ops.ACTIVATIONS["gelu"](points) - ops.ACTIVATIONS["gelu_tanh"](points)).max() < 1e-3


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    keys = jax.random.split(jax.random.key(0), 50)
    x = jnp.ones((50, 40, 100))
    y = ops.dropout(x, keys, rate)
    sigma = math.sqrt(rate * (1 - rate) / x.size)
    assert abs(float((y == 0).mean()) - rate) < 3 * sigma
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-6)
    # Rows are independent: two of them agree as often as chance has it.
    agree = float((y[0] == y[1]).mean())
    assert abs(agree - (rate**2 + (1 - rate) ** 2)) < 5 * math.sqrt(0.25 / 4000)


def test_dropout_belongs_to_the_key_not_to_the_row():
    keys, order = jax.random.split(jax.random.key(0), 6), np.array([3, 1, 5, 0, 2, 4])
    x = jnp.ones((6, 8, 8))
    np.testing.assert_array_equal(ops.dropout(x, keys, 0.5)[order], ops.dropout(x, keys[order], 0.5))


def test_no_dropout_without_keys_or_rate():
    x = jnp.ones((2, 3))
    assert ops.dropout(x, None, 0.5) is x
    assert ops.dropout(x, jax.random.split(jax.random.key(0), 2), 0.0) is x


def test_lookup_outside_the_table_is_not_a_number():
    table = jnp.arange(6.0).reshape(3, 2)
    found = ops.lookup(table, jnp.array([[0, 2, 3]]))
    np.testing.assert_array_equal(found[0, :2], table[jnp.array([0, 2])])
    assert jnp.isnan(found[0, 2]).all()


def test_gather_positions():
    hidden = jnp.arange(24.0).reshape(2, 4, 3)
    found = ops.gather_positions(hidden, jnp.array([[3, 0], [1, 1]]))
    np.testing.assert_array_equal(found, np.stack([hidden[0, [3, 0]], hidden[1, [1, 1]]]))


def test_float32_products_are_float32_products():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 200)), rng.normal(size=(200, 5))
    jaxpr = str(jax.make_jaxpr(lambda a, b: ops.einsum("BD,DF->BF", a, b))(jnp.float32(x), jnp.float32(w)))
    assert "HIGHEST" in jaxpr
    np.testing.assert_allclose(ops.einsum("BD,DF->BF", jnp.float32(x), jnp.float32(w)), x @ w, rtol=2e-5, atol=2e-5)


def test_sinusoidal_table_is_the_formula():
    table = positions.sinusoidal(7, 6)
    for place in range(7):
        for column in range(3):
            angle = place / 10000 ** (2 * column / 6)
            assert table[place, column] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[place, column + 3] == pytest.approx(math.cos(angle), abs=1e-6)
    assert positions.sinusoidal(3, 5).shape == (3, 5)

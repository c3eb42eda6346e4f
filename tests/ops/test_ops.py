"""Small operations against definitions written out in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import ops
from bert_jax.ops import positions


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_slope(dtype):
    """Against float64: x · Φ(x) and Φ(x) + x · φ(x), to a rounding of the dtype."""
    x = jnp.linspace(-12, 12, 4801, dtype=jnp.float32).astype(dtype)
    cotangent = jnp.linspace(0.5, 2, 4801, dtype=jnp.float32).astype(dtype)
    value, pull = jax.vjp(ops.gelu, x)
    (slope,) = pull(cotangent)
    assert value.dtype == slope.dtype == dtype
    wide, factor = np.asarray(x, np.float64), np.asarray(cotangent, np.float64)
    cdf = np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in wide])
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(value, np.float64), wide * cdf, rtol=rounding, atol=2e-6)
    expected = factor * (cdf + wide * np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi))
    np.testing.assert_allclose(np.asarray(slope, np.float64), expected, rtol=2 * rounding, atol=2e-6)


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


def test_random_bits_are_even_and_independent():
    """Over sites, places near and far, and keys that differ in one bit: correlations within five standard deviations."""
    places = jnp.arange(1 << 18, dtype=jnp.uint32)

    def kept(first, second):
        return np.asarray(ops.random_bits(jnp.uint32(first), jnp.uint32(second), places) < jnp.uint32(0.9 * 2**32))

    related = [(0, 0), (1, 0), (0, 1), (1, 1), (2**31, 0), (0, 2**31), (0x9E3779B9, 0), (0, 0x9E3779B9)]
    drawn = [tuple(int(word) for word in jax.random.key_data(jax.random.fold_in(jax.random.key(0), site))) for site in range(24)]
    values = (np.stack([kept(*words) for words in related + drawn]) - 0.9) / 0.3
    count = places.size
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    between = (values @ values.T / math.sqrt(count))[~np.eye(len(values), dtype=bool)]
    assert np.abs(between).max() < 5
    for lag in (1, 2, 3, 4, 16, 64, 128, 512, 768, 4096):
        assert np.abs((values[:, lag:] * values[:, :-lag]).sum(1)).max() < 5 * math.sqrt(count), lag
    # As an image, with rows as long as a hidden state: no stripe, however fine or slanted.
    image = np.abs(np.fft.fft2(values[-1][: 256 * 768].reshape(256, 768))) ** 2 / (256 * 768)
    assert image.ravel()[1:].max() < 25
    for shift in (0, 8, 16, 24):
        bits = (np.asarray(ops.random_bits(jnp.uint32(5), jnp.uint32(7), places)) >> shift) & 255
        squares = ((np.bincount(bits, minlength=256) - count / 256) ** 2 / (count / 256)).sum()
        assert abs(squares - 255) < 5 * math.sqrt(2 * 255)


def test_dropout_stores_nothing_and_drops_the_same_backwards():
    x = jax.random.normal(jax.random.key(0), (4, 32, 16))
    keys = jax.random.split(jax.random.key(1), 4)
    y, back = jax.vjp(lambda x: ops.dropout(x, keys, 0.3), x)
    np.testing.assert_array_equal(back(jnp.ones_like(x))[0], jnp.where(y == 0, 0, 1 / 0.7))
    assert sum(leaf.size for leaf in jax.tree.leaves(back)) <= 2 * 4


FORMS = [
    ("BSD,DF->BSF", (4, 6, 8), (8, 10)),
    ("BSD,DAHK->BSAHK", (4, 6, 8), (8, 3, 2, 5)),
    ("BSHK,HKD->BSD", (4, 6, 2, 5), (2, 5, 8)),
    ("BED,DC->BEC", (4, 1, 8), (8, 2)),
    ("BMD,VD->BMV", (4, 3, 8), (11, 8)),
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("equation", "left", "right"), FORMS)
def test_projections_and_their_gradients_are_products(equation, left, right, dtype):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in (left, right))
    wide = [np.asarray(value, np.float64) for value in (x, kernel)]
    found, back = jax.vjp(jax.jit(lambda x, w: ops.project(equation, x, w)), x, kernel)
    cotangent = jnp.asarray(rng.normal(size=found.shape), dtype)
    expected = np.einsum(equation, *wide)
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance)
    inputs, result = equation.split("->")
    first, second = inputs.split(",")
    g = np.asarray(cotangent, np.float64)
    for value, wanted in zip(
        back(cotangent),
        (np.einsum(f"{result},{second}->{first}", g, wide[1]), np.einsum(f"{first},{result}->{second}", wide[0], g)),
        strict=True,
    ):
        assert value.dtype == dtype
        np.testing.assert_allclose(np.asarray(value, np.float64), wanted, rtol=tolerance, atol=tolerance)
    assert ops.project(equation, x, kernel, float32_result=True).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_broadcasting_a_bias_is_a_broadcast_whose_gradient_is_a_sum(dtype):
    rng = np.random.default_rng(0)
    vector, like = jnp.asarray(rng.normal(size=(3, 5)), dtype), jnp.zeros((4, 6, 3, 5), dtype)
    found, back = jax.vjp(lambda v: ops.broadcast_bias(v, like), vector)
    np.testing.assert_array_equal(found, jnp.broadcast_to(vector, like.shape))
    cotangent = jnp.asarray(rng.normal(size=like.shape), dtype)
    expected = np.asarray(cotangent, np.float64).sum((0, 1))
    np.testing.assert_allclose(np.asarray(back(cotangent)[0], np.float64), expected, rtol=2**-7, atol=2**-6)

"""Attention against loops in NumPy; no information passes between segments."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

import bert_jax
from bert_jax import sharding
from bert_jax.errors import UserError
from bert_jax.ops import attention as implementations
from bert_jax.ops.attention import attention, segment_mask, select
from tests.conftest import MODEL, make_batch
from tests.reference import softmax

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])


def qkv(dtype=jnp.float32):
    return (jnp.asarray(x, dtype) for x in np.random.default_rng(0).normal(size=(3, 3, 6, 2, 8)))


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("causal", [False, True])
def test_is_softmax_within_segments(impl, causal):
    q, k, v = qkv()
    result = np.asarray(attention(q, k, v, jnp.asarray(SEGMENTS), causal=causal, implementation=impl))
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    for b, s, h in np.ndindex(3, 6, 2):
        if SEGMENTS[b, s] == 0:
            np.testing.assert_array_equal(result[b, s, h], 0)
            continue
        mates = np.flatnonzero(SEGMENTS[b] == SEGMENTS[b, s])
        mates = mates[mates <= s] if causal else mates
        weights = softmax(k[b, mates, h] @ q[b, s, h] / math.sqrt(8))
        np.testing.assert_allclose(result[b, s, h], weights @ v[b, mates, h], atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_mask_is_that_of_a_loop(causal):
    result = np.asarray(segment_mask(jnp.asarray(SEGMENTS), causal=causal))
    expected = np.zeros((3, 6, 6), bool)
    for b, s, t in np.ndindex(3, 6, 6):
        expected[b, s, t] = SEGMENTS[b, s] == SEGMENTS[b, t] > 0 and not (causal and t > s)
    np.testing.assert_array_equal(result, expected)


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


def test_dropout_is_applied_to_probabilities():
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


def long_rows():
    """Two examples and padding, in rows of a length that kernels have to pad."""
    q, k, v = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(1).normal(size=(3, 4, 150, 2, 32)))
    return q, k, v, jnp.asarray(np.repeat([[1] * 80 + [2] * 40 + [0] * 30], 4, 0))


def squares(impl, causal=False):
    """Value, output and gradients."""

    def total(q, k, v, segments):
        mixed = attention(q, k, v, segments, causal=causal, implementation=impl)
        return (mixed.astype(jnp.float32) ** 2).sum(), mixed

    return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)


@pytest.fixture
def interpreted(monkeypatch):
    """TPU kernels run by Pallas's interpreter."""
    run = functools.partial(implementations._splash, interpret=True)
    monkeypatch.setitem(implementations._FUSED, "splash", run)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "mesh"])
@pytest.mark.parametrize("impl", ["xla", "splash"])
def test_fused_attention_equals_the_reference(impl, mesh, causal, interpreted):
    arrays = long_rows()
    expected = squares("reference", causal)(*arrays)

    def divided(q, k, v, segments):
        heads = (sharding.reshard(x, "batch", None, "heads", None) for x in (q, k, v))
        return squares(impl, causal)(*heads, sharding.reshard(segments, "batch", None))

    if mesh is None:
        result = squares(impl, causal)(*arrays)
    else:
        with jax.set_mesh(sharding.make_mesh(**mesh)):
            result = jax.jit(divided)(*arrays)
        assert result[1][0].sharding.spec == jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor", None)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), jax.device_get(result), jax.device_get(expected)
    )
    np.testing.assert_array_equal(result[0][1][:, 120:], 0)


@pytest.mark.parametrize("impl", ["xla", "splash"])
def test_no_gradient_passes_between_segments_of_fused_attention(impl, interpreted):
    q, k, v, segments = long_rows()
    inside = np.zeros((4, 150), bool)
    inside[0, 80:120] = True
    gradients = jax.grad(lambda *qkv: (attention(*qkv, segments, implementation=impl)[0, 80:120] ** 2).sum(), argnums=(0, 1, 2))(
        q, k, v
    )
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[~inside], 0)
        assert np.abs(np.asarray(gradient)[inside]).min() > 0


@pytest.mark.parametrize("impl", ["reference", "xla", "splash"])
def test_no_gradient_passes_from_a_token_to_later_ones(impl, interpreted):
    q, k, v, segments = long_rows()
    queries, visible, later = slice(90, 100), slice(80, 100), np.r_[0:80, 100:150]

    def some(q, k, v):
        return (attention(q, k, v, segments, causal=True, implementation=impl)[:, queries] ** 2).sum()

    _, keys, values = jax.grad(some, argnums=(0, 1, 2))(q, k, v)
    for gradient in (keys, values):
        np.testing.assert_array_equal(gradient[:, later], 0)
        assert np.abs(gradient[:, visible]).min() > 0


@pytest.mark.parametrize(
    ("causal", "impl", "layers"), [(True, "reference", "scan"), (True, "xla", "unroll"), (False, "reference", "scan")]
)
def test_a_token_of_a_causal_model_depends_on_no_later_one(params, causal, impl, layers):
    """Each token occurs once, so that rows of the word table stand for positions; packed examples are independent too."""
    config = dataclasses.replace(MODEL, causal=causal, attention=impl, layers=layers)
    batch = jax.tree.map(jnp.asarray, make_batch([[9, 14, 6]], 32) | {"input_ids": np.arange(32)[None]})
    segments = np.asarray(batch["segment_ids"][0])

    def outputs(rows):
        embeddings = params["bert"]["embeddings"] | {"word": params["bert"]["embeddings"]["word"].at[:32].add(rows)}
        changed = params | {"bert": params["bert"] | {"embeddings": embeddings}}
        return (bert_jax.encode(config, changed, batch).hidden[0] ** 3).sum(-1)

    moved = np.abs(jax.jit(jax.jacrev(outputs))(jnp.zeros((32, 32)))).max(-1)
    real = segments > 0
    place = np.arange(32)
    visible = (segments[:, None] == segments) & ((place[:, None] >= place) | (not causal))
    np.testing.assert_array_equal(moved[real][:, ~real], 0)
    np.testing.assert_array_equal(moved[real] > 0, visible[real])


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_model_pools_the_last_token_of_each_example(params, causal):
    config = dataclasses.replace(MODEL, causal=causal)
    lengths = [[9, 14, 6], [32], [3, 20]]
    batch = make_batch(lengths, 32)
    result = jax.device_get(jax.jit(bert_jax.encode, static_argnums=0)(config, params, batch))
    pooler = params["bert"]["pooler"]
    for row, parts in enumerate(lengths):
        ends = np.cumsum(parts)
        for slot, (first, end) in enumerate(zip(ends - parts, ends, strict=True)):
            state = result.hidden[row, end - 1 if causal else first]
            expected = np.tanh(state @ pooler["kernel"] + pooler["bias"])
            np.testing.assert_allclose(result.pooled[row, slot], expected, rtol=1e-5, atol=1e-5)
    # Slots without an example are finite.
    assert np.isfinite(result.pooled).all()


@pytest.mark.parametrize(
    ("impl", "platform", "calls"),
    [
        ("splash", "tpu", ["tpu_custom_call"]),
        ("cudnn", "cuda", ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]),
        ("xla", "tpu", []),
        ("xla", "cuda", []),
        ("reference", "tpu", []),
        ("reference", "cuda", []),
    ],
)
def test_every_implementation_is_lowered_for_its_device(impl, platform, calls, monkeypatch):
    # Lowering needs no device, but it queries cuDNN; these are the answers for a Hopper GPU.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    q, k, v, segments = long_rows()
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    known = [jax.export.DisabledSafetyCheck.custom_call(call) for call in calls]
    exported = jax.export.export(jax.jit(squares(impl)), platforms=[platform], disabled_checks=known)(q, k, v, segments)
    program = exported.mlir_module()
    assert ("custom_call @" in program) == bool(calls)
    for call in calls:
        assert f"custom_call @{call}(" in program
    with jax.set_mesh(sharding.make_mesh(data=4, tensor=2)):

        def divided(q, k, v, segments):
            heads = (sharding.reshard(x, "batch", None, "heads", None) for x in (q, k, v))
            return squares(impl)(*heads, sharding.reshard(segments, "batch", None))

        exported = jax.export.export(jax.jit(divided), platforms=[platform], disabled_checks=known)(q, k, v, segments)
    for call in calls:
        # Each device calls it for one row and one head of size 32.
        assert re.search(rf"custom_call @{re.escape(call)}\(.* : \(.*tensor<1x(150x1|256)x32xbf16>", exported.mlir_module())


def test_fused_attention_refuses_dropout():
    keys = jax.random.split(jax.random.key(0), (4, 2))
    with pytest.raises(UserError, match="attention implementation xla has no dropout"):
        attention(*long_rows(), keys=keys, dropout=0.1, implementation="xla")
    np.testing.assert_array_equal(
        attention(*long_rows(), keys=keys, implementation="xla"), attention(*long_rows(), implementation="xla")
    )


def select_for(config, length, *, training):
    """The implementation that a model uses for rows of this length."""
    return select(
        config.attention,
        dtype=config.dtype,
        sequence_length=length,
        head_size=config.head_size,
        dropout=training and config.attention_probs_dropout_prob > 0,
    )


def test_implementations_for_another_device_are_refused():
    assert select_for(MODEL, 128, training=True) == "reference"
    for name, sentence in {
        "cudnn": "needs a GPU; this is a CPU",
        "splash": "needs a TPU; this is a CPU",
    }.items():
        with pytest.raises(UserError, match=sentence):
            select_for(dataclasses.replace(MODEL, attention=name), 128, training=False)
    with pytest.raises(UserError, match="no full float32 products"):
        select_for(dataclasses.replace(MODEL, attention="tokamax"), 128, training=False)


def test_tokamax_gets_the_mask_and_is_refused_if_it_is_not_installed(monkeypatch):
    """It has no release for this Python that is compatible with tyro, so a function with its signature replaces it."""

    def dot_product_attention(query, key, value, *, mask):
        return jax.nn.dot_product_attention(query, key, value, mask=mask)

    monkeypatch.setitem(sys.modules, "tokamax", types.SimpleNamespace(dot_product_attention=dot_product_attention))
    expected, result = squares("reference")(*long_rows()), squares("tokamax")(*long_rows())
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), result, expected)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="which is not installed"):
        select_for(dataclasses.replace(MODEL, attention="tokamax", dtype="bfloat16"), 128, training=False)


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "dropout", "expected"),
    [
        ("tpu", None, "bfloat16", 0.0, "splash"),
        ("tpu", None, "bfloat16", 0.1, "reference"),
        ("tpu", None, "float32", 0.0, "reference"),
        ("gpu", "9.0", "bfloat16", 0.0, "cudnn"),
        ("gpu", "9.0", "bfloat16", 0.1, "reference"),
        ("gpu", "9.0", "float32", 0.0, "reference"),
        ("gpu", "7.5", "bfloat16", 0.0, "reference"),
        ("gpu", "gfx942", "bfloat16", 0.0, "reference"),
    ],
)
def test_the_fastest_that_a_device_supports_is_chosen(backend, capability, dtype, dropout, expected, monkeypatch):
    pretend(monkeypatch, backend, capability)
    config = dataclasses.replace(MODEL, dtype=dtype, attention_probs_dropout_prob=dropout)
    assert select_for(config, 128, training=True) == expected


@pytest.mark.parametrize(
    ("capability", "heads", "length", "fits"),
    [("9.0", 1, 128, True), ("8.6", 2, 128, True), ("8.6", 1, 128, False), ("9.0", 1, 127, False), ("7.5", 2, 128, False)],
)
def test_auto_uses_cudnn_only_for_supported_shapes(capability, heads, length, fits, monkeypatch):
    pretend(monkeypatch, "gpu", capability)
    config = dataclasses.replace(MODEL, hidden_size=256, num_attention_heads=heads, dtype="bfloat16")
    assert select_for(config, length, training=False) == ("cudnn" if fits else "reference")
    named = dataclasses.replace(config, attention="cudnn")
    if fits:
        assert select_for(named, length, training=False) == "cudnn"
    else:
        with pytest.raises(UserError, match="which needs compute capability 8"):
            select_for(named, length, training=False)


def pretend(monkeypatch, backend, capability):
    device = type("Device", (), {"compute_capability": capability})()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])

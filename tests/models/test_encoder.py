"""The encoder and heads against a NumPy implementation, and all ways of compiling them against each other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import ops
from bert_jax.masking import replacement
from bert_jax.models import encoder, heads
from bert_jax.ops import attention
from bert_jax.training import losses
from tests import reference
from tests.conftest import MODEL, POLICY, make_batch

encode = jax.jit(encoder.encode, static_argnums=0)
pretraining = jax.jit(losses.pretraining, static_argnums=0)
mask_tokens = jax.jit(replacement.mask_tokens, static_argnums=2)

LENGTHS = [[20], [32], [7], [3]]
BATCH = make_batch(LENGTHS, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu_tanh"},
        {"hidden_act": "relu"},
        {"hidden_act": "tanh"},
        {"layer_norm_eps": 1e-5},
        {"num_attention_heads": 1},
        {"num_attention_heads": 8, "intermediate_size": 48},
    ],
)
def test_hidden_states_are_those_of_the_reference(changes):
    config = dataclasses.replace(MODEL, initializer_range=0.3, **changes)
    params = heads.init_params(config, jax.random.key(1))
    encoded = encode(config, params, BATCH)
    for row, (length,) in enumerate(LENGTHS):
        hidden, pooled = reference.encode_one(
            config, reference.to_float64(params["bert"]), BATCH["input_ids"][row, :length], BATCH["token_type_ids"][row, :length]
        )
        np.testing.assert_allclose(encoded.hidden[row, :length], hidden, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(encoded.pooled[row, 0], pooled, rtol=1e-5, atol=1e-5)


def test_losses_are_those_of_the_reference(params):
    batch = jax.device_get(mask_tokens(jax.random.key(0), BATCH, POLICY, 0))
    means = losses.means(pretraining(MODEL, params, batch))
    mlm_loss, nsp_loss = reference.losses(MODEL, reference.to_float64(params), batch)
    np.testing.assert_allclose(means["mlm_loss"], mlm_loss, rtol=1e-5)
    np.testing.assert_allclose(means["nsp_loss"], nsp_loss, rtol=1e-5)
    np.testing.assert_allclose(means["loss"], mlm_loss + nsp_loss, rtol=1e-5)


def test_gradients_are_those_of_the_reference(params):
    """Central differences of the float64 reference along random directions."""
    batch = jax.device_get(mask_tokens(jax.random.key(0), BATCH, POLICY, 0))
    gradient = reference.to_float64(jax.grad(lambda p: losses.means(pretraining(MODEL, p, batch))["loss"])(params))
    rng = np.random.default_rng(0)
    point = reference.to_float64(params)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
        ahead, behind = (
            sum(reference.losses(MODEL, jax.tree.map(lambda x, d, s=sign: x + s * 1e-6 * d, point, direction), batch))
            for sign in (1, -1)
        )
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
        np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "remat"),
    [
        ("unroll", "none"),
        ("scan", "full"),
        pytest.param("unroll", "full", marks=pytest.mark.slow),
        pytest.param("scan", "dots", marks=pytest.mark.slow),
        pytest.param("unroll", "dots", marks=pytest.mark.slow),
    ],
)
def test_every_compilation_gives_the_same_loss_and_gradients(params, layers, remat):
    """As a scan over the layers that keeps all activations."""
    assert (MODEL.layers, MODEL.remat) == ("scan", "none")

    def loss(params, config):
        batch = mask_tokens(jax.random.key(0), BATCH, POLICY, 0)
        return losses.means(pretraining(config, params, batch, key=jax.random.key(3)))["loss"]

    both = [
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, config)
        for config in (MODEL, dataclasses.replace(MODEL, layers=layers, remat=remat))
    ]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), both[0][1], both[1][1])


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_remat_recomputes_products_and_only_a_scan_is_a_loop(params, layers):
    """The backward pass repeats products of the forward pass: most with "full", only those with a batch dimension with "dots"."""
    products = {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(MODEL, layers=layers, remat=remat)
        grad = jax.jit(jax.grad(lambda p, config=config: encode(config, p, BATCH).hidden.sum()))
        text = grad.lower(params).as_text()
        assert ("while" in text) == (layers == "scan")
        products[remat] = text.count("dot_general")
    assert products["none"] < products["dots"] < products["full"]


@pytest.mark.parametrize("limit", [1, 97 * 4 * 2, 97 * 4 * 3])
def test_logits_in_chunks_give_the_same_loss_and_gradients(params, monkeypatch, limit):
    batch = mask_tokens(jax.random.key(0), BATCH, POLICY, 0)

    def loss(params):
        sums = losses.pretraining(MODEL, params, batch)
        return losses.means(sums)["loss"], sums

    whole = jax.value_and_grad(loss, has_aux=True)(params)
    monkeypatch.setattr(losses, "MAX_LOGITS_PER_DEVICE", limit)
    jaxpr = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(params))
    assert f"f32[4,{batch['mlm_ids'].shape[1]},97]" not in jaxpr
    parts = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(parts[0][0], whole[0][0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts[0][1], whole[0][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts[1], whole[1])


def test_packing_changes_neither_loss_nor_gradients(params):
    lengths = [[9, 14, 6], [20, 10], [29]]
    packed = make_batch(lengths, 32)
    alone = {name: [] for name in packed}
    for row, parts in enumerate(lengths):
        for slot in range(len(parts)):
            place = packed["segment_ids"][row] == slot + 1
            for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids", "word_ids"):
                values = np.full(32, -1 if name == "word_ids" else 0)
                values[: place.sum()] = 1 if name == "segment_ids" else packed[name][row, place]
                alone[name].append(values)
            for name in ("example_ids", "nsp_labels", "nsp_weights"):
                alone[name].append(packed[name][row, slot : slot + 1])
            alone["cls_positions"].append([0])
    alone = {name: np.array(values, packed[name].dtype) for name, values in alone.items()}

    def run(params, batch):
        masked = mask_tokens(jax.random.key(0), batch, POLICY, 0)
        sums = pretraining(MODEL, params, masked)
        return losses.means(sums)["loss"], (encode(MODEL, params, masked), masked["input_ids"], sums)

    (loss, (encoded, ids, sums)), gradient = jax.value_and_grad(run, has_aux=True)(params, packed)
    (loss_alone, (encoded_alone, ids_alone, sums_alone)), gradient_alone = jax.value_and_grad(run, has_aux=True)(params, alone)
    np.testing.assert_allclose(loss, loss_alone, rtol=1e-6)
    np.testing.assert_array_equal(sums["mlm_loss"][1], sums_alone["mlm_loss"][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), gradient, gradient_alone)
    example = 0
    for row, parts in enumerate(lengths):
        for slot, length in enumerate(parts):
            place = packed["segment_ids"][row] == slot + 1
            np.testing.assert_array_equal(ids[row, place], ids_alone[example, :length])
            np.testing.assert_allclose(encoded.hidden[row, place], encoded_alone.hidden[example, :length], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(encoded.pooled[row, slot], encoded_alone.pooled[example, 0], rtol=1e-5, atol=1e-5)
            example += 1


def test_no_gradient_leaks_from_a_neighbour_in_the_row(params):
    packed = make_batch([[9, 14, 6]], 32)
    table = params["bert"]["embeddings"]["position"]

    def second(noise):
        # Every token occurs once, so that noise on a row of the word table changes one token of one example.
        changed = {
            **params,
            "bert": {**params["bert"], "embeddings": {**params["bert"]["embeddings"], "position": table}},
        }
        batch = {**packed, "input_ids": jnp.asarray(np.arange(32)[None])}
        changed["bert"]["embeddings"]["word"] = params["bert"]["embeddings"]["word"].at[:32].add(noise)
        encoded = encode(MODEL, changed, batch)
        return (encoded.hidden[0, 9:23] ** 3).sum() + (encoded.pooled[0, 1] ** 2).sum()

    gradient = np.asarray(jax.grad(second)(jnp.zeros((32, 32))))
    inside = packed["segment_ids"][0] == 2
    np.testing.assert_array_equal(gradient[~inside], 0)
    assert (np.abs(gradient[inside]).max(-1) > 0).all()


def test_bfloat16_is_close_to_float32_and_keeps_parameters_and_logits_in_float32(params):
    config = dataclasses.replace(MODEL, dtype="bfloat16", initializer_range=0.02)
    fresh = heads.init_params(config, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    exact, rounded = (encode(c, fresh, BATCH) for c in (MODEL, config))
    assert rounded.hidden.dtype == jnp.bfloat16
    real = BATCH["segment_ids"] > 0
    np.testing.assert_allclose(np.asarray(rounded.hidden, np.float32)[real], exact.hidden[real], atol=0.1)
    assert heads.mlm_logits(config, fresh, rounded.hidden, jnp.zeros((4, 2), jnp.int32)).dtype == jnp.float32


def test_dropout_reaches_all_four_places(params, monkeypatch):
    calls = []
    original = ops.dropout

    def recorded(x, keys, rate):
        dropped = original(x, keys, rate)
        calls.append((x.shape, keys.shape, rate, dropped is x))
        return dropped

    monkeypatch.setattr(ops, "dropout", recorded)
    monkeypatch.setattr(attention, "apply_dropout", recorded)
    config = dataclasses.replace(MODEL, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    encoder.encode(config, params, jax.tree.map(jnp.asarray, BATCH), key=jax.random.key(0))
    hidden, probabilities = ((4, 32, 32), (4,), 0.2, False), ((4, 4, 32, 32), (4, 4), 0.3, False)
    # Embeddings; then, in each layer, probabilities, attention output and feed-forward output.
    assert calls[:4] == [hidden, probabilities, hidden, hidden]
    assert calls[1:] == [probabilities, hidden, hidden] * (len(calls) // 3)


def test_dropout_differs_between_layers_and_steps_and_follows_the_example(params):
    def hidden(key, batch=BATCH):
        return np.asarray(encode(MODEL, params, batch, key=jax.random.key(key)).hidden)

    assert np.abs(hidden(0) - hidden(1)).max() > 0.1
    order = np.array([2, 0, 3, 1])
    moved = {name: values[order] for name, values in BATCH.items()}
    np.testing.assert_allclose(hidden(0, moved), hidden(0)[order], rtol=1e-5, atol=1e-6)


def test_sinusoidal_positions_have_no_parameters():
    config = dataclasses.replace(MODEL, position_embedding_type="sinusoidal")
    params = heads.init_params(config, jax.random.key(0))
    assert "position" not in params["bert"]["embeddings"]
    first = encode(config, params, BATCH).hidden
    moved = encode(config, params, {**BATCH, "position_ids": BATCH["position_ids"][:, ::-1]}).hidden
    assert jnp.isfinite(first).all()
    assert jnp.abs(first - moved).max() > 1e-3


def test_initial_values_are_a_truncated_normal():
    config = dataclasses.replace(MODEL, hidden_size=64, vocab_size=2000)
    params = heads.init_params(config, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name == "bias":
            np.testing.assert_array_equal(leaf, 0)
        elif name == "scale":
            np.testing.assert_array_equal(leaf, 1)
        else:
            # Truncated at two standard deviations of the untruncated normal (tf.truncated_normal_initializer).
            assert np.abs(leaf).max() <= 0.02 / 0.87962566 * 2 + 1e-6
    table = np.asarray(params["bert"]["embeddings"]["word"])
    assert np.abs(table.mean()) < 3 * 0.02 / np.sqrt(table.size)
    layers = params["bert"]["layers"]["ffn"]["inner"]["kernel"]
    assert np.abs(layers[0] - layers[1]).max() > 0.01


def test_cross_entropy_is_its_definition():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 3, 11)) * 30, rng.integers(0, 11, (4, 3))
    expected = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    expected -= np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.cross_entropy(jnp.float32(logits), jnp.asarray(labels)), expected, rtol=1e-5, atol=1e-5)


def test_without_pairs_there_is_no_nsp_loss(params):
    batch = mask_tokens(jax.random.key(0), {**BATCH, "nsp_weights": 0 * BATCH["nsp_weights"]}, POLICY, 0)
    means = losses.means(pretraining(MODEL, params, batch))
    assert means["nsp_loss"] == means["nsp_accuracy"] == 0
    assert means["loss"] == means["mlm_loss"] > 0

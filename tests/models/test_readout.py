"""The BiLSTM below the heads of tasks: against a loop in NumPy, for every choice of states, on any mesh."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import sharding
from bert_jax.models import heads, readout
from bert_jax.training import launchers, losses
from tests import reference
from tests.conftest import MODEL, make_batch
from tests.reference import softmax
from tests.training.test_losses import close, jit, random_params

# Four layers: the last four states are not all states.
CONFIG = dataclasses.replace(MODEL, vocab_size=400, num_hidden_layers=4, lstm_layers=1)
LENGTHS = [[9, 14, 6], [3, 20], [32], [5, 5, 5, 5]] * 2
BATCH = make_batch(LENGTHS, 32)
ROWS = range(4)
HEADS = {"sequence_classification": 3, "token_classification": 5}


@functools.cache
def params_of(config):
    return random_params(config, HEADS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_one(x, p):
    """States [N, K] of one direction over one example [N, D]; gates in the order input, forget, candidate, output."""
    size = p["recurrent"].shape[0]
    state, cell, states = np.zeros(size), np.zeros(size), []
    for token in x:
        input_gate, forget_gate, candidate, output_gate = np.split(token @ p["kernel"] + state @ p["recurrent"] + p["bias"], 4)
        cell = sigmoid(forget_gate) * cell + sigmoid(input_gate) * np.tanh(candidate)
        state = sigmoid(output_gate) * np.tanh(cell)
        states.append(state)
    return np.stack(states)


def bilstm_one(x, p):
    return np.concatenate([lstm_one(x, p["forward"]), lstm_one(x[::-1], p["backward"])[::-1]], axis=-1)


def segments_of(batch, rows=ROWS):
    """(row, columns) of each example."""
    for row in rows:
        for index in range(1, batch["segment_ids"][row].max() + 1):
            yield row, np.flatnonzero(batch["segment_ids"][row] == index)


@functools.partial(jit, static_argnums=0)
def read(config, params, batch):
    return readout.readout(config, params, batch)


@pytest.fixture(scope="module")
def all_states():
    """Embeddings and the states of each layer."""
    config = dataclasses.replace(CONFIG, lstm_layers=0)
    return np.asarray(jit(bert_jax.hidden_states, static_argnums=0)(config, params_of(CONFIG), BATCH), np.float64)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_direction_is_the_lstm_of_each_example_alone(reverse):
    config, rng = dataclasses.replace(CONFIG, hidden_size=12, num_attention_heads=1), np.random.default_rng(1)
    x, segments = jnp.float32(rng.normal(size=(4, 32, 7))), jnp.asarray(BATCH["segment_ids"][:4])
    module = readout.Lstm(config, 5, reverse)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, segments))
    params = jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), shapes)
    assert jax.tree.map(jnp.shape, params)["params"] == {"kernel": (7, 20), "recurrent": (5, 20), "bias": (20,)}
    result, x = np.asarray(jit(module.apply)(params, x, segments)), reference.to_float64(x)
    stride = -1 if reverse else 1
    for row, columns in segments_of(BATCH):
        expected = lstm_one(x[row, columns][::stride], reference.to_float64(params["params"]))[::stride]
        np.testing.assert_allclose(result[row, columns], expected, rtol=1e-5, atol=1e-6)


def chosen(states, all_states, params):
    """The choice among states [L + 1, ...] that a name stands for (Devlin et al. 2018, table 7)."""
    if states.startswith("sum"):
        summed = all_states[1:] if states == "sum_all" else all_states[1:5]
        assert params["weights"].shape == (4,)
        return params["scale"] * np.tensordot(softmax(params["weights"]), summed, 1)
    if states == "concat_last_four":
        return np.concatenate([all_states[1], all_states[2], all_states[3], all_states[4]], axis=-1)
    return all_states[{"last": 4, "second_to_last": 3, "embeddings": 0}[states]]


@pytest.mark.parametrize(
    ("states", "layers"),
    [
        ("last", 2),
        ("second_to_last", 1),
        ("embeddings", 1),
        ("sum_last_four", 1),
        ("concat_last_four", 1),
        ("sum_all", 1),
    ],
)
def test_readout_is_a_bilstm_over_the_chosen_states(all_states, states, layers):
    config = dataclasses.replace(CONFIG, states=states, lstm_layers=layers)
    # The same encoder as in hidden_states.
    params = params_of(config) | {"bert": params_of(CONFIG)["bert"]}
    result = jax.device_get(read(config, params, BATCH))
    readout_params, pooler = reference.to_float64(params["readout"]), reference.to_float64(params["bert"]["pooler"])
    for row, columns in segments_of(BATCH):
        x = chosen(states, all_states[:, row, columns], readout_params)
        for index in range(layers):
            x = bilstm_one(x, readout_params[f"lstm_{index}"])
        np.testing.assert_allclose(result.hidden[row, columns], x, rtol=1e-4, atol=1e-5)
        # The pooler reads the BiLSTM's state of [CLS].
        slot = BATCH["segment_ids"][row, columns[0]] - 1
        np.testing.assert_allclose(
            result.pooled[row, slot], np.tanh(x[0] @ pooler["kernel"] + pooler["bias"]), rtol=1e-4, atol=1e-5
        )
    assert sorted(params["readout"]) == sorted(
        [*(f"lstm_{index}" for index in range(layers)), *(["scale", "weights"] if states.startswith("sum") else [])]
    )


def test_sums_of_states_are_of_the_last_four_not_of_all():
    """With more than four layers the two differ."""
    config = dataclasses.replace(CONFIG, num_hidden_layers=6, states="sum_last_four")
    all_states = np.random.default_rng(2).normal(size=(7, 1, 4, 32))
    params = params_of(config)
    segments = jnp.ones((1, 4), jnp.int32)
    result = jit(readout.Readout(config).apply)({"params": params}, jnp.float32(all_states), segments)
    readout_params = reference.to_float64(params["readout"])
    x = readout_params["scale"] * np.tensordot(softmax(readout_params["weights"]), all_states[[3, 4, 5, 6], 0], 1)
    np.testing.assert_allclose(result[0], bilstm_one(x, readout_params["lstm_0"]), rtol=1e-4, atol=1e-5)


def test_without_layers_it_is_the_encoder():
    config = dataclasses.replace(CONFIG, num_hidden_layers=1, lstm_layers=0)
    params = params_of(config)
    result, expected = read(config, params, BATCH), jit(bert_jax.encode, static_argnums=0)(config, params, BATCH)
    assert "readout" not in params
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_initial_values():
    config = dataclasses.replace(CONFIG, lstm_layers=2, states="concat_last_four")
    plain = dataclasses.replace(config, lstm_layers=0, states="last")

    def fresh(config):
        params = heads.init_params(config, jax.random.key(3))
        assert heads.heads_of(params) == {"mlm": 400, "nsp": 2}
        assert ("readout" in params) == (config.lstm_layers > 0)
        return params

    def some():
        params, without = fresh(config), fresh(plain)
        return params["readout"], params["bert"]["pooler"], without["bert"]["pooler"]

    readout_params, pooler, without = jax.device_get(jit(some)())
    for layer, width in (("lstm_0", 4 * 32), ("lstm_1", 32)):
        for name in ("forward", "backward"):
            direction = readout_params[layer][name]
            assert direction["kernel"].shape == (width, 64)
            np.testing.assert_allclose(direction["recurrent"] @ direction["recurrent"].T, np.eye(16), atol=1e-5)
            np.testing.assert_array_equal(direction["bias"], np.repeat([0, 1, 0, 0], 16))
            # Glorot and Bengio 2010, equation 16.
            limit = np.sqrt(6 / (width + 64))
            assert 0.95 * limit < np.abs(direction["kernel"]).max() <= limit
    recurrents = [readout_params[layer][name]["recurrent"] for layer in readout_params for name in readout_params[layer]]
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(recurrents) for b in recurrents[:i])
    # The encoder's initial values do not depend on the BiLSTM.
    jax.tree.map(np.testing.assert_array_equal, pooler, without)


def test_weighted_sums_begin_as_the_mean_of_states():
    config = dataclasses.replace(CONFIG, num_hidden_layers=5, states="sum_last_four")
    readout_params = jit(lambda: heads.init_params(config, jax.random.key(0), heads={}, pooler=False)["readout"])()
    np.testing.assert_array_equal(readout_params["weights"], np.zeros(4))
    np.testing.assert_array_equal(readout_params["scale"], [1])


def test_every_parameter_has_a_layout():
    config = dataclasses.replace(CONFIG, lstm_layers=2, states="sum_all")
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0)))["readout"]
    for path, leaf in jax.tree_util.tree_leaves_with_path({"readout": shapes}):
        key = sharding.parameter_key(tuple(part.key for part in path))
        assert len(sharding.PARAM_AXES[key]) == leaf.ndim, key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("states", ["last", "sum_all"])
def test_states_have_the_compute_dtype(dtype, states):
    config = dataclasses.replace(CONFIG, dtype=dtype, states=states)
    shapes = jax.eval_shape(functools.partial(readout.readout, config), params_of(config), BATCH)
    assert (shapes.hidden.dtype, shapes.pooled.dtype) == (dtype, dtype)
    logits = functools.partial(losses.task_logits, config, head="token_classification")
    assert jax.eval_shape(logits, params_of(config), BATCH).dtype == "float32"


def loss(params, config, batch, head, freeze_encoder):
    labels = batch["segment_ids"] if head == "token_classification" else batch["nsp_labels"]
    weights = (batch["segment_ids"] > 0).astype(jnp.float32) if head == "token_classification" else batch["nsp_weights"]
    sums = losses.task(config, params, batch | {"labels": labels, "weights": weights}, head=head, freeze_encoder=freeze_encoder)
    return losses.means(sums, ("task_loss",))["loss"]


value_and_grad = jit(jax.value_and_grad(loss), static_argnums=(1, 3, 4))


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("head", HEADS)
def test_only_parameters_above_a_frozen_encoder_have_gradients(head, layers):
    states = "sum_all" if layers else "last"
    config = dataclasses.replace(CONFIG, num_hidden_layers=2, lstm_layers=layers, states=states)
    value, gradient = value_and_grad(params_of(config), config, BATCH, head, True)
    np.testing.assert_allclose(value, jit(loss, static_argnums=(1, 3, 4))(params_of(config), config, BATCH, head, False), rtol=1e-6)
    trained = {head, "readout", *(["pooler"] if head == "sequence_classification" else [])}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        names = [key.key for key in path]
        # [CLS] is the first token, so that the forward direction has no previous state.
        unused = head == "sequence_classification" and names[-2:] == ["forward", "recurrent"]
        assert (np.abs(leaf).max() > 0) == (bool(trained & {*names}) and not unused), names


MESHES = {"data 8": {"data": 8}, "fsdp 8": {"fsdp": 8}, "data 2 x tensor 4": {"data": 2, "tensor": 4}}


@pytest.fixture(scope="module")
def alone():
    config = dataclasses.replace(CONFIG, num_hidden_layers=1, states="sum_all")
    return config, value_and_grad(params_of(config), config, BATCH, "token_classification", False)


@pytest.mark.parametrize(("mesh", "freeze_encoder"), [("data 8", True), ("fsdp 8", False), ("data 2 x tensor 4", True)])
def test_a_mesh_gives_the_same_loss_and_gradients(alone, mesh, freeze_encoder):
    config, (loss, gradient) = alone
    launcher = launchers.MeshLauncher(config, sharding.make_mesh(**MESHES[mesh]))
    params = jax.device_put(params_of(config), launcher.shardings(jax.eval_shape(lambda: params_of(config))))
    with launcher.context():
        result = value_and_grad(params, config, launcher.place(BATCH), "token_classification", freeze_encoder)
    np.testing.assert_allclose(result[0], loss, rtol=1e-5)
    if freeze_encoder:
        # This halves the compile time; the gradients of the other parameters are the same.
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), result[1]["bert"])
        gradient = gradient | {"bert": result[1]["bert"]}
    close(result[1], gradient)

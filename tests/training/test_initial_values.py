"""Initial values, masks and dropout are the same on every mesh, bit for bit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax import convert, ops, sharding
from bert_jax.config.data import DataConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.masking import mask_tokens
from bert_jax.models import layers
from bert_jax.models.heads import init_params
from bert_jax.models.loaded import LoadedModel
from bert_jax.training import launchers, optimizers, step
from tests.conftest import MODEL, POLICY, make_batch, with_policy

# 96 tokens divide over every tensor axis.
MODEL = dataclasses.replace(MODEL, vocab_size=96)
# Every mesh of eight devices over which four heads divide.
MESHES = [(8 // (fsdp * tensor), fsdp, tensor) for tensor in (1, 2, 4) for fsdp in (1, 2, 4, 8) if fsdp * tensor <= 8]
LAYOUTS = {"x".join(map(str, sizes)): MeshConfig(*sizes) for sizes in MESHES} | {"pmap": None}

SOME = [layout if layout in ("2x2x2", "pmap") else pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS]


def launcher_of(layout, model=MODEL):
    mesh = LAYOUTS[layout]
    return launchers.for_model(model, mesh or MeshConfig(), "mesh" if mesh else "pmap")


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


def create(init, layout, model=MODEL):
    return launchers.create(init, launcher_of(layout, model).shardings(jax.eval_shape(init)))


def pretraining_state():
    config = Config("none", DataConfig("none", sequence_length=32), model=MODEL, optim=OptimConfig(warmup_steps=0))
    return step.init_state(config, optimizers.make_optimizer(config.optim, 10))


def task_params():
    """A BiLSTM, whose recurrent kernels are orthogonal, and a head; the decoder is not tied."""
    config = dataclasses.replace(MODEL, lstm_layers=2, states="sum_all", tie_word_embeddings=False)
    return init_params(config, jax.random.key(1), heads={"token_classification": 5, "mlm": 0})


def moments():
    """Sums over all devices, which depend on the order of their terms."""
    draws = jax.random.normal(jax.random.key(0), (96, 32))
    return {"embeddings": {"word": draws / draws.std() + draws.sum()}}


@pytest.fixture(scope="module")
def alone():
    """Each state as one program on one device computes it."""
    return {init: bits(jax.device_get(jax.jit(init)())) for init in (pretraining_state, task_params, moments)}


@pytest.mark.parametrize("layout", SOME)
def test_initial_values_are_those_of_one_device(alone, layout):
    for init, expected in alone.items():
        state = create(init, layout)
        assert bits(jax.device_get(state)) == expected
        places = launcher_of(layout).shardings(jax.eval_shape(init))
        same = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, places)
        assert jax.tree.all(same)


def test_a_partitioned_program_would_differ(alone):
    """Otherwise the test above could not fail."""
    layout = launcher_of("1x8x1").shardings(jax.eval_shape(moments))
    assert bits(jax.jit(moments, out_shardings=layout)()) != alone[moments]


@pytest.mark.parametrize("size", [1, pytest.param(20_000, marks=pytest.mark.slow)])
def test_values_do_not_depend_on_the_number_of_programs(alone, monkeypatch, size):
    monkeypatch.setattr(launchers, "_PART", size)
    assert bits(jax.device_get(create(pretraining_state, "2x2x2"))) == alone[pretraining_state]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [([], [0]), ([9], [1]), ([1, 9, 1], [1, 1, 1]), ([1, 2, 1, 4, 9], [3, 1, 1]), ([2, 2, 2, 2, 2], [2, 2, 1])],
)
def test_a_program_computes_some_bytes_or_one_array(monkeypatch, sizes, parts):
    monkeypatch.setattr(launchers, "_PART", 4)
    assert [len(sizes[part]) for part in launchers._parts(sizes)] == parts


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_the_generator_of_a_run_is_always_the_same(alone, generator):
    """The bits of the others depend on a program's layout."""
    with jax.default_prng_impl(generator):
        assert bits(jax.device_get(create(pretraining_state, "1x8x1"))) == alone[pretraining_state]


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "tensor": 4}, *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ({}, {"fsdp": 8}))], ids=str
)
@pytest.mark.filterwarnings("ignore::bert_jax.errors.BertWarning")
def test_what_a_partial_load_leaves_is_initialized_as_on_one_device(tmp_path, sizes):
    params = jax.device_get(init_params(MODEL, jax.random.key(5)))
    convert.write(LoadedModel(MODEL, params), tmp_path / "model", "hf")
    (path,) = (tmp_path / "model").glob("*.safetensors")
    missing = ("layer.0.intermediate", "pooler", "cls.predictions.transform")
    kept = {name: value for name, value in load_file(path).items() if not any(map(name.count, missing))}
    save_file(kept, path)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        found = convert.read(path.parent, partial=True).params
    expected = jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()
    assert bits(found["bert"]["pooler"]) == bits(expected["bert"]["pooler"])
    assert bits(found["mlm"]["dense"]) == bits(expected["mlm"]["dense"])
    kernels = [tree["bert"]["layers"]["ffn"]["inner"]["kernel"] for tree in (found, expected, params)]
    assert bits(kernels[0]) == bits(np.stack([kernels[1][0], *kernels[2][1:]]))


POLICIES = {
    "words": with_policy(POLICY, vocab_size=96, select="word", rate=0.4, random_tokens="ordinary", ordinary_ids=(5, 96)),
    "spans": with_policy(POLICY, vocab_size=96, select="span", rate="cosine(0.5, 0.1)", steps=10),
    "n-grams": with_policy(POLICY, vocab_size=96, select="ngram", rate=0.3, prediction_rate=0.1),
    "weights": with_policy(POLICY, vocab_size=96, rate=0.3, token_weights=lambda batch: batch["input_ids"].astype(jnp.float32)),
    "weighted words": with_policy(
        POLICY, vocab_size=96, select="word", rate=0.3, token_weights=lambda batch: 1 / (1 + batch["input_ids"])
    ),
}
ROWS = make_batch([[60], [20, 30], [7], [40, 12], [33], [16, 16, 16], [64], [5]] * 4, 64)
ROWS["input_ids"] = np.minimum(ROWS["input_ids"], 95)


def draw_rows(params, batch):
    """The masks of every policy, and the dropout masks of states and of attention probabilities."""
    del params
    keys = ops.row_keys(jax.random.key(3), batch["example_ids"])
    states = jnp.ones((*batch["input_ids"].shape, 32)) + 0 * batch["input_ids"][..., None]
    probabilities = jnp.ones((batch["input_ids"].shape[0], 4, 16, 16)) + 0 * batch["input_ids"][:, :1, None, None]
    dropped = {
        "states": ops.dropout(states, layers.fold_site(keys, 1), 0.1),
        "probabilities": ops.dropout(
            sharding.reshard(probabilities, "batch", "heads", None, None), layers._head_keys(keys, 4), 0.1
        ),
    }
    masked = {name: mask_tokens(jax.random.key(2), batch, policy, 3) for name, policy in POLICIES.items()}
    return {"dropout": {name: value > 0 for name, value in dropped.items()}, "masks": masked}


@pytest.fixture(scope="module")
def drawn_alone():
    return jax.device_get(jax.jit(draw_rows)((), jax.tree.map(jnp.asarray, ROWS)))


@pytest.mark.parametrize("layout", SOME)
def test_masks_and_dropout_are_those_of_one_device(drawn_alone, layout):
    launcher = launcher_of(layout)
    with launcher.context():
        drawn = launcher.collect(launcher.compile_rows(draw_rows)({}, launcher.place(ROWS)))
    assert bits(drawn) == bits(drawn_alone)
    assert 0.08 < 1 - drawn["dropout"]["states"].mean() < 0.12

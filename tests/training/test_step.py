"""One step, many ways to run it: the same loss, the same gradients, the same next parameters."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import sharding
from bert_jax.config.data import DataConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.errors import UserError
from bert_jax.masking.replacement import mask_tokens
from bert_jax.models import heads
from bert_jax.training import launchers, losses, optimizers, step
from tests.conftest import MODEL, POLICY, make_batch, with_policy

# 96 tokens divide over 4 devices, 97 do not: both layouts of the vocabulary are run.
MODEL = dataclasses.replace(MODEL, vocab_size=96)
POLICY = with_policy(POLICY, vocab_size=96)
LENGTHS = [[12, 9], [30], [5], [17, 8], [32], [20], [7, 7, 7], [25]] * 2
BATCH = make_batch(LENGTHS, 32)
BATCH["input_ids"] = np.minimum(BATCH["input_ids"], 95)
CONFIG = Config(
    run="none",
    data=DataConfig("none", sequence_length=32, batch_size=16),
    model=MODEL,
    optim=OptimConfig(name="lamb", peak_lr=1e-2, warmup_steps=0),
    train=TrainConfig(steps=10),
)
WAYS = {
    "one device": {"mesh": MeshConfig(1, 1, 1)},
    "data 8": {},
    "fsdp 8": {"mesh": MeshConfig(1, 8, 1)},
    "tensor 4": {"mesh": MeshConfig(2, 1, 4)},
    "fsdp 2 x tensor 4": {"mesh": MeshConfig(1, 2, 4)},
    "data 2 x fsdp 2 x tensor 2": {"mesh": MeshConfig(2, 2, 2)},
    "slice 2 x data 2 x fsdp 2": {"mesh": MeshConfig(2, 2, 1, slices=2)},
    "slice 2 x fsdp 2 x tensor 2": {"mesh": MeshConfig(1, 2, 2, slices=2)},
    "pmap 8": {"parallel": "pmap"},
}
# Axes that are tested together are tested by themselves where there is more time.
SLOW = ("fsdp 8", "tensor 4", "fsdp 2 x tensor 4", "slice 2 x data 2 x fsdp 2", "slice 2 x fsdp 2 x tensor 2")
SOME = [pytest.param(way, marks=pytest.mark.slow if way in SLOW else ()) for way in WAYS]


def objective(config, policy=POLICY):
    policy = with_policy(policy, vocab_size=config.model.vocab_size)
    return step.pretraining(config.model, policy, accumulate=config.optim.accumulate)


def run(config, steps=3, batch=BATCH):
    """Metrics of each step and the last state, on the host."""
    if config.mesh == MeshConfig(1, 1, 1):
        launcher = launchers.MeshLauncher(config.model, sharding.make_mesh(devices=jax.devices()[:1]))
    else:
        launcher = launchers.launch(config)
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)

    def init():
        return step.init_state(config, optimizer)

    state = jax.jit(init, out_shardings=launcher.shardings(jax.eval_shape(init)))()
    metrics = []
    with launcher.context():
        made = step.make_train_step(objective(config), optimizer, axis_name=launcher.axis_name)
        train_step = launcher.compile_step(made)
        for _ in range(steps):
            state, values = train_step(state, launcher.place(batch))
            metrics.append(values)
        return jax.device_get(metrics), jax.device_get(state)


@pytest.fixture(scope="module")
def alone():
    return run(dataclasses.replace(CONFIG, **WAYS["one device"]))


@pytest.mark.parametrize("way", SOME[1:])
def test_every_launcher_gives_the_same_losses_and_parameters(alone, way):
    """With dropout on: its masks, too, are the same everywhere."""
    metrics, state = run(dataclasses.replace(CONFIG, **WAYS[way]))
    for found, expected in zip(metrics, alone[0], strict=True):
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-6, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), state.params, alone[1].params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "schedule_free"])
def test_other_optimizers_are_the_same_on_a_mesh(name):
    """Muon needs whole matrices: of four layers, two stay on each pair of devices."""
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(MODEL, num_hidden_layers=4),
        # Adam's first updates are signs of gradients, which in float32 depend on the order of sums where they are nearly zero.
        optim=OptimConfig(name=name, peak_lr=1e-3, warmup_steps=0),
    )
    metrics, state = run(dataclasses.replace(config, **WAYS["one device"]), steps=2)
    divided = run(dataclasses.replace(config, **WAYS["data 2 x fsdp 2 x tensor 2"]), steps=2)
    for found, expected in zip(divided[0], metrics, strict=True):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), divided[1].params, state.params)


@pytest.fixture(scope="module")
def gradient():
    """The first state, and the gradient there."""
    root = jax.random.fold_in(jax.random.key(0), step._MASK)
    dropout = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step._DROPOUT), 0)
    start = step.init_state(CONFIG, optimizers.make_optimizer(CONFIG.optim, 10))

    def loss(params):
        return losses.means(
            losses.pretraining(MODEL, params, mask_tokens(root, jax.tree.map(jnp.asarray, BATCH), POLICY, 0), key=dropout)
        )["loss"]

    return jax.device_get((start, jax.jit(jax.grad(loss))(start.params)))


@pytest.mark.parametrize("way", SOME)
def test_every_launcher_gives_the_same_gradients(gradient, way):
    """The update of plain gradient descent is the gradient."""
    config = dataclasses.replace(CONFIG, **WAYS[way])
    start, expected = gradient
    sgd = optax.sgd(1.0)
    launcher = (
        launchers.MeshLauncher(config.model, sharding.make_mesh(devices=jax.devices()[:1]))
        if way == "one device"
        else launchers.launch(config)
    )
    fresh = start._replace(opt_state=sgd.init(start.params))
    state = jax.device_put(fresh, launcher.shardings(jax.eval_shape(lambda: fresh)))
    with launcher.context():
        made = step.make_train_step(objective(config), sgd, axis_name=launcher.axis_name)
        after, _ = launcher.compile_step(made)(state, launcher.place(BATCH))
    found = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), start.params, jax.device_get(after.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data 2 x fsdp 2 x tensor 2", "pmap 8"])
def test_bfloat16_runs_on_every_launcher(alone, way):
    model = dataclasses.replace(MODEL, dtype="bfloat16", layers="unroll")
    metrics, _ = run(dataclasses.replace(CONFIG, model=model, **WAYS[way]))
    for found, expected in zip(metrics, alone[0], strict=True):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=5e-3)
        np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data 2 x fsdp 2 x tensor 2", "one device", "fsdp 8", "pmap 8"])
@pytest.mark.parametrize("parts", [2])
def test_accumulated_gradients_are_those_of_the_whole_batch(alone, way, parts):
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, accumulate=parts), **WAYS[way])
    metrics, state = run(config)
    for found, expected in zip(metrics, alone[0], strict=True):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-6)
        np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), state.params, alone[1].params)


def test_fsdp_and_tensor_axes_divide_parameters_and_moments():
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(2, 2, 2))
    launcher = launchers.launch(config)
    optimizer = optimizers.make_optimizer(config.optim, 10)

    def init():
        return step.init_state(config, optimizer)

    state = jax.jit(init, out_shardings=launcher.shardings(jax.eval_shape(init)))()
    for tree in (state.params, state.opt_state[1].mu):
        kernel = tree["bert"]["layers"]["attention"]["query"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (3, 16, 2, 8)
        assert tree["bert"]["embeddings"]["word"].addressable_shards[0].data.shape == (48, 16)
        assert tree["bert"]["layers"]["ffn"]["outer"]["kernel"].addressable_shards[0].data.shape == (3, 32, 16)


@pytest.mark.slow
def test_a_vocabulary_that_does_not_divide_stays_whole():
    odd = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, vocab_size=97))
    (expected, _), (found, _) = (run(dataclasses.replace(odd, **WAYS[way])) for way in ("one device", "tensor 4"))
    np.testing.assert_allclose(found[-1]["loss"], expected[-1]["loss"], rtol=2e-6)


def test_every_parameter_has_one_row_in_the_layout_table():
    every = dict.fromkeys(("mlm", *heads.POOLED_HEADS, *heads.TOKEN_HEADS), 2)
    model = dataclasses.replace(MODEL, lstm_layers=1, states="sum_all", tie_word_embeddings=False)
    shapes = jax.eval_shape(lambda: heads.init_params(model, jax.random.key(0), heads=every))
    used = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        names = tuple(key.key for key in path)
        key = sharding.parameter_key(names)
        used.add(key)
        assert leaf.ndim == len(sharding.PARAM_AXES[key]) + ("layers" in names), names
    assert used == set(sharding.PARAM_AXES)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mesh": MeshConfig(3, 1, 1)}, "does not cover 8 devices"),
        ({"mesh": MeshConfig(slices=3)}, "slices 3 x data -1 x fsdp 1 x tensor 1 does not cover 8 devices"),
        ({"mesh": MeshConfig(1, 1, 8)}, "num_attention_heads 4 is not divisible by mesh.tensor 8"),
        (
            {"data": DataConfig("none", sequence_length=32, batch_size=12)},
            "batch_size 12 is not divisible by 8 devices",
        ),
        ({"data": DataConfig("none", sequence_length=32, batch_size=12), "parallel": "pmap"}, "use a multiple of 8"),
        ({"optim": OptimConfig(accumulate=4)}, "4 accumulated parts; use a multiple of 32"),
    ],
)
def test_what_does_not_divide_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        launchers.launch(dataclasses.replace(CONFIG, train=TrainConfig(steps=20_000), **changes))


def test_evaluation_masks_do_not_depend_on_the_step_or_the_parameters(params):
    model, policy = dataclasses.replace(MODEL, vocab_size=97), with_policy(POLICY, vocab_size=97).held_out()
    eval_step = jax.jit(step.make_eval_step(model, policy, np.full(97, -np.log(97.0), np.float32)))
    first, second = eval_step(params, BATCH), eval_step(jax.tree.map(lambda x: 0.5 * x, params), BATCH)
    np.testing.assert_array_equal(first["unigram_loss"], second["unigram_loss"])
    np.testing.assert_allclose(first["unigram_loss"][0] / first["unigram_loss"][1], np.log(97.0), rtol=1e-6)
    assert first["mlm_loss"][0] != second["mlm_loss"][0]
    assert first["nsp_random"] == (BATCH["nsp_labels"].sum(), BATCH["nsp_weights"].sum())


def test_the_step_is_one_program_for_all_steps():
    optimizer = optimizers.make_optimizer(CONFIG.optim, 10)
    compiled = jax.jit(step.make_train_step(objective(CONFIG), optimizer))
    state = step.init_state(CONFIG, optimizer)
    for _ in range(3):
        state, _ = compiled(state, BATCH)
    assert int(state.step) == 3
    # The state's scalars are weakly placed the first time; no later call compiles again.
    assert compiled._cache_size() <= 2


@pytest.mark.parametrize(("platform", "attention", "call"), [("tpu", "splash", "tpu_custom_call"), ("cuda", "reference", None)])
def test_the_step_is_lowered_for_devices_that_are_not_here(platform, attention, call):
    """A change of an API that only a TPU or a GPU would meet is met here; all our products are bfloat16's, backwards too."""
    model = dataclasses.replace(MODEL, dtype="bfloat16", attention=attention, attention_probs_dropout_prob=0.0)
    config = dataclasses.replace(CONFIG, model=model)
    optimizer = optimizers.make_optimizer(config.optim, 10)
    state = jax.eval_shape(lambda: step.init_state(config, optimizer))
    made = jax.jit(step.make_train_step(objective(config), optimizer))
    program = jax.export.export(made, platforms=[platform])(state, BATCH).mlir_module()
    assert ("custom_call @" in program) == (call is not None)
    assert call is None or f"custom_call @{call}(" in program
    products = re.findall(r"stablehlo\.dot_general .*: \((tensor<\S+>), (tensor<\S+>)\)", program)
    # Six of attention or none, and three each of four kinds in a layer, the pooler and the heads; a loop holds them once.
    assert len(products) >= 24
    wide = [operands for operands in products if not all(operand.endswith("xbf16>") for operand in operands)]
    # Splash attention sums outputs times cotangents outside its kernel.
    assert len(wide) == (attention == "splash")

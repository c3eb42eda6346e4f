"""Presets against the programs that they name: 100 steps written in NumPy, and the original's own code."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import convert
from bert_jax.config.data import DataConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.data.records import Records
from bert_jax.errors import UserError
from bert_jax.masking import mask_tokens
from bert_jax.models.heads import init_params
from bert_jax.recipes import presets
from bert_jax.training import launchers, optimizers, step
from tests.conftest import MODEL, POLICY, make_batch
from tests.recipes import trajectory
from tests.recipes.trajectory import PROGRAMS

pytestmark = pytest.mark.usefixtures("unoptimized")

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
RECORDS, ORIGINAL = GOLDEN / "google_records", GOLDEN / "google_training"
STEPS, WARMUP, PEAK = 100, 10, 1e-3
MODEL = dataclasses.replace(
    MODEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_hidden_layers=2, initializer_range=0.2
)
# NVIDIA's learning rates are those of trust ratios.
PEAKS = dict.fromkeys(PROGRAMS, PEAK) | {"nvidia": 1e-2}


def config_of(preset):
    replicas = PROGRAMS[preset].replicas
    config = Config(
        run="none",
        data=DataConfig("none", sequence_length=24, batch_size=8, packing=1),
        model=MODEL,
        optim=OptimConfig(peak_lr=PEAKS[preset], warmup_steps=WARMUP, replicas=replicas),
        train=TrainConfig(steps=STEPS),
    )
    return presets.apply(config, preset)


@pytest.fixture(scope="module")
def batches():
    """Masked batches of padded pairs, whose replicas have different numbers of predictions."""
    masked = []
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        lengths = [[int(length)] for length in rng.integers(6, 25, 8)]
        batch = jax.tree.map(jnp.asarray, make_batch(lengths, 24, seed=number, first_example=8 * number))
        masked.append(jax.device_get(mask_tokens(jax.random.key(number), batch, POLICY, 0)))
    return masked


def run(config, params, batches):
    """The losses of our train step."""
    objective = step.pretraining(config.model, None, **step.replicas(config.optim))
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    state = step.init_state(config, optimizer)._replace(params=params, opt_state=optimizer.init(params))
    train_step, losses = jax.jit(step.make_train_step(objective, optimizer)), []
    for batch in batches:
        state, metrics = train_step(state, jax.tree.map(jnp.asarray, batch))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_preset_is_a_hundred_steps_of_its_program(preset, batches):
    config = config_of(preset)
    params = init_params(config.model, jax.random.key(3))
    found, _ = run(config, params, batches)
    expected = trajectory.trajectory(
        config.model, PROGRAMS[preset], jax.device_get(params), batches, peak=PEAKS[preset], warmup=WARMUP
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert expected[-10:].mean() < expected[:10].mean()


def test_the_programs_differ_by_far_more_than_the_tolerance(batches):
    """Otherwise the test above could not tell them apart."""
    params = jax.device_get(init_params(MODEL, jax.random.key(3)))
    variants = {
        "google2020": {"tanh_gelu": False},
        "google2018": {"clip_each": False},
        "hf": {"decay_from": "zero"},
        "nvidia": {"first": 0},
        "modern": {"replicas": 2},
    }
    for preset, changes in variants.items():
        programs = PROGRAMS[preset], dataclasses.replace(PROGRAMS[preset], **changes)
        first, second = (
            trajectory.trajectory(MODEL, program, params, batches[:60], peak=PEAKS[preset], warmup=WARMUP) for program in programs
        )
        assert np.abs(first - second).max() > 1e-4, preset


def test_google2018_is_the_original_loss_by_loss(tmp_path):
    """A hundred losses of google-research/bert's first release on its own data files (tests/golden/make_google_training.py)."""
    for path in RECORDS.glob("uncased-*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    shutil.copy(RECORDS / "vocab.txt", tmp_path)
    loaded = convert.read(ORIGINAL)
    data = DataConfig(str(tmp_path), sequence_length=32, batch_size=8, packing=1, held_out=str(tmp_path))
    config = Config(
        run="none",
        data=data,
        model=loaded.config,
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=10),
        train=TrainConfig(steps=STEPS),
    )
    batches = [*Records(data).eval_batches(rows=np.arange(8), limit=51)]
    found, _ = run(presets.apply(config, "google2018"), loaded.params, [batches[step % 51] for step in range(STEPS)])
    np.testing.assert_allclose(found, np.load(ORIGINAL / "losses.npy"), atol=1e-5, rtol=0)


def test_a_masked_probability_is_zero_whatever_is_added():
    """Why no field chooses between the original's -10000 and the smallest float: both underflow for scores of any real size."""
    scores = jnp.float32([[50.0, -50.0, 3.0]])
    for dtype in ("float32", "bfloat16"):
        for added in (-10000.0, float(jnp.finfo(dtype).min)):
            masked = (scores + jnp.float32([0.0, 0.0, added])).astype(dtype)
            assert float(jax.nn.softmax(masked)[0, 2]) == 0.0


def test_a_preset_sets_its_fields_and_leaves_the_recipe():
    config = dataclasses.replace(config_of("modern"), optim=OptimConfig(peak_lr=0.5, weight_decay=0.1, warmup_steps=7, replicas=4))
    nvidia = presets.apply(config, "nvidia")
    assert (nvidia.optim.name, nvidia.optim.decay_power, nvidia.optim.first_update) == ("lamb", 0.5, 1)
    assert (nvidia.optim.peak_lr, nvidia.optim.weight_decay, nvidia.optim.warmup_steps, nvidia.optim.replicas) == (0.5, 0.1, 7, 4)
    assert presets.apply(config, "modern").optim.replicas == 1
    assert presets.apply(nvidia, "google2018") == presets.apply(config, "google2018")


def test_every_choice_has_a_value_for_every_preset():
    for choice in presets.CHOICES:
        assert len(choice.values) == len(presets.PRESETS)
        assert choice.field or choice.note


@pytest.mark.parametrize("parallel", ["mesh", pytest.param("pmap", marks=pytest.mark.slow)])
def test_replicas_do_not_depend_on_the_devices(parallel, batches):
    """Replicas are parts of the batch: four of them on eight devices are those of one device, also where each is clipped."""
    config = config_of("google2018")
    optim = dataclasses.replace(config.optim, replicas=4, clip_norm=0.5, warmup_steps=0)
    config = dataclasses.replace(config, optim=optim, data=dataclasses.replace(config.data, batch_size=32), parallel=parallel)
    joined = [
        {name: np.concatenate([batch[name] for batch in batches[4 * number : 4 * number + 4]]) for name in batches[0]}
        for number in range(3)
    ]
    params = init_params(config.model, jax.random.key(3))
    expected, _ = run(config, params, joined)
    launcher = launchers.launch(config)
    optimizer = optimizers.make_optimizer(optim, STEPS)
    objective = step.pretraining(config.model, None, **step.replicas(optim))
    compiled = launcher.compile_step(step.make_train_step(objective, optimizer, axis_name=launcher.axis_name))

    def init():
        return step.init_state(config, optimizer)._replace(params=params, opt_state=optimizer.init(params))

    with launcher.context():
        state = launchers.create(init, launcher.shardings(jax.eval_shape(init)))
        found = []
        for batch in joined:
            state, metrics = compiled(state, launcher.place(batch))
            found.append(launcher.means(metrics)["loss"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_replicas_and_micro_batches_exclude_each_other():
    with pytest.raises(UserError, match="replicas are computed one after the other already, so leave accumulate out"):
        OptimConfig(replicas=2, accumulate=2)
    with pytest.raises(UserError, match=r"batch_size 8 is not divisible by optim\.replicas 3"):
        dataclasses.replace(config_of("modern"), optim=OptimConfig(warmup_steps=1, replicas=3))

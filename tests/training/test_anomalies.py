"""The watched step: an anomaly changes nothing but the step counter, on every device, and without one every bit is the same."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import sharding
from bert_jax.config.mesh import MeshConfig
from bert_jax.training import launchers, optimizers, step
from bert_jax.training.anomalies import ANOMALY, FINE, LOSS_LIMIT, NOT_FINITE, SPIKE, Watch, first_watch, watched
from tests.runs import quickly_compiled
from tests.training.test_step import BATCH, CONFIG, objective

pytestmark = pytest.mark.usefixtures("unoptimized")

WAYS = {"one device": {}, "mesh 2 x 2 x 2": {"mesh": MeshConfig(2, 2, 2)}, "pmap 8": {"parallel": "pmap"}}
# A part of the batch that only one device holds.
ROW = 11


@jax.custom_vjp
def with_gradient(value, gradient):
    """The value, to whose gradient another is added."""
    del gradient
    return value


with_gradient.defvjp(
    lambda value, gradient: (value, gradient), lambda gradient, cotangent: (cotangent + gradient, jnp.zeros_like(gradient))
)


def poisonable(inner):
    """An objective with arrays in the batch that are added to the loss and to the gradient of a bias."""

    def sums(params, batch, *, key):
        bias = params["mlm"]["dense"]["bias"]
        bias = with_gradient(bias, batch["poison_gradient"].sum())
        params = params | {"mlm": params["mlm"] | {"dense": params["mlm"]["dense"] | {"bias": bias}}}
        found = inner.sums(params, batch, key=key)
        total, weight = found["mlm_loss"]
        return found | {"mlm_loss": (total + batch["poison_loss"].sum(), weight)}

    return inner._replace(sums=sums)


def clean_batch():
    zeros = np.zeros(len(BATCH["input_ids"]), np.float32)
    return BATCH | {"poison_loss": zeros, "poison_gradient": zeros}


def batch_with(name, value, column=()):
    batch = {key: array.copy() for key, array in clean_batch().items()}
    batch[name][(ROW, *column)] = value
    return batch


def damage(state, value, *path):
    """The state with one value of a parameter replaced."""

    def change(keys, leaf):
        names = tuple(key.key for key in keys)
        return leaf if names != path else leaf.at[(0,) * leaf.ndim].set(value)

    return state._replace(params=jax.tree_util.tree_map_with_path(change, state.params))


KERNEL = ("bert", "layers", "ffn", "inner", "kernel")
TABLE = ("bert", "embeddings", "type")
INJECTIONS = {
    "loss nan": ("poison_loss", np.nan),
    "loss inf": ("poison_loss", np.inf),
    "loss -inf": ("poison_loss", -np.inf),
    "gradient nan": ("poison_gradient", np.nan),
    "gradient inf": ("poison_gradient", np.inf),
    "gradient -inf": ("poison_gradient", -np.inf),
    "gradient too large": ("poison_gradient", 1e30),
    "token id": ("input_ids", 10_000, (0,)),
    "position id": ("position_ids", 10_000, (0,)),
    "type id": ("token_type_ids", 7, (0,)),
    "weight nan": ("nsp_weights", np.nan, (0,)),
    "weight inf": ("nsp_weights", np.inf, (0,)),
    "parameter nan": (np.nan, KERNEL),
    "parameter inf": (np.inf, KERNEL),
    "embedding nan": (np.nan, TABLE),
}


class Run:
    """A state and its steps, compiled once."""

    def __init__(self, way, factor=None):
        config = dataclasses.replace(CONFIG, **WAYS[way])
        if way == "one device":
            self.launcher = launchers.MeshLauncher(config.model, sharding.make_mesh(devices=jax.devices()[:1]))
        else:
            self.launcher = launchers.launch(config)
        optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
        self.init = lambda: step.init_state(config, optimizer)
        pure = step.make_train_step(poisonable(objective(config)), optimizer, axis_name=self.launcher.axis_name)
        self.plain, self.step = self.launcher.compile_step(pure), self.launcher.compile_step(watched(pure, factor))

        self.start = jax.device_get(jax.jit(self.init)())

    def put(self, tree):
        """A copy on the devices, which a step may overwrite."""
        return jax.device_put(tree, self.launcher.shardings(jax.eval_shape(lambda: tree)), may_alias=False)

    def watch(self, window=None):
        return self.put(jax.device_get(first_watch((), window)))

    def place(self, batch):
        return self.launcher.place(batch)


@pytest.fixture(scope="module", params=[pytest.param(way, marks=pytest.mark.slow if way != "one device" else ()) for way in WAYS])
def run(request):
    with quickly_compiled():
        made = Run(request.param)
        with made.launcher.context():
            yield made


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_every_injection_is_skipped_and_changes_nothing(run):
    """NaN and infinities in the loss, gradients, inputs and parameters: 15 of 15."""
    clean = run.place(clean_batch())
    start = jax.device_get(run.plain(run.put(run.start), clean)[0])
    after, _ = jax.device_get(run.plain(run.put(start), clean))
    assert len(INJECTIONS) == 15
    for name, (first, *more) in INJECTIONS.items():
        in_parameters = not isinstance(first, str)
        before = jax.device_get(damage(jax.tree.map(jnp.asarray, start), first, *more[0])) if in_parameters else start
        batch = clean if in_parameters else run.place(batch_with(first, *more))
        (state, watch), metrics = run.step((run.put(before), run.watch()), batch)
        values = run.launcher.means(metrics)
        assert values[ANOMALY] == NOT_FINITE, name
        assert not all(np.isfinite(values[key]) for key in ("loss", "grad_norm")), name
        assert in_parameters or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))), name
        assert_same(jax.device_get(state), before._replace(step=before.step + 1))
        # Until the host has answered, no step changes anything, not even the counter.
        (state, watch), _ = run.step((state, watch), clean)
        assert_same(jax.device_get(state), before._replace(step=before.step + 1))
        if not in_parameters:
            resumed = run.put(start)
            (state, _), metrics = run.step((resumed, run.watch()), clean)
            assert run.launcher.means(metrics)[ANOMALY] == FINE
            assert_same(jax.device_get(state.params), after.params)


def test_without_an_anomaly_every_bit_is_that_of_the_plain_step(run):
    batch = run.place(clean_batch())
    plain, state, watch = run.put(run.start), run.put(run.start), run.watch()
    for _ in range(3):
        plain, expected = run.plain(plain, batch)
        (state, watch), metrics = run.step((state, watch), batch)
        assert_same({name: jax.device_get(metrics[name]) for name in expected}, jax.device_get(expected))
    assert_same(jax.device_get(state), jax.device_get(plain))
    assert not bool(jax.device_get(watch.halted))


def test_anomalies_are_never_accepted(run):
    """However many follow each other."""
    bad = run.place(batch_with("poison_gradient", np.nan))
    state = run.put(run.start)
    before = jax.device_get(state)
    for _ in range(20):
        (state, _), _ = run.step((state, run.watch()), bad)
    assert_same(jax.device_get(state), before._replace(step=before.step + 20))


def spikes(losses, factor, window):
    """The rule, independently: which losses are anomalies."""
    kept, found = [], []
    for loss in losses:
        last = np.array(kept[-window:], np.float64)
        limit = np.median(last) + factor * 1.4826 * np.median(np.abs(last - np.median(last))) if len(last) == window else np.inf
        kind = NOT_FINITE if not np.isfinite(loss) else SPIKE if loss > limit else FINE
        found.append(kind)
        kept += [loss] if kind == FINE else []
    return found, kept[-window:]


@pytest.mark.parametrize(("factor", "window"), [(3.0, 8), (1.0, 5), (6.0, 20)])
def test_spikes_are_those_of_the_rule(factor, window):
    rng = np.random.default_rng(0)
    losses = (5 - 0.02 * np.arange(120) + 0.1 * rng.normal(size=120)).astype(np.float32)
    losses[[30, 31, 70]] += 3
    losses[50], losses[90] = np.nan, np.inf

    def fake(state, batch):
        return state._replace(step=state.step + 1, params=state.params + 1), batch | {"grad_norm": jnp.float32(1)}

    compiled = jax.jit(watched(fake, factor))
    state, watch = step.TrainState(jnp.int32(0), jnp.int32(0), (), jnp.zeros(2, jnp.uint32)), first_watch((), window)
    found = []
    for loss in losses:
        (state, watch), metrics = compiled((state, watch), {"loss": jnp.float32(loss)})
        found.append(int(metrics[ANOMALY]))
        watch = Watch(jnp.zeros((), jnp.bool_), watch.losses)
    expected, kept = spikes(losses, factor, window)
    assert found == expected
    assert {SPIKE, NOT_FINITE, FINE} == set(found)
    np.testing.assert_array_equal(watch.losses, np.float32(kept))
    assert (int(state.step), int(state.params)) == (len(losses), expected.count(FINE))
    assert np.isfinite(metrics[LOSS_LIMIT])
    # The window survives being stored.
    np.testing.assert_array_equal(first_watch(watch.losses.tolist(), window).losses, watch.losses)

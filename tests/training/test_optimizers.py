"""Optimizers and schedules against formulas written out in NumPy."""

from __future__ import annotations

import dataclasses
import functools
import operator
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config.optimizer import OptimConfig
from bert_jax.models import heads
from bert_jax.training import learning_rate, optimizers, step
from tests.conftest import MODEL

STEPS, WARMUP, PEAK = 100, 10, 1e-2


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # The original's optimization.py: polynomial decay from step 0, overridden by step/warmup during warm-up.
        ("from_zero", lambda s: PEAK * (s / WARMUP if s < WARMUP else 1 - s / STEPS)),
        ("from_peak", lambda s: PEAK * (s / WARMUP if s < WARMUP else (STEPS - s) / (STEPS - WARMUP))),
    ],
)
def test_schedules(decay, expected):
    rate = learning_rate.schedule(OptimConfig(peak_lr=PEAK, warmup_steps=WARMUP, decay=decay), STEPS)
    np.testing.assert_allclose([rate(s) for s in range(STEPS + 1)], [expected(s) for s in range(STEPS + 1)], rtol=1e-5, atol=1e-9)
    assert rate(0) == 0


def test_schedule_free_does_not_decay():
    rate = learning_rate.schedule(OptimConfig(name="schedule_free", peak_lr=PEAK, warmup_steps=WARMUP), STEPS)
    np.testing.assert_allclose([rate(s) for s in (0, WARMUP // 2, WARMUP, STEPS)], [0, PEAK / 2, PEAK, PEAK], rtol=1e-6)


@pytest.mark.parametrize("steps", [20, 100, 655, 7038])
def test_a_compiled_schedule_with_a_root_ends_with_a_number(steps):
    """Whatever the division is compiled to: a negative fraction of one rounding has no square root."""
    config = OptimConfig(peak_lr=PEAK, warmup_steps=steps // 4, decay_power=0.5, first_update=1)
    rates = jax.jit(jax.vmap(learning_rate.schedule(config, steps)))(jnp.arange(steps))
    assert np.isfinite(rates).all()
    # The root of a rounding error is not one.
    assert 0 <= rates[-1] < rates[-2] / 10
    np.testing.assert_allclose(rates[-2], PEAK * (0.75**0.5) * (1 / (steps - steps // 4)) ** 0.5, rtol=1e-2)


def test_schedule_without_warmup_starts_at_the_peak():
    assert learning_rate.schedule(OptimConfig(peak_lr=PEAK, warmup_steps=0), STEPS)(0) == pytest.approx(PEAK)


def params_and_grads():
    params = heads.init_params(MODEL, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)
    grads = [jax.tree.map(lambda x: jnp.float32(0.01 * rng.normal(size=x.shape)), params) for _ in range(4)]
    return params, grads


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def is_decayed(name):
    # The original's regular expression is LayerNorm|layer_norm|bias; a layer norm is called "norm" here.
    return "norm/" not in name and not name.endswith("bias")


def reference(config, params, grads):
    """Parameters after these gradients, by the papers' formulas."""
    p = named(params)
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    rate = learning_rate.schedule(config, STEPS)
    for t, grad in enumerate(grads, 1):
        g = named(grad)
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        for name in p:
            clipped = g[name] * min(1.0, config.clip_norm / norm)
            m[name] = config.b1 * m[name] + (1 - config.b1) * clipped
            v[name] = config.b2 * v[name] + (1 - config.b2) * clipped**2
            corrected = config.name != "bert_adam"
            mu = m[name] / (1 - config.b1**t if corrected else 1)
            nu = v[name] / (1 - config.b2**t if corrected else 1)
            update = mu / (np.sqrt(nu) + config.eps)
            if is_decayed(name):
                update = update + config.weight_decay * p[name]
                if config.name == "lamb":
                    axes = tuple(range(1, update.ndim)) if "/layers/" in name else None
                    ratio = np.sqrt((p[name] ** 2).sum(axes, keepdims=True)) / np.sqrt((update**2).sum(axes, keepdims=True))
                    update = ratio * update
            p[name] = p[name] - float(rate(t - 1)) * update
    return p


@pytest.mark.parametrize("name", ["bert_adam", "adamw", "lamb"])
@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_updates_are_the_papers(name, clip_norm):
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=2, clip_norm=clip_norm)
    optimizer = optimizers.make_optimizer(config, STEPS)
    params, grads = params_and_grads()
    start, state = params, optimizer.init(params)
    for grad in grads:
        updates, state = jax.jit(optimizer.update)(grad, state, params)
        params = optax.apply_updates(params, updates)
    expected = reference(config, start, grads)
    moved = named(params)
    for leaf in moved:
        np.testing.assert_allclose(moved[leaf], expected[leaf], rtol=2e-5, atol=2e-6, err_msg=leaf)


def test_what_is_decayed():
    params, _ = params_and_grads()
    result = named(optimizers.decayed(params))
    assert {name: bool(value) for name, value in result.items()} == {name: is_decayed(name) for name in result}
    assert result["bert/embeddings/word"]
    assert result["bert/pooler/kernel"]
    assert not result["mlm/bias"]


def test_trust_ratio_is_one_for_a_zero_parameter_or_update():
    transform = optimizers.scale_by_layer_trust_ratio()
    update = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.zeros(3)}}
    param = {"a": {"kernel": jnp.zeros(3)}, "b": {"kernel": jnp.ones(3)}}
    result, _ = transform.update(update, transform.init(param), param)
    jax.tree.map(np.testing.assert_array_equal, result, update)


def test_first_update_without_correction_is_3_16_times_larger():
    grad = {"layers": {"kernel": jnp.ones((1, 4))}}
    adam = optimizers.scale_by_bert_adam(0.9, 0.999, 1e-6)
    plain, _ = adam.update(grad, adam.init(grad))
    np.testing.assert_allclose(plain["layers"]["kernel"], 0.1 / np.sqrt(0.001), rtol=1e-3)


def test_muon_brings_matrices_near_orthogonal_ones_and_leaves_the_rest_to_adam():
    config = OptimConfig(name="muon", peak_lr=PEAK, warmup_steps=0, weight_decay=0.0, clip_norm=100.0)
    params, grads = params_and_grads()

    def first_update(config):
        optimizer = optimizers.make_optimizer(config, STEPS)
        updates, _ = jax.jit(optimizer.update)(grads[0], optimizer.init(params), params)
        return {name: update / -PEAK for name, update in named(updates).items()}

    muon, adam, gradient = first_update(config), first_update(dataclasses.replace(config, name="adamw")), named(grads[0])
    matrices = {name for name in muon if "/layers/" in name and name.endswith("kernel")}
    # Queries, keys, values, the attention's output and both of the feed-forward network.
    assert len(matrices) == 6
    for name in muon.keys() - matrices:
        np.testing.assert_allclose(muon[name], adam[name], rtol=1e-6)
    for name in matrices:
        inputs = 3 if "output" in name else 2
        for layer in range(MODEL.num_hidden_layers):
            rows = int(np.prod(muon[name].shape[1:inputs]))
            left, sizes, right = np.linalg.svd(gradient[name][layer].reshape(rows, -1), full_matrices=False)
            result = left.T @ muon[name][layer].reshape(rows, -1) @ right.T / (0.2 * np.sqrt(max(rows, right.shape[1])))
            # Same directions as the gradient's; five iterations bring singular values to about 0.7 to 1.2 (Jordan et al. 2024).
            np.testing.assert_allclose(result, np.diag(np.diag(result)), atol=2e-5)
            large = np.diag(result)[sizes > 0.02 * sizes[0]]
            assert large.min() > 0.65, name
            assert large.max() < 1.25, name


def test_schedule_free_is_the_papers():
    """Defazio et al. 2024, algorithm 1, in float64: z moves, x is its average, gradients are taken between them."""
    config = OptimConfig(name="schedule_free", peak_lr=PEAK, warmup_steps=2, clip_norm=100.0)
    optimizer = optimizers.make_optimizer(config, STEPS)
    params, grads = params_and_grads()
    state, weights = optimizer.init(params), 0.0
    x = named(params)
    z, v = dict(x), {name: np.zeros_like(value) for name, value in x.items()}
    for t, grad in enumerate(grads, 1):
        point = named(optimizers.gradient_point(state, params))
        updates, state = jax.jit(optimizer.update)(grad, state, params)
        params = optax.apply_updates(params, updates)
        # Optax weighs the average by the rate of the step to come.
        rate, weight = float(learning_rate.schedule(config, STEPS)(t - 1)), float(learning_rate.schedule(config, STEPS)(t)) ** 2
        weights += weight
        for name, g in named(grad).items():
            y = config.b1 * x[name] + (1 - config.b1) * z[name]
            np.testing.assert_allclose(point[name], y, rtol=1e-5, atol=1e-6)
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            update = g / (np.sqrt(v[name] / (1 - config.b2**t)) + config.eps)
            z[name] = z[name] - rate * (update + config.weight_decay * y * is_decayed(name))
            x[name] = x[name] + weight / weights * (z[name] - x[name])
    for name, value in named(params).items():
        np.testing.assert_allclose(value, x[name], rtol=1e-5, atol=2e-6, err_msg=name)


def test_gradients_of_other_optimizers_are_taken_at_the_parameters():
    params, _ = params_and_grads()
    assert optimizers.gradient_point(optimizers.make_optimizer(OptimConfig(), STEPS * 1000).init(params), params) is params


NAMES = typing.get_args(typing.get_type_hints(OptimConfig)["name"])
# Few parameters of each kind: the encoder, its pooler, a BiLSTM under a head.
SMALL = dataclasses.replace(
    MODEL, vocab_size=12, hidden_size=8, num_attention_heads=2, intermediate_size=12, max_position_embeddings=6
)


# A few of each kind: tables, kernels with two and with three axes, biases, norms, and what stands on the encoder.
KEPT = (
    ("bert", "embeddings", "word"),
    ("bert", "embeddings", "norm", "bias"),
    ("bert", "layers", "attention", "query", "kernel"),
    ("bert", "layers", "attention", "output", "kernel"),
    ("bert", "layers", "ffn", "norm", "scale"),
    ("bert", "layers", "ffn", "inner", "kernel"),
    ("bert", "pooler", "kernel"),
    ("readout", "lstm_0", "forward", "recurrent"),
    ("sequence_classification", "kernel"),
    ("sequence_classification", "bias"),
)


def shapes_of_a_tasks_model():
    recurrent = {"recurrent": jax.ShapeDtypeStruct((4, 16), jnp.float32)}
    model = jax.eval_shape(lambda: heads.init_params(SMALL, jax.random.key(0), heads={"sequence_classification": 3}))
    return model | {"readout": {"lstm_0": {"forward": recurrent}}}


@functools.cache
def small():
    """Some parameters of a task's model, and gradients."""
    shapes = shapes_of_a_tasks_model()
    rng = np.random.default_rng(0)

    def draw(size):
        tree = {}
        for *path, name in KEPT:
            leaf = functools.reduce(operator.getitem, (*path, name), shapes)
            inner = functools.reduce(lambda part, key: part.setdefault(key, {}), path, tree)
            inner[name] = jnp.float32(size * rng.normal(size=leaf.shape))
        return tree

    return draw(1.0), [draw(0.01) for _ in range(3)]


# Compiled as fast as may be: these programs run for milliseconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


@functools.cache
def program(config, wrap=lambda optimizer: optimizer):
    """scale -> parameters after some gradients, and the last state."""
    params, grads = small()

    def steps(scale):
        optimizer = wrap(optimizers.make_optimizer(config, STEPS, scale_rate=scale))

        def step(carry, grad):
            moved, state = carry
            updates, state = optimizer.update(grad, state, moved)
            return (optax.apply_updates(moved, updates), state), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
        return jax.lax.scan(step, (params, optimizer.init(params)), stacked)[0]

    return jit(steps)


def depth(name, layers=SMALL.num_hidden_layers):
    """Power of the decay for a parameter: of each layer, where they are stacked."""
    if "/layers/" in name:
        return np.arange(layers, 0, -1)
    return layers + 1 if "/embeddings/" in name else 0


def test_updates_are_smaller_further_down():
    params = shapes_of_a_tasks_model()
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    transform = optimizers.scale_by_depth(0.5)
    result, _ = transform.update(ones, transform.init(params), params)
    for name, value in named(result).items():
        factors = 0.5 ** depth(name)
        np.testing.assert_allclose(value, np.broadcast_to(np.reshape(factors, (-1,) + (1,) * (value.ndim - 1)), value.shape))
    # Three layers: the last halves, the first is an eighth, the embeddings a sixteenth; what stands on them is whole.
    result = named(result)
    assert result["bert/layers/ffn/inner/kernel"][:, 0, 0].tolist() == [0.125, 0.25, 0.5]
    assert {value.max() for name, value in result.items() if "embeddings" in name} == {0.0625}
    whole = {name.split("/")[0] if "bert" not in name else name for name, value in result.items() if value.min() == 1}
    assert whole == {"bert/pooler/kernel", "bert/pooler/bias", "readout", "sequence_classification"}


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_scales_the_learning_rate_of_every_optimizer(name):
    """Decoupled weight decay too, as part of the step."""
    # No warm-up, whose first rate is 0; the first rate of a schedule that decays from zero is the peak.
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=0, weight_decay=0.1)
    params, grads = small()

    def first(config):
        """Updates of the first step; later ones start from other parameters."""
        optimizer = optimizers.make_optimizer(config, STEPS)
        updates, _ = jit(optimizer.update)(grads[0], optimizer.init(params), params)
        return named(updates)

    whole, scaled = first(config), first(dataclasses.replace(config, layer_decay=0.7))
    for leaf, update in whole.items():
        factors = np.reshape(0.7 ** depth(leaf), (-1,) + (1,) * (update.ndim - 1))
        # Schedule-free's update is the difference of two averages of parameters.
        np.testing.assert_allclose(scaled[leaf], factors * update, rtol=1e-4, atol=1e-6, err_msg=leaf)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 1])
def test_an_optimizer_can_be_made_with_and_without_warmup(name, warmup):
    params, grads = small()
    optimizer = optimizers.make_optimizer(OptimConfig(name=name, peak_lr=PEAK, warmup_steps=warmup), STEPS)
    updates, _ = jax.eval_shape(optimizer.update, grads[0], jax.eval_shape(optimizer.init, params), params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), updates) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_scaled_rate_is_another_peak(name):
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=1, weight_decay=0.1)
    expected, _ = program(dataclasses.replace(config, peak_lr=0.4 * PEAK))(1.0)
    result, _ = program(config)(0.4)
    other, _ = program(config)(1.0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), result, expected)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), result, other))) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_runs_with_different_learning_rates_share_a_program(name):
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=1, weight_decay=0.1)
    scales = np.array([1.0, 0.25, 3.0], np.float32)
    results, _ = jit(jax.vmap(program(config).__wrapped__))(scales)
    for index, scale in enumerate(scales):
        result, (alone, _) = jax.tree.map(lambda leaf, at=index: leaf[at], results), program(config)(scale)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), result, alone)


def is_trained(name):
    return not name.startswith("bert/") or name.startswith("bert/pooler/")


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_encoder_stays_and_has_no_moments(name):
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=1, clip_norm=0.01)
    start = named(small()[0])
    result, state = program(config, optimizers.freeze_encoder)(1.0)
    for leaf, value in named(result).items():
        assert np.array_equal(value, start[leaf]) == (not is_trained(leaf)), leaf
    # Moments of each trained parameter, and of no other.
    groups = ("trained", "muon", "adam")
    kept = {
        "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key not in groups)
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
    }
    # Leaves without a name belong to no parameter: counts, rates.
    assert kept - {""} == {leaf for leaf in start if is_trained(leaf)}


@pytest.mark.parametrize("name", NAMES)
def test_trained_parameters_move_as_if_there_were_no_others(name):
    """Their gradients are clipped by their own norm."""
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=1, clip_norm=0.01)
    params, grads = small()

    def trained(tree):
        return {head: value for head, value in tree.items() if head != "bert"} | {"bert": {"pooler": tree["bert"]["pooler"]}}

    optimizer = optimizers.make_optimizer(config, STEPS)
    moved, state, update = trained(params), optimizer.init(trained(params)), jit(optimizer.update)
    for grad in grads:
        updates, state = update(trained(grad), state, moved)
        moved = optax.apply_updates(moved, updates)
    result, _ = program(config, optimizers.freeze_encoder)(1.0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), trained(result), jax.device_get(moved))


@pytest.mark.parametrize("name", NAMES)
def test_the_step_trains_on_a_frozen_encoder(name):
    """Also where gradients are taken at another point than the parameters."""
    config = OptimConfig(name=name, peak_lr=PEAK, warmup_steps=1)
    params, _ = small()
    optimizer = optimizers.freeze_encoder(optimizers.make_optimizer(config, STEPS))

    def sums(params, batch, *, key):
        squares = sum((leaf**2).sum() for leaf in jax.tree.leaves(params))
        return {"loss_": (squares, jnp.float32(1))}

    train_step = step.make_train_step(step.Objective(weights={"loss_": "weights"}, sums=sums), optimizer)
    state = step.TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key_data(jax.random.key(0)))
    compiled = jit(train_step)
    for _ in range(2):
        state, metrics = compiled(state, {"weights": jnp.ones(1)})
        assert jnp.isfinite(metrics["loss"])
    start = named(params)
    for leaf, value in named(state.params).items():
        assert np.array_equal(value, start[leaf]) == (not is_trained(leaf)), leaf


@pytest.mark.parametrize(
    "transformation",
    [optimizers.scale_by_layer_trust_ratio(), optimizers.make_optimizer(OptimConfig(name="schedule_free", warmup_steps=0), 10)],
    ids=["lamb", "schedule_free"],
)
def test_an_update_needs_the_parameters(transformation):
    params = {"bert": {"dense": {"kernel": jnp.ones((2, 2))}}}
    with pytest.raises(ValueError, match="needs the parameters"):
        transformation.update(params, transformation.init(params), None)

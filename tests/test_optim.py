"""Optimizers and schedules against formulas written out in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import heads, optim
from bert_jax.config import OptimConfig
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
    rate = optim.schedule(OptimConfig(peak_lr=PEAK, warmup_steps=WARMUP, decay=decay), STEPS)
    np.testing.assert_allclose([rate(s) for s in range(STEPS + 1)], [expected(s) for s in range(STEPS + 1)], rtol=1e-5, atol=1e-9)
    assert rate(0) == 0


def test_schedule_free_does_not_decay():
    rate = optim.schedule(OptimConfig(name="schedule_free", peak_lr=PEAK, warmup_steps=WARMUP), STEPS)
    np.testing.assert_allclose([rate(s) for s in (0, WARMUP // 2, WARMUP, STEPS)], [0, PEAK / 2, PEAK, PEAK], rtol=1e-6)


def test_schedule_without_warmup_starts_at_the_peak():
    assert optim.schedule(OptimConfig(peak_lr=PEAK, warmup_steps=0), STEPS)(0) == pytest.approx(PEAK)


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
    # The original's regular expression is LayerNorm|layer_norm|bias; ours call a layer norm "norm".
    return "norm/" not in name and not name.endswith("bias")


def reference(config, params, grads):
    """Parameters after the given gradients, by the papers' formulas."""
    p = named(params)
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    rate = optim.schedule(config, STEPS)
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
    optimizer = optim.make_optimizer(config, STEPS)
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
    found = named(optim.decayed(params))
    assert {name: bool(value) for name, value in found.items()} == {name: is_decayed(name) for name in found}
    assert found["bert/embeddings/word"]
    assert found["bert/pooler/kernel"]
    assert not found["mlm/bias"]


def test_trust_ratio_is_one_for_a_zero_parameter_or_update():
    transform = optim.scale_by_layer_trust_ratio()
    update = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.zeros(3)}}
    param = {"a": {"kernel": jnp.zeros(3)}, "b": {"kernel": jnp.ones(3)}}
    found, _ = transform.update(update, transform.init(param), param)
    jax.tree.map(np.testing.assert_array_equal, found, update)


def test_first_update_without_correction_is_3_16_times_larger():
    grad = {"layers": {"kernel": jnp.ones((1, 4))}}
    adam = optim.scale_by_bert_adam(0.9, 0.999, 1e-6)
    plain, _ = adam.update(grad, adam.init(grad))
    np.testing.assert_allclose(plain["layers"]["kernel"], 0.1 / np.sqrt(0.001), rtol=1e-3)


def test_muon_brings_matrices_near_orthogonal_ones_and_leaves_the_rest_to_adam():
    config = OptimConfig(name="muon", peak_lr=PEAK, warmup_steps=0, weight_decay=0.0, clip_norm=100.0)
    params, grads = params_and_grads()

    def first_update(config):
        optimizer = optim.make_optimizer(config, STEPS)
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
            found = left.T @ muon[name][layer].reshape(rows, -1) @ right.T / (0.2 * np.sqrt(max(rows, right.shape[1])))
            # Same directions as the gradient's; five iterations bring singular values to about 0.7 to 1.2 (Jordan et al. 2024).
            np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=2e-5)
            large = np.diag(found)[sizes > 0.02 * sizes[0]]
            assert large.min() > 0.65, name
            assert large.max() < 1.25, name


def test_schedule_free_is_the_papers():
    """Defazio et al. 2024, algorithm 1, in float64: z moves, x is its average, gradients are taken between them."""
    config = OptimConfig(name="schedule_free", peak_lr=PEAK, warmup_steps=2, clip_norm=100.0)
    optimizer = optim.make_optimizer(config, STEPS)
    params, grads = params_and_grads()
    state, weights = optimizer.init(params), 0.0
    x = named(params)
    z, v = dict(x), {name: np.zeros_like(value) for name, value in x.items()}
    for t, grad in enumerate(grads, 1):
        point = named(optim.gradient_point(state, params))
        updates, state = jax.jit(optimizer.update)(grad, state, params)
        params = optax.apply_updates(params, updates)
        # Optax weighs the average by the rate of the step to come.
        rate, weight = float(optim.schedule(config, STEPS)(t - 1)), float(optim.schedule(config, STEPS)(t)) ** 2
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
    assert optim.gradient_point(optim.make_optimizer(OptimConfig(), STEPS * 1000).init(params), params) is params

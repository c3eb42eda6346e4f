"""Optimizers and schedules against formulas written out in NumPy."""

from __future__ import annotations

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

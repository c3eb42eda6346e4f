"""BERT's Adam, AdamW and LAMB as Optax transformations, with the original's schedules and exclusions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bert_jax.config import OptimConfig


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate at an update, counted from 0: linear warm-up, then linear decay to 0 at ``steps``.

    With ``decay="from_zero"`` the decaying line starts at step 0 (the original's ``optimization.py``), so at the
    end of warm-up the rate drops to ``peak · (1 - warmup/steps)``; with "from_peak" it starts there at the peak.
    Update 0 of a warm-up has rate 0 in both.
    """
    peak, warmup = config.peak_lr, config.warmup_steps
    rise = optax.linear_schedule(0.0, peak, warmup)
    if config.decay == "from_peak":
        fall = optax.linear_schedule(peak, 0.0, steps - warmup)
    else:
        fall = optax.linear_schedule(peak * (1 - warmup / steps), 0.0, steps - warmup)
    return optax.join_schedules([rise, fall], [warmup]) if warmup else fall


def decayed(params: optax.Params) -> optax.Params:
    """Which parameters weight decay falls on: all but biases and layer norms (the original's ``exclude_from_weight_decay``)."""

    def one(path: jax.tree_util.KeyPath, _: Array) -> bool:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return names[-1] != "bias" and "norm" not in names

    return jax.tree_util.tree_map_with_path(one, params)


class ScaleByBertAdamState(NamedTuple):
    """First and second moments; no count, because nothing is corrected by it."""

    mu: optax.Updates
    nu: optax.Updates


def scale_by_bert_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction: m / (sqrt(v) + eps) (``AdamWeightDecayOptimizer`` of the original's ``optimization.py``).

    Optax always corrects. Without correction early updates are up to 6.6 times larger, which warm-up absorbs.
    """

    def init(params: optax.Params) -> ScaleByBertAdamState:
        return ScaleByBertAdamState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: ScaleByBertAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByBertAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), ScaleByBertAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """LAMB's trust ratio |parameter| / |update| for each tensor of each layer (You et al. 2019, algorithm 2).

    ``optax.scale_by_trust_ratio`` takes one norm for a whole leaf; here layers are stacked along the first axis of
    everything under ``"layers"``, and each has a norm of its own. Parameters without weight decay keep ratio 1, as
    in the MLPerf reference.
    """

    def ratio(param: Array, update: Array) -> Array:
        norm, change = jnp.linalg.norm(param), jnp.linalg.norm(update)
        return jnp.where((norm > 0) & (change > 0), norm / jnp.where(change > 0, change, 1.0), 1.0) * update

    def one(path: jax.tree_util.KeyPath, update: Array, param: Array, scaled: bool) -> Array:
        if not scaled:
            return update
        stacked = any(isinstance(key, jax.tree_util.DictKey) and key.key == "layers" for key in path)
        return jax.vmap(ratio)(param, update) if stacked else ratio(param, update)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        return jax.tree_util.tree_map_with_path(one, updates, params, decayed(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, scale, decay, trust ratio (LAMB), learning rate, in the original's order."""
    adam = scale_by_bert_adam if config.name == "bert_adam" else optax.scale_by_adam
    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    ]
    if config.name == "lamb":
        parts.append(scale_by_layer_trust_ratio())
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule(config, steps)))

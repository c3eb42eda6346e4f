"""BERT's Adam, AdamW, LAMB, Muon and schedule-free AdamW as Optax transformations, with the original's exclusions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bert_jax import sharding
from bert_jax.config.run import OptimConfig


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate at an update, counted from 0: linear warm-up, then linear decay to 0 at ``steps``.

    With ``decay="from_zero"`` the decaying line starts at step 0 (the original's ``optimization.py``), so at the
    end of warm-up the rate drops to ``peak · (1 - warmup/steps)``; with "from_peak" it starts there at the peak.
    Update 0 of a warm-up has rate 0 in both. "schedule_free" stays at the peak.
    """
    peak, warmup = config.peak_lr, config.warmup_steps
    rise = optax.linear_schedule(0.0, peak, warmup)
    if config.name == "schedule_free":
        fall = optax.constant_schedule(peak)
    elif config.decay == "from_peak":
        fall = optax.linear_schedule(peak, 0.0, steps - warmup)
    else:
        fall = optax.linear_schedule(peak * (1 - warmup / steps), 0.0, steps - warmup)
    return optax.join_schedules([rise, fall], [warmup]) if warmup else fall


def decayed(params: optax.Params) -> optax.Params:
    """Which parameters weight decay falls on: all but biases and layer norms (the original's ``exclude_from_weight_decay``)."""

    def one(path: jax.tree_util.KeyPath, _: Array) -> bool:
        names = _names(path)
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
        return jax.vmap(ratio)(param, update) if "layers" in _names(path) else ratio(param, update)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        return jax.tree_util.tree_map_with_path(one, updates, params, decayed(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_muon_and_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Muon for the kernels of the encoder's layers, Adam for all else, in updates of the same size (Jordan et al. 2024).

    A kernel's momentum is brought near the closest orthogonal matrix by five Newton-Schulz iterations, with all heads of a
    layer side by side, and scaled so that Adam's learning rate suits it (Liu et al. 2025, section 2.2). Tables, heads,
    biases and norms are Adam's, and so are the arguments: Muon's momentum is Nesterov's at 0.95, as published. Its products
    are left to the device's usual precision, which for float32 may be less.
    """
    # Updates of Adam have about this root mean square.
    rms = 0.2

    def axes(path: jax.tree_util.KeyPath, param: Array) -> optax.contrib.MuonDimensionNumbers:
        # Stacked on axis 0; queries, keys and values are [D, H, K], the attention's output is [H, K, D].
        first = 3 if _names(path)[-2] == "output" else 2
        return optax.contrib.MuonDimensionNumbers(tuple(range(1, first)), tuple(range(first, param.ndim)))

    def matrices(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(axes, params)

    def size(update: Array, numbers: optax.contrib.MuonDimensionNumbers) -> Array:
        sides = (math.prod(update.shape[axis] for axis in side) for side in numbers)
        return update * rms * math.sqrt(max(sides))

    def labels(params: optax.Params) -> optax.Params:
        def one(path: jax.tree_util.KeyPath, _: Array) -> str:
            return "muon" if "layers" in _names(path) and _names(path)[-1] == "kernel" else "adam"

        return jax.tree_util.tree_map_with_path(one, params)

    muon = optax.chain(
        _layer_by_layer(optax.contrib.scale_by_muon(weight_dimension_numbers=matrices)),
        optax.stateless(lambda updates, _: jax.tree.map(size, updates, matrices(updates))),
    )
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)


def _layer_by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Whole matrices, of some layers on each device, for a transformation that cannot divide them; and back."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        def back(new: Array, old: Array) -> Array:
            return sharding.like(new, old)

        ours = jax.tree.map(sharding.split_layers, (updates, state))
        return jax.tree.map(back, inner.update(*ours, params), (updates, state))

    return optax.GradientTransformation(inner.init, update)


def _schedule_free(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024), told in terms of the average, which is what a model is used with.

    Optax's own keeps :func:`gradient_point` in the parameters' place.
    """
    inner = optax.contrib.schedule_free(
        optax.chain(
            optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(config.weight_decay, mask=decayed),
            scale_by_depth(config.layer_decay) if config.layer_decay < 1 else optax.identity(),
            optax.scale_by_learning_rate(rate),
        ),
        rate,
        b1=config.b1,
    )

    def update(
        updates: optax.Updates, state: optax.contrib.ScheduleFreeState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.contrib.ScheduleFreeState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        point = gradient_point(state, params)
        moves, state = inner.update(updates, state, point)
        average = optax.contrib.schedule_free_eval_params(state, optax.apply_updates(point, moves))
        return optax.tree.sub(average, params), state

    return optax.GradientTransformation(inner.init, update)


def gradient_point(state: optax.OptState, params: optax.Params) -> optax.Params:
    """Where gradients are taken: at the parameters, except that "schedule_free" goes a part of the way from its average
    to where its steps have led."""

    def is_ours(part: object) -> bool:
        return isinstance(part, optax.contrib.ScheduleFreeState)

    averaged = [part for part in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(part)]
    if not averaged:
        return params
    b1, last = averaged[0].b1, averaged[0].z

    def point(x: Array, z: Array | optax.MaskedNode) -> Array:
        # What is frozen has gone nowhere.
        return x if isinstance(z, optax.MaskedNode) else b1 * x + (1 - b1) * z

    return jax.tree.map(point, params, last)


def make_optimizer(config: OptimConfig, steps: int, *, scale_rate: Float[Array, ""] | float = 1.0) -> optax.GradientTransformation:
    """Clip by global norm, scale, decay, trust ratio (LAMB), learning rate, in the original's order.

    Args:
      config, steps: as for :func:`schedule`.
      scale_rate: the learning rate is multiplied by it; what differs among runs that share a program.
    """

    def rate(count: Int[Array, ""]) -> Array | float:
        return scale_rate * schedule(config, steps)(count)

    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.name == "schedule_free":
        return optax.chain(clip, _schedule_free(config, rate))
    scale = {"bert_adam": scale_by_bert_adam, "muon": scale_by_muon_and_adam}.get(config.name, optax.scale_by_adam)
    parts = [
        clip,
        scale(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    ]
    if config.name == "lamb":
        parts.append(scale_by_layer_trust_ratio())
    if config.layer_decay < 1:
        parts.append(scale_by_depth(config.layer_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Smaller steps further down: ``decay`` to the power of the layers between a parameter and the heads (Howard and Ruder 2018,
    section 3.2; ELECTRA's ``layerwise_lr_decay``).

    Heads and the pooler keep their steps, the last layer's are multiplied by ``decay``, the embeddings' by it to the power of
    one more than there are layers.
    """

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        layers = jax.tree.leaves(updates["bert"]["layers"])[0].shape[0]

        def one(path: jax.tree_util.KeyPath, value: Array) -> Array:
            names = _names(path)
            if "layers" in names:
                powers = decay ** jnp.arange(layers, 0, -1, dtype=value.dtype)
                return value * powers.reshape(-1, *(1,) * (value.ndim - 1))
            return value * decay ** (layers + 1) if "embeddings" in names else value

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(update)


def frozen(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Leave the encoder as it is and keep no moments for it; its pooler learns."""

    def labels(params: optax.Params) -> optax.Params:
        def one(path: jax.tree_util.KeyPath, _: Array) -> str:
            names = _names(path)
            return "frozen" if names[0] == "bert" and names[1] != "pooler" else "trained"

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _names(path: jax.tree_util.KeyPath) -> list[str]:
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]

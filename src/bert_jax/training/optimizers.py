"""BERT's Adam, AdamW, LAMB, Muon and schedule-free AdamW as Optax transformations, with the original's exclusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bert_jax import sharding
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase
from bert_jax.training import learning_rate


def decayed(params: optax.Params) -> optax.Params:
    """Mask of the parameters with weight decay: all but biases and layer norms (the original's ``exclude_from_weight_decay``).

    Examples:
      >>> zero = jnp.zeros(1)
      >>> decayed({"dense": {"kernel": zero, "bias": zero}, "norm": {"scale": zero}})
      {'dense': {'bias': False, 'kernel': True}, 'norm': {'scale': False}}
    """

    def has_decay(path: jax.tree_util.KeyPath, _: Array) -> bool:
        names = _names(path)
        return names[-1] != "bias" and "norm" not in names

    return jax.tree_util.tree_map_with_path(has_decay, params)


class ScaleByBertAdamState(NamedTuple):
    """First and second moments; without bias correction no step count is needed."""

    mu: optax.Updates
    """Moving average of the gradients."""
    nu: optax.Updates
    """Moving average of the squared gradients."""


def scale_by_bert_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction: m / (sqrt(v) + eps) (``AdamWeightDecayOptimizer`` of the original's ``optimization.py``).

    Optax's Adam always corrects the bias. Without correction, early updates are up to 6.6 times larger, for which warm-up
    compensates.

    Args:
      b1, b2: decay rates of the first and second moment.
      eps: constant added to the denominator.

    Examples:
      >>> transformation = scale_by_bert_adam(0.9, 0.999, 1e-6)
      >>> updates, _ = transformation.update(jnp.array(1.0), transformation.init(jnp.array(0.0)))
      >>> round(float(updates), 2)
      3.16
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

    ``optax.scale_by_trust_ratio`` computes one norm for a whole leaf. Leaves under ``"layers"`` are stacked along their first
    axis, and here each layer has its own norm. The ratio is 1 for parameters without weight decay, as in the MLPerf reference.
    """

    def ratio(param: Array, update: Array) -> Array:
        norm, change = jnp.linalg.norm(param), jnp.linalg.norm(update)
        return jnp.where((norm > 0) & (change > 0), norm / jnp.where(change > 0, change, 1.0), 1.0) * update

    def scale(path: jax.tree_util.KeyPath, update: Array, param: Array, scaled: bool) -> Array:
        if not scaled:
            return update
        return jax.vmap(ratio)(param, update) if "layers" in _names(path) else ratio(param, update)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError("The update needs the parameters: update(updates, state, params).")
        return jax.tree_util.tree_map_with_path(scale, updates, params, decayed(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_muon_and_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Muon for the kernels of the encoder's layers and Adam for all other parameters, with updates of the same size (Jordan et al.
    2024).

    Five Newton-Schulz iterations bring a kernel's momentum close to the nearest orthogonal matrix; the heads of a layer form one
    matrix. The update is scaled so that Adam's learning rate suits it (Liu et al. 2025, section 2.2). Muon has Nesterov momentum
    of 0.95, as published. Its products have the device's default precision, which may be lower than float32.

    Args:
      b1, b2, eps: as for Adam; they do not affect Muon.
    """
    # Typical root mean square of Adam's updates.
    rms = 0.2

    def axes(path: jax.tree_util.KeyPath, param: Array) -> optax.contrib.MuonDimensionNumbers:
        # Axis 0 stacks layers; kernels of queries, keys and values are [D, H, K], that of the attention's output is [H, K, D].
        split = 3 if _names(path)[-2] == "output" else 2
        return optax.contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, param.ndim)))

    def matrices(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(axes, params)

    def scale_to_rms(update: Array, dimension_numbers: optax.contrib.MuonDimensionNumbers) -> Array:
        sizes = (math.prod(update.shape[axis] for axis in side) for side in dimension_numbers)
        return update * rms * math.sqrt(max(sizes))

    def labels(params: optax.Params) -> optax.Params:
        def label(path: jax.tree_util.KeyPath, _: Array) -> str:
            return "muon" if "layers" in _names(path) and _names(path)[-1] == "kernel" else "adam"

        return jax.tree_util.tree_map_with_path(label, params)

    muon = optax.chain(
        _layer_by_layer(optax.contrib.scale_by_muon(weight_dimension_numbers=matrices)),
        optax.stateless(lambda updates, _: jax.tree.map(scale_to_rms, updates, matrices(updates))),
    )
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)


def _layer_by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation that needs whole matrices: shard by layers instead, and reshard the result like the input."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        by_layers = jax.tree.map(sharding.reshard_layers, (updates, state))
        return jax.tree.map(sharding.reshard_like, inner.update(*by_layers, params), (updates, state))

    return optax.GradientTransformation(inner.init, update)


def _schedule_free(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024), in which the parameters are the average, with which the model is evaluated.

    In Optax's form the parameters are ``gradient_point`` instead.
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
            raise ValueError("The update needs the parameters: update(updates, state, params).")
        point = gradient_point(state, params)
        updates, state = inner.update(updates, state, point)
        average = optax.contrib.schedule_free_eval_params(state, optax.apply_updates(point, updates))
        return optax.tree.sub(average, params), state

    return optax.GradientTransformation(inner.init, update)


def gradient_point(state: optax.OptState, params: optax.Params) -> optax.Params:
    """Parameters at which gradients are taken: the parameters themselves; for "schedule_free" b1 · average + (1 - b1) · iterate.

    Args:
      state: state of an optimizer from ``make_optimizer``.
      params: the parameters, which for "schedule_free" are the average of the iterates.
    """

    def is_schedule_free(node: object) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    states = [node for node in jax.tree.leaves(state, is_leaf=is_schedule_free) if is_schedule_free(node)]
    if not states:
        return params
    b1, iterates = states[0].b1, states[0].z

    def interpolate(average: Array, iterate: Array | optax.MaskedNode) -> Array:
        # Frozen parameters have no iterate.
        return average if isinstance(iterate, optax.MaskedNode) else b1 * average + (1 - b1) * iterate

    return jax.tree.map(interpolate, params, iterates)


def make_optimizer(
    config: OptimConfig, steps: int, phases: Sequence[Phase] = (), *, scale_rate: Float[Array, ""] | float = 1.0
) -> optax.GradientTransformation:
    """Build the optimizer: clip by global norm, scale, decay weights, trust ratio (LAMB), learning rate, in the original's order.

    Args:
      config, steps, phases: as for [`schedule`][bert_jax.training.learning_rate.schedule].
      scale_rate: factor on the learning rate; it may differ among the runs of an ensemble that share a compiled program.

    Examples:
      >>> optimizer = make_optimizer(bert_jax.OptimConfig(warmup_steps=0), 100)
      >>> params = {"kernel": jnp.ones(2)}
      >>> updates, state = optimizer.update({"kernel": jnp.ones(2)}, optimizer.init(params), params)
      >>> bool((updates["kernel"] < 0).all())
      True
    """

    def rate(count: Int[Array, ""]) -> Array | float:
        return scale_rate * learning_rate.schedule(config, steps, phases)(count)

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
    """Layer-wise learning-rate decay (Howard and Ruder 2018, section 3.2; ELECTRA's ``layerwise_lr_decay``).

    Updates of heads and the pooler are unchanged. Those of layer l, counted from 0, are multiplied by decay^(L - l), those of the
    embeddings by decay^(L + 1).
    """

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        layers = jax.tree.leaves(updates["bert"]["layers"])[0].shape[0]

        def scale(path: jax.tree_util.KeyPath, update: Array) -> Array:
            names = _names(path)
            if "layers" in names:
                factors = decay ** jnp.arange(layers, 0, -1, dtype=update.dtype)
                return update * factors.reshape(-1, *(1,) * (update.ndim - 1))
            return update * decay ** (layers + 1) if "embeddings" in names else update

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(update)


def freeze_encoder(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Do not update the encoder, except its pooler, and keep no optimizer state for it."""

    def labels(params: optax.Params) -> optax.Params:
        def label(path: jax.tree_util.KeyPath, _: Array) -> str:
            names = _names(path)
            return "frozen" if names[0] == "bert" and names[1] != "pooler" else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _names(path: jax.tree_util.KeyPath) -> list[str]:
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]

"""The pure training and evaluation steps, the same under every launcher."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt32

from bert_jax import ops
from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.masking import ResolvedMaskPolicy, mask_tokens
from bert_jax.models.heads import init_params
from bert_jax.training import initialization, losses, optimizers
from bert_jax.training.losses import Sums
from bert_jax.training.norms import layer_norms

# Purposes that the root key is folded with.
_INIT, _MASK, _DROPOUT, _EVAL_MASK = range(4)

LOSS_EMA_DECAY = 0.98
"""Decay of the exponential moving average of the MLM loss; half of its weight lies in the last 34 steps."""

_NO_PARAMS: Params = {}

T = TypeVar("T")
Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """Everything that a step reads and writes on the device."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    key: UInt32[Array, " W"]
    """Data of the root key, which never changes; each use folds in its purpose, the step or the example."""
    mlm_loss_ema: Float[Array, ""] | None = None
    """Exponential moving average of the MLM loss in nats; None where no schedule depends on it."""


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Batch], Sums]


class Objective(NamedTuple):
    """What a run minimizes: a sum of means, each divided once, by the weight of the whole global batch."""

    weights: dict[str, str]
    """Name of each loss -> name of the batch's weights that it is averaged with."""
    sums: Callable[..., Sums]
    """sums(params, batch, key=dropout key) -> (sum, weight) of each loss and of each other metric."""
    prepare: Callable[[Key[Array, ""], Batch, TrainState], Batch] = lambda key, batch, state: batch
    """prepare(key, batch, state) -> the batch to learn from; masking happens here."""
    accumulate: int | Mapping[int, int] = 1
    """Micro-batches whose gradients make one step; or by the number of tokens in a row, where a run has rows of several lengths."""

    replicas: int = 1
    """Parts of a batch whose losses have means of their own, which are averaged; with more than one, ``accumulate`` is 1."""
    clip_norm: float | None = None
    """Norm above which the gradients of each replica are scaled down; None: they are not."""

    def micro_batches(self, batch: Batch) -> int:
        """Parts of a batch that are computed one after the other."""
        if self.replicas > 1:
            return self.replicas
        return self.accumulate if isinstance(self.accumulate, int) else self.accumulate[batch["segment_ids"].shape[-1]]


def pretraining(
    model: ModelConfig,
    policy: ResolvedMaskPolicy | None,
    *,
    accumulate: int | Mapping[int, int] = 1,
    replicas: int = 1,
    clip_norm: float | None = None,
    pairs: bool = True,
) -> Objective:
    """The MLM loss, and the NSP loss where batches have sentence pairs.

    Args:
      model: the model.
      policy: from [`resolve_policy`][bert_jax.resolve_policy]; None where batches are masked already.
      accumulate, replicas, clip_norm: as in ``Objective``.
      pairs: whether batches have sentence pairs.
    """

    def prepare(key: Key[Array, ""], batch: Batch, state: TrainState) -> Batch:
        return mask_tokens(key, batch, policy, state.step, loss=state.mlm_loss_ema) if policy else batch

    return Objective(
        weights={"mlm_loss": "mlm_weights"} | ({"nsp_loss": "nsp_weights"} if pairs else {}),
        sums=functools.partial(_pretraining_sums, model, pairs=pairs),
        prepare=prepare,
        accumulate=accumulate,
        replicas=replicas,
        clip_norm=clip_norm,
    )


class Replicas(TypedDict):
    """The fields of an ``Objective`` that concern replicas."""

    replicas: int
    clip_norm: float | None


def replicas(config: OptimConfig) -> Replicas:
    """How an optimizer's config treats replicas.

    Examples:
      >>> replicas(bert_jax.OptimConfig(replicas=8))
      {'replicas': 8, 'clip_norm': None}
    """
    clips = config.clip_replicas and config.replicas > 1
    return {"replicas": config.replicas, "clip_norm": config.clip_norm if clips else None}


def _pretraining_sums(model: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""], pairs: bool) -> Sums:
    """The losses, and the rates at which the policy selected, predicted and dropped tokens."""
    sums = _select_losses(losses.pretraining(model, params, batch, key=key), pairs)
    tokens = (batch["segment_ids"] > 0).sum(dtype=jnp.float32)
    selected, dropped = (batch[name].astype(jnp.float32) for name in ("mlm_selected", "mlm_dropped"))
    return sums | {
        "mask_rate": (selected.sum(), tokens),
        "prediction_rate": (batch["mlm_weights"].sum(), tokens),
        "dropped_predictions": (dropped.sum(), jnp.float32(dropped.size)),
    }


def _select_losses(sums: Sums, pairs: bool) -> Sums:
    """The sums without those of NSP where there are no pairs."""
    return sums if pairs else {name: value for name, value in sums.items() if not name.startswith("nsp_")}


def init_state(config: Config, optimizer: optax.GradientTransformation, source: Params = _NO_PARAMS) -> TrainState:
    """The state before the first step, a function of ``config.train.seed`` and of the parameters that the run starts from."""
    key = jax.random.key(config.train.seed, impl=ops.GENERATOR)
    params = initialization.complete(init_params(config.model, jax.random.fold_in(key, _INIT)), source)
    # The loss of a uniform guess.
    loss = jnp.log(jnp.float32(config.model.vocab_size)) if config.mask.depends_on_loss() else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(key), loss)


def mask_key(root: Key[Array, ""]) -> Key[Array, ""]:
    """The key of a run's masks, from its root key."""
    return jax.random.fold_in(root, _MASK)


def dropout_key(root: Key[Array, ""], step: Int[Array, ""]) -> Key[Array, ""]:
    """The key of a step's dropout, from the root key of its run."""
    return jax.random.fold_in(jax.random.fold_in(root, _DROPOUT), step)


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, *, axis_name: str | None = None, norms: bool = False
) -> TrainStep:
    """Build ``train_step(state, batch) -> (state, metrics)``.

    Args:
      objective: what is minimized.
      optimizer: from [`make_optimizer`][bert_jax.training.optimizers.make_optimizer].
      axis_name: the axis over which a launcher maps rows (``pmap``); None where arrays are global.
      norms: also return the norms of the gradients and of the updates of each layer.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        root = jax.random.wrap_key_data(state.key, impl=ops.GENERATOR)
        dropout = dropout_key(root, state.step)
        batch = objective.prepare(mask_key(root), batch, state)
        weights = _sum_over({name: batch[weight].sum() for name, weight in objective.weights.items()}, axis_name)

        def loss(params: Params, part: Batch) -> tuple[Array, Sums]:
            sums = objective.sums(params, part, key=dropout)
            if objective.replicas > 1:
                sums |= _divided({name: sums[name] for name in weights}, axis_name)
                return sum((sums[name][0] for name in weights), jnp.float32(0)) / objective.replicas, sums
            means = (sums[name][0] / losses.nonzero(weight) for name, weight in weights.items())
            return sum(means, jnp.float32(0)), sums

        point = optimizers.gradient_point(state.opt_state, state.params)
        grad = _clipped(jax.grad(loss, has_aux=True), objective, axis_name)
        grads, sums = _accumulate(grad, point, batch, objective.micro_batches(batch))
        # Clipping needs the sums over devices of each replica.
        grads, sums = grads if objective.clip_norm else _sum_over(grads, axis_name), _sum_over(sums, axis_name)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = losses.means(sums, objective.weights) | {"grad_norm": optax.tree.norm(grads)}
        if norms:
            metrics |= layer_norms(grads, "grad_norm") | layer_norms(updates, "update_norm")
        ema = state.mlm_loss_ema
        if ema is not None:
            ema = LOSS_EMA_DECAY * ema + (1 - LOSS_EMA_DECAY) * metrics["mlm_loss"]
        return TrainState(state.step + 1, params, opt_state, state.key, ema), metrics

    return train_step


def make_eval_step(
    model: ModelConfig,
    policy: ResolvedMaskPolicy | None,
    unigram: Float[np.ndarray, " V"],
    *,
    axis_name: str | None = None,
    pairs: bool = True,
) -> EvalStep:
    """Build ``eval_step(params, batch) -> sums`` with masks that are the same in every evaluation of every run.

    Args:
      model: the model.
      policy: from [`ResolvedMaskPolicy.held_out`][bert_jax.ResolvedMaskPolicy.held_out]; None where batches are masked already.
      unigram: log-probability of each token by its frequency; its loss on the same masked tokens is the ``unigram_loss`` that a
        model has to beat. ``nsp_random`` is the share of random pairs.
      axis_name: as for ``make_train_step``.
      pairs: whether batches have sentence pairs; otherwise there are no sums of NSP.
    """

    def eval_step(params: Params, batch: Batch) -> Sums:
        key = jax.random.fold_in(jax.random.key(0, impl=ops.GENERATOR), _EVAL_MASK)
        batch = mask_tokens(key, batch, policy, 0) if policy else batch
        sums = losses.pretraining(model, params, batch)
        sums["nsp_random"] = ((batch["nsp_weights"] * batch["nsp_labels"]).sum(), batch["nsp_weights"].sum())
        scores = jnp.where(batch["mlm_weights"] > 0, -ops.lookup(jnp.asarray(unigram), batch["mlm_ids"]), 0.0)
        sums["unigram_loss"] = (scores.sum(), batch["mlm_weights"].sum())
        return _sum_over(_select_losses(sums, pairs), axis_name)

    return eval_step


def _accumulate(grad: Grad, params: Params, batch: Batch, parts: int) -> tuple[Params, Sums]:
    """Sum gradients and metric sums over ``parts`` micro-batches, one after the other."""
    if parts == 1:
        return grad(params, batch)
    # Row r goes to micro-batch r mod parts, so that every device keeps its own rows.
    micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch)
    total = grad(params, jax.tree.map(lambda x: x[0], micro))

    def add(total: tuple[Params, Sums], part: Batch) -> tuple[tuple[Params, Sums], None]:
        return jax.tree.map(jnp.add, total, grad(params, part)), None

    return jax.lax.scan(add, total, jax.tree.map(lambda x: x[1:], micro))[0]


def _divided(sums: Sums, axis_name: str | None) -> Sums:
    """Sums and weights of a replica, divided by its weight, so that over devices they sum to its means and to 1."""
    totals = {name: losses.nonzero(_sum_over(weight, axis_name)) for name, (_, weight) in sums.items()}
    return {name: (value / totals[name], weight / totals[name]) for name, (value, weight) in sums.items()}


Grad = Callable[[Params, Batch], tuple[Params, Sums]]


def _clipped(grad: Grad, objective: Objective, axis_name: str | None) -> Grad:
    """The gradients of each replica, summed over devices and clipped, if the objective says so."""
    if objective.clip_norm is None:
        return grad
    # Each replica's part of the loss has the factor 1 / replicas.
    clip = optax.clip_by_global_norm(objective.clip_norm / objective.replicas)

    def clipped(params: Params, part: Batch) -> tuple[Params, Sums]:
        grads, sums = grad(params, part)
        return clip.update(_sum_over(grads, axis_name), optax.EmptyState())[0], sums

    return clipped


def _sum_over(tree: T, axis_name: str | None) -> T:
    if axis_name is None:
        return tree
    with jax.named_scope("reduction"):
        return jax.lax.psum(tree, axis_name)

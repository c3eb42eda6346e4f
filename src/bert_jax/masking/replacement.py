"""Masking on the device, inside the step.

The random draws of a token depend on the seed, the example's id and the token's position in the example, and on nothing else:
not on the row it is packed into, the device, the process, or the step at which a run was resumed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax import ops
from bert_jax.batch import KEPT, MASKED, RANDOM, Batch
from bert_jax.masking import schedules, selection
from bert_jax.masking.policy import ResolvedMaskPolicy


def prediction_slots(resolved: ResolvedMaskPolicy, length: int, examples: int) -> int:
    """M, the number of prediction slots of a row: enough however its tokens are divided among its examples.

    Raises:
      UserError: the policy has schedules and no ``steps``.
    """
    counts = selection.most_predictions(resolved, length)
    most = counts
    for _ in range(examples - 1):
        # most[n]: predictions of n tokens that are divided among one example more.
        most = np.array([max(most[: n + 1] + counts[n::-1]) for n in range(length + 1)])
    return min(int(most.max()), length)


def mask_tokens(
    key: Key[Array, ""],
    batch: Batch,
    policy: ResolvedMaskPolicy,
    step: Int[Array, ""] | int,
    *,
    loss: Float[Array, ""] | float | None = None,
) -> Batch:
    """Select tokens, replace them, and add the predictions (Devlin et al. 2018, appendix A.1).

    As in the original, exactly round(rate · length) tokens of an example are selected, special tokens counted in its length,
    at least 1 and at most ``max_predictions``; the 80/10/10 replacement is drawn for each token separately.

    Args:
      key: the run's masking key.
      batch: ``input_ids, position_ids, segment_ids, word_ids`` [B, S] and ``example_ids`` [B, E]. Tokens whose ``word_ids`` are
        -1 (special tokens, padding) are never selected.
      policy: from [`resolve_policy`][bert_jax.resolve_policy].
      step: training step, at which schedules are evaluated.
      loss: EMA of the MLM loss in nats, for schedules that depend on it.

    Returns:
      The batch with replaced ``input_ids``, and ``mlm_positions``, ``mlm_ids`` int32 [B, M], ``mlm_weights`` float32 [B, M],
      ``mlm_kinds`` int32 [B, M] (``MASKED``, ``RANDOM`` or ``KEPT``), ``mlm_selected`` and ``mlm_dropped`` int32
      [B]. With ``select="next"`` the ids stay, and M is S - 1.

    Raises:
      UserError: the policy has schedules and no ``steps``, or needs ``loss``.

    Examples:
      >>> from bert_jax.evaluation.benchmark import random_batch
      >>> batch = random_batch(bert_jax.DataConfig("", sequence_length=32, batch_size=2), 100)
      >>> batch = {name: jnp.asarray(value) for name, value in batch.items()}
      >>> policy = bert_jax.ResolvedMaskPolicy(bert_jax.MaskPolicy(), mask_id=4, vocab_size=100)
      >>> masked = bert_jax.mask_tokens(jax.random.key(0), batch, policy, 0)
      >>> masked["mlm_weights"].sum(1).tolist()
      [5.0, 5.0]
    """
    with jax.named_scope("masking"):
        if policy.policy.select == "next":
            return batch | _next_tokens(batch)
        input_ids, segment_ids, example_ids = batch["input_ids"], batch["segment_ids"], batch["example_ids"]
        length = input_ids.shape[1]
        evaluate = functools.partial(schedules.value, step=step, steps=policy.steps, loss=loss)
        token_example = jnp.take_along_axis(example_ids, jnp.maximum(segment_ids - 1, 0), axis=1)
        tokens = selection.total_of((segment_ids > 0).astype(jnp.int32), selection.begins(segment_ids))
        requested = selection.requested(policy.policy.predicted, evaluate, tokens, length)
        count = ops.lookup(jnp.asarray(selection.most_predictions(policy, length)), tokens)
        selected, predicted = selection.choose(key, batch, token_example, policy, evaluate, jnp.minimum(requested, count), tokens)
        shares = tuple(map(evaluate, policy.policy.replace))
        replaced, kinds = _replace(key, batch, token_example, policy, shares)
        dropped = jnp.where(selection.begins(segment_ids), jnp.maximum(requested - count, 0), 0).sum(1)
        slots = prediction_slots(policy, length, example_ids.shape[1])
        return batch | {
            "input_ids": jnp.where(selected, replaced, input_ids),
            "mlm_dropped": dropped,
            "mlm_selected": selected.sum(1),
            **_predictions(input_ids, predicted, kinds, slots),
        }


def _predictions(input_ids: Int[Array, "B S"], predicted: Bool[Array, "B S"], kinds: Int[Array, "B S"], slots: int) -> Batch:
    """The predicted tokens of each row in its first slots."""
    length = input_ids.shape[1]
    place = jnp.sort(jnp.where(predicted, jnp.arange(length), length), axis=1)[:, :slots]
    filled = place < length
    positions = jnp.where(filled, place, 0)
    return {
        "mlm_positions": positions,
        "mlm_ids": jnp.where(filled, jnp.take_along_axis(input_ids, positions, axis=1), 0),
        "mlm_weights": filled.astype(jnp.float32),
        "mlm_kinds": jnp.where(filled, jnp.take_along_axis(kinds, positions, axis=1), MASKED),
    }


def _next_tokens(batch: Batch) -> Batch:
    """Predict each token's successor within its example."""
    input_ids, segment_ids = batch["input_ids"], batch["segment_ids"]
    follows = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    return {
        "mlm_positions": jnp.broadcast_to(jnp.arange(input_ids.shape[1] - 1), follows.shape) + 0 * input_ids[:, 1:],
        "mlm_ids": jnp.where(follows, input_ids[:, 1:], 0),
        "mlm_weights": follows.astype(jnp.float32),
        "mlm_kinds": jnp.full_like(input_ids[:, 1:], KEPT),
        "mlm_dropped": jnp.zeros_like(input_ids[:, 0]),
        "mlm_selected": jnp.zeros_like(input_ids[:, 0]),
    }


def _replace(
    key: Key[Array, ""],
    batch: Batch,
    token_example: Int[Array, "B S"],
    policy: ResolvedMaskPolicy,
    shares: tuple[float | Array, ...],
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """The replacement of every token, and its kind, in case the token is selected."""
    position_ids, input_ids = batch["position_ids"], batch["input_ids"]
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(selection.token_keys(key, selection.REPLACE, token_example, position_ids))
    ordinary = policy.policy.random_tokens == "ordinary"
    ranges = np.array(policy.ordinary_ids if ordinary else (0, policy.vocab_size)).reshape(-1, 2)
    sizes = ranges[:, 1] - ranges[:, 0]
    draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=int(sizes.sum()))
    token = jax.vmap(jax.vmap(draw))(selection.token_keys(key, selection.DRAW, token_example, position_ids))
    if ordinary:
        # The drawn index counts ordinary ids only; each range adds the gap before it.
        gaps = ranges[:, 0] - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        token += (np.diff(gaps, prepend=0) * (token[..., None] >= np.cumsum(sizes) - sizes)).sum(-1)
    mask, random, _ = shares
    kind = jnp.where(uniform < mask, MASKED, jnp.where(uniform < mask + random, RANDOM, KEPT))
    return jnp.where(kind == MASKED, policy.mask_id, jnp.where(kind == RANDOM, token, input_ids)), kind

"""Masked-word selection and replacement on the device, inside the step.

The noise of a token depends on the seed, the example's id and the token's place inside the example, and on nothing
else: not on the row it is packed into, the device, the host, the worker or the step at which a run was resumed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops
from bert_jax.errors import UserError
from bert_jax.masking import schedules, selection
from bert_jax.masking.policy import MaskPolicy
from bert_jax.models.encoder import Batch

MASKED, RANDOM, KEPT = range(3)
"""What became of a chosen token: the mask, a random piece, or nothing."""


def prediction_slots(policy: MaskPolicy, length: int, examples: int) -> int:
    """M: the most predictions that a row of this length can hold, however its tokens are shared out among its examples.

    Raises:
      UserError: the policy has schedules and no ``steps``.
    """
    counts = selection.most_predictions(policy, length)
    most = counts
    for _ in range(examples - 1):
        # most[n]: of n tokens in one example more than before.
        most = np.array([max(most[: n + 1] + counts[n::-1]) for n in range(length + 1)])
    return min(int(most.max()), length)


def mask_tokens(
    key: Key[Array, ""],
    batch: Batch,
    policy: MaskPolicy,
    step: Int[Array, ""] | int,
    *,
    loss: Float[Array, ""] | float | None = None,
) -> Batch:
    """Choose tokens, replace them, and add what is to be predicted (Devlin et al. 2018, appendix A.1).

    Selection has the original's exact count, round(rate · length) with specials counted, at least 1 and at most
    ``max_predictions`` in each example; 80/10/10 is drawn for each token by itself, as in the original.

    Args:
      key: the run's masking key.
      batch: ``ids, segments, offsets, words`` [B, S] and ``examples`` [B, E]; tokens with ``words`` -1 (specials,
        padding) are never chosen.
      policy: what to choose and how to replace it, with ``mask_id`` and ``vocab_size`` filled in, and ``steps`` where it has
        schedules.
      step: the training step, at which a policy's schedules are read.
      loss: the masked-word loss of late, in nats, for schedules that depend on it.

    Returns:
      The batch with replaced ``ids``, and ``mlm_positions``, ``mlm_ids`` int32 [B, M], ``mlm_weights`` float32 [B, M];
      ``mlm_kinds`` int32 [B, M], :data:`MASKED`, :data:`RANDOM` or :data:`KEPT`; and int32 [B] ``mlm_chosen``, how many of a row
      were chosen, and ``mlm_cut``, predictions that the cap cut from it. Where the next token is predicted, ids stay and M is
      S - 1.

    Raises:
      UserError: the policy lacks ``mask_id``, ``vocab_size`` or ``steps``.
    """
    _require_ids(policy)
    with jax.named_scope("masking"):
        if policy.select == "next":
            return batch | _next(batch)
        ids, segments, examples = batch["ids"], batch["segments"], batch["examples"]
        length = ids.shape[1]
        read = functools.partial(schedules.value, step=step, steps=policy.steps, loss=loss)
        token_example = jnp.take_along_axis(examples, jnp.maximum(segments - 1, 0), axis=1)
        tokens = selection.total_of((segments > 0).astype(jnp.int32), selection.begins(segments))
        asked = selection.wanted(policy.predicted, read, tokens, length)
        count = ops.lookup(jnp.asarray(selection.most_predictions(policy, length)), tokens)
        chosen, predicted = selection.choose(key, batch, token_example, policy, read, jnp.minimum(asked, count), tokens)
        shares = tuple(map(read, policy.replace))
        replaced, kinds = _replace(key, batch, token_example, policy, shares)

        place = jnp.sort(jnp.where(predicted, jnp.arange(length), length), axis=1)
        place = place[:, : prediction_slots(policy, length, examples.shape[1])]
        filled = place < length
        positions = jnp.where(filled, place, 0)
        cut = jnp.where(selection.begins(segments), jnp.maximum(asked - count, 0), 0).sum(1)
        return batch | {
            "ids": jnp.where(chosen, replaced, ids),
            "mlm_positions": positions,
            "mlm_ids": jnp.where(filled, jnp.take_along_axis(ids, positions, axis=1), 0),
            "mlm_weights": filled.astype(jnp.float32),
            "mlm_kinds": jnp.where(filled, jnp.take_along_axis(kinds, positions, axis=1), MASKED),
            "mlm_cut": cut,
            "mlm_chosen": chosen.sum(1),
        }


def _require_ids(policy: MaskPolicy) -> None:
    if policy.mask_id is None or policy.vocab_size is None:
        raise UserError("The mask policy has no mask_id or no vocab_size; policy.of(tokenizer) has them.")
    if policy.random == "ordinary" and not policy.ordinary:
        raise UserError("The mask policy does not say which pieces are ordinary; policy.of(tokenizer) does.")


def _next(batch: Batch) -> Batch:
    """Each token's successor, where there is one in its example."""
    ids, segments = batch["ids"], batch["segments"]
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return {
        "mlm_positions": jnp.broadcast_to(jnp.arange(ids.shape[1] - 1), follows.shape) + 0 * ids[:, 1:],
        "mlm_ids": jnp.where(follows, ids[:, 1:], 0),
        "mlm_weights": follows.astype(jnp.float32),
        "mlm_kinds": jnp.full_like(ids[:, 1:], KEPT),
        "mlm_cut": jnp.zeros_like(ids[:, 0]),
        "mlm_chosen": jnp.zeros_like(ids[:, 0]),
    }


def _replace(
    key: Key[Array, ""],
    batch: Batch,
    token_example: Int[Array, "B S"],
    policy: MaskPolicy,
    shares: tuple[float | Array, ...],
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """What each token becomes if it is chosen, and of which kind that is."""
    offsets, ids = batch["offsets"], batch["ids"]
    share = jax.vmap(jax.vmap(jax.random.uniform))(selection.token_keys(key, selection.REPLACE, token_example, offsets))
    stretches = np.array(policy.ordinary if policy.random == "ordinary" else (0, policy.vocab_size)).reshape(-1, 2)
    sizes = stretches[:, 1] - stretches[:, 0]
    draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=int(sizes.sum()))
    piece = jax.vmap(jax.vmap(draw))(selection.token_keys(key, selection.DRAW, token_example, offsets))
    if policy.random == "ordinary":
        # Ids that are numbered without those between the stretches.
        gaps = stretches[:, 0] - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        piece += (np.diff(gaps, prepend=0) * (piece[..., None] >= np.cumsum(sizes) - sizes)).sum(-1)
    mask, random, _ = shares
    assert policy.mask_id is not None
    kind = jnp.where(share < mask, MASKED, jnp.where(share < mask + random, RANDOM, KEPT))
    return jnp.where(kind == MASKED, policy.mask_id, jnp.where(kind == RANDOM, piece, ids)), kind

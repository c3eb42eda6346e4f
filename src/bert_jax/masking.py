"""Masked-word selection and replacement on the device, inside the step.

The noise of a token depends on the seed, the example's id and the token's place inside the example, and on nothing
else: not on the row it is packed into, the device, the host, the worker or the step at which a run was resumed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from bert_jax import ops
from bert_jax.config import MaskPolicy
from bert_jax.errors import UserError
from bert_jax.model import Batch

_SELECT, _REPLACE, _DRAW = range(3)


def prediction_slots(policy: MaskPolicy, length: int, examples: int) -> int:
    """M: the most predictions that a row of this length can hold, however its tokens are shared out among its examples."""
    counts = _counts(policy, length)
    most = counts
    for _ in range(examples - 1):
        # most[n]: of n tokens in one example more than before.
        most = np.array([max(most[: n + 1] + counts[n::-1]) for n in range(length + 1)])
    return min(int(most.max()), length)


def _counts(policy: MaskPolicy, length: int) -> np.ndarray:
    """Predictions int32 [length + 1] of an example, by its number of tokens."""
    # Rounded by Python, in float64 and half to even as in the original: float32 differs at lengths such as 190.
    counts = np.array([max(1, round(tokens * policy.rate)) for tokens in range(length + 1)], np.int32)
    counts[0] = 0
    return counts if policy.max_predictions is None else np.minimum(counts, policy.max_predictions)


def mask_tokens(key: Key[Array, ""], batch: Batch, policy: MaskPolicy, step: Int[Array, ""] | int) -> Batch:
    """Choose tokens, replace them, and add what is to be predicted (Devlin et al. 2018, appendix A.1).

    Selection has the original's exact count, round(rate · length) with specials counted, at least 1 and at most
    ``max_predictions`` in each example; 80/10/10 is drawn for each token by itself, as in the original.

    Args:
      key: the run's masking key.
      batch: ``ids, segments, offsets, words`` [B, S] and ``examples`` [B, E]; tokens with ``words`` -1 (specials,
        padding) are never chosen.
      policy: what to choose and how to replace it, with ``mask_id`` and ``vocab_size`` filled in.
      step: the training step, at which a policy's schedules are read.

    Returns:
      The batch with replaced ``ids``, and ``mlm_positions``, ``mlm_ids`` int32 [B, M], ``mlm_weights`` float32 [B, M]. Where
      the next token is predicted, ids stay and M is S - 1.

    Raises:
      UserError: the policy lacks ``mask_id`` or ``vocab_size``.
    """
    if policy.mask_id is None or policy.vocab_size is None:
        raise UserError("The mask policy has no mask_id or no vocab_size; take them from the tokenizer with dataclasses.replace.")
    with jax.named_scope("masking"):
        if policy.select == "next":
            return batch | _next(batch)
        ids, segments, examples = batch["ids"], batch["segments"], batch["examples"]
        token_example = jnp.take_along_axis(examples, jnp.maximum(segments - 1, 0), axis=1)
        chosen = _choose(key, batch, token_example, policy)
        replaced = _replace(key, batch, token_example, policy.replace, policy.mask_id, policy.vocab_size)

        length = ids.shape[1]
        place = jnp.sort(jnp.where(chosen, jnp.arange(length), length), axis=1)
        place = place[:, : prediction_slots(policy, length, examples.shape[1])]
        filled = place < length
        positions = jnp.where(filled, place, 0)
        return batch | {
            "ids": jnp.where(chosen, replaced, ids),
            "mlm_positions": positions,
            "mlm_ids": jnp.where(filled, jnp.take_along_axis(ids, positions, axis=1), 0),
            "mlm_weights": filled.astype(jnp.float32),
        }


def _next(batch: Batch) -> Batch:
    """Each token's successor, where there is one in its example."""
    ids, segments = batch["ids"], batch["segments"]
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return {
        "mlm_positions": jnp.broadcast_to(jnp.arange(ids.shape[1] - 1), follows.shape) + 0 * ids[:, 1:],
        "mlm_ids": jnp.where(follows, ids[:, 1:], 0),
        "mlm_weights": follows.astype(jnp.float32),
    }


def _choose(key: Key[Array, ""], batch: Batch, token_example: Int[Array, "B S"], policy: MaskPolicy) -> Bool[Array, "B S"]:
    """Whole units (tokens or words) in random order, up to each example's count."""
    segments, words = batch["segments"], batch["words"]
    units = batch["offsets"] if policy.select == "token" else words
    noise = jax.vmap(jax.vmap(jax.random.bits))(_token_keys(key, _SELECT, token_example, units))
    length = _total((segments > 0).astype(jnp.int32), _starts(segments))
    count = ops.lookup(jnp.asarray(_counts(policy, segments.shape[1])), length)

    # Sorted, the candidates of an example lie together, unit after unit in random order.
    excluded = (words < 0).astype(jnp.int32)
    place = jnp.broadcast_to(jnp.arange(units.shape[1]), units.shape) + 0 * units
    excluded, segments, _, units, place, count = jax.lax.sort(
        (excluded, segments, noise, units, place, count), dimension=1, num_keys=5
    )
    candidate = excluded == 0
    groups = _starts(2 * segments + excluded)
    unit_starts = groups | _starts(units)
    size = _total(candidate.astype(jnp.int32), unit_starts)

    def fit(taken: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
        room = count - _total(taken.astype(jnp.int32), groups)
        fits = candidate & ~taken & (size <= room)
        return fits & (_running(fits.astype(jnp.int32), groups, unit_starts) <= room)

    # A unit that does not fit is passed over and smaller ones may follow, as in the original; each round takes
    # the units up to the next one that does not fit. Tokens all have size one: a single round is enough.
    taken = fit(candidate & False)
    if policy.select != "token":
        taken, _ = jax.lax.while_loop(
            lambda state: jnp.any(state[1]),
            lambda state: (state[0] | state[1], fit(state[0] | state[1])),
            (taken, fit(taken)),
        )
    return jax.lax.sort((place, taken), dimension=1, num_keys=1)[1]


def _replace(
    key: Key[Array, ""],
    batch: Batch,
    token_example: Int[Array, "B S"],
    shares: tuple[float, float, float],
    mask_id: int,
    vocab_size: int,
) -> Int[Array, "B S"]:
    """What each token becomes if it is chosen."""
    offsets = batch["offsets"]
    share = jax.vmap(jax.vmap(jax.random.uniform))(_token_keys(key, _REPLACE, token_example, offsets))
    draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=vocab_size)
    piece = jax.vmap(jax.vmap(draw))(_token_keys(key, _DRAW, token_example, offsets))
    mask, random, _ = shares
    return jnp.where(share < mask, mask_id, jnp.where(share < mask + random, piece, batch["ids"]))


def _token_keys(key: Key[Array, ""], purpose: int, examples: Int[Array, "B S"], units: Int[Array, "B S"]) -> Key[Array, "B S"]:
    root = jax.random.fold_in(key, purpose)
    return jax.vmap(jax.vmap(lambda example, unit: jax.random.fold_in(jax.random.fold_in(root, example), unit)))(examples, units)


def _starts(groups: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Where a run of equal numbers begins."""
    before = jnp.pad(groups[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
    return groups != before


def _running(values: Int[Array, "B S"], starts: Bool[Array, "B S"], unit_starts: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Sum of non-negative values from the start of the group to the end of the unit that a place belongs to."""
    upto = jax.lax.cumsum(values, axis=1)
    before = jax.lax.cummax(jnp.where(starts, upto - values, 0), axis=1)
    ends = jnp.pad(unit_starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    return jax.lax.cummin(jnp.where(ends, upto, jnp.iinfo(jnp.int32).max), axis=1, reverse=True) - before


def _total(values: Int[Array, "B S"], starts: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Sum of non-negative values over the group that a place belongs to."""
    return _running(values, starts, starts)

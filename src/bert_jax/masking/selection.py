"""Selection of tokens: units in random order, or in the order of weighted draws, up to each example's count."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bert_jax import ops, sharding
from bert_jax.batch import Batch
from bert_jax.config.schedules import Schedule, varies
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.masking.policy import ResolvedMaskPolicy

SELECT, REPLACE, DRAW, LENGTH = range(4)
"""Purposes that a token's random draws are separated by."""
_SPANS = ("ngram", "span", "t5")
# Natural logarithms of 4,097 numbers from 1 to 2, in units of 2**-26.
_LOGARITHMS = np.round(np.log1p(np.arange(4097) / 4096) * 2**26).astype(np.uint32)

Evaluate = Callable[[Schedule], float | Array]
"""A schedule -> its value at this step."""


def choose(
    key: Key[Array, ""],
    batch: Batch,
    token_example: Int[Array, "B S"],
    policy: ResolvedMaskPolicy,
    evaluate: Evaluate,
    count: Int[Array, "B S"],
    tokens: Int[Array, "B S"],
) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
    """Which tokens are selected, and which of them are predicted.

    Units (tokens or words) are taken whole, the units of a span together, in random order up to each example's counts.
    """
    segments, words = batch["segment_ids"], batch["word_ids"]
    candidates = words >= 0
    place = jnp.broadcast_to(jnp.arange(words.shape[1]), words.shape) + 0 * words
    unit_starts = candidates if policy.policy.select in ("token", "t5") else begins(jnp.where(candidates, words, -1) + 0 * segments)
    unit_starts |= begins(2 * segments + candidates)
    group_starts = unit_starts
    if policy.policy.select in _SPANS:
        group_starts = span_starts(key, batch, token_example, policy, evaluate, unit_starts)
    # Units and spans are identified by their first column; all tokens of a span share the draw of its first token.
    unit, group = (jax.lax.cummax(jnp.where(starts, place, 0), axis=1) for starts in (unit_starts, group_starts))
    noise = jax.vmap(jax.vmap(jax.random.bits))(token_keys(key, SELECT, token_example, batch["position_ids"]))
    noise = jnp.take_along_axis(noise, group, axis=1)
    if policy.token_weights is not None:
        noise = _weighted(noise, batch, policy, candidates, group_starts, group)

    # Sorting brings the candidates of an example together, span after span in random order.
    excluded = (~candidates).astype(jnp.int32)
    total = count if policy.policy.prediction_rate is None else requested(policy.policy.rate, evaluate, tokens, words.shape[1])
    excluded, segments, _, _, place, unit, count, total = jax.lax.sort(
        (excluded, segments, noise, group, place, unit, count, total), dimension=1, num_keys=5
    )
    groups, unit_starts = begins(2 * segments + excluded), begins(unit)
    skips = policy.policy.select in ("word", "ngram", "span")
    taken = _fill(excluded == 0, groups, groups | unit_starts, total, skips=skips)
    first = taken if policy.policy.prediction_rate is None else _fill(taken, groups, groups | unit_starts, count, skips=skips)
    _, taken, first = jax.lax.sort((place, taken, first), dimension=1, num_keys=1)
    return taken, first


def _weighted(
    noise: UInt32[Array, "B S"],
    batch: Batch,
    policy: ResolvedMaskPolicy,
    candidates: Bool[Array, "B S"],
    starts: Bool[Array, "B S"],
    group: Int[Array, "B S"],
) -> UInt32[Array, "B S"]:
    """Exponential arrival times with the weights as rates, as integers of the same order.

    Their order is that of weighted sampling without replacement (Efraimidis and Spirakis 2006).
    """
    assert policy.token_weights is not None
    weights = sharding.automatic(policy.token_weights, "batch", None)(batch).astype(jnp.float32)
    weights = jnp.where(candidates & (weights > 0), weights, 0.0)
    mean = weights if policy.policy.select == "token" else jnp.take_along_axis(_means(weights, starts), group, axis=1)
    return jax.lax.bitcast_convert_type(_exponential(noise) / jnp.maximum(mean, 1e-30), jnp.uint32)


def _exponential(noise: UInt32[Array, "B S"]) -> Float[Array, "B S"]:
    """Exponential draws, -ln(1 - u) where u are the first 24 bits of the noise.

    Computed with integers, from tabulated logarithms with linear interpolation, because the last bit of a logarithm in floating
    point, and with it the order of two draws, may depend on how XLA divides a program over devices.
    """
    survival = jnp.uint32(2**24) - (noise >> 8)
    zeros = jax.lax.clz(survival)
    # The number in [1, 2) of which 1 - u is a multiple by a power of two.
    mantissa = (survival << zeros) - jnp.uint32(2**31)
    index, rest = (mantissa >> 19).astype(jnp.int32), (mantissa & jnp.uint32(2**19 - 1)) >> 3
    low, high = (ops.lookup(jnp.asarray(table), index) for table in (_LOGARITHMS[:-1], _LOGARITHMS[1:]))
    logarithm = low + (((high - low) * rest) >> 16)
    halvings = zeros - 7
    return (halvings * _LOGARITHMS[-1] - logarithm).astype(jnp.int32).astype(jnp.float32) * jnp.float32(2.0**-26)


def _means(values: Float[Array, "B S"], starts: Bool[Array, "B S"]) -> Float[Array, "B S"]:
    """The mean of each group at the group's first column, independent of the rest of the row."""

    def add(later: tuple[Array, Array], column: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        value, start = column
        total, count = later[0] + value, later[1] + 1
        return (jnp.where(start, 0.0, total), jnp.where(start, 0, count)), total / count

    columns = jnp.swapaxes(values, 0, 1), jnp.swapaxes(starts, 0, 1)
    nothing = jnp.zeros_like(values[:, 0]), jnp.zeros_like(starts[:, 0], jnp.int32)
    return jnp.swapaxes(jax.lax.scan(add, nothing, columns, reverse=True, unroll=16)[1], 0, 1)


def _fill(
    candidates: Bool[Array, "B S"],
    groups: Bool[Array, "B S"],
    unit_starts: Bool[Array, "B S"],
    count: Int[Array, "B S"],
    *,
    skips: bool,
) -> Bool[Array, "B S"]:
    """Take units in order while they fit each group's count; with ``skips``, skip a unit that does not fit and go on."""
    size = total_of(candidates.astype(jnp.int32), unit_starts)

    def fit(taken: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
        room = count - total_of(taken.astype(jnp.int32), groups)
        fits = candidates & ~taken & (size <= room) if skips else candidates & ~taken
        return fits & (_running(fits.astype(jnp.int32), groups, unit_starts) <= room)

    # As in the original, a unit that does not fit is skipped and smaller ones may follow; each round takes the units up to
    # the next one that does not fit. Single tokens need one round.
    taken = fit(candidates & False)
    if skips:
        taken, _ = jax.lax.while_loop(
            lambda state: jnp.any(state[1]),
            lambda state: (state[0] | state[1], fit(state[0] | state[1])),
            (taken, fit(taken)),
        )
    return taken


def span_starts(
    key: Key[Array, ""],
    batch: Batch,
    token_example: Int[Array, "B S"],
    policy: ResolvedMaskPolicy,
    evaluate: Evaluate,
    unit_starts: Bool[Array, "B S"],
) -> Bool[Array, "B S"]:
    """Where spans begin: each example is divided from left to right into spans of random lengths; special tokens end a span."""
    # NumPy's numbers, unless the probability is a schedule.
    sizes = np.arange(1, policy.policy.span_limit + 1, dtype=np.float32)
    probabilities = (
        1 / sizes if policy.policy.select == "ngram" else (1.0 - evaluate(policy.policy.span_end_probability)) ** (sizes - 1)
    )
    cumulative = (probabilities / probabilities.sum()).cumsum()
    drawn = jax.vmap(jax.vmap(jax.random.uniform))(token_keys(key, LENGTH, token_example, batch["position_ids"]))
    lengths = 1 + (drawn[..., None] >= cumulative[:-1]).sum(-1)
    fresh = begins(2 * batch["segment_ids"] + (batch["word_ids"] >= 0))

    def cut(left: Int[Array, " B"], column: tuple[Array, Array, Array]) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
        unit, anew, length = column
        left = left - unit
        starts = unit & (anew | (left <= 0))
        return jnp.where(starts, length, left), starts

    columns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (unit_starts, fresh, lengths))
    return jnp.swapaxes(jax.lax.scan(cut, jnp.zeros_like(lengths[:, 0]), columns, unroll=16)[1], 0, 1)


def requested(schedule: Schedule, evaluate: Evaluate, tokens: Int[Array, "B S"], length: int) -> Int[Array, "B S"]:
    """Number of tokens that a rate requests of each token's example."""
    if not varies(schedule):
        return ops.lookup(jnp.asarray(_constant_counts(float(cast(float, schedule)), length)), tokens)
    rounded = jnp.round(tokens.astype(jnp.float32) * evaluate(schedule)).astype(jnp.int32)
    return jnp.where(tokens > 0, jnp.maximum(rounded, 1), 0)


@functools.lru_cache
def most_predictions(resolved: ResolvedMaskPolicy, length: int) -> np.ndarray:
    """Maximum predictions int32 [length + 1] of an example over a run, by its number of tokens."""
    schedule = resolved.policy.predicted
    if varies(schedule):
        # In the arithmetic of the device.
        rate = schedules.table([schedule], resolved.steps).max()
        if not 0 <= rate <= 1:
            raise UserError(f"The prediction rate reaches {rate:g}; it must lie in [0, 1].")
        counts = np.maximum(np.round(np.arange(length + 1, dtype=np.float32) * np.float32(rate)), 1).astype(np.int32)
    else:
        counts = _constant_counts(float(cast(float, schedule)), length)
    counts[0] = 0
    limit = resolved.policy.max_predictions
    return counts if limit is None else np.minimum(counts, limit)


def _constant_counts(rate: float, length: int) -> np.ndarray:
    # Python rounds in float64 and half to even, as the original does; float32 differs at lengths such as 190.
    counts = np.array([max(1, round(tokens * rate)) for tokens in range(length + 1)], np.int32)
    counts[0] = 0
    return counts


def token_keys(
    key: Key[Array, ""], purpose: int, example_ids: Int[Array, "B S"], position_ids: Int[Array, "B S"]
) -> Key[Array, "B S"]:
    """A key for each token, derived from a purpose, the token's example and its position there."""
    root = jax.random.fold_in(key, purpose)
    return jax.vmap(jax.vmap(lambda example, position: jax.random.fold_in(jax.random.fold_in(root, example), position)))(
        example_ids, position_ids
    )


def begins(groups: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Where runs of equal values begin."""
    before = jnp.pad(groups[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
    return groups != before


def _running(values: Int[Array, "B S"], starts: Bool[Array, "B S"], unit_starts: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Sum of non-negative values from the start of a column's group to the end of its unit."""
    upto = jax.lax.cumsum(values, axis=1)
    before = jax.lax.cummax(jnp.where(starts, upto - values, 0), axis=1)
    ends = jnp.pad(unit_starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    return jax.lax.cummin(jnp.where(ends, upto, jnp.iinfo(jnp.int32).max), axis=1, reverse=True) - before


def total_of(values: Int[Array, "B S"], starts: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Sum of non-negative values over each column's group."""
    return _running(values, starts, starts)

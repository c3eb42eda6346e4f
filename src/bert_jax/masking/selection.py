"""Which tokens a policy chooses: units in random order, or in that of their weights, up to each example's count."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bert_jax import ops, sharding
from bert_jax.config.validation import require
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.masking.policy import MaskPolicy
from bert_jax.masking.schedules import Number
from bert_jax.models.encoder import Batch

SELECT, REPLACE, DRAW, LENGTH = range(4)
"""Purposes of a token's noise."""
_SPANS = ("ngram", "span", "t5")

Read = Callable[[Number], float | Array]
"""A policy's number -> its value at this step."""


def choose(
    key: Key[Array, ""],
    batch: Batch,
    token_example: Int[Array, "B S"],
    policy: MaskPolicy,
    read: Read,
    count: Int[Array, "B S"],
    tokens: Int[Array, "B S"],
) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
    """Which tokens are chosen, and which of them are predicted: whole units (tokens or words), those of a span together, in
    random order up to each example's counts."""
    segments, words = batch["segments"], batch["words"]
    candidates = words >= 0
    place = jnp.broadcast_to(jnp.arange(words.shape[1]), words.shape) + 0 * words
    unit_starts = candidates if policy.select in ("token", "t5") else begins(jnp.where(candidates, words, -1) + 0 * segments)
    unit_starts |= begins(2 * segments + candidates)
    group_starts = unit_starts
    if policy.select in _SPANS:
        group_starts = span_starts(key, batch, token_example, policy, read, unit_starts)
    # Units and spans are known by where they begin; all of a span have the noise of its first token.
    unit, group = (jax.lax.cummax(jnp.where(starts, place, 0), axis=1) for starts in (unit_starts, group_starts))
    noise = jax.vmap(jax.vmap(jax.random.bits))(token_keys(key, SELECT, token_example, batch["offsets"]))
    noise = jnp.take_along_axis(noise, group, axis=1)
    if policy.weights is not None:
        noise = _weighted(noise, batch, policy, candidates, group_starts, group)

    # Sorted, the candidates of an example lie together, span after span in random order.
    excluded = (~candidates).astype(jnp.int32)
    total = count if policy.predict is None else wanted(policy.rate, read, tokens, words.shape[1])
    excluded, segments, _, _, place, unit, count, total = jax.lax.sort(
        (excluded, segments, noise, group, place, unit, count, total), dimension=1, num_keys=5
    )
    groups, unit_starts = begins(2 * segments + excluded), begins(unit)
    passes_over = policy.select in ("word", "ngram", "span")
    taken = _fill(excluded == 0, groups, groups | unit_starts, total, passes_over=passes_over)
    first = taken if policy.predict is None else _fill(taken, groups, groups | unit_starts, count, passes_over=passes_over)
    _, taken, first = jax.lax.sort((place, taken, first), dimension=1, num_keys=1)
    return taken, first


def _weighted(
    noise: UInt32[Array, "B S"],
    batch: Batch,
    policy: MaskPolicy,
    candidates: Bool[Array, "B S"],
    starts: Bool[Array, "B S"],
    group: Int[Array, "B S"],
) -> UInt32[Array, "B S"]:
    """Times at which tokens would be reached that come at the rates of their weights, as integers of the same order: the order
    is that of drawing one after the other without replacement (Efraimidis and Spirakis 2006)."""
    if not callable(policy.weights):
        raise UserError(f"The weights of {policy.weights} are not read yet; give the function that read_weights makes of them.")
    given = sharding.automatic(policy.weights, "batch", None)(batch).astype(jnp.float32)
    given = jnp.where(candidates & (given > 0), given, 0.0)
    mean = given if policy.select == "token" else jnp.take_along_axis(_means(given, starts), group, axis=1)
    time = -jnp.log1p(-(noise >> 8).astype(jnp.float32) * 2.0**-24) / jnp.maximum(mean, 1e-30)
    return jax.lax.bitcast_convert_type(time, jnp.uint32)


def _means(values: Float[Array, "B S"], starts: Bool[Array, "B S"]) -> Float[Array, "B S"]:
    """At each group's first place the mean of the group, which does not depend on what else is in the row."""

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
    passes_over: bool,
) -> Bool[Array, "B S"]:
    """Units one after the other, while they fit each group's count; or, if one is passed over that does not, all that fit."""
    size = total_of(candidates.astype(jnp.int32), unit_starts)

    def fit(taken: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
        room = count - total_of(taken.astype(jnp.int32), groups)
        fits = candidates & ~taken & (size <= room) if passes_over else candidates & ~taken
        return fits & (_running(fits.astype(jnp.int32), groups, unit_starts) <= room)

    # A unit that does not fit is passed over and smaller ones may follow, as in the original; each round takes
    # the units up to the next one that does not fit. Tokens all have size one: a single round is enough.
    taken = fit(candidates & False)
    if passes_over:
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
    policy: MaskPolicy,
    read: Read,
    unit_starts: Bool[Array, "B S"],
) -> Bool[Array, "B S"]:
    """Where spans begin: each example's text is cut, from left to right, into spans of drawn lengths; specials end them."""
    sizes = jnp.arange(1, policy.most + 1, dtype=jnp.float32)
    chances = 1 / sizes if policy.select == "ngram" else (1.0 - read(policy.end)) ** (sizes - 1)
    upto = jnp.cumsum(chances / chances.sum())
    drawn = jax.vmap(jax.vmap(jax.random.uniform))(token_keys(key, LENGTH, token_example, batch["offsets"]))
    lengths = 1 + (drawn[..., None] >= upto[:-1]).sum(-1)
    fresh = begins(2 * batch["segments"] + (batch["words"] >= 0))

    def cut(left: Int[Array, " B"], column: tuple[Array, Array, Array]) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
        unit, anew, length = column
        left = left - unit
        starts = unit & (anew | (left <= 0))
        return jnp.where(starts, length, left), starts

    columns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (unit_starts, fresh, lengths))
    return jnp.swapaxes(jax.lax.scan(cut, jnp.zeros_like(lengths[:, 0]), columns, unroll=16)[1], 0, 1)


def wanted(number: Number, read: Read, tokens: Int[Array, "B S"], length: int) -> Int[Array, "B S"]:
    """Of each token's example, its tokens times a share."""
    if not schedules.changes(number):
        return ops.lookup(jnp.asarray(_constant_counts(float(cast(float, number)), length)), tokens)
    rounded = jnp.round(tokens.astype(jnp.float32) * read(number)).astype(jnp.int32)
    return jnp.where(tokens > 0, jnp.maximum(rounded, 1), 0)


@functools.lru_cache
def most_predictions(policy: MaskPolicy, length: int) -> np.ndarray:
    """Most predictions int32 [length + 1] of an example in the course of a run, by its number of tokens."""
    number = policy.predicted
    if schedules.changes(number):
        # In the arithmetic of the device.
        rate = schedules.table([number], policy.steps).max()
        require(bool(0 <= rate <= 1), f"The share of tokens that are predicted reaches {rate:g}; it must lie in [0, 1].")
        counts = np.maximum(np.round(np.arange(length + 1, dtype=np.float32) * np.float32(rate)), 1).astype(np.int32)
    else:
        counts = _constant_counts(float(cast(float, number)), length)
    counts[0] = 0
    return counts if policy.max_predictions is None else np.minimum(counts, policy.max_predictions)


def _constant_counts(rate: float, length: int) -> np.ndarray:
    # Rounded by Python, in float64 and half to even as in the original: float32 differs at lengths such as 190.
    counts = np.array([max(1, round(tokens * rate)) for tokens in range(length + 1)], np.int32)
    counts[0] = 0
    return counts


def token_keys(key: Key[Array, ""], purpose: int, examples: Int[Array, "B S"], units: Int[Array, "B S"]) -> Key[Array, "B S"]:
    """A key for each token, which belongs to a purpose, its example and its place there."""
    root = jax.random.fold_in(key, purpose)
    return jax.vmap(jax.vmap(lambda example, unit: jax.random.fold_in(jax.random.fold_in(root, example), unit)))(examples, units)


def begins(groups: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Where a run of equal numbers begins."""
    before = jnp.pad(groups[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
    return groups != before


def _running(values: Int[Array, "B S"], starts: Bool[Array, "B S"], unit_starts: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Sum of non-negative values from the start of the group to the end of the unit that a place belongs to."""
    upto = jax.lax.cumsum(values, axis=1)
    before = jax.lax.cummax(jnp.where(starts, upto - values, 0), axis=1)
    ends = jnp.pad(unit_starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    return jax.lax.cummin(jnp.where(ends, upto, jnp.iinfo(jnp.int32).max), axis=1, reverse=True) - before


def total_of(values: Int[Array, "B S"], starts: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Sum of non-negative values over the group that a place belongs to."""
    return _running(values, starts, starts)

"""Every promise about masks: counts, shares, words, independence of place, one compile."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import masking
from bert_jax.config import MaskPolicy
from bert_jax.errors import UserError
from bert_jax.masking import prediction_slots
from tests.conftest import MASK_ID, POLICY, VOCAB, make_batch

KEY = jax.random.key(0)
mask_tokens = jax.jit(masking.mask_tokens, static_argnames="policy")
WORDS = dataclasses.replace(POLICY, select="word")


def chosen(batch, masked):
    """bool [B, S]: which tokens are predicted."""
    found = np.zeros(batch["ids"].shape, bool)
    for row, (positions, weights) in enumerate(zip(masked["mlm_positions"], masked["mlm_weights"], strict=True)):
        found[row, np.asarray(positions)[np.asarray(weights) > 0]] = True
    return found


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.4, 1.0])
def test_counts_are_the_originals_for_every_length(rate):
    policy = dataclasses.replace(POLICY, rate=rate)
    lengths = list(range(5, 513))
    batch = make_batch([[length] for length in lengths], 512)
    masked = mask_tokens(KEY, batch, policy, 0)
    assert masked["mlm_positions"].shape[1] == round(512 * rate)
    expected = [min(max(1, round(length * rate)), length - 3) for length in lengths]
    np.testing.assert_array_equal(masked["mlm_weights"].sum(1), expected)
    assert not (chosen(batch, masked) & (batch["words"] < 0)).any()


def test_what_is_predicted_is_what_stood_there():
    batch = make_batch([[60], [20, 30]], 64)
    masked = mask_tokens(KEY, batch, POLICY, 0)
    for row in range(2):
        real = np.asarray(masked["mlm_weights"][row]) > 0
        positions = np.asarray(masked["mlm_positions"][row])[real]
        assert (np.diff(positions) > 0).all()
        np.testing.assert_array_equal(np.asarray(masked["mlm_ids"][row])[real], batch["ids"][row, positions])
    untouched = ~chosen(batch, masked)
    np.testing.assert_array_equal(np.asarray(masked["ids"])[untouched], batch["ids"][untouched])


@pytest.mark.parametrize("replace", [(0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.0, 0.2, 0.8)])
def test_replacement_shares(replace):
    batch = make_batch([[128]] * 400, 128)
    masked = mask_tokens(KEY, batch, dataclasses.replace(POLICY, replace=replace), 0)
    hit = chosen(batch, masked)
    before, after = batch["ids"][hit], np.asarray(masked["ids"])[hit]
    # A random piece is the mask, or the piece itself, once in VOCAB times each.
    mask, random, keep = replace
    shares = ((after == MASK_ID).mean(), (after == before).mean())
    for share, expected in zip(shares, (mask + random / VOCAB, keep + random / VOCAB), strict=True):
        assert abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / hit.sum()) + 1e-12
    drawn = after[(after != MASK_ID) & (after != before)]
    if random:
        counts = np.bincount(drawn, minlength=VOCAB)
        assert counts.min() > 0 or counts.sum() < 20 * VOCAB
        assert drawn.max() < VOCAB


def test_every_place_is_chosen_equally_often_and_neighbours_independently():
    batch = make_batch([[64]] * 2000, 64)
    hit = chosen(batch, mask_tokens(KEY, batch, POLICY, 0))
    candidates = batch["words"][0] >= 0
    rate = 10 / candidates.sum()
    sigma = math.sqrt(rate * (1 - rate) / 2000)
    assert np.abs(hit[:, candidates].mean(0) - rate).max() < 4 * sigma
    both = (hit[:, 1:-1] & hit[:, 2:]).mean(0)[candidates[1:-1] & candidates[2:]]
    # Without replacement: 10/61 x 9/60.
    expected = rate * 9 / (candidates.sum() - 1)
    assert abs(both.mean() - expected) < 4 * math.sqrt(expected / (2000 * len(both)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(5, 40), min_size=1, max_size=3), st.integers(0, 2**31), st.sampled_from([0.15, 0.3]))
def test_whole_words_or_none_and_as_many_as_fit(lengths, seed, rate):
    batch = make_batch([lengths], 128, seed=seed)
    policy = dataclasses.replace(WORDS, rate=rate)
    hit = chosen(batch, mask_tokens(jax.random.key(seed), batch, policy, 0))[0]
    for slot, length in enumerate(lengths):
        here = batch["segments"][0] == slot + 1
        words = batch["words"][0]
        sizes = {w: (here & (words == w)).sum() for w in set(words[here]) - {-1}}
        taken = {w: (hit & here & (words == w)).sum() for w in sizes}
        assert all(taken[w] in (0, sizes[w]) for w in sizes)
        room = max(1, round(length * rate)) - sum(taken.values())
        assert room >= 0
        # What was passed over was too long for the room that was left at the end.
        assert all(sizes[w] > room for w in sizes if not taken[w])


def test_words_are_taken_greedily_in_random_order():
    """A word too long for what is left is passed over and later ones still come, as in the original's loop."""
    batch = make_batch([[40]] * 300, 40)
    # One word of seven pieces, the count is six: it can never be chosen; the others are singles.
    words = np.where(batch["words"] >= 0, np.arange(40), -1)
    words[:, 1:8] = 1
    batch["words"] = words.astype(np.int32)
    hit = chosen(batch, mask_tokens(KEY, batch, WORDS, 0))
    assert not hit[:, 1:8].any()
    np.testing.assert_array_equal(hit.sum(1), 6)


def test_masks_follow_the_example_not_the_row():
    lengths = [[30], [40], [25]]
    batch = make_batch(lengths, 64)
    order = np.array([2, 0, 1])
    moved = {name: values[order] for name, values in batch.items()}
    for policy in (POLICY, WORDS):
        first, second = mask_tokens(KEY, batch, policy, 0), mask_tokens(KEY, moved, policy, 0)
        for name in ("ids", "mlm_positions", "mlm_ids", "mlm_weights"):
            np.testing.assert_array_equal(np.asarray(first[name])[order], second[name])


def test_masks_differ_between_examples_and_keys():
    batch = make_batch([[64], [64]], 64)
    batch["ids"][1], batch["words"][1] = batch["ids"][0], batch["words"][0]
    masked = mask_tokens(KEY, batch, POLICY, 0)
    assert (masked["mlm_positions"][0] != masked["mlm_positions"][1]).any()
    other = mask_tokens(jax.random.key(1), batch, POLICY, 0)
    assert (masked["mlm_positions"] != other["mlm_positions"]).any()


def test_cap_holds_for_each_example():
    policy = dataclasses.replace(POLICY, max_predictions=3)
    batch = make_batch([[60, 40, 10]], 128)
    hit = chosen(batch, mask_tokens(KEY, batch, policy, 0))
    assert [int((hit & (batch["segments"] == slot)).sum()) for slot in (1, 2, 3)] == [3, 3, 2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=1, max_size=12), st.floats(0.01, 1.0), st.integers(0, 30))
def test_slots_are_never_too_few(lengths, rate, padding):
    width = sum(lengths) + padding
    counts = [max(1, round(length * rate)) for length in lengths]
    slots = prediction_slots(dataclasses.replace(POLICY, rate=rate), width, len(lengths))
    assert slots >= min(sum(counts), width)


def test_empty_rows_predict_nothing():
    batch = make_batch([[20]], 32)
    empty = {name: np.concatenate([values, np.full_like(values, -1 if name == "words" else 0)]) for name, values in batch.items()}
    masked = mask_tokens(KEY, empty, POLICY, 0)
    assert masked["mlm_weights"][1].sum() == 0
    assert (masked["ids"][1] == 0).all()


NEXT = dataclasses.replace(POLICY, select="next")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(3, 12), max_size=4), min_size=1, max_size=4), st.integers(0, 100))
def test_next_predicts_each_tokens_successor_within_its_example(lengths, seed):
    batch = make_batch([*lengths, [5]], 64, seed=seed)
    masked = mask_tokens(KEY, batch, NEXT, 0)
    np.testing.assert_array_equal(masked["ids"], batch["ids"])
    rows = len(batch["ids"])
    np.testing.assert_array_equal(masked["mlm_positions"], np.tile(np.arange(63), (rows, 1)))
    for row, parts in enumerate([*lengths, [5]]):
        expected = {}
        start = 0
        for length in parts:
            expected |= {place: batch["ids"][row, place + 1] for place in range(start, start + length - 1)}
            start += length
        weights, labels = np.asarray(masked["mlm_weights"][row]), np.asarray(masked["mlm_ids"][row])
        assert {*np.flatnonzero(weights).tolist()} == expected.keys()
        np.testing.assert_array_equal(weights, np.isin(np.arange(63), [*expected]))
        assert all(labels[place] == piece for place, piece in expected.items())
    for name in batch.keys() - {"ids"}:
        np.testing.assert_array_equal(masked[name], batch[name])


def test_next_draws_nothing():
    """Neither the key, the step nor the rate changes what is predicted."""
    batch = make_batch([[20, 9], [30]], 32)
    first = mask_tokens(KEY, batch, NEXT, 0)
    second = mask_tokens(jax.random.key(5), batch, dataclasses.replace(NEXT, rate=0.5, max_predictions=1), 7)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert {name: first[name].dtype for name in ("mlm_positions", "mlm_ids", "mlm_weights")} == {
        "mlm_positions": "int32",
        "mlm_ids": "int32",
        "mlm_weights": "float32",
    }


def test_one_compile_for_all_steps():
    masker = jax.jit(lambda batch, step: masking.mask_tokens(KEY, batch, POLICY, step))
    batch = make_batch([[20]], 32)
    for step in range(3):
        masker(batch, jnp.int32(step))
    assert masker._cache_size() == 1


def test_a_policy_needs_the_tokenizers_numbers():
    with pytest.raises(UserError, match="no mask_id"):
        mask_tokens(KEY, make_batch([[20]], 32), MaskPolicy(), 0)

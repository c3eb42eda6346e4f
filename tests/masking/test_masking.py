"""Every promise about masks: counts, shares, words, independence of place, one compile."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bert_jax
from bert_jax import tokenizers
from bert_jax.config.masking import MaskPolicy
from bert_jax.errors import UserError
from bert_jax.masking import policy as masking_policy
from bert_jax.masking import replacement, schedules, selection, token_weights
from bert_jax.masking.replacement import prediction_slots
from tests.conftest import MASK_ID, POLICY, VOCAB, make_batch, with_policy

pytestmark = pytest.mark.usefixtures("unoptimized")

KEY = jax.random.key(0)
# Compiled as fast as may be: these programs run for milliseconds.
OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
mask_tokens = jax.jit(replacement.mask_tokens, static_argnames="policy", compiler_options=OPTIONS)
WORDS = with_policy(POLICY, select="word")


def chosen(batch, masked):
    """bool [B, S]: which tokens are predicted."""
    row, slot = np.nonzero(np.asarray(masked["mlm_weights"]) > 0)
    found = np.zeros(batch["input_ids"].shape, bool)
    found[row, np.asarray(masked["mlm_positions"])[row, slot]] = True
    return found


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.4, 1.0])
def test_counts_are_the_originals_for_every_length(rate):
    policy = with_policy(POLICY, rate=rate)
    lengths = list(range(5, 513))
    batch = make_batch([[length] for length in lengths], 512)
    masked = mask_tokens(KEY, batch, policy, 0)
    assert masked["mlm_positions"].shape[1] == round(512 * rate)
    expected = [min(max(1, round(length * rate)), length - 3) for length in lengths]
    np.testing.assert_array_equal(masked["mlm_weights"].sum(1), expected)
    assert not (chosen(batch, masked) & (batch["word_ids"] < 0)).any()


def test_what_is_predicted_is_what_stood_there():
    batch = make_batch([[60], [20, 30]], 64)
    masked = mask_tokens(KEY, batch, POLICY, 0)
    for row in range(2):
        real = np.asarray(masked["mlm_weights"][row]) > 0
        positions = np.asarray(masked["mlm_positions"][row])[real]
        assert (np.diff(positions) > 0).all()
        np.testing.assert_array_equal(np.asarray(masked["mlm_ids"][row])[real], batch["input_ids"][row, positions])
    untouched = ~chosen(batch, masked)
    np.testing.assert_array_equal(np.asarray(masked["input_ids"])[untouched], batch["input_ids"][untouched])


@pytest.mark.parametrize("replace", [(0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.0, 0.2, 0.8)])
def test_replacement_shares(replace):
    batch = make_batch([[128]] * 4000, 128)
    masked = mask_tokens(KEY, batch, with_policy(POLICY, replace=replace), 0)
    hit = chosen(batch, masked)
    before, after = batch["input_ids"][hit], np.asarray(masked["input_ids"])[hit]
    # A random token is the mask, or the token itself, once in VOCAB times each.
    mask, random, keep = replace
    shares = ((after == MASK_ID).mean(), (after == before).mean())
    for share, expected in zip(shares, (mask + random / VOCAB, keep + random / VOCAB), strict=True):
        assert abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / hit.sum()) + 1e-12
    # Random tokens are drawn uniformly from the whole vocabulary; [MASK] and the token itself are counted above.
    counts = np.bincount(after[(after != MASK_ID) & (after != before)], minlength=VOCAB)
    expected = random / VOCAB * (len(before) - np.bincount(before, minlength=VOCAB))
    expected[MASK_ID] = 0
    assert counts.shape == (VOCAB,)
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()


def test_every_position_is_selected_equally_often_and_neighbours_independently():
    batch = make_batch([[64]] * 2000, 64)
    hit = chosen(batch, mask_tokens(KEY, batch, POLICY, 0))
    candidates = batch["word_ids"][0] >= 0
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
    policy = with_policy(WORDS, rate=rate)
    hit = chosen(batch, mask_tokens(jax.random.key(seed), batch, policy, 0))[0]
    for slot, length in enumerate(lengths):
        here = batch["segment_ids"][0] == slot + 1
        words = batch["word_ids"][0]
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
    # One word of seven tokens, the count is six: it can never be chosen; the others are singles.
    words = np.where(batch["word_ids"] >= 0, np.arange(40), -1)
    words[:, 1:8] = 1
    batch["word_ids"] = words.astype(np.int32)
    hit = chosen(batch, mask_tokens(KEY, batch, WORDS, 0))
    assert not hit[:, 1:8].any()
    np.testing.assert_array_equal(hit.sum(1), 6)


@pytest.mark.parametrize("select", ["token", "word", "ngram", "span", "t5"])
def test_masks_follow_the_example_not_its_place(select):
    """Alone in a row, behind another, and in rows of another order."""
    policy = with_policy(POLICY, rate=0.3, select=select, token_weights=lambda batch: 1 / (batch["input_ids"] + 0.1) ** 3)
    alone = make_batch([[30], [40], [25]], 96)
    shared = make_batch([[25, 30], [40]], 96)
    places = [(0, 25, 30), (1, 0, 40), (0, 0, 25)]
    for first, (row, begin, length) in enumerate(places):
        for name in ("input_ids", "word_ids"):
            shared[name][row, begin : begin + length] = alone[name][first, :length]
        shared["example_ids"][row, int(begin > 0)] = alone["example_ids"][first, 0]
    one, other = (mask_tokens(KEY, batch, policy, 0) for batch in (alone, shared))
    hit_alone, hit_shared = chosen(alone, one), chosen(shared, other)
    for first, (row, begin, length) in enumerate(places):
        here = slice(begin, begin + length)
        assert hit_alone[first].any()
        np.testing.assert_array_equal(hit_shared[row, here], hit_alone[first, :length])
        np.testing.assert_array_equal(other["input_ids"][row, here], one["input_ids"][first, :length])
        assert one["mlm_selected"][first] == hit_alone[first].sum()


def test_masks_differ_between_examples_and_keys():
    batch = make_batch([[64], [64]], 64)
    batch["input_ids"][1], batch["word_ids"][1] = batch["input_ids"][0], batch["word_ids"][0]
    masked = mask_tokens(KEY, batch, POLICY, 0)
    assert (masked["mlm_positions"][0] != masked["mlm_positions"][1]).any()
    other = mask_tokens(jax.random.key(1), batch, POLICY, 0)
    assert (masked["mlm_positions"] != other["mlm_positions"]).any()


def test_cap_holds_for_each_example():
    policy = with_policy(POLICY, max_predictions=3)
    batch = make_batch([[60, 40, 10]], 128)
    hit = chosen(batch, mask_tokens(KEY, batch, policy, 0))
    assert [int((hit & (batch["segment_ids"] == slot)).sum()) for slot in (1, 2, 3)] == [3, 3, 2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=1, max_size=12), st.floats(0.01, 1.0), st.integers(0, 30))
def test_slots_are_never_too_few(lengths, rate, padding):
    width = sum(lengths) + padding
    counts = [max(1, round(length * rate)) for length in lengths]
    slots = prediction_slots(with_policy(POLICY, rate=rate), width, len(lengths))
    assert slots >= min(sum(counts), width)


def test_empty_rows_predict_nothing():
    batch = make_batch([[20]], 32)
    empty = {
        name: np.concatenate([values, np.full_like(values, -1 if name == "word_ids" else 0)]) for name, values in batch.items()
    }
    masked = mask_tokens(KEY, empty, POLICY, 0)
    assert masked["mlm_weights"][1].sum() == 0
    assert (masked["input_ids"][1] == 0).all()


SPANS = ["ngram", "span", "t5"]


def long_words(rows, length, *, seed=0):
    """Examples with words of one to three tokens."""
    batch = make_batch([[length]] * rows, length, seed=seed)
    rng = np.random.default_rng(seed)
    real = batch["word_ids"] >= 0
    begins = np.cumsum(rng.choice([1, 1, 2, 3], (rows, length)), axis=1)
    places = np.zeros((rows, length + 4), bool)
    np.put_along_axis(places, np.minimum(begins, length), True, axis=1)
    # The first token after a special one begins a word.
    begun = places[:, :length] | (real & ~np.pad(real, ((0, 0), (1, 0)))[:, :-1])
    batch["word_ids"] = np.where(real, np.cumsum(begun & real, axis=1) - 1, -1).astype(np.int32)
    return batch


def runs(flags):
    """Lengths of the runs of True in each row."""
    edges = np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(int), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


@pytest.mark.parametrize(("select", "rate"), [("token", 0.15), ("word", 0.15), *((select, 0.4) for select in SPANS)])
def test_rates_and_specials(select, rate):
    """As many as were asked for, but for what the last word lacks; every place as often; never a special token."""
    batch = long_words(1500, 64)
    hit = chosen(batch, mask_tokens(KEY, batch, with_policy(POLICY, select=select, rate=rate), 0))
    count = round(64 * rate)
    found = hit.sum(1)
    assert (found <= count).all()
    if select in ("token", "t5"):
        assert (found == count).all()
    else:
        assert found.min() >= count - 2
        assert found.mean() > count - 1
    assert not hit[batch["word_ids"] < 0].any()
    inner = batch["word_ids"][0] >= 0
    share = hit[:, inner].mean()
    # Neighbours of a place are chosen with it, places far from it are not: rows are the independent draws.
    sigma = math.sqrt(share * (1 - share) / len(hit))
    inside = np.flatnonzero(inner)
    middle = inside[(np.abs(inside - inside[0]) > 9) & (np.abs(inside - inside[-1]) > 9)]
    assert np.abs(hit[:, middle].mean(0) - share).max() < 5 * sigma + (0.02 if select in SPANS else 0)


@pytest.mark.parametrize("select", ["word", "ngram", "span"])
def test_words_are_selected_whole(select):
    batch = long_words(400, 96, seed=3)
    hit = chosen(batch, mask_tokens(KEY, batch, with_policy(POLICY, select=select, rate=0.3), 0))
    for row in range(400):
        for word in set(batch["word_ids"][row]) - {-1}:
            assert len(set(hit[row, batch["word_ids"][row] == word])) == 1


def law(select, *, end=None, longest=None):
    longest = longest or {"ngram": 3, "span": 10, "t5": 32}[select]
    end = end or {"span": 0.2, "t5": 1 / 3}.get(select)
    sizes = np.arange(1, longest + 1)
    chances = 1 / sizes if select == "ngram" else (1 - end) ** (sizes - 1)
    return chances / chances.sum()


@pytest.mark.parametrize(
    ("select", "changed"),
    [("ngram", {"max_span_length": 5}), ("span", {"span_end": 0.5}), ("t5", {})],
)
def test_span_lengths_are_as_stated(select, changed):
    """With a count so low that one span at most is begun in each example, which is long enough not to cut it."""
    length = 400
    batch = make_batch([[length]] * 3000, length)
    batch["word_ids"] = np.where(batch["word_ids"] >= 0, np.arange(length), -1).astype(np.int32)
    policy = with_policy(POLICY, select=select, rate=0.08, **changed)
    masked = mask_tokens(KEY, batch, policy, 0)
    found = runs(chosen(batch, masked))
    expected = law(select, end=changed.get("span_end"), longest=changed.get("max_span_length"))
    # Spans that touch look like one, and each example's last is cut: a tenth may differ, but the law must not.
    mean = (np.arange(1, len(expected) + 1) * expected).sum()
    assert abs(found.mean() / mean - 1) < 0.12
    shares = np.bincount(found, minlength=len(expected) + 2)[1 : len(expected) + 1] / len(found)
    assert np.abs(shares - expected).max() < 0.06


@pytest.mark.parametrize("select", SPANS)
def test_lengths_of_spans_before_they_are_chosen(select):
    """Each drawn length by itself: all of them, but the last before a special token."""
    length = 256
    batch = make_batch([[length]] * 400, length)
    batch["word_ids"] = np.where(batch["word_ids"] >= 0, np.arange(length), -1).astype(np.int32)
    policy = with_policy(POLICY, select=select)
    units = jnp.asarray(batch["word_ids"] >= 0)
    examples = jnp.broadcast_to(jnp.asarray(batch["example_ids"]), units.shape)
    read = functools.partial(schedules.value, step=0, steps=None)
    device = {name: jnp.asarray(values) for name, values in batch.items()}
    starts = np.asarray(selection.span_starts(KEY, device, examples, policy, read, units))
    assert not starts[batch["word_ids"] < 0].any()
    expected = law(select)
    found = np.concatenate([np.diff(np.flatnonzero(row[1 : length // 2])) for row in starts])
    counts = np.bincount(found, minlength=len(expected) + 1)[1:]
    assert len(counts) == len(expected)
    seldom = expected * len(found) < 10
    sigma = np.sqrt(expected * (1 - expected) / len(found))
    # A span that is begun late in the half of the row is not seen to its end: a bias of a length over the half.
    assert (np.abs(counts / len(found) - expected) < 4 * sigma + 0.01)[~seldom].all()


def test_a_higher_rate_selects_a_superset():
    batch = long_words(50, 128)
    for select in ("token", "t5"):
        low, high = (
            chosen(batch, mask_tokens(KEY, batch, with_policy(POLICY, select=select, rate=rate), 0)) for rate in (0.15, 0.3)
        )
        assert (low <= high).all()
        assert high.sum() > 1.8 * low.sum()


def test_policies_replace_tokens_that_both_select_alike():
    batch = long_words(200, 128)
    first = mask_tokens(KEY, batch, with_policy(POLICY, rate=0.4), 0)
    for select in ("word", "span"):
        second = mask_tokens(KEY, batch, with_policy(POLICY, rate=0.4, select=select), 0)
        both = chosen(batch, first) & chosen(batch, second)
        assert both.sum() > 1000
        np.testing.assert_array_equal(np.asarray(first["input_ids"])[both], np.asarray(second["input_ids"])[both])


@pytest.mark.parametrize("select", ["token", "word", "span"])
def test_a_subset_is_predicted_and_all_is_replaced(select):
    batch = long_words(300, 128)
    whole = with_policy(POLICY, rate=0.3, select=select, replace=(1.0, 0.0, 0.0))
    part = with_policy(whole, prediction_rate=0.15)
    both, subset = mask_tokens(KEY, batch, whole, 0), mask_tokens(KEY, batch, part, 0)
    np.testing.assert_array_equal(both["input_ids"], subset["input_ids"])
    assert (chosen(batch, subset) <= chosen(batch, both)).all()
    found = np.asarray(subset["mlm_weights"].sum(1))
    assert subset["mlm_positions"].shape[1] == 19
    assert (found <= 19).all()
    assert found.mean() > 18


def test_kinds_of_replacement():
    batch = make_batch([[128]] * 200, 128)
    masked = mask_tokens(KEY, batch, POLICY, 0)
    real = np.asarray(masked["mlm_weights"]) > 0
    kinds = np.asarray(masked["mlm_kinds"])[real]
    after = np.take_along_axis(np.asarray(masked["input_ids"]), np.asarray(masked["mlm_positions"]), axis=1)[real]
    before = np.asarray(masked["mlm_ids"])[real]
    assert (after[kinds == replacement.MASKED] == MASK_ID).all()
    assert (after[kinds == replacement.KEPT] == before[kinds == replacement.KEPT]).all()
    drawn = kinds == replacement.RANDOM
    assert (after[drawn] != before[drawn]).mean() > 0.9
    for kind, share in enumerate(POLICY.policy.replace):
        assert abs((kinds == kind).mean() - share) < 3 * math.sqrt(share * (1 - share) / len(kinds))


def test_random_tokens_may_be_ordinary_ones_only():
    batch = make_batch([[128]] * 400, 128)
    policy = with_policy(POLICY, replace=(0.0, 1.0, 0.0), random_tokens="ordinary", ordinary_ids=(5, 20, 30, 31, 50, VOCAB))
    hit = chosen(batch, masked := mask_tokens(KEY, batch, policy, 0))
    drawn = np.asarray(masked["input_ids"])[hit]
    allowed = np.concatenate([np.arange(5, 20), [30], np.arange(50, VOCAB)])
    counts = np.bincount(drawn, minlength=VOCAB)
    assert counts.sum() == counts[allowed].sum()
    expected = len(drawn) / len(allowed)
    assert np.abs(counts[allowed] - expected).max() < 5 * math.sqrt(expected)


def test_words_are_chosen_independently_of_their_neighbours():
    """As far as a fixed count of words lets them be: with n words of which k are chosen, pairs are (k - 1) / (n - 1) of singles."""
    batch = make_batch([[66]] * 3000, 66)
    inner = batch["word_ids"] >= 0
    batch["word_ids"] = np.where(inner, (np.cumsum(inner, axis=1) - 1) // 2, -1).astype(np.int32)
    hit = chosen(batch, mask_tokens(KEY, batch, with_policy(WORDS, rate=0.3), 0))
    row = np.flatnonzero(inner[0])
    # Words of two tokens that lie side by side, in neither part cut.
    words = [row[batch["word_ids"][0, row] == word] for word in range(batch["word_ids"].max() + 1)]
    first = np.stack([hit[:, places[0]] for places in words if len(places) == 2], axis=1)
    picked = first.sum(1).mean()
    count = first.shape[1]
    expected = picked / count * (picked - 1) / (count - 1)
    for apart in (1, 2, 5):
        both = (first[:, apart:] & first[:, :-apart]).mean()
        draws = len(first) * (count - apart)
        assert abs(both - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)


def test_weights_make_tokens_likelier():
    """Of one token that is chosen, in proportion; of many, in the order of drawing without replacement; of none, last."""
    length = 22
    batch = make_batch([[length]] * 20_000, length)
    places = np.flatnonzero(batch["word_ids"][0] >= 0)
    given = np.zeros(length, np.float32)
    given[places] = np.arange(len(places)) % 4

    def hits(rate):
        policy = with_policy(
            POLICY, rate=rate, token_weights=lambda batch: jnp.broadcast_to(jnp.asarray(given), batch["input_ids"].shape)
        )
        return chosen(batch, mask_tokens(KEY, batch, policy, 0))

    share, expected = hits(1 / length).mean(0), given / given.sum()
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    # Two of them: the first in proportion, the second in proportion to what is left.
    second = np.array([sum(expected[j] * expected[i] / (1 - expected[j]) for j in places if j != i) for i in range(length)])
    assert np.abs(hits(2 / length).mean(0) - expected - second).max() < 0.02
    positive = int((given > 0).sum())
    some = hits((positive + 1) / length)
    assert some[:, given > 0].all()
    assert (some.sum(1) == positive + 1).all()


def test_weights_of_tokens_and_pairs_from_a_file(tmp_path):
    path = tmp_path / "weights.tsv"
    path.write_text("b\t2.5\n##c\t0\na ##c\t4\nb b\t1\nb a\t3\n")
    given = token_weights.read_token_weights(path, ["a", "b", "##c"])
    batch = {
        "input_ids": jnp.array([[0, 1, 2, 1, 0], [0, 2, 1, 1, 1]]),
        "segment_ids": jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 2, 2]]),
    }
    np.testing.assert_array_equal(jax.jit(given)(batch), [[0.0, 2.5, 0.0, 3.0, 3.0], [4.0, 4.0, 2.5, 2.5, 2.5]])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 1000])
def test_pairs_are_found_in_tables_of_any_size(count, tmp_path):
    rng = np.random.default_rng(count)
    tokens = [f"p{number}" for number in range(200)]
    pairs = rng.choice(200 * 200, count, replace=False)
    table = dict(zip(map(int, pairs), rng.uniform(1, 9, count).astype(np.float32).tolist(), strict=True))
    path = tmp_path / "weights.tsv"
    path.write_text("".join(f"p{pair // 200} p{pair % 200}\t{value!r}\n" for pair, value in table.items()))
    first = rng.permutation(np.concatenate([pairs, rng.integers(0, 200 * 200, 50)]))[:300]
    batch = {"input_ids": jnp.stack([first // 200, first % 200], axis=1), "segment_ids": jnp.ones((len(first), 2), jnp.int32)}
    found = jax.jit(token_weights.read_token_weights(path, tokens))(batch)
    expected = np.array([table.get(int(pair), 0.0) for pair in first], np.float32)
    np.testing.assert_array_equal(found, np.stack([expected, expected], axis=1))


def test_what_a_cap_cuts_is_counted():
    batch = make_batch([[60, 40, 10], [20]], 128)
    masked = mask_tokens(KEY, batch, with_policy(POLICY, max_predictions=3), 0)
    # 9, 6 and 2 of the first row, 3 of the second.
    np.testing.assert_array_equal(masked["mlm_dropped"], [6 + 3, 0])


NEXT = with_policy(POLICY, select="next")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(3, 12), max_size=4), min_size=1, max_size=4), st.integers(0, 100))
def test_next_predicts_each_tokens_successor_within_its_example(lengths, seed):
    batch = make_batch([*lengths, [5]], 64, seed=seed)
    masked = mask_tokens(KEY, batch, NEXT, 0)
    np.testing.assert_array_equal(masked["input_ids"], batch["input_ids"])
    rows = len(batch["input_ids"])
    np.testing.assert_array_equal(masked["mlm_positions"], np.tile(np.arange(63), (rows, 1)))
    for row, parts in enumerate([*lengths, [5]]):
        expected = {}
        start = 0
        for length in parts:
            expected |= {place: batch["input_ids"][row, place + 1] for place in range(start, start + length - 1)}
            start += length
        weights, labels = np.asarray(masked["mlm_weights"][row]), np.asarray(masked["mlm_ids"][row])
        assert {*np.flatnonzero(weights).tolist()} == expected.keys()
        np.testing.assert_array_equal(weights, np.isin(np.arange(63), [*expected]))
        assert all(labels[place] == token for place, token in expected.items())
    for name in batch.keys() - {"input_ids"}:
        np.testing.assert_array_equal(masked[name], batch[name])


def test_next_draws_nothing():
    """Neither the key, the step nor the rate changes what is predicted."""
    batch = make_batch([[20, 9], [30]], 32)
    first = mask_tokens(KEY, batch, NEXT, 0)
    second = mask_tokens(jax.random.key(5), batch, with_policy(NEXT, rate=0.5, max_predictions=1), 7)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert {name: first[name].dtype for name in ("mlm_positions", "mlm_ids", "mlm_weights")} == {
        "mlm_positions": "int32",
        "mlm_ids": "int32",
        "mlm_weights": "float32",
    }


def test_one_compile_for_all_steps():
    masker = jax.jit(lambda batch, step: replacement.mask_tokens(KEY, batch, POLICY, step))
    batch = make_batch([[20]], 32)
    for step in range(3):
        masker(batch, jnp.int32(step))
    assert masker._cache_size() == 1


def test_a_resolved_policy_is_complete():
    with pytest.raises(UserError, match="no ordinary_ids are given"):
        with_policy(POLICY, random_tokens="ordinary")
    with pytest.raises(UserError, match="token_weights that are not resolved"):
        bert_jax.ResolvedMaskPolicy(MaskPolicy(token_weights="weights.tsv"), mask_id=4, vocab_size=VOCAB)


def test_a_policy_of_a_tokenizer():
    tokens = ("[PAD]", "[unused0]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "[unused1]", "<unused_2>", "[unused]", "[UNK]")
    tokenizer = tokenizers.from_files({"vocab.txt": "\n".join(tokens).encode()})
    resolved = masking_policy.resolve(MaskPolicy(random_tokens="ordinary"), tokenizer)
    assert (resolved.mask_id, resolved.vocab_size, resolved.ordinary_ids) == (4, 11, (5, 7, 9, 10))
    assert masking_policy.resolve(MaskPolicy(), tokenizer).ordinary_ids == ()


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(5, 40), min_size=1, max_size=3),
    st.sampled_from(["token", "t5"]),
    st.sampled_from([None, 0.2, "linear(0.1, 0.3)"]),
    st.sampled_from([None, 4]),
    st.integers(0, 9),
)
def test_every_prediction_has_a_place_or_is_counted(lengths, select, predict, cap, step):
    policy = with_policy(POLICY, select=select, rate="linear(0.5, 0.3)", prediction_rate=predict, max_predictions=cap, steps=9)
    masked = mask_tokens(KEY, make_batch([lengths], 128), policy, step)
    share = float(schedules.value(policy.policy.predicted, step, 9))
    asked = [max(1, round(np.float32(length) * np.float32(share))) for length in lengths]
    made = [min(count, length - 3, cap or length) for count, length in zip(asked, lengths, strict=True)]
    assert masked["mlm_weights"].sum() == sum(made)
    assert masked["mlm_dropped"].sum() == sum(max(count - (cap or count), 0) for count in asked)


def test_exponential_draws_are_logarithms():
    steps = np.unique(np.concatenate([np.arange(4096), 2**24 - 1 - np.arange(4096), np.arange(0, 2**24, 997)]))
    draws = np.asarray(selection._exponential(jnp.asarray(steps << 8, jnp.uint32)[None]))[0]
    np.testing.assert_allclose(draws, -np.log1p(-steps / 2**24), rtol=0, atol=1e-6)
    assert (np.diff(draws) > 0).all()

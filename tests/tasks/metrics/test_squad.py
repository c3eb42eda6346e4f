"""Scores of SQuAD against the official rules, written a second time and slowly, and against values worked out by hand."""

from __future__ import annotations

import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.tasks.metrics.squad import normalize, score


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Quick, brown-fox!", "quick brownfox"),
        ("a", ""),
        ("An the a", ""),
        ("...", ""),
        ("Theory of a an-the", "theory of anthe"),
        ("A.B.C. the\tÉcole", "abc école"),
        ("«l'été»", "«lété»"),
        ("\u00a0x\u2003y", "x y"),
    ],
)
def test_normalizing(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("gold", "prediction", "exact", "f1"),
    [
        (["Denver Broncos"], "the Denver Broncos!", 100, 100),
        (["Denver Broncos", "Broncos"], "Broncos", 100, 100),
        # Two words in common of three and of four: 2 * 2/3 * 2/4 / (2/3 + 2/4).
        (["big blue house"], "the blue house by sea", 0, 100 * 4 / 7),
        # A word counts as often as it stands in both.
        (["no no no yes"], "no no", 0, 100 * 2 / 3),
        (["café"], "cafe", 0, 0),
        (["five"], "", 0, 0),
        ([], "", 100, 100),
        ([], "the", 100, 100),
        ([], "five", 0, 0),
        ([""], "", 100, 100),
        (["the", "five"], "a", 0, 0),
    ],
)
def test_worked_out_by_hand(gold, prediction, exact, f1):
    found = score({"q": gold}, {"q": prediction, "another": "x"})
    assert (found["exact"], found["f1"], found["total"]) == (exact, pytest.approx(f1), 1)
    assert ("HasAns_f1" in found, "NoAns_f1" in found) == (bool(gold), not gold)


def test_the_scripts_differ_in_empty_answers():
    assert score({"q": ["The"]}, {"q": "a"}, version="1.1") == {"exact": 100.0, "f1": 0.0, "total": 1}
    assert score({"q": ["The"]}, {"q": "a"})["f1"] == 100.0
    assert score({"q": ["The", "x"]}, {"q": "a"}, version="1.1")["exact"] == 100.0
    assert score({"q": ["The", "x"]}, {"q": "a"})["exact"] == 0.0


def test_thresholds_worked_out_by_hand():
    gold = {"a": ["x"], "b": ["x y"], "c": [], "d": []}
    predictions = {"a": "x", "b": "x", "c": "z", "d": "z"}
    odds = {"a": -4.0, "b": -1.5, "c": -2.0, "d": 3.0}
    found = score(gold, predictions, odds, threshold=0.0)
    # a is right, b half right (F1 2/3), c answered though it should not be, d not answered.
    assert (found["exact"], found["f1"]) == (50.0, pytest.approx(100 * (1 + 2 / 3 + 1) / 4))
    assert (found["HasAns_exact"], found["HasAns_f1"], found["HasAns_total"]) == (50.0, pytest.approx(100 * 5 / 6), 2)
    assert (found["NoAns_exact"], found["NoAns_f1"], found["NoAns_total"]) == (50.0, 50.0, 2)
    # Only a answered: a, c and d right.
    assert (found["best_exact"], found["best_exact_thresh"]) == (75.0, -4.0)
    assert (found["best_f1"], found["best_f1_thresh"]) == (75.0, -4.0)


# The official rules once more, a question and a threshold at a time.


def slow_normalize(text):
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept, flags=re.UNICODE).split())


def slow_f1(gold, prediction, version):
    left, common = slow_normalize(gold).split(), 0
    words = slow_normalize(prediction).split()
    size = len(left)
    if version == "2.0" and (not left or not words):
        return float(left == words)
    for word in words:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * (common / len(words)) * (common / size) / (common / len(words) + common / size) if common else 0.0


def slow_raw(gold, prediction, version):
    if version == "2.0":
        gold = [answer for answer in gold if slow_normalize(answer)] or [""]
    exact = max(float(slow_normalize(answer) == slow_normalize(prediction)) for answer in gold)
    return exact, max(slow_f1(answer, prediction, version) for answer in gold)


def slow_score(gold, predictions, odds, threshold, kind):
    total = 0.0
    for key, answers in gold.items():
        total += float(not answers) if odds[key] > threshold else slow_raw(answers, predictions[key], "2.0")[kind]
    return 100 * total / len(gold)


def official_search(gold, predictions, odds, kind):
    """``find_best_thresh`` of the script, step by step."""
    reached = best = sum(not answers for answers in gold.values())
    threshold = 0.0
    for key in sorted(odds, key=odds.__getitem__):
        reached += slow_raw(gold[key], predictions[key], "2.0")[kind] if gold[key] else (-1 if predictions[key] else 0)
        if reached > best:
            best, threshold = reached, odds[key]
    return 100 * best / len(gold), threshold


TEXTS = st.one_of(
    st.sampled_from(
        ["", "the", "A an", "...", "!", "the.", "x", "X y", "y, x", "x x y", "the x", "é", "E\u0301", "x\u00a0y", "漢 字", "i̇"]
    ),
    st.text(max_size=6),
)
GOLD = st.lists(TEXTS, max_size=3)
ODDS = st.one_of(st.sampled_from([-2.0, 0.0, 1.0, 1.5]), st.floats(-9, 9))
ROWS = st.lists(st.tuples(GOLD, TEXTS, ODDS), min_size=1, max_size=8)


def columns(rows):
    names = [f"q{number}" for number in range(len(rows))]
    return [dict(zip(names, column, strict=True)) for column in zip(*rows, strict=True)]


@settings(deadline=None, max_examples=300)
@given(ROWS)
def test_scores_are_the_official_ones(rows):
    gold, predictions, _ = columns(rows)
    for version in ("2.0", "1.1"):
        if version == "1.1" and not all(gold.values()):
            continue
        found = score(gold, predictions, version=version)
        raw = {key: slow_raw(gold[key], predictions[key], version) for key in gold}
        groups = {"": [*gold], "HasAns_": [key for key in gold if gold[key]], "NoAns_": [key for key in gold if not gold[key]]}
        expected = {}
        for prefix, keys in groups.items():
            if keys and (version == "2.0" or not prefix):
                exact, f1 = np.mean([raw[key] for key in keys], axis=0)
                expected |= {f"{prefix}exact": 100 * exact, f"{prefix}f1": 100 * f1, f"{prefix}total": len(keys)}
        assert found == pytest.approx(expected)


@settings(deadline=None, max_examples=300)
@given(ROWS, st.floats(-3, 3))
def test_the_best_threshold_is_the_best_of_all(rows, threshold):
    gold, predictions, odds = columns(rows)
    found = score(gold, predictions, odds, threshold=threshold)
    every = sorted({*odds.values()})
    lowest = 0.0 if every[0] > 0 else np.nextafter(every[0], -np.inf)
    for kind, name in enumerate(("exact", "f1")):
        assert found[name] == pytest.approx(slow_score(gold, predictions, odds, threshold, kind))
        applied = [slow_score(gold, predictions, odds, each, kind) for each in [lowest, *every]]
        assert found[f"best_{name}"] == pytest.approx(max(applied))
        first = next(each for each, reached in zip([lowest, *every], applied, strict=True) if reached > max(applied) - 1e-6)
        assert found[f"best_{name}_thresh"] == first
        again = score(gold, predictions, odds, threshold=found[f"best_{name}_thresh"])
        assert again[name] == pytest.approx(found[f"best_{name}"])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(GOLD, TEXTS), min_size=1, max_size=8), st.integers(0, 2**31))
def test_the_search_is_the_official_one_where_that_is_sound(rows, seed):
    rng = np.random.default_rng(seed)
    gold, predictions = columns(rows)
    # Different odds, all above 0, and no prediction that is only emptied by normalizing.
    odds = dict(zip(gold, (rng.permutation(len(gold)) + 0.5).tolist(), strict=True))
    predictions = {key: text if slow_normalize(text) else "" for key, text in predictions.items()}
    found = score(gold, predictions, odds)
    for kind, name in enumerate(("exact", "f1")):
        best, threshold = official_search(gold, predictions, odds, kind)
        assert found[f"best_{name}"] == pytest.approx(best)
        assert found[f"best_{name}_thresh"] == threshold


def test_what_cannot_be_scored():
    gold = {"a": ["x"], "b": []}
    for given_, options, sentence in (
        (({}, {}), {}, "no questions to score"),
        ((gold, {"a": "x"}), {}, "no prediction for 1 of 2 questions, 'b' among them"),
        ((gold, {"a": "x", "b": ""}, {"b": 1.0}), {}, "no null odds for 1 of 2 questions, 'a' among them"),
        ((gold, {"a": "x", "b": ""}, {"a": float("nan"), "b": 1.0}), {}, "null odds are not finite"),
        ((gold, {"a": "x", "b": ""}), {"version": "1.1"}, "but not here; score the file as version 2.0"),
        (({"a": ["x"]}, {"a": "x"}, {"a": 1.0}), {"version": "1.1"}, "1.1 has no null odds"),
        (({"a": "x"}, {"a": "x"}), {}, "give a list of texts for each id"),
    ):
        with pytest.raises(UserError, match=sentence):
            score(*given_, **options)

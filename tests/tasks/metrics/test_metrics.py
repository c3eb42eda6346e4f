"""Scores against the formulas of textbooks, where they are easy and where they are not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from bert_jax.errors import UserError
from bert_jax.tasks import metrics
from bert_jax.tasks.metrics import METRICS

CLASSES = ("accuracy", "f1", "macro_f1", "matthews")
NUMBERS = ("pearson", "spearman", "mae")


def score(names, gold, predicted, **options):
    return metrics.score(names, np.array(gold), np.array(predicted), **options)


def pairs(values, **options):
    """Two lists of equal length."""
    return st.lists(st.tuples(values, values), min_size=1, max_size=40, **options)


def f1_of(gold, predicted, positive):
    """2 TP / (2 TP + FP + FN), 0 if there is nothing to count."""
    hits = sum(1 for g, p in zip(gold, predicted, strict=True) if g == p == positive)
    misses = sum(1 for g, p in zip(gold, predicted, strict=True) if (g == positive) != (p == positive))
    return 2 * hits / (2 * hits + misses) if hits + misses else 0.0


def matthews_of(gold, predicted):
    """Gorodkin's R_K: the covariance of one-hot rows over the root of the product of their variances."""
    classes = sorted({*gold, *predicted})
    x, y = (np.array([[value == name for name in classes] for value in values], np.float64) for values in (gold, predicted))
    x, y = x - x.mean(0), y - y.mean(0)
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale > 1e-9 else 0.0


def pearson_of(gold, predicted):
    x, y = (np.array(values, np.float64) - np.mean(values, dtype=np.float64) for values in (gold, predicted))
    scale = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / scale if scale > 1e-9 else 0.0


def ranks(values):
    """Mean place of a value among the sorted ones, from 1; equal values share it."""
    return [sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values]


def expect(names, gold, predicted, *, positive=None):
    every = {
        "accuracy": lambda: np.mean(np.equal(gold, predicted)),
        "f1": lambda: f1_of(gold, predicted, positive),
        "macro_f1": lambda: np.mean([f1_of(gold, predicted, name) for name in {*gold, *predicted}]),
        "matthews": lambda: matthews_of(gold, predicted),
        "pearson": lambda: pearson_of(gold, predicted),
        "spearman": lambda: pearson_of(ranks(gold), ranks(predicted)),
        "mae": lambda: np.mean(np.abs(np.subtract(gold, predicted))),
    }
    found = score(names, gold, predicted, positive=positive)
    assert [*found] == [*names]
    assert {type(value) for value in found.values()} == {float}
    for name in names:
        assert found[name] == pytest.approx(every[name](), abs=1e-9), name
    return found


# The first example waits for scikit-learn or SciPy to be imported.
@settings(deadline=None)
@given(pairs(st.integers(0, 3)), st.integers(0, 3))
def test_classes_of_any_number(rows, positive):
    gold, predicted = map(list, zip(*rows, strict=True))
    expect(CLASSES, gold, predicted, positive=positive)


# The first example waits for scikit-learn or SciPy to be imported.
@settings(deadline=None)
@given(pairs(st.integers(-20, 20).map(lambda number: number / 4)))
def test_numbers_with_ties(rows):
    gold, predicted = map(list, zip(*rows, strict=True))
    expect(NUMBERS, gold, predicted)


def test_numbers_without_ties():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=200)
    found = expect(NUMBERS, gold.tolist(), (gold + rng.normal(size=200)).tolist())
    assert 0.5 < found["pearson"] < 0.9


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_every_pair_of_constant_and_varied(size):
    varied = [number % 2 for number in range(size)]
    inverted = [1 - number for number in varied]
    for gold, predicted in itertools.product([[0] * size, [1] * size, varied, inverted], repeat=2):
        expect(METRICS, gold, predicted, positive=1)
    assert score(METRICS, [1], [1], positive=1) == {
        "accuracy": 1, "f1": 1, "macro_f1": 1, "matthews": 0, "pearson": 0, "spearman": 0, "mae": 0,
    }  # fmt: skip


def test_perfect_and_inverted():
    gold = np.array([0, 1] * 20)
    perfect, inverted = (score(METRICS, gold, predicted, positive=1) for predicted in (gold, 1 - gold))
    wanted = {"accuracy": 0, "f1": 0, "macro_f1": 0, "matthews": -1, "pearson": -1, "spearman": -1, "mae": 1}
    assert perfect == pytest.approx({name: 0 if name == "mae" else 1 for name in METRICS})
    assert inverted == pytest.approx(wanted)


def test_f1_is_that_of_the_positive_class():
    gold, predicted = [0, 0, 0, 1], [0, 0, 1, 1]
    assert score(["f1"], gold, predicted, positive=1)["f1"] == pytest.approx(2 / 3)
    assert score(["f1"], gold, predicted, positive=0)["f1"] == pytest.approx(4 / 5)
    assert score(["macro_f1"], gold, predicted)["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_numbers_that_differ_by_rounding_are_constant():
    nearly = np.array([1, 1 + 2e-16, 1])
    assert score(["pearson"], [1.0, 2, 3], nearly) == {"pearson": 0}
    assert score(["pearson"], nearly, [1.0, 2, 3]) == {"pearson": 0}


def test_float32_of_any_size():
    gold = np.array([1, 2, 3], np.float32)
    large = np.array([1e38, 2e38, 3e38], np.float32)
    assert score(["pearson", "spearman"], gold, large) == pytest.approx({"pearson": 1, "spearman": 1})


def test_counts_as_large_as_mnli_do_not_overflow():
    """Products of four counts of 400,000 examples are beyond 64 bits."""
    for classes in (2, 3):
        rng = np.random.default_rng(classes)
        gold = rng.integers(0, classes, 400_000).astype(np.int32)
        predicted = np.where(rng.random(gold.size) < 0.2, rng.integers(0, classes, gold.size), gold).astype(np.int32)
        table = np.zeros((classes, classes))
        np.add.at(table, (gold, predicted), 1)
        table = [[int(count) for count in row] for row in table]
        # In whole numbers, which do not overflow in Python.
        n, right = gold.size, sum(table[c][c] for c in range(classes))
        of_gold, of_predicted = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
        over = right * n - sum(g * p for g, p in zip(of_gold, of_predicted, strict=True))
        under = math.sqrt((n * n - sum(g * g for g in of_gold)) * (n * n - sum(p * p for p in of_predicted)))
        found = score(["matthews", "accuracy"], gold, predicted)
        assert found == pytest.approx({"matthews": over / under, "accuracy": right / n}, rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_no_numbers(bad):
    with pytest.raises(UserError, match="1 of 3 predictions are not finite numbers, the first is example 2"):
        score(["pearson"], [1.0, 2, 3], [1.0, bad, 3])


@pytest.mark.parametrize(
    ("names", "gold", "predicted", "sentence"),
    [
        (["accuracy"], [], [], r"shape \(0,\)"),
        (["accuracy"], [1, 2], [1], r"gold has shape \(2,\) and predicted \(1,\)"),
        (["accuracy"], [[1]], [[1]], r"both must be \[N\]"),
        (["acuracy"], [1], [1], "no metric acuracy among accuracy, f1"),
        (["f1"], [1], [1], "name the class with positive"),
    ],
)
def test_mistakes_of_the_caller(names, gold, predicted, sentence):
    with pytest.raises(ValueError, match=sentence):
        score(names, gold, predicted)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5))
def test_multilabel_scores_are_scikit_learns(seed, count, labels):
    rng = np.random.default_rng(seed)
    gold, predicted = (rng.random((count, labels)) < rng.random() for _ in range(2))
    scores = metrics.multilabel_scores(gold, predicted)
    # By hand, for one label too, which scikit-learn takes for two classes.
    right, total = (gold & predicted).sum(0), gold.sum(0) + predicted.sum(0)
    f1 = np.divide(2 * right, total, out=np.zeros(labels), where=total > 0)
    expected = {
        "micro_f1": 2 * right.sum() / total.sum() if total.any() else 0.0,
        "macro_f1": f1.mean(),
        "exact": (gold == predicted).all(1).mean(),
    }
    assert scores == pytest.approx(expected)
    if labels > 1:
        by_sklearn = {f"{kind}_f1": f1_score(gold, predicted, average=kind, zero_division=0.0) for kind in ("micro", "macro")}
        assert scores == pytest.approx(by_sklearn | {"exact": accuracy_score(gold, predicted)})


def test_multilabel_scores_need_examples_of_one_shape():
    for gold, predicted in (
        (np.zeros((0, 2), bool),) * 2,
        (np.zeros((2, 2), bool), np.zeros((2, 3), bool)),
        (np.zeros(2, bool),) * 2,
    ):
        with pytest.raises(ValueError, match="both must be"):
            metrics.multilabel_scores(gold, predicted)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_no_threshold_has_a_better_f1(seed, count):
    rng = np.random.default_rng(seed)
    gold, probability = rng.random(count) < 0.5, rng.integers(0, 6, count) / 6
    threshold, best = metrics.best_threshold(gold, probability)

    def f1(threshold):
        predicted = probability >= threshold
        return 2 * (gold & predicted).sum() / max(1, gold.sum() + predicted.sum())

    assert best == pytest.approx(f1(threshold))
    assert best == pytest.approx(max(map(f1, [*probability, 2.0])))
    if not gold.any():
        assert (threshold, best) == (0.5, 0.0)

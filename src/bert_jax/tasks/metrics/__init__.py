"""Official scores of the tasks, on NumPy arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from bert_jax.errors import UserError

METRICS = ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "mae")
"""Scores that ``score`` computes."""
_OF_NUMBERS = ("pearson", "spearman", "mae")


def score(names: Sequence[str], gold: np.ndarray, predicted: np.ndarray, *, positive: int | None = None) -> dict[str, float]:
    """Scores of predictions, as scikit-learn and SciPy compute them.

    ``f1`` is the F1 of one class, as in GLUE for MRPC and QQP; ``macro_f1`` the mean over the classes that occur; ``matthews``
    the correlation of classes, for any number of them; ``mae`` the mean absolute error. A score of 0 / 0 is 0: F1 of a class
    that neither occurs nor is predicted, and correlations with constants or of a single example.

    Args:
      names: some of ``METRICS``.
      gold: [N] class indices, or scores for ``pearson``, ``spearman`` and ``mae``.
      predicted: [N] predictions, of the same kind.
      positive: index of the class of ``f1``.

    Raises:
      UserError: a prediction is not a finite number.
      ValueError: there are no examples, shapes differ, a name is unknown, or ``f1`` has no positive class.

    Examples:
      >>> score(("accuracy",), np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]))
      {'accuracy': 0.75}
    """
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise ValueError(f"There is no metric {', '.join(unknown)} among {', '.join(METRICS)}.")
    if gold.ndim != 1 or gold.shape != predicted.shape or not gold.size:
        raise ValueError(f"gold has shape {gold.shape} and predicted {predicted.shape}; both must be [N] with N > 0.")
    if "f1" in names and positive is None:
        raise ValueError("f1 is the score of one class; name the class with positive.")
    require_finite(predicted)
    return {
        name: _of_numbers(name, gold, predicted) if name in _OF_NUMBERS else _of_classes(name, gold, predicted, positive)
        for name in names
    }


def require_finite(predicted: np.ndarray) -> None:
    """Check that all predictions, [N] or [N, C], are finite.

    Raises:
      UserError: they are not.
    """
    diverged = np.flatnonzero(~np.isfinite(predicted.reshape(len(predicted), -1)).all(1))
    if diverged.size:
        raise UserError(
            f"{diverged.size:,} of {len(predicted):,} predictions are not finite numbers, the first is example {diverged[0] + 1}; "
            "the model has diverged, so train it with a smaller learning rate."
        )


def multilabel_scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores of predicted sets of labels, as scikit-learn computes them; 0 / 0 is 0.

    Args:
      gold: bool [N, C], the labels of each example.
      predicted: bool [N, C], the predicted labels.

    Returns:
      ``micro_f1``, the F1 of all decisions together; ``macro_f1``, the mean of the F1 of each label; ``exact``, the fraction of
      examples with exactly the right labels.

    Raises:
      ValueError: there are no examples, or shapes differ.

    Examples:
      >>> multilabel_scores(np.array([[True, False], [True, True]]), np.array([[True, False], [True, False]]))["exact"]
      0.5
    """
    from sklearn import metrics

    if gold.ndim != 2 or gold.shape != predicted.shape or not gold.size:
        raise ValueError(f"gold has shape {gold.shape} and predicted {predicted.shape}; both must be [N, C] with N and C > 0.")

    def f1(gold: np.ndarray, predicted: np.ndarray) -> float:
        return float(metrics.f1_score(gold, predicted, labels=[True], average="macro", zero_division=0.0))

    return {
        "micro_f1": f1(gold.ravel(), predicted.ravel()),
        "macro_f1": float(np.mean([f1(gold[:, label], predicted[:, label]) for label in range(gold.shape[1])])),
        "exact": float(metrics.accuracy_score(gold, predicted)),
    }


def best_threshold(gold: np.ndarray, probability: np.ndarray) -> tuple[float, float]:
    """The threshold on the probability of a label that has the best F1, and this F1.

    Args:
      gold: bool [N], the examples with the label.
      probability: [N]; the label is predicted from the threshold on.

    Returns:
      The threshold, between the lowest accepted and the next lower probability, so that it does not depend on rounding; and
      the F1. If no example has the label, 0.5 and 0.

    Examples:
      >>> best_threshold(np.array([True, True, False]), np.array([0.9, 0.4, 0.2]))
      (0.30000000000000004, 1.0)
    """
    from sklearn import metrics

    if not gold.any():
        return 0.5, 0.0
    precision, recall, candidates = metrics.precision_recall_curve(gold, probability)
    # Some examples have the label, so that precision + recall is 0 only where both are.
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    best = int(np.argmax(f1[: len(candidates)]))
    lower = probability[probability < candidates[best]].max(initial=0.0)
    return float(candidates[best] + lower) / 2, float(f1[best])


def _of_classes(name: str, gold: np.ndarray, predicted: np.ndarray, positive: int | None) -> float:
    # scikit-learn takes a second to import.
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(gold, predicted))
    if name == "f1":
        return float(metrics.f1_score(gold, predicted, labels=[positive], average="macro", zero_division=0.0))
    if name == "macro_f1":
        return float(metrics.f1_score(gold, predicted, average="macro", zero_division=0.0))
    if _constant(gold) or _constant(predicted):
        return 0.0
    return float(metrics.matthews_corrcoef(gold, predicted))


def _of_numbers(name: str, gold: np.ndarray, predicted: np.ndarray) -> float:
    from scipy import stats

    gold, predicted = gold.astype(np.float64), predicted.astype(np.float64)
    if name == "mae":
        return float(np.abs(gold - predicted).mean())
    if _constant(gold) or _constant(predicted):
        return 0.0
    with warnings.catch_warnings():
        # Numbers that differ only by rounding are constants too.
        warnings.simplefilter("error", stats.DegenerateDataWarning)
        try:
            result = stats.pearsonr(gold, predicted) if name == "pearson" else stats.spearmanr(gold, predicted)
        except stats.DegenerateDataWarning:
            return 0.0
    return float(result.statistic)


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())

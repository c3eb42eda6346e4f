"""The official scores of the tasks, on NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from bert_jax.errors import UserError

METRICS = ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "mae")
"""Names that :func:`score` knows."""
_OF_NUMBERS = ("pearson", "spearman", "mae")


def score(names: Sequence[str], gold: np.ndarray, predicted: np.ndarray, *, positive: int | None = None) -> dict[str, float]:
    """Scores of predictions, all as scikit-learn and SciPy compute them.

    ``f1`` is that of one class, as GLUE's for MRPC and QQP; ``macro_f1`` the mean over the classes that occur; ``matthews``
    the correlation of classes, for any number of them; ``mae`` the mean absolute error. What would be 0 / 0 is 0: F1 of a
    class that is neither there nor predicted, and correlations with constants or of a single example.

    Args:
      names: some of :data:`METRICS`.
      gold: [N] class numbers, or scores for ``pearson``, ``spearman`` and ``mae``.
      predicted: [N], the same of the model.
      positive: number of the class that ``f1`` is about.

    Raises:
      UserError: a prediction is not a finite number.
      ValueError: there is nothing to score, shapes differ, a name is unknown, or ``f1`` has no positive class.
    """
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise ValueError(f"There is no metric {', '.join(unknown)} among {', '.join(METRICS)}.")
    if gold.ndim != 1 or gold.shape != predicted.shape or not gold.size:
        raise ValueError(f"gold has shape {gold.shape} and predicted {predicted.shape}; both must be [N] with N > 0.")
    if "f1" in names and positive is None:
        raise ValueError("f1 is the score of one class; say which with positive.")
    wrong = np.flatnonzero(~np.isfinite(predicted))
    if wrong.size:
        raise UserError(
            f"{wrong.size:,} of {predicted.size:,} predictions are no finite numbers, the first is example {wrong[0] + 1}; the "
            "model has diverged, so train it with a smaller learning rate."
        )
    return {
        name: _of_numbers(name, gold, predicted) if name in _OF_NUMBERS else _of_classes(name, gold, predicted, positive)
        for name in names
    }


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
        # Numbers that differ by rounding alone are constants too.
        warnings.simplefilter("error", stats.DegenerateDataWarning)
        try:
            found = stats.pearsonr(gold, predicted) if name == "pearson" else stats.spearmanr(gold, predicted)
        except stats.DegenerateDataWarning:
            return 0.0
    return float(found.statistic)


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())

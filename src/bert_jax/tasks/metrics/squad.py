"""The scores of SQuAD's official scripts, ``evaluate-v1.1.py`` and ``evaluate-v2.0.py``."""

from __future__ import annotations

import collections
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from bert_jax.errors import UserError

Version = Literal["1.1", "2.0"]
"""Version of the script. They differ for answers that are empty after normalization: 1.1 gives them an F1 of 0; 2.0 ignores
annotated ones, and gives 1 for no answer to a question that has no others."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(
    gold: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    *,
    threshold: float = 1.0,
    version: Version = "2.0",
) -> dict[str, int | float]:
    """Exact match and F1 in percent: means over the questions of the best over their annotated answers.

    Args:
      gold: texts of the annotated answers by question id; empty for a question without an answer (2.0).
      predictions: a text for each of these ids, empty for no answer. Other ids are ignored.
      null_odds: score of no answer relative to the best answer, by question id, for example from ``null_odds.json``.
      threshold: null odds above which a prediction counts as no answer; 1 in the official script. Predictions that were made
        with a lower threshold stay as they are.
      version: see ``Version``.

    Returns:
      ``exact``, ``f1`` and ``total``, a count; for 2.0 also ``HasAns_*`` and ``NoAns_*`` for the questions with and without
      answers, if there are any. With ``null_odds``, ``best_exact`` and ``best_f1`` at the best thresholds, and
      ``best_exact_thresh`` and ``best_f1_thresh``, the smallest thresholds that reach them. Unlike the official search, a
      threshold here always gives the score that is reported with it: the official search may stop between questions with equal
      odds, reports 0 for the threshold that leaves no answer, and treats a prediction such as "the" as an answer. Otherwise
      the numbers are the same.

    Raises:
      UserError: there are no questions, a prediction or odds are missing (the scripts count 0 or skip the question), or data
        for version 1.1 have null odds or a question without an answer.

    Examples:
      >>> score({"q": ["the Eiffel Tower"]}, {"q": "Eiffel tower"}, version="1.1")["exact"]
      100.0
    """
    if version not in get_args(Version):
        raise UserError(f"version is {version!r}; choose one of {', '.join(get_args(Version))}.")
    if not gold:
        raise UserError("There are no questions to score.")
    if any(isinstance(answers, str) for answers in gold.values()):
        raise UserError("gold holds texts; give a list of texts for each id.")
    _require_all("prediction", predictions, gold)
    answered = np.array([bool(gold[key]) for key in gold])
    if version == "1.1" and null_odds is not None:
        raise UserError("SQuAD 1.1 has no null odds; leave them out, or score as version 2.0 (the task squad2).")
    if version == "1.1" and not answered.all():
        raise UserError("In SQuAD 1.1 every question has an answer, but not here; score the file as version 2.0 (the task squad2).")
    pairs = np.array([_best(gold[key], predictions[key], version) for key in gold])
    if null_odds is None:
        return _means(pairs, answered, version)
    _require_all("null odds", null_odds, gold)
    odds = np.array([null_odds[key] for key in gold], np.float64)
    if not np.isfinite(odds).all():
        raise UserError("Some null odds are not finite; the logits from which they were computed are damaged.")
    scores = _means(np.where((odds > threshold)[:, None], ~answered[:, None], pairs), answered, version)
    for name, column in zip(("exact", "f1"), pairs.T, strict=True):
        scores[f"best_{name}"], scores[f"best_{name}_thresh"] = _search(column, odds, answered)
    return scores


def _require_all(name: str, values: Mapping[str, object], gold: Mapping[str, Sequence[str]]) -> None:
    missing = [key for key in gold if key not in values]
    if missing:
        raise UserError(
            f"There is no {name} for {len(missing):,} of {len(gold):,} questions, {missing[0]!r} among them; score predictions "
            "against the file for which they were made."
        )


def normalize(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and superfluous white space, as in both scripts.

    Examples:
      >>> normalize("The  Eiffel-Tower!")
      'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _best(answers: Sequence[str], prediction: str, version: Version) -> tuple[float, float]:
    """Exact match and F1 of one prediction, each the best over the annotated answers."""
    predicted = normalize(prediction)
    normalized = [normalize(answer) for answer in answers]
    if version == "2.0":
        normalized = [answer for answer in normalized if answer] or [""]
    return float(predicted in normalized), max(_f1(answer, predicted, version) for answer in normalized)


def _f1(answer: str, predicted: str, version: Version) -> float:
    """F1 of the words of two normalized texts, with their counts."""
    gold_words, words = answer.split(), predicted.split()
    if version == "2.0" and not (gold_words and words):
        return float(gold_words == words)
    common = (collections.Counter(gold_words) & collections.Counter(words)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def _means(pairs: np.ndarray, answered: np.ndarray, version: Version) -> dict[str, int | float]:
    scores: dict[str, int | float] = {}
    for prefix, chosen in (("", np.ones_like(answered)), ("HasAns_", answered), ("NoAns_", ~answered)):
        if chosen.any() and (version == "2.0" or not prefix):
            exact, f1 = (100.0 * pairs[chosen].mean(axis=0)).tolist()
            scores |= {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": int(chosen.sum())}
    return scores


def _search(scores: np.ndarray, odds: np.ndarray, answered: np.ndarray) -> tuple[float, float]:
    """The highest mean over all thresholds, in percent, and the lowest threshold that reaches it."""
    order = np.argsort(odds, kind="stable")
    # Starting from no answers, the questions get their predictions one after the other.
    change = (scores - ~answered)[order]
    reached = np.cumsum(np.append(float((~answered).sum()), change))
    odds = odds[order]
    ends = np.append(True, np.append(odds[1:] != odds[:-1], True))
    # Means that differ by rounding only are equal.
    best = int(np.argmax(ends & (reached >= reached[ends].max() - 1e-9)))
    if best:
        return 100.0 * float(reached[best]) / len(odds), float(odds[best - 1])
    none = 0.0 if odds[0] > 0 else math.nextafter(float(odds[0]), -math.inf)
    return 100.0 * float(reached[0]) / len(odds), none

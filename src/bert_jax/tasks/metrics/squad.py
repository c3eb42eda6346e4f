"""The scores of SQuAD's official scripts, ``evaluate-v1.1.py`` and ``evaluate-v2.0.py``."""

from __future__ import annotations

import collections
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from bert_jax.config.validation import require
from bert_jax.errors import UserError

Version = Literal["1.1", "2.0"]
"""Which script is followed. They differ in answers of which normalizing leaves nothing: 1.1 gives them an F1 of 0; 2.0 passes over
annotated ones, and gives 1 where nothing is answered to a question that has no others."""

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
      gold: the texts of the annotated answers by question id; none for a question without an answer (2.0).
      predictions: a text for each of these ids, empty for no answer. Others are ignored.
      null_odds: how much speaks for no answer, by question id, for example ``null_odds.json``.
      threshold: where ``null_odds`` is greater, the prediction is taken for no answer. 1 is the official script's; predictions
        made with a lower one stay as they are.
      version: see :data:`Version`.

    Returns:
      ``exact``, ``f1`` and ``total``, a count; for 2.0 also ``HasAns_*`` and ``NoAns_*`` of the questions with and without
      answers, where there are any. With ``null_odds``, ``best_exact`` and ``best_f1`` at the best thresholds,
      ``best_exact_thresh`` and ``best_f1_thresh``, the smallest that reach them. The official search may stop between questions
      with equal odds, calls the threshold that leaves no answer 0 whatever the odds, and takes a prediction such as "the" for
      an answer; here a threshold gives the score that is named with it. Else the numbers are the same.

    Raises:
      UserError: there are no questions, a prediction or odds are missing (the scripts count 0 or pass over the question), or
        version 1.1 meets what only 2.0 has.
    """
    require(version in get_args(Version), f"version is {version!r}; choose one of {', '.join(get_args(Version))}.")
    require(bool(gold), "There are no questions to score.")
    require(not any(isinstance(answers, str) for answers in gold.values()), "gold holds texts; give a list of texts for each id.")
    _require_all("prediction", predictions, gold)
    answered = np.array([bool(gold[key]) for key in gold])
    if version == "1.1":
        require(null_odds is None, "SQuAD 1.1 has no null odds; leave them out, or choose version 2.0.")
        require(bool(answered.all()), "SQuAD 1.1 has an answer to every question, and this file has not; choose version 2.0.")
    pairs = np.array([_best(gold[key], predictions[key], version) for key in gold])
    if null_odds is None:
        return _means(pairs, answered, version)
    _require_all("null odds", null_odds, gold)
    odds = np.array([null_odds[key] for key in gold], np.float64)
    require(bool(np.isfinite(odds).all()), "Some null odds are not finite; the logits that they were made of are damaged.")
    scores = _means(np.where((odds > threshold)[:, None], ~answered[:, None], pairs), answered, version)
    for name, column in zip(("exact", "f1"), pairs.T, strict=True):
        scores[f"best_{name}"], scores[f"best_{name}_thresh"] = _search(column, odds, answered)
    return scores


def _require_all(name: str, given: Mapping[str, object], gold: Mapping[str, Sequence[str]]) -> None:
    missing = [key for key in gold if key not in given]
    if missing:
        raise UserError(
            f"There is no {name} for {len(missing):,} of {len(gold):,} questions, {missing[0]!r} among them; score predictions "
            "against the file that they were made for."
        )


def normalize(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and superfluous white space, as both scripts compare answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _best(answers: Sequence[str], prediction: str, version: Version) -> tuple[float, float]:
    """Exact match and F1 of one prediction, each against the annotated answer that it is best for."""
    found = normalize(prediction)
    wanted = [normalize(answer) for answer in answers]
    if version == "2.0":
        wanted = [answer for answer in wanted if answer] or [""]
    return float(found in wanted), max(_f1(answer, found, version) for answer in wanted)


def _f1(wanted: str, found: str, version: Version) -> float:
    """F1 of the words of two normalized texts, counted as often as they occur."""
    theirs, ours = wanted.split(), found.split()
    if version == "2.0" and not (theirs and ours):
        return float(theirs == ours)
    common = (collections.Counter(theirs) & collections.Counter(ours)).total()
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _means(pairs: np.ndarray, answered: np.ndarray, version: Version) -> dict[str, int | float]:
    scores: dict[str, int | float] = {}
    for prefix, chosen in (("", np.ones_like(answered)), ("HasAns_", answered), ("NoAns_", ~answered)):
        if chosen.any() and (version == "2.0" or not prefix):
            exact, f1 = (100.0 * pairs[chosen].mean(axis=0)).tolist()
            scores |= {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": int(chosen.sum())}
    return scores


def _search(scores: np.ndarray, odds: np.ndarray, answered: np.ndarray) -> tuple[float, float]:
    """The highest mean of any threshold, in percent, and the lowest threshold that reaches it."""
    order = np.argsort(odds, kind="stable")
    # From no answers at all, one question after the other is given its prediction.
    change = (scores - ~answered)[order]
    reached = np.cumsum(np.append(float((~answered).sum()), change))
    odds = odds[order]
    ends = np.append(True, np.append(odds[1:] != odds[:-1], True))
    # Equal but for rounding is equal.
    best = int(np.argmax(ends & (reached >= reached[ends].max() - 1e-9)))
    if best:
        return 100.0 * float(reached[best]) / len(odds), float(odds[best - 1])
    none = 0.0 if odds[0] > 0 else math.nextafter(float(odds[0]), -math.inf)
    return 100.0 * float(reached[0]) / len(odds), none

"""From the logits of windows to answers, as ``write_predictions`` of the original's ``run_squad.py`` finds them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from etils import epath

from bert_jax.config.validation import require
from bert_jax.errors import Failure, UserError
from bert_jax.io import atomic
from bert_jax.tasks.squad import Feature, Question

PREDICTIONS, NBEST, ODDS = "predictions.json", "nbest_predictions.json", "null_odds.json"
"""The files that :func:`write` makes, named as the original names them."""
# What the original answers where it finds nothing.
_NOTHING = "empty"


class Candidate(TypedDict):
    """A possible answer; the keys are those of the original's file."""

    text: str
    probability: float
    """Softmax of the sums of both logits over the candidates that are listed for the question."""
    start_logit: float
    end_logit: float


class Answers(NamedTuple):
    """Answers by question id, in the order of the questions."""

    predictions: dict[str, str]
    """An exact part of the context; empty for no answer."""
    nbest: dict[str, list[Candidate]]
    """Best first; empty text stands for no answer."""
    null_odds: dict[str, float]
    """Score of no answer less that of the best answer, each a sum of two logits; no entries where every question has an answer."""


class _Found(NamedTuple):
    text: str
    start: float
    end: float


class _Pairs(NamedTuple):
    """Pairs of a start and an end, [P] each; ``feature`` is a number among the features of one question."""

    feature: np.ndarray
    first: np.ndarray
    """Number of a piece of the window."""
    last: np.ndarray
    start: np.ndarray
    """float64, logits."""
    end: np.ndarray


def answer(
    questions: Sequence[Question],
    features: Sequence[Feature],
    starts: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
    *,
    n_best: int = 20,
    longest: int = 30,
    threshold: float = 0.0,
    negative: bool,
) -> Answers:
    """The best answers of some questions. For many, call it with a slice of them at a time, and :func:`join`.

    Of each window the ``n_best`` best starts meet the ``n_best`` best ends; a pair counts if both are pieces of the context, the
    start has its maximal context here, and the end is neither before it nor too far. The text is the slice of the context from
    the start's first character to the end's last; the original has no offsets, and guesses it (``get_final_text``). It also
    ranks the logits of padding, of which there are none here.

    Args:
      questions: consecutive ones of those that the features were made of.
      features: all windows of these questions, in order.
      starts: for each feature, float [N] logits over the places of ``part.ids``.
      ends: the same for ends.
      n_best: starts and ends that are looked at in a window, and answers that are listed for a question; no answer may be added.
      longest: most pieces in an answer.
      threshold: no answer is chosen where its odds are greater.
      negative: whether no answer is a choice (SQuAD 2.0). Its score is the sum of the logits of [CLS] where that is least among the
        windows. Where no pair counts it is chosen, with its own score as the odds (the original fails); without this choice
        the answer is "empty" there, as in the original.

    Raises:
      UserError: questions, features and logits do not belong together.
      Failure: a logit is not finite.
    """
    require(n_best > 0 and longest > 0, f"n_best is {n_best} and longest {longest}; both must be greater than 0.")
    require(
        len(features) == len(starts) == len(ends),
        f"There are logits for {len(starts):,} starts and {len(ends):,} ends, but {len(features):,} features.",
    )
    found = Answers({}, {}, {})
    for question, group in zip(questions, _groups(questions, features), strict=True):
        mine = [features[place] for place in group]
        logits = [_logits(question, features[place], starts[place], ends[place]) for place in group]
        null = min((float(pair[0, 0]) + float(pair[1, 0]), number) for number, pair in enumerate(logits)) if negative else None
        nothing = _Found("", *logits[null[1]][:, 0].tolist()) if null else None
        listed = _best(question, mine, logits, n_best, longest, nothing)
        best = next((entry for entry in listed if entry.text), None)
        found.nbest[question.id] = _candidates(listed)
        if null is None:
            found.predictions[question.id] = listed[0].text
            continue
        odds = null[0] - best.start - best.end if best else null[0]
        found.null_odds[question.id] = odds
        found.predictions[question.id] = best.text if best and odds <= threshold else ""
    return found


def join(parts: Iterable[Answers]) -> Answers:
    """The answers of slices of the questions as one."""
    joined = Answers({}, {}, {})
    for part in parts:
        joined.predictions.update(part.predictions)
        joined.nbest.update(part.nbest)
        joined.null_odds.update(part.null_odds)
    return joined


def write(answers: Answers, directory: epath.PathLike) -> None:
    """Write ``predictions.json``, ``nbest_predictions.json`` and, where no answer is a choice, ``null_odds.json``.

    Raises:
      UserError: one of them exists already; nothing is written then.
    """
    directory = epath.Path(directory)
    contents = {PREDICTIONS: answers.predictions, NBEST: answers.nbest, ODDS: answers.null_odds}
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            if content or name != ODDS:
                stack.enter_context(atomic.new(directory / name)).write_text(json.dumps(content, indent=4) + "\n")


def _groups(questions: Sequence[Question], features: Sequence[Feature]) -> list[list[int]]:
    """Places of the features of each question."""
    groups = [[*group] for _, group in itertools.groupby(range(len(features)), key=lambda place: features[place].question)]
    numbers = [features[group[0]].question for group in groups]
    first = numbers[0] if numbers else 0
    if numbers != [*range(first, first + len(questions))]:
        raise UserError(
            f"The features are of {len(numbers):,} questions that do not follow each other as the {len(questions):,} given do; "
            "give all features of consecutive questions, in order."
        )
    return groups


def _logits(question: Question, feature: Feature, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Both logits, float64 [2, N]: what a float32 means exactly, so that sums are those of the original."""
    size = (len(feature.part.ids),)
    if not np.shape(start) == np.shape(end) == size:
        raise UserError(
            f"{question.where}: logits of shapes {np.shape(start)} and {np.shape(end)} for a window of {size[0]} pieces; give one "
            "of each for every piece, and none for padding."
        )
    both = np.stack([start, end]).astype(np.float64)
    if not np.isfinite(both).all():
        raise Failure(f"{question.where}: the model's logits are not finite; its parameters are damaged.")
    return both


def _pairs(number: int, feature: Feature, logits: np.ndarray, n_best: int, longest: int) -> _Pairs:
    """The pairs of one window that count, by start and then end from the best down."""
    count = len(feature.spans)
    # Ranked before places outside of the context are dropped, as in the original; of equal ones the first.
    first, last = np.argsort(-logits, axis=1, kind="stable")[:, :n_best] - feature.offset
    first = first[(first >= 0) & (first < count)]
    first = first[feature.max_context[first]]
    last = last[(last >= 0) & (last < count)]
    length = last - first[:, None] + 1
    rows, columns = np.nonzero((length > 0) & (length <= longest))
    first, last = first[rows], last[columns]
    start, end = logits[0, first + feature.offset], logits[1, last + feature.offset]
    return _Pairs(np.full(len(first), number), first, last, start, end)


def _best(
    question: Question,
    features: Sequence[Feature],
    logits: Sequence[np.ndarray],
    n_best: int,
    longest: int,
    nothing: _Found | None,
) -> list[_Found]:
    """The best answers with different texts, at least one; no answer among or after them if it is a choice."""
    windows = [_pairs(number, feature, logits[number], n_best, longest) for number, feature in enumerate(features)]
    pairs = _Pairs(*(np.concatenate(column) for column in zip(*windows, strict=True)))
    # Whoever comes first stays first of equals; no answer comes last.
    scores = np.append(pairs.start + pairs.end, [nothing.start + nothing.end] if nothing else [])
    listed: dict[str, _Found] = {}
    for pair in np.argsort(-scores, kind="stable").tolist():
        if len(listed) == n_best:
            break
        if nothing and pair == len(scores) - 1:
            listed[""] = nothing
            continue
        spans = features[int(pairs.feature[pair])].spans
        # Some pieces are a space, or nothing.
        text = question.context[spans[pairs.first[pair], 0] : spans[pairs.last[pair], 1]].strip()
        if text and text not in listed:
            listed[text] = _Found(text, float(pairs.start[pair]), float(pairs.end[pair]))
    if nothing:
        listed.setdefault("", nothing)
    return [*listed.values()] or [_Found(_NOTHING, 0.0, 0.0)]


def _candidates(listed: Sequence[_Found]) -> list[Candidate]:
    scores = [entry.start + entry.end for entry in listed]
    highest = max(scores)
    shares = [math.exp(score - highest) for score in scores]
    total = sum(shares)
    return [
        Candidate(text=entry.text, probability=share / total, start_logit=entry.start, end_logit=entry.end)
        for entry, share in zip(listed, shares, strict=True)
    ]

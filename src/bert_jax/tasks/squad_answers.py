"""Answers from the logits of windows, as ``write_predictions`` of the original's ``run_squad.py`` computes them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from etils import epath

from bert_jax.errors import RunError, UserError
from bert_jax.io import atomic
from bert_jax.tasks.squad import Feature, Question

PREDICTIONS, NBEST, ODDS = "predictions.json", "nbest_predictions.json", "null_odds.json"
"""The files that ``write`` makes, named as the original names them."""
# The original's answer if there is no candidate.
_NOTHING = "empty"


class Candidate(TypedDict):
    """A possible answer; the keys are those of the original's file."""

    text: str
    probability: float
    """Softmax of the sums of both logits over the candidates of the question."""
    start_logit: float
    end_logit: float


class Answers(NamedTuple):
    """Answers by question id, in the order of the questions."""

    predictions: dict[str, str]
    """A part of the context; empty for no answer."""
    nbest: dict[str, list[Candidate]]
    """Best first; an empty text stands for no answer."""
    null_odds: dict[str, float]
    """Score of no answer minus that of the best answer, each a sum of two logits; empty for SQuAD 1.1."""


class _Span(NamedTuple):
    text: str
    start: float
    end: float


class _Pairs(NamedTuple):
    """Pairs of a start and an end, [P] each; ``feature`` is an index into the features of one question."""

    feature: np.ndarray
    first: np.ndarray
    """Index of a token of the window."""
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
    max_answer_length: int = 30,
    threshold: float = 0.0,
    negative: bool,
) -> Answers:
    """The best answers of some questions.

    In each window the ``n_best`` best starts are paired with the ``n_best`` best ends. A pair counts if both are tokens of the
    context, the start has its maximal context in this window, and the end is neither before the start nor too far behind it.
    The text is the slice of the context from the first character of the start to the last of the end; the original has no
    offsets, and reconstructs it (``get_final_text``). The original also ranks the logits of padding, which are absent here.

    Args:
      questions: consecutive questions.
      features: all windows of these questions, in order.
      starts: for each feature, float [N] logits over the tokens of ``text.ids``.
      ends: the same for ends.
      n_best: starts and ends that are paired in a window, and candidates that are listed for a question, in addition to no answer.
      max_answer_length: maximum tokens of an answer.
      threshold: no answer is chosen if the null odds are greater.
      negative: whether a question may have no answer (SQuAD 2.0). The score of no answer is the least sum of the logits of
        [CLS] of all windows. If no pair counts, no answer is chosen, with its own score as null odds (the original fails). If
        every question has an answer, the answer is "empty" then, as in the original.

    Raises:
      UserError: questions, features and logits do not belong together.
      RunError: a logit is not finite.
    """
    if n_best <= 0 or max_answer_length <= 0:
        raise UserError(f"n_best is {n_best} and max_answer_length {max_answer_length}; both must be greater than 0.")
    if not len(features) == len(starts) == len(ends):
        raise UserError(f"There are logits for {len(starts):,} starts and {len(ends):,} ends, but {len(features):,} features.")
    answers = Answers({}, {}, {})
    for question, group in zip(questions, _groups(questions, features), strict=True):
        windows = [features[index] for index in group]
        logits = [_logits(question, features[index], starts[index], ends[index]) for index in group]
        null = min((float(pair[0, 0]) + float(pair[1, 0]), window) for window, pair in enumerate(logits)) if negative else None
        nothing = _Span("", *logits[null[1]][:, 0].tolist()) if null else None
        listed = _best(question, windows, logits, n_best, max_answer_length, nothing)
        best = next((span for span in listed if span.text), None)
        answers.nbest[question.id] = _candidates(listed)
        if null is None:
            answers.predictions[question.id] = listed[0].text
            continue
        odds = null[0] - best.start - best.end if best else null[0]
        answers.null_odds[question.id] = odds
        answers.predictions[question.id] = best.text if best and odds <= threshold else ""
    return answers


def write(answers: Answers, directory: epath.PathLike) -> None:
    """Write ``predictions.json``, ``nbest_predictions.json`` and, for SQuAD 2.0, ``null_odds.json``.

    Raises:
      UserError: one of the files exists already; nothing is written then.
    """
    directory = epath.Path(directory)
    contents = {PREDICTIONS: answers.predictions, NBEST: answers.nbest, ODDS: answers.null_odds}
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            if content or name != ODDS:
                stack.enter_context(atomic.new_path(directory / name)).write_text(json.dumps(content, indent=4) + "\n")


def _groups(questions: Sequence[Question], features: Sequence[Feature]) -> list[list[int]]:
    """Indices of the features of each question."""
    groups = [[*group] for _, group in itertools.groupby(range(len(features)), key=lambda index: features[index].question)]
    indices = [features[group[0]].question for group in groups]
    first = indices[0] if indices else 0
    if indices != [*range(first, first + len(questions))]:
        raise UserError(
            f"The features of {len(indices):,} questions do not match the {len(questions):,} questions that are given; give all "
            "features of consecutive questions, in order."
        )
    return groups


def _logits(question: Question, feature: Feature, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Both logits, float64 [2, N], because the original sums them in float64."""
    size = (len(feature.text.ids),)
    if not np.shape(start) == np.shape(end) == size:
        raise UserError(
            f"{question.where}: logits of shapes {np.shape(start)} and {np.shape(end)} for a window of {size[0]} tokens; give one "
            "start and one end for every token, and none for padding."
        )
    both = np.stack([start, end]).astype(np.float64)
    if not np.isfinite(both).all():
        raise RunError(f"{question.where}: the model's logits are not finite; its parameters are damaged.")
    return both


def _pairs(index: int, feature: Feature, logits: np.ndarray, n_best: int, max_answer_length: int) -> _Pairs:
    """The pairs of one window that count, sorted by start and then by end, the best first."""
    count = len(feature.spans)
    # Tokens are ranked before those outside of the context are removed, as in the original; ties keep their order.
    first, last = np.argsort(-logits, axis=1, kind="stable")[:, :n_best] - feature.offset
    first = first[(first >= 0) & (first < count)]
    first = first[feature.max_context[first]]
    last = last[(last >= 0) & (last < count)]
    length = last - first[:, None] + 1
    rows, columns = np.nonzero((length > 0) & (length <= max_answer_length))
    first, last = first[rows], last[columns]
    start, end = logits[0, first + feature.offset], logits[1, last + feature.offset]
    return _Pairs(np.full(len(first), index), first, last, start, end)


def _best(
    question: Question,
    features: Sequence[Feature],
    logits: Sequence[np.ndarray],
    n_best: int,
    max_answer_length: int,
    nothing: _Span | None,
) -> list[_Span]:
    """The best answers with different texts, at least one; no answer is among or after them if it is allowed."""
    windows = [_pairs(index, feature, logits[index], n_best, max_answer_length) for index, feature in enumerate(features)]
    pairs = _Pairs(*(np.concatenate(column) for column in zip(*windows, strict=True)))
    # The sort is stable: ties keep their order, and no answer comes last.
    scores = np.append(pairs.start + pairs.end, [nothing.start + nothing.end] if nothing else [])
    listed: dict[str, _Span] = {}
    for pair in np.argsort(-scores, kind="stable").tolist():
        if len(listed) == n_best:
            break
        if nothing and pair == len(scores) - 1:
            listed[""] = nothing
            continue
        spans = features[int(pairs.feature[pair])].spans
        # Tokens may cover only a space, or nothing.
        text = question.context[spans[pairs.first[pair], 0] : spans[pairs.last[pair], 1]].strip()
        if text and text not in listed:
            listed[text] = _Span(text, float(pairs.start[pair]), float(pairs.end[pair]))
    if nothing:
        listed.setdefault("", nothing)
    return [*listed.values()] or [_Span(_NOTHING, 0.0, 0.0)]


def _candidates(listed: Sequence[_Span]) -> list[Candidate]:
    scores = [span.start + span.end for span in listed]
    highest = max(scores)
    exponentials = [math.exp(score - highest) for score in scores]
    total = sum(exponentials)
    return [
        Candidate(text=span.text, probability=exponential / total, start_logit=span.start, end_logit=span.end)
        for span, exponential in zip(listed, exponentials, strict=True)
    ]

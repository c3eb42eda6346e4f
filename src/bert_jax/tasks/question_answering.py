"""SQuAD as a task: windows in, answers out (Devlin et al. 2018, sections 4.2 and 4.3)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.config.validation import require
from bert_jax.tasks import squad, squad_answers
from bert_jax.tasks.example import Asked, Example, Scores, Source, Split, find_split
from bert_jax.tasks.metrics import squad as scoring
from bert_jax.tasks.squad import Feature, Question
from bert_jax.tasks.squad_answers import Answers

# Questions whose windows are scored at a time.
_CHUNK = 512


def train(source: Source) -> list[Example]:
    """Windows of all training questions.

    Raises:
      UserError: the file is missing, or a question is refused.
    """
    questions = squad.read(_file(source, "train"), training=True)
    if source.task == "squad":
        impossible = [question.where for question in questions if question.impossible]
        require(not impossible, f"{(impossible or [''])[0]}: no answer, which SQuAD 1.1 does not know; use the task squad2.")
    return [_example(feature) for feature in _features(source, questions, training=True)]


def split(source: Source, name: str, threshold: float) -> Split:
    """A split with the official scores; ``threshold`` is the null odds above which no answer is given."""
    questions = squad.read(_file(source, name), training=False)
    features = _features(source, questions, training=False)
    read = functools.partial(_answers, source, questions, features, threshold)
    gold = {question.id: [answer.text for answer in question.answers] for question in questions}

    def score(outputs: Sequence[np.ndarray]) -> Scores:
        found = read(outputs)
        version: scoring.Version = "2.0" if source.task == "squad2" else "1.1"
        # The threshold has been applied to the predictions already.
        raw = read(outputs, np.inf).predictions if source.task == "squad2" else found.predictions
        if source.task == "squad":
            return dict(scoring.score(gold, raw, version=version))
        return dict(scoring.score(gold, raw, found.null_odds, threshold=threshold, version=version))

    return Split([_example(feature) for feature in features], score, lambda outputs, path: squad_answers.write(read(outputs), path))


def stream(source: Source, path: epath.PathLike, threshold: float) -> Iterator[Asked]:
    """A file's questions, some hundred at a time."""
    questions = iter(squad.read(path, training=False, skip_misplaced=True))
    while chunk := list(itertools.islice(questions, _CHUNK)):
        features = _features(source, chunk, training=False)
        results = functools.partial(_results, functools.partial(_answers, source, chunk, features, threshold))
        yield Asked([_example(feature) for feature in features], results)


def _features(source: Source, questions: Sequence[Question], *, training: bool) -> list[Feature]:
    reading = source.reading
    return squad.features(
        source.tokenizer, questions, length=reading.length, stride=reading.stride, query=reading.query, training=training
    )


def _example(feature: Feature) -> Example:
    return Example((feature.part,), feature.answer)


def _answers(
    source: Source,
    questions: Sequence[Question],
    features: Sequence[Feature],
    threshold: float,
    outputs: Sequence[np.ndarray],
    other: float | None = None,
) -> Answers:
    return squad_answers.answer(
        questions,
        features,
        [each[:, 0] for each in outputs],
        [each[:, 1] for each in outputs],
        n_best=source.reading.n_best,
        longest=source.reading.longest,
        threshold=threshold if other is None else other,
        negative=source.task == "squad2",
    )


def _results(read: Callable[[Sequence[np.ndarray]], Answers], outputs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    found = read(outputs)
    return [
        {"id": key, "answer": answer, "candidates": found.nbest[key]}
        | ({"null_odds": found.null_odds[key]} if key in found.null_odds else {})
        for key, answer in found.predictions.items()
    ]


def _file(source: Source, name: str) -> epath.Path:
    """A split's file, under SQuAD's own name for it or ours."""
    version = "2.0" if source.task == "squad2" else "1.1"
    names = {split: (f"{split}-v{version}", split) for split in ("train", "dev", "test")}
    return find_split(source.data, name, names, (".json", ".json.gz"))

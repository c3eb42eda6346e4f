"""Extractive question answering on SQuAD 1.1 and 2.0 (Devlin et al. 2018, sections 4.2 and 4.3)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import squad, squad_answers
from bert_jax.tasks.example import Example, Outputs, Scores, Source, Split, StreamChunk, find_split
from bert_jax.tasks.label_layout import SpanLabels
from bert_jax.tasks.metrics import squad as squad_metrics
from bert_jax.tasks.squad import Feature, Question
from bert_jax.tasks.squad_answers import Answers

# Questions with windows that are scored at a time.
_CHUNK = 512
# A logit that no other one comes near.
_CERTAIN = 1e3


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
    """Answers to questions as spans of a context; in version 2.0 a question may have no answer.

    Examples:
      >>> QuestionAnswering("squad2", version="2.0").main_score
      'best_f1'
    """

    name: str
    version: squad_metrics.Version

    head = "question_answering"
    dev_splits = ("dev",)
    perfect = 100.0
    named_outputs = False

    @property
    def main_score(self) -> str:
        """F1; for version 2.0 at the best threshold, because the threshold is chosen on the development set."""
        return "best_f1" if self._unanswerable else "f1"

    def outputs(self, labels: Sequence[str]) -> int:
        """Two: start and end."""
        return 2

    def label_layout(self, outputs: int) -> SpanLabels:
        """int32 [B, E, 2]."""
        return SpanLabels()

    def train(self, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        """Windows of all training questions."""
        path, skip = self._file(source, "train"), source.task_data.skip_misplaced
        questions = squad.read(path, training=True, skip_misplaced=skip)
        self._check(questions)
        return [_example(feature) for feature in _features(source, questions, training=True)], ()

    def split(self, source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
        """A split with the scores of the official scripts."""
        questions = squad.read(self._file(source, name), training=False, skip_misplaced=source.task_data.skip_misplaced)
        self._check(questions)
        features = _features(source, questions, training=False)
        answers_of = functools.partial(self._answers, source, questions, features)
        gold = {question.id: [answer.text for answer in question.answers] for question in questions}

        def score(outputs: Outputs) -> Scores:
            if not self._unanswerable:
                unknown = next((question.where for question in questions if not question.answers), None)
                if unknown is not None:
                    raise UserError(f"{unknown}: there is no answer to score against; remove the question, or predict the file.")
                return dict(squad_metrics.score(gold, answers_of(threshold, outputs).predictions, version=self.version))
            # The metric applies the threshold itself, to the best answers.
            best = answers_of(np.inf, outputs)
            return dict(squad_metrics.score(gold, best.predictions, best.null_odds, threshold=threshold, version=self.version))

        def write(outputs: Outputs, directory: epath.Path) -> None:
            squad_answers.write(answers_of(threshold, outputs), directory)

        files = (squad_answers.PREDICTIONS, squad_answers.NBEST) + ((squad_answers.ODDS,) if self._unanswerable else ())
        return Split([_example(feature) for feature in features], score, write, files)

    def stream(
        self, source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0
    ) -> Iterator[StreamChunk]:
        """The questions of a file, a few hundred at a time."""
        questions = iter(squad.read(path, training=False, skip_misplaced=True))
        while chunk := list(itertools.islice(questions, _CHUNK)):
            features = _features(source, chunk, training=False)
            answers_of = functools.partial(self._answers, source, chunk, features, threshold)
            yield StreamChunk([_example(feature) for feature in features], functools.partial(_results, answers_of))

    def facts(self, source: Source, split: str) -> dict[str, str | int]:
        """The file, its questions, and how many of them have no answer."""
        path = self._file(source, split)
        with warnings.catch_warnings():
            # Reading the examples has warned already.
            warnings.simplefilter("ignore", BertWarning)
            questions = squad.read(path, training=split == "train", skip_misplaced=True)
        return {"file": str(path), "questions": len(questions), "impossible": sum(question.impossible for question in questions)}

    def constant_score(self, examples: Sequence[Example], labels: Sequence[str], split: Split) -> float:
        """Score of answering no question in version 2.0; 0 in version 1.1, which has no constant answer."""
        outputs = [np.zeros((len(example.texts[0].ids), 2)) for example in split.examples]
        for logits in outputs:
            # [CLS] as start and end stands for no answer.
            logits[0] = _CERTAIN
        score = split.score(outputs)[self.main_score]
        return score if self._unanswerable else 0.0

    def _check(self, questions: Sequence[Question]) -> None:
        """Refuse questions without an answer in version 1.1."""
        unanswerable = next((question.where for question in questions if question.impossible), None)
        if not self._unanswerable and unanswerable is not None:
            raise UserError(f"{unanswerable}: the question has no answer, which SQuAD 1.1 does not allow; use the task squad2.")

    @property
    def _unanswerable(self) -> bool:
        return self.version == "2.0"

    def _answers(
        self, source: Source, questions: Sequence[Question], features: Sequence[Feature], threshold: float, outputs: Outputs
    ) -> Answers:
        return squad_answers.answer(
            questions,
            features,
            [logits[:, 0] for logits in outputs],
            [logits[:, 1] for logits in outputs],
            n_best=source.task_data.n_best,
            max_answer_length=source.task_data.max_answer_length,
            threshold=threshold,
            negative=self._unanswerable,
        )

    def _file(self, source: Source, split: str) -> epath.Path:
        """The file of a split, under SQuAD's own name or a short one."""
        names = {name: (f"{name}-v{self.version}", name) for name in ("train", "dev", "test")}
        return find_split(source.data, split, names, (".json", ".json.gz"))


def _features(source: Source, questions: Sequence[Question], *, training: bool) -> list[Feature]:
    task_data = source.task_data
    return squad.features(
        source.tokenizer,
        questions,
        sequence_length=task_data.sequence_length,
        doc_stride=task_data.doc_stride,
        max_query_length=task_data.max_query_length,
        training=training,
    )


def _example(feature: Feature) -> Example:
    return Example((feature.text,), feature.answer)


def _results(answers_of: Callable[[Outputs], Answers], outputs: Outputs) -> list[dict[str, Any]]:
    answers = answers_of(outputs)
    return [
        {"id": key, "answer": answer, "candidates": answers.nbest[key]}
        | ({"null_odds": answers.null_odds[key]} if key in answers.null_odds else {})
        for key, answer in answers.predictions.items()
    ]

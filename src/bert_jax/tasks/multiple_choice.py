"""Multiple choice on SWAG: one text for each ending, a score for each text (Devlin et al. 2018, section 4.4)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.data import windows
from bert_jax.errors import UserError
from bert_jax.tasks import metrics, records, swag
from bert_jax.tasks.example import EncodedText, Example, Outputs, Scores, Source, Split, StreamChunk, find_split, probabilities
from bert_jax.tasks.label_layout import ChoiceLabels
from bert_jax.tasks.swag import Question
from bert_jax.tokenizers import Tokenizer

_FILES = {"train": ("train",), "dev": ("val", "dev"), "test": ("test",)}
_PREDICTIONS = "predictions.csv"
_ENDINGS = (".csv", ".csv.gz")
# Questions that are read and scored at a time.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """The right one of several endings of a text.

    Examples:
      >>> MultipleChoice("swag").outputs(())
      1
    """

    name: str

    head = "multiple_choice"
    main_score = "accuracy"
    dev_splits = ("dev",)
    perfect = 1.0
    named_outputs = False

    def outputs(self, labels: Sequence[str]) -> int:
        """One: the score of a text."""
        return 1

    def label_layout(self, outputs: int) -> ChoiceLabels:
        """int32 [B, E / choices]."""
        return ChoiceLabels()

    def train(self, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        """Training questions."""
        questions = swag.read(find_split(source.data, "train", _FILES, _ENDINGS))
        _require_labels(questions)
        return encode(source.tokenizer, questions, sequence_length=source.task_data.sequence_length), ()

    def split(self, source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
        """A split with its accuracy."""
        questions = swag.read(find_split(source.data, name, _FILES, _ENDINGS))
        examples = encode(source.tokenizer, questions, sequence_length=source.task_data.sequence_length)
        ids = [question.id for question in questions]

        def write(outputs: Outputs, directory: epath.Path) -> None:
            swag.write(directory / _PREDICTIONS, ids, [int(np.argmax(logits)) for logits in outputs])

        return Split(examples, functools.partial(_score, questions), write, (_PREDICTIONS,))

    def stream(
        self, source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0
    ) -> Iterator[StreamChunk]:
        """The questions of a file, a thousand at a time."""
        for chunk in records.chunks(swag.stream(path, labelled=False), _CHUNK):
            examples = encode(source.tokenizer, chunk, sequence_length=source.task_data.sequence_length)
            yield StreamChunk(examples, functools.partial(_results, [question.id for question in chunk]))

    def facts(self, source: Source, split: str) -> dict[str, str | int]:
        """The file."""
        return {"file": str(find_split(source.data, split, _FILES, _ENDINGS))}

    def constant_score(self, examples: Sequence[Example], labels: Sequence[str], split: Split) -> float:
        """Score of the position that is most often right in the training questions."""
        known, choices = np.array([example.label for example in examples if example.label is not None]), len(examples[0].texts)
        constant = np.eye(choices)[np.argmax(np.bincount(known, minlength=choices))]
        return split.score([constant] * len(split.examples))[self.main_score]


def encode(tokenizer: Tokenizer, questions: Sequence[Question], *, sequence_length: int = 128) -> list[Example]:
    """One text for each ending of each question: [CLS] the sentence [SEP] the start of the next one and its ending [SEP].

    A pair that is too long loses tokens at the end of its longer text, as in the original's ``run_classifier.py``. ``label``
    is int32 [], the right ending.

    Args:
      tokenizer: the model's.
      questions: questions with the same number of endings.
      sequence_length: maximum tokens of a text, special tokens included.

    Raises:
      UserError: questions have different numbers of endings, or the sequence length leaves no room for text.
    """
    count = len(questions[0].endings) if questions else 0
    for question in questions:
        if len(question.endings) != count:
            raise UserError(
                f"{question.where} has {len(question.endings)} endings, {questions[0].where} has {count}; use the same number."
            )
    pairs = [(question.context, f"{question.start} {ending}") for question in questions for ending in question.endings]
    encoded = windows.cut(tokenizer, pairs, sequence_length=sequence_length, long="truncate")
    texts = [EncodedText(window.ids, window.first, window.truncated) for window in encoded]
    return [
        Example(
            tuple(texts[index * count : (index + 1) * count]),
            None if question.label is None else np.array(question.label, np.int32),
        )
        for index, question in enumerate(questions)
    ]


def _require_labels(questions: Sequence[Question]) -> None:
    for question in questions:
        if question.label is None:
            raise UserError(f"{question.where} has no label; training and scoring need one.")


def _score(questions: Sequence[Question], outputs: Outputs) -> Scores:
    _require_labels(questions)
    gold = np.array([question.label for question in questions])
    return metrics.score(("accuracy",), gold, np.array([np.argmax(logits) for logits in outputs]))


def _results(ids: Sequence[str], outputs: Outputs) -> list[dict[str, Any]]:
    return [
        {
            "id": question_id,
            "choice": int(np.argmax(logits)),
            "probabilities": [round(float(probability), 6) for probability in probabilities(logits)],
        }
        for question_id, logits in zip(ids, outputs, strict=True)
    ]

"""Classification and regression of texts and pairs: the tasks of GLUE and own tables (Devlin et al. 2018, section 4.1)."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.tasks import glue, metrics, record_labels, records, tables
from bert_jax.tasks.example import Example, Outputs, Scores, Source, Split, StreamChunk, probabilities
from bert_jax.tasks.glue import Glue
from bert_jax.tasks.label_layout import ExampleLabels
from bert_jax.tasks.tables import Record


@dataclasses.dataclass(frozen=True)
class _SequenceTask(abc.ABC):
    """A task with one label for each text or pair, on own tables or, with a description, on a task of GLUE."""

    name: str
    glue: Glue | None = None

    perfect = 1.0
    _null: ClassVar[dict[str, None]]
    """The result of an empty text."""

    @property
    def main_score(self) -> str:
        """The paper's score for a task of GLUE; accuracy or Pearson correlation otherwise."""
        return self.glue.main_score if self.glue else self._metrics[0]

    @property
    def dev_splits(self) -> tuple[str, ...]:
        files = self.glue.files if self.glue else {}
        return tuple(split for split in files if split.startswith("dev")) or ("dev",)

    def train(self, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        """Training examples and the names of their classes, which are empty for scores."""
        rows = self._read(source, "train")
        names = self.glue.labels if self.glue else self._names(rows)
        return self._examples(source, rows, names), names

    def split(self, source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
        """A split with its official scores; a test split is written as a submission to GLUE's server."""
        rows = self._read(source, name)
        examples = self._examples(source, rows, labels)
        score = functools.partial(self._score, labels, examples)
        return Split(examples, score, functools.partial(self._write, name, rows, labels), (self._file(name),))

    def stream(
        self, source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0
    ) -> Iterator[StreamChunk]:
        """The records of a file, a few thousand at a time."""
        columns = records.columns_of(source.task_data)
        if self.glue and dataclasses.replace(columns, quoting=None) == tables.Columns():
            texts = self.glue.files["test"].texts
            columns = dataclasses.replace(columns, text=texts[0], text_b=texts[1] if len(texts) > 1 else "text_b")
        if self.glue and columns.quoting is None and ".tsv" in epath.Path(path).suffixes:
            columns = dataclasses.replace(columns, quoting="none")
        return records.stream(source, path, columns, lambda rows, outputs: self._results(rows, labels, outputs), null=self._null)

    def facts(self, source: Source, split: str) -> dict[str, str | int]:
        """The file and how it is read."""
        return {"file": glue.place(self.name, source.data, split)} if self.glue else records.facts(source, split)

    def constant_score(self, examples: Sequence[Example], labels: Sequence[str], split: Split) -> float:
        """Score of the most frequent class, or of the mean score, of the training examples."""
        known = np.concatenate([np.ravel(example.label) for example in examples if example.label is not None])
        return split.score([self._constant(known, labels)] * len(split.examples))[self.main_score]

    @property
    @abc.abstractmethod
    def _metrics(self) -> tuple[str, ...]:
        """Names of the scores, the main one first."""

    @abc.abstractmethod
    def _names(self, rows: Sequence[Record]) -> tuple[str, ...]:
        """Names of the outputs."""

    @abc.abstractmethod
    def _values(self, rows: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
        """The label of each record as a number."""

    @abc.abstractmethod
    def _predicted(self, outputs: Outputs) -> np.ndarray:
        """The predicted class or score of each example."""

    @abc.abstractmethod
    def _results(self, rows: Sequence[Record], labels: Sequence[str], outputs: Outputs) -> list[dict[str, Any]]:
        """A JSON object for each record."""

    @abc.abstractmethod
    def _constant(self, known: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        """Outputs that predict the most frequent answer among the known labels."""

    def _read(self, source: Source, split: str) -> list[Record]:
        return glue.read(self.name, source.data, split) if self.glue else records.read_split(source, self.name, split)

    def _examples(self, source: Source, rows: Sequence[Record], labels: Sequence[str]) -> list[Example]:
        texts = records.encode(source.tokenizer, rows, sequence_length=source.task_data.sequence_length)
        if not rows or any(record.label is None for record in rows):
            return [Example((text,), None) for text in texts]
        return [Example((text,), value) for text, value in zip(texts, self._values(rows, labels), strict=True)]

    def _score(self, labels: Sequence[str], examples: Sequence[Example], outputs: Outputs) -> Scores:
        if any(example.label is None for example in examples):
            raise UserError("This split has no labels to score against; predict it instead.")
        gold, predicted = np.array([example.label for example in examples]), self._predicted(outputs)
        names = self.glue.metrics if self.glue else self._metrics
        positive = None if self.glue is None or self.glue.positive is None else [*labels].index(self.glue.positive)
        return metrics.score(names, gold, predicted, positive=positive)

    def _write(self, split: str, rows: Sequence[Record], labels: Sequence[str], outputs: Outputs, directory: epath.Path) -> None:
        """A submission for a test split of GLUE; the results as JSON lines otherwise."""
        if self.glue and split in self.glue.submissions:
            ids = [record.id for record in rows]
            glue.write_submission(self.name, split, ids, self._predicted(outputs), labels, directory)
        else:
            records.write_results(directory / self._file(split), self._results(rows, labels, outputs))

    def _file(self, split: str) -> str:
        return self.glue.submissions[split] if self.glue and split in self.glue.submissions else f"{split}.jsonl"


@dataclasses.dataclass(frozen=True)
class SequenceClassification(_SequenceTask):
    """One class for each text or pair.

    Examples:
      >>> SequenceClassification("classify").outputs(("no", "yes"))
      2
    """

    head = "sequence_classification"
    named_outputs = True
    _null: ClassVar = {"label": None, "probabilities": None}
    _metrics = ("accuracy", "macro_f1", "matthews")

    def outputs(self, labels: Sequence[str]) -> int:
        """One for each class."""
        return len(labels)

    def label_layout(self, outputs: int) -> ExampleLabels:
        """int32 [B, E]."""
        return ExampleLabels()

    def _names(self, rows: Sequence[Record]) -> tuple[str, ...]:
        return record_labels.class_labels(rows)

    def _values(self, rows: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
        return record_labels.class_ids(rows, labels)

    def _predicted(self, outputs: Outputs) -> np.ndarray:
        return np.array([np.argmax(logits) for logits in outputs])

    def _results(self, rows: Sequence[Record], labels: Sequence[str], outputs: Outputs) -> list[dict[str, Any]]:
        results = []
        for record, logits in zip(rows, outputs, strict=True):
            rounded = [round(float(probability), 6) for probability in probabilities(logits)]
            by_label = dict(zip(labels, rounded, strict=True))
            results.append({"id": record.id, "label": labels[int(np.argmax(logits))], "probabilities": by_label})
        return results

    def _constant(self, known: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        return np.eye(len(labels))[np.argmax(np.bincount(known, minlength=len(labels)))]


@dataclasses.dataclass(frozen=True)
class Regression(_SequenceTask):
    """A score for each text or pair."""

    head = "regression"
    named_outputs = False
    _null: ClassVar = {"score": None}
    _metrics = ("pearson", "spearman", "mae")

    def outputs(self, labels: Sequence[str]) -> int:
        """One."""
        return 1

    def label_layout(self, outputs: int) -> ExampleLabels:
        """float32 [B, E]."""
        return ExampleLabels(np.float32)

    def _names(self, rows: Sequence[Record]) -> tuple[str, ...]:
        return ()

    def _values(self, rows: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
        return record_labels.scores(rows)

    def _predicted(self, outputs: Outputs) -> np.ndarray:
        return np.array([logits[0] for logits in outputs])

    def _results(self, rows: Sequence[Record], labels: Sequence[str], outputs: Outputs) -> list[dict[str, Any]]:
        return [{"id": record.id, "score": float(logits[0])} for record, logits in zip(rows, outputs, strict=True)]

    def _constant(self, known: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        return np.array([known.mean()])

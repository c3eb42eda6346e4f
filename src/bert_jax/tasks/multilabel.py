"""Classification of texts and pairs with any number of labels each, on own tables."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tasks import metrics, record_labels, records
from bert_jax.tasks.example import Example, Outputs, Scores, Source, Split, StreamChunk
from bert_jax.tasks.label_layout import ExampleLabels
from bert_jax.tasks.table_files import listed
from bert_jax.tasks.tables import Record

THRESHOLDS = "thresholds.json"
"""File with the threshold of each label that has the best F1 on a split."""

_THRESHOLD = 0.5
# A logit with the probability 1, or, with a minus sign, 0.
_CERTAIN = 1e3


@dataclasses.dataclass(frozen=True)
class MultilabelClassification:
    """Any number of labels for each text or pair; each label is an independent decision (a sigmoid output).

    Files are tables: the label column holds the labels of a row with commas between them, a JSON list in ``.jsonl``, and is
    empty for a row without labels.

    Examples:
      >>> MultilabelClassification("multilabel").outputs(("news", "sport", "weather"))
      3
    """

    name: str

    head = "multilabel_classification"
    main_score = "micro_f1"
    dev_splits = ("dev",)
    perfect = 1.0
    named_outputs = True

    def outputs(self, labels: Sequence[str]) -> int:
        """One for each label."""
        return len(labels)

    def label_layout(self, outputs: int) -> ExampleLabels:
        """float32 [B, E, C]: 1 for each label of an example, else 0."""
        return ExampleLabels(np.float32, classes=outputs)

    def train(self, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        """Training examples and the sorted names of their labels."""
        rows = records.read_split(source, self.name, "train", multilabel=True)
        labels = record_labels.label_names(rows)
        return self._examples(source, rows, labels), labels

    def split(self, source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
        """A split with micro-averaged F1, macro-averaged F1, and the fraction of examples with exactly the right labels."""
        rows = records.read_split(source, self.name, name, multilabel=True)
        examples, thresholds = self._examples(source, rows, labels), _thresholds(source, labels)
        score = functools.partial(self._score, thresholds, examples)
        write = functools.partial(self._write, name, thresholds, rows, examples, labels)
        return Split(examples, score, write, (f"{name}.jsonl", *([THRESHOLDS] if name == "dev" else [])))

    def stream(
        self, source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0
    ) -> Iterator[StreamChunk]:
        """The records of a file, a few thousand at a time."""
        thresholds, columns = _thresholds(source, labels), records.columns_of(source.task_data)
        null = {"labels": None, "probabilities": None}
        return records.stream(
            source, path, columns, lambda rows, outputs: self._results(thresholds, rows, labels, outputs), null=null
        )

    def facts(self, source: Source, split: str) -> dict[str, str | int]:
        """The file and how it is read."""
        return records.facts(source, split)

    def constant_score(self, examples: Sequence[Example], labels: Sequence[str], split: Split) -> float:
        """Score of predicting each label that more than half of the training examples have."""
        constant = np.where(_gold(examples).mean(0) > 0.5, _CERTAIN, -_CERTAIN)
        return split.score([constant] * len(split.examples))[self.main_score]

    def _examples(self, source: Source, rows: Sequence[Record], labels: Sequence[str]) -> list[Example]:
        texts = records.encode(source.tokenizer, rows, sequence_length=source.task_data.sequence_length)
        if not rows or any(record.labels is None for record in rows):
            return [Example((text,), None) for text in texts]
        return [Example((text,), row) for text, row in zip(texts, record_labels.label_matrix(rows, labels), strict=True)]

    def _score(self, thresholds: np.ndarray, examples: Sequence[Example], outputs: Outputs) -> Scores:
        gold = _gold(examples)
        if len(gold) < len(examples):
            raise UserError("This split has no labels to score against; predict it instead.")
        probability = _probabilities(outputs)
        metrics.require_finite(probability)
        return metrics.multilabel_scores(gold, probability >= thresholds)

    def _write(
        self,
        split: str,
        thresholds: np.ndarray,
        rows: Sequence[Record],
        examples: Sequence[Example],
        labels: Sequence[str],
        outputs: Outputs,
        directory: epath.Path,
    ) -> None:
        """The results as JSON lines and, for the development split, the threshold of each label with the best F1."""
        records.write_results(directory / f"{split}.jsonl", self._results(thresholds, rows, labels, outputs))
        if split != "dev":
            return
        best = map(metrics.best_threshold, _gold(examples).T, _probabilities(outputs).T)
        content = {label: {"threshold": threshold, "f1": f1} for label, (threshold, f1) in zip(labels, best, strict=True)}
        with atomic.new_path(directory / THRESHOLDS) as path:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _results(
        self, thresholds: np.ndarray, rows: Sequence[Record], labels: Sequence[str], outputs: Outputs
    ) -> list[dict[str, Any]]:
        results = []
        for record, probability in zip(rows, _probabilities(outputs), strict=True):
            predicted = [label for label, positive in zip(labels, probability >= thresholds, strict=True) if positive]
            by_label = {label: round(float(value), 6) for label, value in zip(labels, probability, strict=True)}
            results.append({"id": record.id, "labels": predicted, "probabilities": by_label})
        return results


def _gold(examples: Sequence[Example]) -> np.ndarray:
    """Labels of the examples with known labels, bool [N, C]."""
    return np.array([example.label for example in examples if example.label is not None], np.bool_)


def _probabilities(outputs: Outputs) -> np.ndarray:
    """Sigmoid of all outputs, float64 [N, C]."""
    # Imported late: it takes a tenth of a second.
    from scipy import special

    probability: np.ndarray = special.expit(np.stack(outputs).astype(np.float64))
    return probability


def _thresholds(source: Source, labels: Sequence[str]) -> np.ndarray:
    """The threshold of each label, float64 [C]."""
    thresholds = source.task_data.thresholds or (_THRESHOLD,)
    if len(thresholds) not in (1, len(labels)):
        raise UserError(
            f"There are {len(thresholds)} thresholds for {len(labels)} labels; give one for all, or one for each of "
            f"{listed(labels)} in this order."
        )
    return np.broadcast_to(np.array(thresholds, np.float64), len(labels))

"""Classification and regression of texts and pairs: GLUE's tasks and anybody's tables."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.config.validation import require
from bert_jax.data import windows
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tasks import glue, metrics, tables
from bert_jax.tasks.example import Asked, Example, Part, Scores, Source, Split, probabilities
from bert_jax.tasks.tables import Record
from bert_jax.tokenizers import Tokenizer

_METRICS: dict[str, tuple[str, ...]] = {"classify": ("accuracy", "macro_f1", "matthews"), "regress": ("pearson", "spearman", "mae")}
_MAIN = {"classify": "accuracy", "regress": "pearson"}
# Records that are read, scored and written at a time.
_CHUNK = 4096


def head(task: str) -> str:
    """The head that a task stands on: "classify" or "regress"."""
    if task in glue.TASKS:
        return "classify" if glue.TASKS[task].labels else "regress"
    return task


def main_score(task: str) -> str:
    """The score by which models of a task are compared: the paper's in GLUE, accuracy or Pearson's correlation else."""
    return glue.TASKS[task].headline if task in glue.TASKS else _MAIN[task]


def train(source: Source) -> tuple[list[Example], tuple[str, ...]]:
    """Training examples, and the names of their classes, none for scores.

    Raises:
      UserError: as the readers of files say.
    """
    records = _read(source, "train")
    if source.task in glue.TASKS:
        names = glue.TASKS[source.task].labels
    else:
        names = tables.class_labels(records) if head(source.task) == "classify" else ()
    return _examples(source, records, names), names


def splits(task: str) -> tuple[str, ...]:
    """Splits that a task is evaluated on."""
    names = glue.TASKS[task].files if task in glue.TASKS else ("dev",)
    return tuple(name for name in names if name.startswith("dev")) or ("dev",)


def split(source: Source, name: str, labels: Sequence[str]) -> Split:
    """A split with its scores.

    Args:
      source: the task.
      name: "dev", "test", of MNLI also "dev_mismatched" and "test_mismatched".
      labels: the model's classes, in the order of its outputs.

    Raises:
      UserError: it holds a label that the model does not know; and as the readers of files say.
    """
    records = _read(source, name)
    examples = _examples(source, records, labels)
    score = functools.partial(_score, source.task, labels, examples)
    return Split(examples, score, functools.partial(_write, source.task, name, records, labels))


def stream(source: Source, path: epath.PathLike, labels: Sequence[str]) -> Iterator[Asked]:
    """A file's records, a few thousand at a time; labels in it are not looked at."""
    task, columns = source.task, _columns(source)
    if task in glue.TASKS and columns == tables.Columns():
        texts = glue.TASKS[task].files["test"].texts
        columns = tables.Columns(text=texts[0], text_b=texts[1] if len(texts) > 1 else "text_b")
    records = tables.read(path, columns, labelled=False)
    while chunk := list(itertools.islice(records, _CHUNK)):
        unknown = [record._replace(label=None) for record in chunk]
        yield Asked(_examples(source, unknown, labels), functools.partial(_results, head(task), chunk, labels))


def _read(source: Source, name: str) -> list[Record]:
    if source.task in glue.TASKS:
        return glue.read(source.task, source.data, name)
    require(not source.data.startswith("tfds:"), f"{source.data}: only GLUE's tasks are read from TFDS; give files.")
    require(name in ("train", "dev", "test"), f"{source.task} has no split {name!r}; choose one of train, dev, test.")
    path = tables.split_file(source.data, name)
    return list(tables.read(path, _columns(source), labelled=name != "test"))


def _columns(source: Source) -> tables.Columns:
    reading = source.reading
    return tables.Columns(label=reading.label, text=reading.text, text_b=reading.text_b, order=reading.columns)


def _examples(source: Source, records: Sequence[Record], labels: Sequence[str]) -> list[Example]:
    parts = text_parts(source.tokenizer, [_text(record) for record in records], source.reading.length)
    if not records or any(record.label is None for record in records):
        return [Example((part,), None) for part in parts]
    values = tables.class_ids(records, labels) if head(source.task) == "classify" else tables.scores(records)
    return [Example((part,), value) for part, value in zip(parts, values, strict=True)]


def text_parts(tokenizer: Tokenizer, texts: Sequence[windows.Text], length: int) -> Iterator[Part]:
    """Texts and pairs as the model reads them, cut to ``length`` pieces from the end of the longer text."""
    for window in windows.cut(tokenizer, texts, limit=length, long="truncate"):
        yield Part(window.ids, window.first)


def _text(record: Record) -> windows.Text:
    return record.texts[0] if len(record.texts) == 1 else (record.texts[0], record.texts[1])


def _score(task: str, labels: Sequence[str], examples: Sequence[Example], outputs: Sequence[np.ndarray]) -> Scores:
    if any(example.label is None for example in examples):
        raise UserError("This split has no labels to score against; predict it instead.")
    gold, predicted = np.array([example.label for example in examples]), _predicted(head(task), outputs)
    names, positive = _METRICS[head(task)], None
    if task in glue.TASKS:
        names = glue.TASKS[task].metrics
        if (name := glue.TASKS[task].positive) is not None:
            positive = [*labels].index(name)
    return metrics.score(names, gold, predicted, positive=positive)


def _predicted(head: str, outputs: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([np.argmax(each) if head == "classify" else each[0] for each in outputs])


def _write(
    task: str, name: str, records: Sequence[Record], labels: Sequence[str], outputs: Sequence[np.ndarray], directory: epath.Path
) -> None:
    """GLUE's submission of a test split; of others the results as JSON lines."""
    if task in glue.TASKS and name in glue.TASKS[task].submissions:
        ids = [record.id for record in records]
        glue.write_submission(task, name, ids, _predicted(head(task), outputs), labels, directory)
        return
    with atomic.new(directory / f"{name}.jsonl") as path:
        lines = (json.dumps(found, ensure_ascii=False) for found in _results(head(task), records, labels, outputs))
        path.write_text("".join(f"{line}\n" for line in lines))


def _results(head: str, records: Sequence[Record], labels: Sequence[str], outputs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    if head == "regress":
        return [{"id": record.id, "score": float(each[0])} for record, each in zip(records, outputs, strict=True)]
    found = []
    for record, each in zip(records, outputs, strict=True):
        shares = probabilities(each)
        shown = {label: round(float(share), 6) for label, share in zip(labels, shares, strict=True)}
        found.append({"id": record.id, "label": labels[int(np.argmax(each))], "probabilities": shown})
    return found

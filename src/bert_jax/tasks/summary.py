"""A summary of a task's examples, which is shown before the first step and stored with the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.config.format import to_json
from bert_jax.tasks.example import Example, Source
from bert_jax.tasks.table_files import listed
from bert_jax.tasks.task import Task

FILE = "data.json"
"""File of a run directory with the summaries of its splits."""
# Heads whose examples are windows of longer texts, none of which is empty or truncated.
_WINDOWED = ("token_classification", "question_answering")
_CLASSES = {"token_classification": "tags", "multilabel_classification": "labels", "multiple_choice": "right positions"}
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}

Summary = Mapping[str, Any]
"""Facts about a split by name, as JSON values."""
Labels = Sequence[np.ndarray | np.generic]
"""The label of each example, as ``Example.label`` describes it."""


def summarize(task: Task, source: Source, splits: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> dict[str, Summary]:
    """What each split holds.

    Args:
      task: the task.
      source: its data.
      splits: the examples of each split.
      labels: names of the model's outputs.

    Returns:
      For each split ``file`` and what else the task tells of it; ``examples``; ``pairs``, whether texts are pairs; ``empty`` and
      ``truncated``, examples with such a text; and, if labels are known, ``classes`` with the count of each class, label, tag or
      right choice, ``without_labels`` for multi-label examples, or ``min``, ``max`` and ``mean`` of scores.
    """
    return {split: _summary(task, task.facts(source, split), examples, labels) for split, examples in splits.items()}


def _summary(task: Task, facts: Mapping[str, str | int], examples: Sequence[Example], labels: Sequence[str]) -> Summary:
    texts = [example.texts for example in examples]
    summary = {
        **facts,
        "examples": len(examples),
        "pairs": bool(examples) and texts[0][0].is_pair,
        "empty": sum(any(text.is_empty for text in row) for row in texts),
        "truncated": sum(any(text.truncated for text in row) for row in texts),
    }
    known = [example.label for example in examples if example.label is not None]
    describe = _LABELS.get(task.head)
    return summary | (describe(known, labels) if known and describe else {})


def to_file(summaries: Mapping[str, Summary]) -> str:
    """The summaries of all splits as JSON, with a format version."""
    return to_json(dict(summaries)) + "\n"


def lines(task: Task, summaries: Mapping[str, Summary], *, sequence_length: int) -> list[str]:
    """One line for each split.

    Args:
      task: the task.
      summaries: results of ``summarize`` by the names of the splits.
      sequence_length: maximum tokens of an example.
    """
    return [f"{split}: {_line(task, summary, sequence_length)}" for split, summary in summaries.items()]


def _line(task: Task, summary: Summary, sequence_length: int) -> str:
    windowed = task.head in _WINDOWED
    parts = [f"{summary['file']}{_dialect(summary)}"]
    if "questions" in summary:
        parts.append(f"{summary['questions']:,} questions, {summary['impossible']:,} without an answer")
    unit = "windows" if windowed else "pairs" if summary["pairs"] and task.head != "multiple_choice" else "examples"
    parts.append(f"{summary['examples']:,} {unit}")
    if not windowed:
        parts[-1] += f", {summary['empty']:,} with an empty text, {summary['truncated']:,} truncated to {sequence_length} tokens"
    if "classes" in summary:
        classes = summary["classes"]
        parts.append(
            f"{len(classes):,} {_CLASSES.get(task.head, 'classes')}: {listed(f'{name} {n:,}' for name, n in classes.items())}"
        )
    if "without_labels" in summary:
        parts[-1] += f"; {summary['without_labels']:,} without a label"
    if "mean" in summary:
        parts.append(f"scores from {summary['min']:g} to {summary['max']:g}, mean {summary['mean']:.4g}")
    return "; ".join(parts)


def _dialect(summary: Summary) -> str:
    if "delimiter" not in summary:
        return ""
    return f" (separated by {_DELIMITERS[summary['delimiter']]}s, quoting {summary['quoting']})"


def _classes(known: Labels, labels: Sequence[str]) -> dict[str, Any]:
    return {"classes": _counts(np.ravel(known), labels)}


def _tags(known: Labels, labels: Sequence[str]) -> dict[str, Any]:
    tags = np.concatenate(known)
    return {"classes": _counts(tags[tags >= 0], labels)}


def _multilabel(known: Labels, labels: Sequence[str]) -> dict[str, Any]:
    matrix = np.array(known) > 0
    return {
        "classes": dict(zip(labels, matrix.sum(0).tolist(), strict=True)),
        "without_labels": int((~matrix.any(1)).sum()),
    }


def _choices(known: Labels, labels: Sequence[str]) -> dict[str, Any]:
    values = np.ravel(known)
    return {"classes": _counts(values, [str(index) for index in range(values.max() + 1)])}


def _scores(known: Labels, labels: Sequence[str]) -> dict[str, Any]:
    values = np.ravel(known).astype(np.float64)
    return {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}


def _counts(ids: np.ndarray, labels: Sequence[str]) -> dict[str, int]:
    return dict(zip(labels, np.bincount(ids, minlength=len(labels)).tolist(), strict=True))


_LABELS: Mapping[str, Callable[[Labels, Sequence[str]], dict[str, Any]]] = {
    "sequence_classification": _classes,
    "multilabel_classification": _multilabel,
    "multiple_choice": _choices,
    "token_classification": _tags,
    "regression": _scores,
}

"""Records of tables as encoded texts, and results as JSON lines: shared by all tasks on tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.data import windows
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tasks import tables
from bert_jax.tasks.example import EncodedText, Source
from bert_jax.tasks.tables import Columns, Record
from bert_jax.tokenizers import Tokenizer


def columns_of(task_data: TaskDataConfig) -> Columns:
    """The names of a table's columns.

    Examples:
      >>> columns_of(TaskDataConfig(text="sentence")).text
      'sentence'
    """
    return Columns(label=task_data.label, text=task_data.text, text_b=task_data.text_b, order=task_data.columns)


def read_split(source: Source, task: str, split: str, *, multilabel: bool = False) -> list[Record]:
    """Records of a split; all but those of the test split must have a label.

    Raises:
      UserError: the data are in TFDS, there is no such split, or [`read`][bert_jax.tasks.tables.read] refuses the file.
    """
    if source.data.startswith("tfds:"):
        raise UserError(f"{source.data}: only the tasks of GLUE are read from TFDS; give files.")
    if split not in ("train", "dev", "test"):
        raise UserError(f"{task} has no split {split!r}; choose one of train, dev, test.")
    path = tables.split_file(source.data, split)
    return list(tables.read(path, columns_of(source.task_data), labelled=split != "test", multilabel=multilabel))


def encode(tokenizer: Tokenizer, records: Sequence[Record], *, sequence_length: int) -> list[EncodedText]:
    """The texts of each record as token ids, truncated to ``sequence_length`` tokens from the end of the longer text."""
    texts: list[windows.Text] = [
        record.texts[0] if len(record.texts) == 1 else (record.texts[0], record.texts[1]) for record in records
    ]
    encoded = windows.cut(tokenizer, texts, sequence_length=sequence_length, long="truncate")
    return [EncodedText(window.ids, window.first) for window in encoded]


def write_results(path: epath.Path, results: Iterable[dict[str, Any]]) -> None:
    """Write results as JSON lines.

    Raises:
      UserError: the file exists or cannot be made.
    """
    with atomic.new_path(path) as work:
        work.write_text("".join(f"{json.dumps(result, ensure_ascii=False)}\n" for result in results))

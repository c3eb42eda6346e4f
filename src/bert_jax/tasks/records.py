"""Records of tables as encoded texts, and results as JSON lines: shared by all tasks on tables."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.data import windows
from bert_jax.errors import BertWarning, UserError
from bert_jax.io import atomic
from bert_jax.tasks import delimited, table_files, tables
from bert_jax.tasks.example import EncodedText, Example, Outputs, Source, StreamChunk
from bert_jax.tasks.tables import Columns, Record
from bert_jax.tokenizers import Tokenizer

_T = TypeVar("_T")
# Records that are read, scored and written at a time.
_CHUNK = 4096


def columns_of(task_data: TaskDataConfig) -> Columns:
    """The names of a table's columns.

    Examples:
      >>> columns_of(TaskDataConfig(text="sentence")).text
      'sentence'
    """
    return Columns(task_data.label, task_data.text, task_data.text_b, task_data.columns, task_data.quoting)


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
    records = list(tables.read(path, columns_of(source.task_data), labelled=split != "test", multilabel=multilabel))
    _check_kind(source, records)
    if source.task_data.columns and not multilabel:
        _warn_of_header(records)
    return records


def facts(source: Source, split: str) -> dict[str, str | int]:
    """The file of a split, and how it is read if it is a table."""
    path = tables.split_file(source.data, split)
    if not table_files.is_table(path):
        return {"file": str(path)}
    return {"file": str(path), **delimited.dialect(path, source.task_data.columns, source.task_data.quoting)._asdict()}


def stream(
    source: Source,
    path: epath.PathLike,
    columns: Columns,
    results: Callable[[Sequence[Record], Outputs], list[dict[str, Any]]],
    *,
    null: Mapping[str, None],
) -> Iterator[StreamChunk]:
    """The records of a file, a few thousand at a time; those before a bad row are yielded before its error is raised.

    Args:
      source: the tokenizer, and how texts are read.
      path: the file, or ``-``.
      columns: names of its columns.
      results: computes the result of each record from the outputs.
      null: the result of a record with an empty text, without its id.

    Raises:
      UserError: as for [`read_texts`][bert_jax.tasks.tables.read_texts]; the texts are pairs where single texts are expected, or
        the reverse; or a text is empty and ``source.strict`` is set.
    """
    for rows in chunks(tables.read_texts(path, columns, empty=not source.strict), _CHUNK):
        _check_kind(source, rows)
        texts = encode(source.tokenizer, rows, sequence_length=source.task_data.sequence_length)
        first_empty = next((record for record, text in zip(rows, texts, strict=True) if text.is_empty), None)
        end = rows.index(first_empty) if source.strict and first_empty else len(rows)
        examples = [Example((text,), None) for text in texts[:end] if not text.is_empty]
        yield StreamChunk(examples, functools.partial(_with_nulls, results, null, rows[:end], texts[:end]))
        if source.strict and first_empty:
            raise UserError(f"{first_empty.where}: a text has no tokens; remove the row or write one.")


def chunks(rows: Iterator[_T], size: int) -> Iterator[list[_T]]:
    """Consecutive rows, ``size`` at a time; those before an error are yielded before it is raised.

    Examples:
      >>> list(chunks(iter(range(5)), 2))
      [[0, 1], [2, 3], [4]]
    """
    error: UserError | None = None
    more = True
    while more and not error:
        chunk: list[_T] = []
        try:
            for row in itertools.islice(rows, size):
                chunk.append(row)
        except UserError as caught:
            error = caught
        more = len(chunk) == size
        if chunk:
            yield chunk
    if error:
        raise error


def _with_nulls(
    results: Callable[[Sequence[Record], Outputs], list[dict[str, Any]]],
    null: Mapping[str, None],
    rows: Sequence[Record],
    texts: Sequence[EncodedText],
    outputs: Outputs,
) -> list[dict[str, Any]]:
    """The results of all rows; those with an empty text have no outputs."""
    answered = [record for record, text in zip(rows, texts, strict=True) if not text.is_empty]
    found = iter(results(answered, outputs) if answered else [])
    return [{"id": record.id, **null} if text.is_empty else next(found) for record, text in zip(rows, texts, strict=True)]


def _warn_of_header(records: Sequence[Record]) -> None:
    """Warn of a first row that looks like a header of other names than --columns gives."""
    counts = collections.Counter(record.label for record in records)
    first = records[0]
    alone = counts[first.label] == 1 < len(records) and sum(count == 1 for count in counts.values()) == 1
    # A score is no header.
    if alone and any(map(str.isalpha, first.label or "")):
        warnings.warn(
            BertWarning(
                f"{first.where} has the label {first.label!r}, which no other row has; if the row is a header, leave --columns out "
                "and name its columns with --label and --text."
            ),
            stacklevel=3,
        )


def _check_kind(source: Source, records: Sequence[Record]) -> None:
    """Refuse single texts where pairs are expected, and the reverse; all records of a file are of one kind."""
    if source.pairs is None or not records or (len(records[0].texts) == 2) == source.pairs:
        return
    where, second = records[0].where, source.task_data.text_b
    if source.pairs:
        raise UserError(
            f"{where} has a single text, and the model is trained on pairs; name the second text's column with --text-b."
        )
    raise UserError(f"{where} has a pair of texts, and the model is trained on single texts; remove the column {second!r}.")


def encode(tokenizer: Tokenizer, records: Sequence[Record], *, sequence_length: int) -> list[EncodedText]:
    """The texts of each record as token ids, truncated to ``sequence_length`` tokens from the end of the longer text."""
    texts: list[windows.Text] = [
        record.texts[0] if len(record.texts) == 1 else (record.texts[0], record.texts[1]) for record in records
    ]
    encoded = windows.cut(tokenizer, texts, sequence_length=sequence_length, long="truncate")
    return [EncodedText(window.ids, window.first, window.truncated) for window in encoded]


def write_results(path: epath.Path, results: Iterable[dict[str, Any]]) -> None:
    """Write results as JSON lines.

    Raises:
      UserError: the file exists or cannot be made.
    """
    with atomic.new_path(path) as work:
        work.write_text("".join(f"{json.dumps(result, ensure_ascii=False)}\n" for result in results))

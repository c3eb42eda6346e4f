"""Labels of records as class indices, label matrices and scores, and the names of all labels."""

from __future__ import annotations

import collections
import contextlib
import math
import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.tasks.table_files import listed
from bert_jax.tasks.tables import Record

# More labels than this, or mostly labels of one example each, are probably scores or ids.
_MOST_CLASSES, _MOST_FRACTIONS, _ENOUGH_ROWS = 1000, 100, 100
_NO_CLASS = "that looks like a score or an id; for scores use the task regress, or name the column of labels with --label"
# What pandas and JSON write for a missing value.
_MISSING = ("nan", "<na>")
_LARGEST = float(np.finfo(np.float32).max)


def class_labels(records: Iterable[Record]) -> tuple[str, ...]:
    """Sorted names of the classes, by value if all are whole numbers.

    Raises:
      UserError: a record has no label, there are fewer than two classes, or the labels look like scores or ids: there are more
        than 1,000; more than 100 are numbers that are not whole; or, of 100 records or more, over half have a label that no
        other record has. Also refused are labels that differ in case, white space or the format of a number only, and a label
        that stands for a missing value.
    """
    counts: collections.Counter[str] = collections.Counter()
    alike = _Alike()
    record = None
    for record in records:
        name = _known(record)
        alike.check(name, record.where)
        counts[name] += 1
        if len(counts) > _MOST_CLASSES:
            raise UserError(f"{record.where}: this is label {len(counts):,}, {record.label!r}; {_NO_CLASS}.")
    where = _file_of(record)
    total, alone = counts.total(), sum(count == 1 for count in counts.values())
    named = listed(map(repr, counts)) or "none"
    if total >= _ENOUGH_ROWS and 2 * alone > total:
        raise UserError(f"{where}: {alone:,} of {total:,} rows have a label of their own, of {named}; {_NO_CLASS}.")
    if len(counts) < 2:
        raise UserError(f"{where}: there must be at least two labels; there is {named}.")
    if len(counts) > _MOST_FRACTIONS and all(math.isfinite(_value(name)) for name in counts) and not _whole_numbers(counts):
        raise UserError(f"{where} has {len(counts):,} labels that are fractions, {named}; {_NO_CLASS}.")
    return _sorted(counts)


def label_names(records: Iterable[Record]) -> tuple[str, ...]:
    """Sorted names of the labels of multi-label records, by value if all are whole numbers.

    Raises:
      UserError: the labels of a record are unknown, no record has one, or there are more than 1,000; or labels are written in
        two ways, or stand for a missing value, as for ``class_labels``.

    Examples:
      >>> label_names([Record(("text",), None, "a.csv, line 2", "0", ("sport", "news"))])
      ('news', 'sport')
    """
    names: set[str] = set()
    alike = _Alike()
    record = None
    for record in records:
        for name in _known_labels(record):
            alike.check(name, record.where)
            names.add(name)
        if len(names) > _MOST_CLASSES:
            raise UserError(f"{record.where}: there are more than {_MOST_CLASSES:,} labels up to here; {_NO_CLASS}.")
    if not names:
        raise UserError(f"{_file_of(record)}: no row has a label; training needs at least one.")
    return _sorted(names)


class _Alike:
    """Finds labels that are written in two ways."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}

    def check(self, name: str, where: str) -> None:
        """Refuse a label that stands for a missing value, or is like an earlier one but not equal to it."""
        if name.casefold() in _MISSING:
            raise UserError(f"{where}: the label {name!r} stands for a missing value; remove the row, or write a label.")
        first, place = self._first.setdefault(_key(name), (name, where))
        if first != name:
            raise UserError(
                f"{where}: the label {name!r} differs from {first!r} ({place.rpartition(', ')[2]}) {_how(name, first)}."
            )


def _key(name: str) -> str:
    """Equal for labels that are the same number, or differ in case or white space only."""
    value = _value(name)
    return repr(value) if math.isfinite(value) else " ".join(name.casefold().split())


def _how(name: str, other: str) -> str:
    number = math.isfinite(_value(name)) and name.casefold() != other.casefold()
    return f"only in {'the format of the number' if number else 'case or white space'}; write both alike"


def _none_of(name: str, labels: Sequence[str]) -> str:
    like = next((label for label in labels if _key(label) == _key(name)), None)
    found = "" if like is None else f"; it differs from {like!r} {_how(name, like)}"
    return f"the label {name!r} is none of {listed(map(repr, labels))}{found}."


def _file_of(record: Record | None) -> str:
    return record.where.rpartition(", ")[0] or record.where if record else "The data"


def _whole_numbers(names: Iterable[str]) -> bool:
    return all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)


def _sorted(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (int(name), name)) if _whole_numbers(names) else sorted(names))


def class_ids(records: Iterable[Record], labels: Sequence[str]) -> np.ndarray:
    """Index of each record's label among the labels, int32 [N].

    Raises:
      UserError: a record has no label, or one that is not among the labels.
    """
    index = {name: index for index, name in enumerate(labels)}
    ids = []
    for record in records:
        if _known(record) not in index:
            raise UserError(f"{record.where}: {_none_of(_known(record), labels)}")
        ids.append(index[_known(record)])
    return np.array(ids, np.int32)


def label_matrix(records: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
    """Labels of multi-label records, float32 [N, C]: 1 where a record has a label, else 0.

    Raises:
      UserError: the labels of a record are unknown, or one of them is not among the labels.

    Examples:
      >>> label_matrix([Record(("text",), None, "a.csv, line 2", "0", ("c", "a"))], ("a", "b", "c")).tolist()
      [[1.0, 0.0, 1.0]]
    """
    index = {name: index for index, name in enumerate(labels)}
    matrix = np.zeros((len(records), len(labels)), np.float32)
    for row, record in zip(matrix, records, strict=True):
        for name in _known_labels(record):
            if name not in index:
                raise UserError(f"{record.where}: {_none_of(name, labels)}")
            row[index[name]] = 1.0
    return matrix


def scores(records: Iterable[Record]) -> np.ndarray:
    """The labels as numbers, float32 [N].

    Raises:
      UserError: a record has no label, or one that is not a finite number.
    """
    values = []
    for record in records:
        value = _value(_known(record))
        if not abs(value) <= _LARGEST:
            raise UserError(f"{record.where}: the score {str(record.label)[:40]!r} is not a finite number.")
        values.append(value)
    return np.array(values, np.float32)


def _value(label: str) -> float:
    with contextlib.suppress(ValueError):
        # Python reads 1_0 as 10.
        return math.nan if "_" in label else float(label)
    return math.nan


def _known(record: Record) -> str:
    if record.label is None:
        raise UserError(f"{record.where}: there is no label.")
    return record.label


def _known_labels(record: Record) -> tuple[str, ...]:
    if record.labels is None:
        raise UserError(f"{record.where}: there are no labels.")
    return record.labels

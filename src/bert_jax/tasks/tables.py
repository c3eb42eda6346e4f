"""Files of one example a row: a label and a text or two, as tables (.tsv, .csv) or JSON lines."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.validation import parse_json, require
from bert_jax.data.readers import lines
from bert_jax.errors import UserError
from bert_jax.tasks.example import find_split

_SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
_KINDS = (".tsv", ".csv", ".jsonl", ".ndjson")
_ENDINGS = (*_KINDS, *(f"{kind}.gz" for kind in _KINDS))
_KNOWN = f"{', '.join(_KINDS)}, each also with .gz"
# More classes than this, or mostly classes of one example each, are no classes.
_MOST_CLASSES, _MOST_FRACTIONS, _ENOUGH_ROWS = 1000, 100, 100
_NO_CLASS = "that looks like a score or an id; for scores use the regression task, or name the column of labels with --label"
_LARGEST = float(np.finfo(np.float32).max)
# So many names are listed in a sentence.
_LISTED = 20


class Record(NamedTuple):
    """One row that has been read."""

    texts: tuple[str, ...]
    """One text, or two."""
    label: str | None
    """Name of a class, or a number as it was written; None where it is not known."""
    where: str
    """Its file and line, for sentences about it."""
    id: str
    """Number of the row in its file from 0, unless the file gives its rows names."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a table, or the fields of a JSON object, are called; a UserError says that two have one name."""

    label: str = "label"
    text: str = "text"
    text_b: str = "text_b"
    """The second text of a pair; need not be there, unless it was given another name than this."""
    order: tuple[str, ...] | None = None
    """Names of all columns of a file without a header; None: the first line of a file is its header."""

    def __post_init__(self) -> None:
        names = (self.label, self.text, self.text_b)
        given = ", ".join(map(repr, names))
        require(len(set(names)) == 3, f"Label, text and second text are columns {given}; name three different ones.")
        order = self.order or ()
        require(len(set(order)) == len(order), f"The columns {', '.join(map(repr, order))} have a name twice.")


class Row(NamedTuple):
    """What a file says of one example, not yet understood."""

    where: str
    """Its file and line."""
    fields: dict[str, Any]
    """Strings by the names of the columns; any JSON value in JSON lines."""


def read(path: epath.PathLike, columns: Columns, *, labelled: bool = True) -> Iterator[Record]:
    """Records of a file, as a stream.

    In ``.tsv`` files quotes are letters as all others, as in GLUE's; ``.csv`` is RFC 4180; ``.jsonl`` and ``.ndjson`` hold an
    object a line. ``.gz`` is unpacked. Texts stay as they are, labels lose the white space around them.

    Args:
      path: a file, local or remote.
      columns: their names.
      labelled: every row must have a label; otherwise rows without one have the label None.

    Raises:
      UserError: the file is missing, is not what its name says, or has no such columns; a row has other columns, no text or
        no label. The sentence names file and line.
    """
    path = epath.Path(path)
    texts: tuple[str, ...] = ()
    for number, row in enumerate(rows(path, columns.order)):
        if not texts:
            # Who names a second text means it.
            pair = columns.text_b in row.fields or columns.text_b != Columns.text_b
            texts = (columns.text, columns.text_b) if pair else (columns.text,)
        for name in (columns.label, *texts) if labelled else texts:
            if name not in row.fields:
                raise UserError(_missing(path, row, name, columns))
        if not pair and columns.text_b in row.fields:
            raise UserError(f"{row.where}: there is a second text, {columns.text_b!r}, and the rows before have one text only.")
        label = label_of(row, columns.label)
        if labelled and label is None:
            raise UserError(f"{row.where}: the label {columns.label!r} is empty; remove the row or write one.")
        yield Record(tuple(text_of(row, name) for name in texts), label, row.where, str(number))


def text_of(row: Row, name: str, *, empty: bool = False) -> str:
    """The text in a column; a UserError says that it is no string, damaged or, unless ``empty`` allows it, blank."""
    text = row.fields[name]
    if not isinstance(text, str):
        raise UserError(f"{row.where}: {name!r} is {json.dumps(text)[:40]}; a text must be a string.")
    if not (empty or text.strip()):
        raise UserError(f"{row.where}: the text {name!r} is empty; remove the row or write one.")
    return _whole(text, row, name)


def label_of(row: Row, name: str) -> str | None:
    """The label in a column, None if there is none; a UserError says that it is no name or number."""
    value = row.fields.get(name)
    if value is None or isinstance(value, str):
        return _whole(value.strip(), row, name) or None if value else None
    if not isinstance(value, int | float):
        raise UserError(f"{row.where}: {name!r} is {json.dumps(value)[:40]}; a label must be a string, a number, true or false.")
    return json.dumps(value)


def _whole(text: str, row: Row, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start + 1
        raise UserError(f"{row.where}: {name!r} has half a surrogate pair at character {at}; the text is damaged.") from None
    return text


def _missing(path: epath.Path, row: Row, name: str, columns: Columns) -> str:
    """Say that a column is missing, and how to name the right one."""
    there = listed(repr(field[:40]) for field in row.fields) or "none"
    place = row.where if _is_json(path) else path
    how = "" if columns.order or _is_json(path) else ", or, where the first line is no header, all columns with --columns"
    return f"{place} has no column {name!r} but {there}. Name the columns with --label, --text and --text-b{how}."


def rows(path: epath.PathLike, order: Sequence[str] | None = None, *, skip: Callable[[str], object] | None = None) -> Iterator[Row]:
    """Rows of a file, as a stream; blank lines are passed over where there is more than one column.

    Args:
      path: a file, local or remote; its ending says what it is.
      order: names of the columns of a table without a header.
      skip: called with the place of each row of a wrong number of fields, which is passed over; without it, it is refused.

    Raises:
      UserError: the file is missing, empty, damaged, or not what its name says.
    """
    path = epath.Path(path)
    require(_kind(path) != "", f"The ending of {path} says nothing; the known ones are {_KNOWN}.")
    require(order is None or not _is_json(path), f"{path} names its fields itself; leave --columns out.")
    found = _objects(path) if _is_json(path) else _table(path, order, skip)
    empty = True
    for row in found:
        empty = False
        yield row
    if empty:
        hint = "" if order or _is_json(path) else " below the line that names the columns"
        raise UserError(f"{path} holds no rows{hint}.")


def _kind(path: epath.Path) -> str:
    ending = path.name.removesuffix(".gz")
    return next((kind for kind in _KINDS if ending.endswith(kind)), "")


def _is_json(path: epath.Path) -> bool:
    return _kind(path) in (".jsonl", ".ndjson")


def _table(path: epath.Path, order: Sequence[str] | None, skip: Callable[[str], object] | None) -> Iterator[Row]:
    tabbed = ((number, line.rstrip("\r\n").split("\t")) for number, line in lines(path))
    names = list(order or ())
    for number, fields in csv_rows(path) if _kind(path) == ".csv" else tabbed:
        where = f"{path}, line {number}"
        if not names:
            names = fields
            twice = [name for name, count in collections.Counter(names).items() if count > 1]
            require(not twice, f"{where} names the column {', '.join(map(repr, twice))} twice; the first line names the columns.")
        elif len(fields) == len(names):
            yield Row(where, dict(zip(names, fields, strict=True)))
        elif fields != [""] and skip:
            skip(where)
        elif fields != [""]:
            columns = listed(repr(name[:40]) for name in names)
            raise UserError(
                f"{where} has {len(fields)} field{'s' * (len(fields) != 1)}, the columns are {columns}; texts that hold the "
                "separator need quotes in .csv, and cannot be in .tsv."
            )


def csv_rows(path: epath.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file (RFC 4180), each with the line it starts in; an empty line is a row of one empty field.

    Raises:
      UserError: it is not CSV, or no file; the sentence names file and line.
    """
    reader = csv.reader((line for _, line in lines(path)), strict=True)
    while True:
        # A row may go over several lines; it is where it starts.
        number = reader.line_num + 1
        try:
            yield number, next(reader) or [""]
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number}: the row that starts here is not CSV ({error}); quotes inside of quotes are written twice."
            ) from None


def _objects(path: epath.Path) -> Iterator[Row]:
    for number, line in lines(path):
        where = f"{path}, line {number}"
        if line.strip():
            value = parse_json(line, where)
            require(isinstance(value, dict), f"{where} holds {line.strip()[:40]}; it must be a JSON object.")
            yield Row(where, value)


def split_file(data: epath.PathLike, split: str) -> epath.Path:
    """The file that holds a split: DIR/train.tsv for the data DIR, DIR/topic.train.tsv for DIR/topic.

    ``split`` is train, dev or test; that of development may also be called validation, valid or val.

    Raises:
      UserError: there is none, or more than one.
    """
    return find_split(data, split, _SPLITS, _ENDINGS)


def class_labels(records: Iterable[Record]) -> tuple[str, ...]:
    """Sorted names of the classes, by value where all are whole numbers.

    Raises:
      UserError: a record has no label, there are fewer than two classes, or so many that they are scores or ids: more than
        1,000; more than 100 numbers that are not whole; or, of 100 records or more, over half have a label of their own.
    """
    counts: collections.Counter[str] = collections.Counter()
    record = None
    for record in records:
        counts[_known(record)] += 1
        if len(counts) > _MOST_CLASSES:
            raise UserError(f"{record.where}: this is label {len(counts):,}, {record.label!r}; {_NO_CLASS}.")
    where = record.where.rpartition(", line ")[0] or record.where if record else "The data"
    total, alone = counts.total(), sum(count == 1 for count in counts.values())
    named = listed(map(repr, counts)) or "none"
    if total >= _ENOUGH_ROWS and 2 * alone > total:
        raise UserError(f"{where}: {alone:,} of {total:,} rows have a label of their own, of {named}; {_NO_CLASS}.")
    require(len(counts) > 1, f"{where}: there must be two labels at least; there is {named}.")
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in counts):
        return tuple(sorted(counts, key=lambda name: (int(name), name)))
    if len(counts) > _MOST_FRACTIONS and all(math.isfinite(_value(name)) for name in counts):
        raise UserError(f"{where} has {len(counts):,} labels that are fractions, {named}; {_NO_CLASS}.")
    return tuple(sorted(counts))


def class_ids(records: Iterable[Record], labels: Sequence[str]) -> np.ndarray:
    """int32 [N], the place of each record's label among the labels.

    Raises:
      UserError: a record has no label, or one that is not among them.
    """
    places = {name: place for place, name in enumerate(labels)}
    ids = []
    for record in records:
        if _known(record) not in places:
            raise UserError(f"{record.where}: the label {record.label!r} is none of {listed(map(repr, labels))}.")
        ids.append(places[_known(record)])
    return np.array(ids, np.int32)


def scores(records: Iterable[Record]) -> np.ndarray:
    """float32 [N], the labels as numbers.

    Raises:
      UserError: a record has no label, or one that is no finite number.
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


def listed(names: Iterable[str]) -> str:
    """Names with commas between them, the first twenty."""
    names = list(names)
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")

"""Tables (.tsv, .csv) and JSON lines with one example a row: a label, or several, and one text or two."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io.lines import lines
from bert_jax.io.parsing import check_text, parse_json
from bert_jax.tasks.example import find_split

_SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
_KINDS = (".tsv", ".csv", ".jsonl", ".ndjson")
_ENDINGS = (*_KINDS, *(f"{kind}.gz" for kind in _KINDS))
_KNOWN = f"{', '.join(_KINDS)}, each also with .gz"
# Names that an error message lists.
_LISTED = 20


class Record(NamedTuple):
    """One row of a file."""

    texts: tuple[str, ...]
    """One text, or two."""
    label: str | None
    """Name of a class, or a number as it is written; None if unknown."""
    where: str
    """File and line, for messages."""
    id: str
    """Index of the row in its file, or the id that the file gives."""
    labels: tuple[str, ...] | None = None
    """Names of the labels of a multi-label row; None if unknown."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a table, or of the fields of a JSON object.

    Raises:
      UserError: two columns have the same name.
    """

    label: str = "label"
    text: str = "text"
    text_b: str = "text_b"
    """The second text of a pair; the column is optional if it has this name."""
    order: tuple[str, ...] | None = None
    """Names of all columns of a file without a header; None: the first line of the file is its header."""

    def __post_init__(self) -> None:
        names = (self.label, self.text, self.text_b)
        if len(set(names)) < 3:
            raise UserError(f"Label, text and second text are columns {', '.join(map(repr, names))}; name three different ones.")
        order = self.order or ()
        if len(set(order)) < len(order):
            raise UserError(f"The columns {', '.join(map(repr, order))} have a name twice.")


class Row(NamedTuple):
    """The fields of one row, before they are interpreted."""

    where: str
    """File and line."""
    fields: dict[str, Any]
    """Strings by the names of the columns; any JSON value in JSON lines."""
    is_json: bool = False


def read(path: epath.PathLike, columns: Columns, *, labelled: bool = True, multilabel: bool = False) -> Iterator[Record]:
    """Records of a file, as a stream.

    In ``.tsv`` files quotes are ordinary characters, as in GLUE's; ``.csv`` is RFC 4180; ``.jsonl`` and ``.ndjson`` hold one
    object a line. ``.gz`` is decompressed. Texts stay as they are; labels lose surrounding white space.

    Args:
      path: a file, local or remote.
      columns: names of the columns.
      labelled: whether every row must have a label; otherwise rows without one have the label None.
      multilabel: whether the label column holds any number of labels (``labels_of``).

    Raises:
      UserError: the file is missing, is of another format than its ending, or has no such columns; a row has other columns, no
        text or no label. The sentence names file and line.
    """
    path = epath.Path(path)
    texts: tuple[str, ...] = ()
    for number, row in enumerate(rows(path, columns.order)):
        if not texts:
            # A second text with a name of its own is required.
            pair = columns.text_b in row.fields or columns.text_b != Columns.text_b
            texts = (columns.text, columns.text_b) if pair else (columns.text,)
        for name in (columns.label, *texts) if labelled else texts:
            if name not in row.fields:
                raise UserError(_missing(path, row, name, columns))
        if not pair and columns.text_b in row.fields:
            raise UserError(f"{row.where}: there is a second text, {columns.text_b!r}, and the rows before have one text only.")
        label, labels = (None, labels_of(row, columns.label)) if multilabel else (label_of(row, columns.label), None)
        if labelled and label is None and labels is None:
            hint = "write [] for no label" if multilabel else "remove the row or write one"
            raise UserError(f"{row.where}: the label {columns.label!r} is empty; {hint}.")
        yield Record(tuple(text_of(row, name) for name in texts), label, row.where, str(number), labels)


def text_of(row: Row, name: str, *, empty: bool = False) -> str:
    """The text in a column.

    Raises:
      UserError: it is not a string, is damaged or, unless ``empty`` is set, is blank.
    """
    text = row.fields[name]
    if not isinstance(text, str):
        raise UserError(f"{row.where}: {name!r} is {json.dumps(text)[:40]}; a text must be a string.")
    if not (empty or text.strip()):
        raise UserError(f"{row.where}: the text {name!r} is empty; remove the row or write one.")
    return check_text(text, f"{row.where}: {name!r}")


def label_of(row: Row, name: str) -> str | None:
    """The label in a column, None if there is none.

    Raises:
      UserError: it is not a string, a number or a boolean, or is damaged.
    """
    value = row.fields.get(name)
    if value is None or isinstance(value, str):
        return check_text(value.strip(), f"{row.where}: {name!r}") or None if value else None
    return _label(value, row, name)


def labels_of(row: Row, name: str) -> tuple[str, ...] | None:
    """The labels in a column, each once: names with commas between them in a table, a list in JSON lines.

    An empty cell or list is a row without labels; a missing or null field gives None.

    Raises:
      UserError: a JSON value is not a list of strings and numbers, or a label is empty or damaged.

    Examples:
      >>> labels_of(Row("a.csv, line 2", {"label": "sport, news"}), "label")
      ('sport', 'news')
    """
    value = row.fields.get(name)
    if value is None:
        return None
    if isinstance(value, str) and not row.is_json:
        values: list[Any] = value.split(",") if value.strip() else []
    elif isinstance(value, list):
        values = value
    else:
        raise UserError(f"{row.where}: {name!r} is {json.dumps(value)[:40]}; several labels must be a list, [] for none.")
    where = f"{row.where}: {name!r}"
    labels = [check_text(label.strip(), where) if isinstance(label, str) else _label(label, row, name) for label in values]
    if "" in labels:
        raise UserError(f"{row.where}: {name!r} holds an empty label; separate labels with one comma.")
    return tuple(dict.fromkeys(labels))


def _label(value: Any, row: Row, name: str) -> str:
    """A label that is a number or a boolean in JSON."""
    if not isinstance(value, int | float):
        raise UserError(f"{row.where}: {name!r} is {json.dumps(value)[:40]}; a label must be a string, a number, true or false.")
    return json.dumps(value)


def _missing(path: epath.Path, row: Row, name: str, columns: Columns) -> str:
    """Message that a column is missing, and how to name the right one."""
    present = listed(repr(field[:40]) for field in row.fields) or "none"
    place = row.where if _is_json(path) else path
    how = "" if columns.order or _is_json(path) else ", or, where the first line is no header, all columns with --columns"
    return f"{place} has no column {name!r} but {present}. Name the columns with --label, --text and --text-b{how}."


def rows(path: epath.PathLike, order: Sequence[str] | None = None, *, skip: Callable[[str], object] | None = None) -> Iterator[Row]:
    """Rows of a file, as a stream; blank lines are skipped in tables of more than one column.

    Args:
      path: a file, local or remote; its ending determines the format.
      order: names of the columns of a table without a header.
      skip: called with the place of each row with a wrong number of fields, which is then skipped; without it, such a row is
        refused.

    Raises:
      UserError: the file is missing, empty, damaged, or of another format than its ending.
    """
    path = epath.Path(path)
    if not _kind(path):
        raise UserError(f"The format of {path} is unknown; name the file with one of the endings {_KNOWN}.")
    if order is not None and _is_json(path):
        raise UserError(f"{path} names its fields itself; leave --columns out.")
    empty = True
    for row in _objects(path) if _is_json(path) else _table(path, order, skip):
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
            if twice:
                raise UserError(f"{where} names the column {', '.join(map(repr, twice))} twice; rename one of them.")
        elif len(fields) == len(names):
            yield Row(where, dict(zip(names, fields, strict=True)))
        elif fields != [""] and skip:
            skip(where)
        elif fields != [""]:
            columns = listed(repr(name[:40]) for name in names)
            raise UserError(
                f"{where} has {len(fields)} field{'s' * (len(fields) != 1)}, the columns are {columns}; texts that contain the "
                "separator need quotes in .csv, and are not possible in .tsv."
            )


def csv_rows(path: epath.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file (RFC 4180), each with the number of its first line; an empty line is a row of one empty field.

    Raises:
      UserError: the file is missing or is not CSV; the sentence names file and line.
    """
    reader = csv.reader((line for _, line in lines(path)), strict=True)
    while True:
        # A row may span several lines.
        number = reader.line_num + 1
        try:
            yield number, next(reader) or [""]
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number}: the row that starts here is not CSV ({error}); double the quotes inside of quotes."
            ) from None


def _objects(path: epath.Path) -> Iterator[Row]:
    for number, line in lines(path):
        where = f"{path}, line {number}"
        if line.strip():
            value = parse_json(line, where)
            if not isinstance(value, dict):
                raise UserError(f"{where} holds {line.strip()[:40]}; it must be a JSON object.")
            yield Row(where, value, is_json=True)


def split_file(data: epath.PathLike, split: str) -> epath.Path:
    """The file of a split: DIR/train.tsv for the data DIR, DIR/topic.train.tsv for DIR/topic.

    ``split`` is train, dev or test; the file of dev may also be called validation, valid or val.

    Raises:
      UserError: there is none, or more than one.
    """
    return find_split(data, split, _SPLITS, _ENDINGS)


def listed(names: Iterable[str]) -> str:
    """Names with commas between them, the first twenty.

    Examples:
      >>> listed(["a", "b"])
      'a, b'
    """
    names = list(names)
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")

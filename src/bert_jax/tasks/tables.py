"""Records of tables, one example a row: a label, or several, and one text or two."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from etils import epath

from bert_jax.config.finetuning import Quoting
from bert_jax.errors import UserError
from bert_jax.io.parsing import check_text
from bert_jax.tasks import table_files
from bert_jax.tasks.example import find_split
from bert_jax.tasks.table_files import Row, listed

_SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}


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
    quoting: Quoting | None = None
    """Whether cells may be quoted, as [`rows`][bert_jax.tasks.table_files.rows] takes it."""

    def __post_init__(self) -> None:
        names = (self.label, self.text, self.text_b)
        if len(set(names)) < 3:
            raise UserError(f"Label, text and second text are columns {', '.join(map(repr, names))}; name three different ones.")
        order = self.order or ()
        if len(set(order)) < len(order):
            raise UserError(f"The columns {', '.join(map(repr, order))} have a name twice.")


def read(path: epath.PathLike, columns: Columns, *, labelled: bool = True, multilabel: bool = False) -> Iterator[Record]:
    """Records of a file, as a stream.

    [`rows`][bert_jax.tasks.table_files.rows] tells which formats there are. Texts stay as they are; labels lose surrounding white
    space.

    Args:
      path: a file, local or remote.
      columns: names of the columns.
      labelled: whether every row must have a label; otherwise rows without one have the label None.
      multilabel: whether the label column holds any number of labels (``labels_of``).

    Raises:
      UserError: the file is missing, is of another format than its ending, or has no such columns; a row has other columns, no
        text or no label. The sentence names file and line.
    """
    found = table_files.rows(path, columns.order, quoting=columns.quoting, text=columns.text)
    for number, (row, names) in enumerate(_with_columns(path, found, columns, (columns.label,) if labelled else ())):
        label, labels = (None, labels_of(row, columns.label)) if multilabel else (label_of(row, columns.label), None)
        if labelled and label is None and labels is None:
            hint = "write [] for no label" if multilabel else "remove the row or write one"
            raise UserError(f"{row.where}: the label {columns.label!r} is empty; {hint}.")
        yield Record(tuple(text_of(row, name) for name in names), label, row.where, str(number), labels)


def read_texts(path: epath.PathLike, columns: Columns, *, empty: bool = False) -> Iterator[Record]:
    """Records of a file without their labels, as a stream; a table may have a header even if ``columns.order`` is given.

    Args:
      path: a file, local or remote, or ``-``.
      columns: names of the columns.
      empty: whether a text may be empty or null.

    Raises:
      UserError: as for [`read`][bert_jax.tasks.tables.read].
    """
    order = columns.order if table_files.is_table(path) else None
    found = table_files.rows(path, order, quoting=columns.quoting, text=columns.text, optional_header=True)
    for number, (row, names) in enumerate(_with_columns(path, found, columns, ())):
        yield Record(tuple(text_of(row, name, empty=empty) for name in names), None, row.where, str(number))


def _with_columns(
    path: epath.PathLike, found: Iterable[Row], columns: Columns, required: tuple[str, ...]
) -> Iterator[tuple[Row, tuple[str, ...]]]:
    """Rows with the names of the columns of their texts, which the first row determines."""
    texts: tuple[str, ...] = ()
    for row in found:
        if not texts:
            # A second text with a name of its own is required.
            pair = columns.text_b in row.fields or columns.text_b != Columns.text_b
            texts = (columns.text, columns.text_b) if pair else (columns.text,)
        for name in (*required, *texts):
            if name not in row.fields:
                raise UserError(_missing(path, row, name, columns))
        if not pair and columns.text_b in row.fields:
            raise UserError(f"{row.where}: there is a second text, {columns.text_b!r}, and the rows before have one text only.")
        yield row, texts


def text_of(row: Row, name: str, *, empty: bool = False) -> str:
    """The text in a column.

    Raises:
      UserError: it is not a string, is damaged or, unless ``empty`` is set, is null or blank.
    """
    text = row.fields[name]
    if text is None and empty:
        return ""
    if not isinstance(text, str):
        raise UserError(f"{row.where}: {name!r} is {_json(text)}; a text must be a string.")
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
        raise UserError(f"{row.where}: {name!r} is {_json(value)}; several labels must be a list, [] for none.")
    where = f"{row.where}: {name!r}"
    labels = [check_text(label.strip(), where) if isinstance(label, str) else _label(label, row, name) for label in values]
    if "" in labels:
        raise UserError(f"{row.where}: {name!r} holds an empty label; separate labels with one comma.")
    return tuple(dict.fromkeys(labels))


def _label(value: Any, row: Row, name: str) -> str:
    """A label that is a number or a boolean in JSON."""
    if not isinstance(value, int | float):
        raise UserError(f"{row.where}: {name!r} is {_json(value)}; a label must be a string, a number, true or false.")
    return json.dumps(value)


def _json(value: Any) -> str:
    # Parquet also has dates and bytes.
    return json.dumps(value, default=str)[:40]


def _missing(path: epath.PathLike, row: Row, name: str, columns: Columns) -> str:
    """Message that a column is missing, and how to name the right one."""
    present = listed(repr(field[:40]) for field in row.fields) or "none"
    place = row.where if row.is_json else path
    how = "" if columns.order or row.is_json else ", or, where the first line is no header, all columns with --columns"
    return f"{place} has no column {name!r} but {present}. Name the columns with --label, --text and --text-b{how}."


def split_file(data: epath.PathLike, split: str) -> epath.Path:
    """The file of a split: DIR/train.tsv for the data DIR, DIR/topic.train.tsv for DIR/topic.

    ``split`` is train, dev or test; the file of dev may also be called validation, valid or val.

    Raises:
      UserError: there is none, or more than one.
    """
    return find_split(data, split, _SPLITS, table_files.ENDINGS)

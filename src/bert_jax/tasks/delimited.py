"""Cells of .csv and .tsv files: separators, quotes, and cells of any size."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from bert_jax.config.finetuning import Quoting
from bert_jax.errors import BertWarning, UserError
from bert_jax.io.lines import lines

# The csv module refuses cells of more than 131,072 characters by default; this is the largest limit on every platform.
_LARGEST_CELL = 2**31 - 1


class Dialect(NamedTuple):
    """How lines of a table become cells."""

    delimiter: str
    quoting: Quoting


def dialect(path: epath.PathLike, order: Sequence[str] | None = None, quoting: Quoting | None = None) -> Dialect:
    """How a table is read: a ``.csv`` file whose first line has no comma is separated by semicolons or tabs.

    Examples:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
      >>> size = path.write_text("label;text\\nyes;good\\n")
      >>> dialect(path)
      Dialect(delimiter=';', quoting='minimal')
    """
    path = epath.Path(path)
    if path.name.removesuffix(".gz").endswith(".tsv"):
        return Dialect("\t", quoting or "none")
    _, first = next(lines(path), (1, ""))
    delimiter = "," if order is not None and len(order) == 1 else next((mark for mark in ",;\t" if mark in first), ",")
    return Dialect(delimiter, quoting or "minimal")


def cells(path: epath.PathLike, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table, each with the number of its first line; without quoting, a blank line is a row of one empty field.

    Raises:
      UserError: the file is missing or, with quoting, is not CSV; the sentence names file and line.
    """
    if dialect.quoting == "none":
        return ((number, line.rstrip("\r\n").split(dialect.delimiter)) for number, line in lines(path))
    return csv_rows(path, dialect.delimiter)


def csv_rows(path: epath.PathLike, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file (RFC 4180) with cells of any size, each with the number of its first line; blank lines are skipped.

    Raises:
      UserError: the file is missing or is not CSV; the sentence names file and line.
    """
    reader = csv.reader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
    while True:
        # A row may span several lines.
        number = reader.line_num + 1
        # The limit belongs to the process, so that it is set for the time of a row only.
        limit = csv.field_size_limit(_LARGEST_CELL)
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {number}: the row that starts here is not CSV: {_reason(str(error))}.") from None
        finally:
            csv.field_size_limit(limit)
        if row:
            yield number, row


def _reason(error: str) -> str:
    if "unexpected end of data" in error:
        return "a quote is opened and never closed; double the quotes inside of quotes, or use --quoting none"
    if "expected after" in error:
        return "text follows the quote that closes a cell; double the quotes inside of quotes, or use --quoting none"
    if "new-line character" in error:
        return "it contains a carriage return outside of quotes; end lines with a line feed"
    return error


def check_quotes(path: epath.PathLike, delimiter: str) -> None:
    """Compare both readings of a table whose quotes may be CSV's, or ordinary characters as in GLUE's files.

    Raises:
      UserError: the readings have different numbers of rows.

    Warns:
      BertWarning: cells are in quotes.
    """
    count = quoted = 0
    opened = False
    for _, line in lines(path):
        fields = line.rstrip("\r\n").split(delimiter)
        count += fields != [""]
        opened = opened or any(field.startswith('"') for field in fields)
        quoted += sum(re.fullmatch(r'"([^"]|"")*"', field) is not None for field in fields)
    if not opened:
        return
    try:
        widths = [len(fields) for _, fields in csv_rows(path, delimiter) if fields != [""]]
    except UserError:
        return  # The file is no CSV, so that there is one reading.
    if len(set(widths)) == 1 and len(widths) != count:
        raise UserError(
            f"{path} has {count:,} lines if quotes are ordinary characters, and {len(widths):,} if they enclose cells; choose the "
            "first with --quoting none, the second with --quoting minimal."
        )
    if quoted:
        warnings.warn(
            BertWarning(
                f"{path} has {quoted:,} cell{'s' * (quoted != 1)} in quotes, which are read as part of the text; --quoting minimal "
                "removes them as CSV does, --quoting none keeps them."
            ),
            stacklevel=2,
        )

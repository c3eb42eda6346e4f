"""Rows of files of every format that tasks on own tables read: .csv, .tsv, JSON, Parquet, and plain lines of text."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from bert_jax.config.finetuning import Quoting
from bert_jax.errors import UserError
from bert_jax.io.lines import lines, require_file
from bert_jax.io.parsing import parse_json
from bert_jax.tasks import delimited

STDIN = "/dev/stdin"
"""The path that ``-`` stands for."""
_TABLES = (".tsv", ".csv")
_LINES = (".jsonl", ".ndjson")
_LABELLED = (*_TABLES, *_LINES, ".json")
ENDINGS = (*_LABELLED, *(f"{kind}.gz" for kind in _LABELLED), ".parquet")
"""Endings of files that may have labels."""
_KNOWN = f"{', '.join(_LABELLED)}, .txt, each also with .gz, .parquet"
# Names that an error message lists.
_LISTED = 20


class Row(NamedTuple):
    """The fields of one row, before they are interpreted."""

    where: str
    """File and line."""
    fields: dict[str, Any]
    """Strings by the names of the columns; any JSON value in JSON and Parquet."""
    is_json: bool = False


def rows(
    path: epath.PathLike,
    order: Sequence[str] | None = None,
    *,
    quoting: Quoting | None = None,
    skip: Callable[[str], object] | None = None,
    text: str = "text",
    optional_header: bool = False,
) -> Iterator[Row]:
    """Rows of a file, as a stream; blank lines are skipped, except in ``.txt`` and ``.tsv`` files of one column.

    ``.csv`` is RFC 4180, also with semicolons or tabs; in ``.tsv`` a quote is an ordinary character unless ``quoting`` is
    "minimal". ``.jsonl`` and ``.ndjson`` hold one object a line; ``.json`` a list of objects or strings, or one object a line as
    well; ``.txt`` one text a line. ``-`` is standard input: lines of text, or objects if the first line begins with a brace.

    Args:
      path: a file, local or remote; its ending determines the format.
      order: names of the columns of a table without a header.
      quoting: whether cells may be quoted; by default as the ending says.
      skip: called with the place of each row with a wrong number of fields, which is then skipped; without it, such a row is
        refused.
      text: name of the column of a file that holds nothing but texts.
      optional_header: whether a table may begin with its header although ``order`` is given; otherwise such a row is refused.

    Raises:
      UserError: the file is missing, empty, damaged, or of another format than its ending; a row repeats the names of the columns;
        or a ``.tsv`` file has other rows when its quotes are read as CSV's.

    Warns:
      BertWarning: as for [`check_quotes`][bert_jax.tasks.delimited.check_quotes].
    """
    path = epath.Path(STDIN if str(path) == "-" else path)
    if str(path) != STDIN and not path.name.removesuffix(".gz").endswith((*ENDINGS, ".txt")):
        raise UserError(f"The format of {path} is unknown; name the file with one of the endings {_KNOWN}.")
    if order is not None and not is_table(path):
        raise UserError(f"{path} names its fields itself; leave --columns out.")
    empty = True
    found = _table(path, order, quoting, skip, optional_header) if is_table(path) else _values(path, text)
    for row in found:
        empty = False
        yield row
    if empty:
        hint = " below the line that names the columns" if is_table(path) and not order else ""
        raise UserError(f"{path} holds no rows{hint}.")


def is_table(path: epath.PathLike) -> bool:
    """Whether a file is a table of cells, whose columns are named by a header or by the user."""
    return epath.Path(path).name.removesuffix(".gz").endswith(_TABLES)


def _table(
    path: epath.Path,
    order: Sequence[str] | None,
    quoting: Quoting | None,
    skip: Callable[[str], object] | None,
    optional_header: bool,
) -> Iterator[Row]:
    found = delimited.dialect(path, order, quoting)
    if quoting is None and found.quoting == "none":
        delimited.check_quotes(path, found.delimiter)
    names = list(order or ())
    first = True
    for number, fields in delimited.cells(path, found):
        where = f"{path}, line {number}"
        if not names:
            names, first = _header(fields, where), False
            continue
        # In a table of one column, a later text may well be the column's name.
        if (first or len(names) > 1) and _repeats(fields, names):
            if not (first and optional_header):
                raise UserError(f"{where}: {_repeated(first)}")
            names = _header(fields, where)
        elif len(fields) == len(names):
            yield Row(where, dict(zip(names, fields, strict=True)))
        elif fields != [""] and skip:
            skip(where)
        elif fields != [""]:
            columns = listed(repr(name[:40]) for name in names)
            raise UserError(
                f"{where} has {len(fields)} field{'s' * (len(fields) != 1)}, the columns are {columns}; a text that contains the "
                f"separator needs quotes{'' if found.quoting == 'minimal' else ', which --quoting minimal reads'}."
            )
        first = False


def _header(fields: list[str], where: str) -> list[str]:
    twice = [name for name, count in collections.Counter(fields).items() if count > 1]
    if twice:
        raise UserError(f"{where} names the column {', '.join(map(repr, twice))} twice; rename one of them.")
    return fields


def _repeats(fields: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a row holds the names of the columns, in any order and case."""
    return len(fields) == len(names) and sorted(map(_folded, fields)) == sorted(map(_folded, names))


def _folded(name: str) -> str:
    return name.strip().casefold()


def _repeated(first: bool) -> str:
    if first:
        return "the row holds the names of the columns, so the file has a header; leave --columns out."
    return "the row repeats the names of the columns, as in files that were joined; remove it."


def _values(path: epath.Path, text: str) -> Iterator[Row]:
    """Rows of a file that is no table: JSON, Parquet, or texts; standard input is JSON or texts."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith(_LINES):
        return _objects(path, lines(path), text)
    if name.endswith(".json"):
        return _list(path, text)
    if name.endswith(".txt"):
        return _texts(path, lines(path), text)
    first, rest = itertools.tee(lines(path))
    is_object = next(first, (1, ""))[1].lstrip().startswith("{")
    return _objects(path, rest, text) if is_object else _texts(path, rest, text)


def _texts(path: epath.Path, numbered: Iterable[tuple[int, str]], text: str) -> Iterator[Row]:
    for number, line in numbered:
        where = f"{path}, line {number}"
        if number == 1 and _repeats([line], [text]):
            raise UserError(f"{where}: the line holds the name of the column of the texts; remove it, or name the file .csv.")
        yield Row(where, {text: line.rstrip("\r\n")}, is_json=True)


def _objects(path: epath.Path, numbered: Iterable[tuple[int, str]], text: str) -> Iterator[Row]:
    for number, line in numbered:
        if line.strip():
            where = f"{path}, line {number}"
            yield _row(parse_json(line, where), where, text)


def _list(path: epath.Path, text: str) -> Iterator[Row]:
    numbered = list(lines(path))
    content = "".join(line for _, line in numbered)
    if not content.lstrip().startswith("["):
        # JSON lines often have this ending.
        yield from _objects(path, numbered, text)
        return
    for number, value in enumerate(parse_json(content, str(path)), 1):
        yield _row(value, f"{path}, element {number}", text)


def _row(value: Any, where: str, text: str) -> Row:
    fields = {text: value} if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise UserError(f"{where} holds {json.dumps(value)[:40]}; it must be a JSON object.")
    return Row(where, fields, is_json=True)


def _parquet(path: epath.Path) -> Iterator[Row]:
    # The import is slow, and most runs read text files.
    import pyarrow
    from pyarrow import parquet

    require_file(path)
    with path.open("rb") as file:
        try:
            batches = (batch.to_pylist() for batch in parquet.ParquetFile(file).iter_batches())
            for number, fields in enumerate(itertools.chain.from_iterable(batches), 1):
                yield Row(f"{path}, row {number}", fields, is_json=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0].rstrip('.')}.") from None


def listed(names: Iterable[str]) -> str:
    """Names with commas between them, the first twenty.

    Examples:
      >>> listed(["a", "b"])
      'a, b'
    """
    names = list(names)
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")

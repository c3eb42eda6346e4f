"""Texts that a user names on the command line: files of every format, standard input, or the texts themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from bert_jax.config.finetuning import Quoting
from bert_jax.data.windows import Text
from bert_jax.errors import UserError
from bert_jax.io.lines import lines, require_file
from bert_jax.io.parsing import check_text
from bert_jax.tasks import table_files
from bert_jax.tasks.table_files import listed

PAIR_SEPARATOR = " ||| "
"""Separates the two texts of a pair on one line, as in the original's ``extract_features.py``."""
FIELDS = ("text", "texts", "sentence", "sentences", "document", "passage", "query", "question")
"""Names of columns that are found without ``field``, if a file has one of them."""


def read(sources: Sequence[str], *, field: Sequence[str] = (), quoting: Quoting | None = None) -> list[Text]:
    """Read texts and pairs of texts, in order.

    A source is an existing file, ``-`` for standard input, or a text. Empty lines and cells are empty texts, but blank lines of
    tables and JSON lines are skipped.

    Args:
      sources: the sources.
      field: column or field of the text, or those of the two texts of a pair; by default the one of ``FIELDS`` that a file has.
      quoting: as [`rows`][bert_jax.tasks.table_files.rows] takes it.

    Raises:
      UserError: there is no source; a file is missing, empty or damaged, has no such column, or has several that are possible; or
        a value is no text.
    """
    if not sources:
        raise UserError("There is no text; name a file, or - for standard input, or give texts in quotes.")
    texts: list[Text] = []
    for source in sources:
        if source == "-" or _is_path(source):
            texts += _read_file(source, field, quoting)
        else:
            texts.append(_split_pair(source))
    return texts


def _is_path(source: str) -> bool:
    """Whether a word on the command line is a file, or can only have been meant as one."""
    if len(source.split()) == 1 and source.endswith((*table_files.ENDINGS, ".txt", ".txt.gz")):
        return True
    try:
        return epath.Path(source).exists()
    except (OSError, ValueError):
        return False  # A text is too long for the name of a file, or has characters that no name has.


def _read_file(source: str, field: Sequence[str], quoting: Quoting | None) -> Iterator[Text]:
    path = epath.Path(source)
    if source != "-":
        require_file(path)
    is_empty = True
    for text in _texts(source, path, field, quoting):
        is_empty = False
        yield text
    if is_empty:
        raise UserError(f"{source} contains no text.")


def _texts(source: str, path: epath.Path, field: Sequence[str], quoting: Quoting | None) -> Iterator[Text]:
    name = path.name.removesuffix(".gz")
    if source != "-" and not name.endswith((*table_files.ENDINGS, ".txt")):
        # Files of text have every ending.
        yield from (_split_pair(line) for _, line in lines(path))
        return
    columns: Sequence[str] = ()
    has_pair_lines = source == "-" or name.endswith(".txt")
    for row in table_files.rows(source, quoting=quoting, text=field[0] if len(field) == 1 else FIELDS[0]):
        columns = columns or _columns(row.fields, row.where, field)
        values = [row.fields.get(column) for column in columns]
        if len(values) == 1 and isinstance(values[0], list) and len(values[0]) == 2:
            values = values[0]
        texts = [check_text(value, row.where) for value in values if isinstance(value, str)]
        if len(texts) < len(values):
            raise UserError(f"{row.where}: no text under {' and '.join(map(repr, columns))}; name the field with --field.")
        if len(texts) == 2:
            yield texts[0], texts[1]
        else:
            yield _split_pair(texts[0]) if has_pair_lines else texts[0]


def _columns(fields: Mapping[str, Any], where: str, field: Sequence[str]) -> Sequence[str]:
    """Names of the columns of the texts of a file, from its first row."""
    if field:
        missing = [name for name in field if name not in fields]
        if missing:
            raise UserError(f"{where}: there is no column {missing[0]!r} but {listed(map(repr, fields))}; name one with --field.")
        return field
    found = [name for name in fields if name in FIELDS]
    if len(found) == 1 and not any(name.endswith(("_b", "2")) for name in fields):
        return found
    columns = listed(repr(name[:40]) for name in fields)
    raise UserError(
        f"{where}: the columns are {columns}; name that of the text with --field, or those of both texts of a pair. A file without "
        "the names of its columns has to end in .txt."
    )


def _split_pair(line: str) -> Text:
    first, separator, second = line.strip().rpartition(PAIR_SEPARATOR)
    return (first.strip(), second.strip()) if separator else line.strip()

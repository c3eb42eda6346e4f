"""Files of SWAG's multiple-choice questions (section 4.4 of the paper)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tasks.delimited import csv_rows

_CONTEXT, _START, _ENDING, _LABEL = "sent1", "sent2", "ending", "label"
# The first column of SWAG's files, the ids, has no name.
_IDS = ("index", "")


class Question(NamedTuple):
    """A sentence, the start of the next one, and its possible endings."""

    context: str
    start: str
    endings: tuple[str, ...]
    label: int | None
    """Index of the right ending; None if unknown."""
    id: str
    """Id in its file; in a file without ids its index."""
    where: str
    """File and line."""


def read(path: epath.PathLike, *, labelled: bool = True) -> list[Question]:
    """Questions of a CSV file such as SWAG's train.csv, val.csv or test.csv, also ``.gz``.

    The columns are ``sent1``, ``sent2`` and at least two of ``ending0``, ``ending1`` and so on; optional are ``label``, and the
    ids in ``index`` or a column without a name.

    Args:
      path: the file.
      labelled: whether to read labels.

    Raises:
      UserError: the file is missing, empty, a directory, not UTF-8 or not CSV; a column is missing, as in the files named
        _full; a text is empty; a label is not the index of an ending. The sentence names file and line.
    """
    return list(stream(path, labelled=labelled))


def stream(path: epath.PathLike, *, labelled: bool = True) -> Iterator[Question]:
    """Questions of a file one by one; arguments and errors as for ``read``."""
    where = str(epath.Path(path))
    rows = (pair for pair in csv_rows(path) if pair[1] != [""])
    _, header = next(rows, (0, []))
    if not header:
        raise UserError(f"{where} is empty.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{where} has two columns {', '.join(map(repr, twice))}; remove one.")
    count = max(2, *(int(name.removeprefix(_ENDING)) + 1 for name in header if re.fullmatch(f"{_ENDING}[0-9]{{1,3}}", name)), 0)
    endings = [f"{_ENDING}{index}" for index in range(count)]
    for name in (_CONTEXT, _START, *endings):
        if name not in header:
            present = ", ".join(filter(None, header))
            raise UserError(f"{where} has no column {name} but {present}; SWAG's train.csv, val.csv and test.csv have it.")
    number = -1
    for number, (line, row) in enumerate(rows):
        place = f"{where}, line {line}"
        if len(row) != len(header):
            raise UserError(f"{place} has {len(row)} columns, the header has {len(header)}; repair the line.")
        values = dict(zip(header, map(str.strip, row), strict=True))
        empty = [name for name in (_CONTEXT, _START, *endings) if not values[name]]
        if empty:
            raise UserError(f"{place} has no text under {', '.join(empty)}; repair or remove the line.")
        question_id = next((values[column] for column in _IDS if column in values), str(number))
        label = _label(values[_LABEL], count, place) if labelled and _LABEL in values else None
        texts = tuple(values[ending] for ending in endings)
        yield Question(values[_CONTEXT], values[_START], texts, label, question_id, place)
    if number < 0:
        raise UserError(f"{where} holds no questions.")


def write(path: epath.PathLike, ids: Sequence[str], predicted: Sequence[int]) -> None:
    """Write predicted endings as CSV in the format of SWAG's own ``csv_predict.py``: a header ``,pred``, then ids and endings.

    Raises:
      UserError: the file exists or cannot be made, or the numbers of predictions and ids differ.
    """
    if len(ids) != len(predicted):
        raise UserError(f"{len(predicted):,} predictions are given for {len(ids):,} questions.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", "pred"])
    writer.writerows((question_id, int(ending)) for question_id, ending in zip(ids, predicted, strict=True))
    with atomic.new_path(path) as work:
        work.write_bytes(text.getvalue().encode())


def _label(text: str, count: int, place: str) -> int:
    if re.fullmatch("[0-9]{1,4}", text) is None or int(text) >= count:
        raise UserError(f"{place} has {text!r} for a label; it must be the number of an ending, from 0 to {count - 1}.")
    return int(text)

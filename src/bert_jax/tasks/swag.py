"""SWAG's multiple-choice questions (section 4.4 and Table 4 of the paper)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.validation import require
from bert_jax.data import windows
from bert_jax.io import atomic
from bert_jax.tasks.example import Example, Part
from bert_jax.tasks.tables import csv_rows
from bert_jax.tokenizers import Tokenizer

_CONTEXT, _START, _ENDING, _LABEL = "sent1", "sent2", "ending", "label"
# The first column of SWAG's files has no name.
_IDS = ("index", "")


class Question(NamedTuple):
    """A sentence, the start of the next one, and how that might end."""

    context: str
    start: str
    endings: tuple[str, ...]
    label: int | None
    """Number of the right ending, from 0; None where it is not known."""
    id: str
    """What its file calls it; where that has no such column, its number in the file, from 0."""
    where: str
    """Its file and line."""


def read(path: epath.PathLike, *, labelled: bool = True) -> list[Question]:
    """Questions of a CSV file such as SWAG's train.csv, val.csv or test.csv, also ``.gz``.

    Columns ``sent1``, ``sent2``, and ``ending0``, ``ending1`` and so on, at least two, are read; ``label``, and ``index`` or a
    column without a name, where they are there; labels only if ``labelled``.

    Raises:
      UserError: the file is missing, empty, a directory, not UTF-8 or not CSV; a column is missing, as in the files named
        _full; a text is empty; a label is no number of an ending. The sentence names file and line.
    """
    where = str(epath.Path(path))
    rows = (pair for pair in csv_rows(path) if pair[1] != [""])
    _, header = next(rows, (0, []))
    require(bool(header), f"{where} is empty.")
    twice = sorted({name for name in header if header.count(name) > 1})
    require(not twice, f"{where} has two columns {', '.join(map(repr, twice))}; remove one.")
    count = max(2, *(int(name.removeprefix(_ENDING)) + 1 for name in header if re.fullmatch(f"{_ENDING}[0-9]{{1,3}}", name)), 0)
    endings = [f"{_ENDING}{number}" for number in range(count)]
    for name in (_CONTEXT, _START, *endings):
        require(
            name in header,
            f"{where} has no column {name} but {', '.join(filter(None, header))}; SWAG's train.csv, val.csv and test.csv have it.",
        )
    questions: list[Question] = []
    for line, row in rows:
        at = f"{where}, line {line}"
        require(len(row) == len(header), f"{at} has {len(row)} columns, the header has {len(header)}; repair the line.")
        values = dict(zip(header, map(str.strip, row), strict=True))
        empty = [name for name in (_CONTEXT, _START, *endings) if not values[name]]
        require(not empty, f"{at} has no text under {', '.join(empty)}; repair or remove the line.")
        name = next((values[column] for column in _IDS if column in values), str(len(questions)))
        label = _label(values[_LABEL], count, at) if labelled and _LABEL in values else None
        texts = tuple(values[ending] for ending in endings)
        questions.append(Question(values[_CONTEXT], values[_START], texts, label, name, at))
    require(bool(questions), f"{where} holds no questions.")
    return questions


def examples(tokenizer: Tokenizer, questions: Sequence[Question], *, length: int = 128) -> list[Example]:
    """A part for each ending of each question: [CLS] the sentence [SEP] the start of the next one and its ending [SEP].

    A pair that is too long loses pieces at the end of its longer text, as in the original's ``run_classifier.py``. ``label``
    is int32 [], the right ending.

    Args:
      tokenizer: the model's.
      questions: all with as many endings.
      length: most pieces in a part, special ones counted.

    Raises:
      UserError: questions have different numbers of endings, or the length leaves no room.
    """
    count = len(questions[0].endings) if questions else 0
    for question in questions:
        right = len(question.endings) == count
        require(right, f"{question.where} has {len(question.endings)} endings, {questions[0].where} has {count}; use one number.")
    pairs = [(question.context, f"{question.start} {ending}") for question in questions for ending in question.endings]
    cut = windows.cut(tokenizer, pairs, limit=length, long="truncate")
    parts = [Part(window.ids, window.first) for window in cut]
    return [
        Example(
            tuple(parts[number * count : (number + 1) * count]),
            None if question.label is None else np.array(question.label, np.int32),
        )
        for number, question in enumerate(questions)
    ]


def write(path: epath.PathLike, ids: Sequence[str], predicted: Sequence[int]) -> None:
    """Predicted endings as CSV in the form of SWAG's own ``csv_predict.py``: a header ``,pred``, then id and ending of each.

    Raises:
      UserError: the file exists or cannot be made, or there are not as many predictions as ids.
    """
    require(len(ids) == len(predicted), f"{len(predicted):,} predictions are given for {len(ids):,} questions.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", "pred"])
    writer.writerows((name, int(number)) for name, number in zip(ids, predicted, strict=True))
    with atomic.new(path) as work:
        work.write_bytes(text.getvalue().encode())


def _label(text: str, count: int, at: str) -> int:
    right = re.fullmatch("[0-9]{1,4}", text) is not None and int(text) < count
    require(right, f"{at} has {text!r} for a label; it must be the number of an ending, from 0 to {count - 1}.")
    return int(text)

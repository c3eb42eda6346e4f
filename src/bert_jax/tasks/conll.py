"""Files with one tagged word a line, as in CoNLL-2003: named entities (section 5.3 of the paper) and parts of speech."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.io.lines import lines

DOCSTART = "-DOCSTART-"
"""First column of a line that begins a document."""
Kind = Literal["ner", "pos"]
"""Kind of tags: "ner" are O, B-TYPE and I-TYPE; "pos" are arbitrary."""
_OUTSIDE = "O"
# Not every space of Unicode: a word may contain a no-break space.
_BLANK = " \t\r\n"


class Sentence(NamedTuple):
    """A sentence of a file."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    """One for each word; None if they were not read."""
    document: int
    """Index of its document in the file; in a file without document marks each sentence is a document."""
    line: int
    """Line of its first word, from 1; each word has a line."""
    where: str
    """File."""

    def at(self, word: int) -> str:
        """File and line of a word, for messages."""
        return f"{self.where}, line {self.line + word}"


def read(path: epath.PathLike, *, column: int = -1, tagged: bool = True) -> list[Sentence]:
    """Sentences of a file: one word a line, an empty line after a sentence, a -DOCSTART- line before a document.

    Columns are separated by tabs, or by spaces in lines without a tab; the first is the word.

    Args:
      path: the file, also ``.gz``.
      column: index of the tag's column, from 0, or from -1 backwards.
      tagged: whether to read tags; without tags the word may be the only column.

    Raises:
      UserError: the file is missing, empty, a directory or not UTF-8; a line has no word, no tag, or another number of
        columns than the first one. The sentence names file and line.
    """
    where = str(epath.Path(path))
    sentences: list[Sentence] = []
    document, marked, width, first = 0, False, 0, 0
    for line, rows in _blocks(path):
        if not rows:
            marked = True
            document += bool(sentences) and sentences[-1].document == document
            continue
        first, width = first or line, width or len(rows[0])
        tag_column = column if column >= 0 else width + column
        for row_line, row in enumerate(rows, line):
            error = _error(row, width, first, column, tag_column if tagged else None)
            if error:
                raise UserError(f"{where}, line {row_line} {error}")
        tags = tuple(row[tag_column] for row in rows) if tagged else None
        sentences.append(Sentence(tuple(row[0] for row in rows), tags, document, line, where))
    if not sentences:
        raise UserError(f"{where} holds no words.")
    if not marked:
        sentences = [sentence._replace(document=index) for index, sentence in enumerate(sentences)]
    return sentences


def check_tags(sentences: Sequence[Sentence], kind: Kind) -> str:
    """Check that tags are of their kind and, for entities, that all follow one scheme.

    In IOB2 each entity begins with B. In IOB1 it begins with I, and with B only directly after an entity of its type. The
    scheme of the file is the one that more entities follow; a tag that only the other scheme allows is refused.

    Returns:
      "IOB1" or "IOB2" ("IOB2" if both fit); "" for parts of speech.

    Raises:
      UserError: a tag is not of its kind, or of the other scheme than most; the sentence names file and line.
    """
    if kind not in get_args(Kind):
        raise UserError(f"kind is {kind!r}; choose one of {', '.join(get_args(Kind))}.")
    if kind == "pos":
        return ""
    evidence: dict[str, list[str]] = {"IOB1": [], "IOB2": []}
    for sentence in sentences:
        before = ""
        for index, tag in enumerate(sentence.tags or ()):
            prefix, _, name = tag.partition("-")
            place = sentence.at(index)
            if tag != _OUTSIDE and (prefix not in ("B", "I") or not name):
                raise UserError(f"{place}: {tag!r} is not a tag of an entity; convert the file to O, B-TYPE and I-TYPE.")
            if prefix == "I" and name != before:
                evidence["IOB1"].append(f"{place}: {tag} begins an entity, but elsewhere in the file B begins one (IOB2)")
            elif prefix == "B" and name != before:
                evidence["IOB2"].append(f"{place}: {tag} begins an entity, but elsewhere in the file I begins one (IOB1)")
            before = name
    scheme, other = ("IOB1", "IOB2") if len(evidence["IOB1"]) > len(evidence["IOB2"]) else ("IOB2", "IOB1")
    if evidence[other]:
        raise UserError(f"{evidence[other][0]}; repair the file, or read it as conlleval does with --scheme loose.")
    return scheme


def labels(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """All tags, sorted.

    Raises:
      UserError: there are none.

    Examples:
      >>> labels([Sentence(("in", "Rome"), ("O", "B-LOC"), 0, 1, "a.conll")])
      ('B-LOC', 'O')
    """
    tags = tuple(sorted({tag for sentence in sentences for tag in sentence.tags or ()}))
    if not tags:
        raise UserError("The sentences have no tags; read them with tags.")
    return tags


def write(path: epath.PathLike, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]) -> None:
    """Write a file for conlleval: word, tag if known, and predicted tag with spaces between; an empty line after a sentence.

    A -DOCSTART- line with O in all columns precedes each document, unless each sentence is one. The script counts these lines
    as words in its accuracy only. A space in a word becomes ``_``.

    Raises:
      UserError: the file exists or cannot be made, or tags are missing.
    """
    if len(predicted) != len(sentences):
        raise UserError(f"Tags of {len(predicted):,} sentences are given for {len(sentences):,} sentences.")
    documents = [(sentence.where, sentence.document) for sentence in sentences]
    marked = len(set(documents)) < len(documents)
    out: list[str] = []
    for index, (sentence, tags) in enumerate(zip(sentences, predicted, strict=True)):
        count = len(sentence.words)
        if len(tags) != count:
            raise UserError(f"{sentence.at(0)}: the sentence has {count} words; {len(tags)} tags are given for it.")
        columns = [[word.replace(" ", "_") for word in sentence.words], *([sentence.tags] if sentence.tags else []), tags]
        if marked and (index == 0 or documents[index - 1] != documents[index]):
            out.append(" ".join([DOCSTART, *([_OUTSIDE] * (len(columns) - 1))]) + "\n\n")
        out += [" ".join(row) + "\n" for row in zip(*columns, strict=True)]
        out.append("\n")
    with atomic.new_path(path) as work:
        work.write_bytes("".join(out).encode())


def _blocks(path: epath.PathLike) -> Iterator[tuple[int, list[list[str]]]]:
    """First line number and the rows of columns of each sentence; no rows for a -DOCSTART- line."""
    first = 0
    rows: list[list[str]] = []
    for number, line in lines(path):
        text = line.strip(_BLANK) and line.rstrip("\r\n")
        row = [column.strip(" ") for column in text.split("\t")] if "\t" in text else [part for part in text.split(" ") if part]
        mark = row[:1] == [DOCSTART]
        if rows and (mark or not row):
            yield first, rows
            rows = []
        if mark:
            yield number, []
        elif row:
            first = first if rows else number
            rows.append(row)
    if rows:
        yield first, rows


def _error(row: list[str], width: int, first: int, column: int, tag_column: int | None) -> str:
    """What is wrong with a line; empty if nothing is."""
    if tag_column is not None and len(row) == 1:
        return f"has no tag beside {row[0]!r}; put a tab or a space between a word and its tag."
    if len(row) != width:
        return f"has {len(row)} columns, line {first} has {width}; repair the line."
    if not row[0]:
        return "has no word in its first column."
    if tag_column is not None and not 0 < tag_column < width:
        return f"has {width} columns, the first of which is the word; column {column} is not a tag."
    if tag_column is not None and (not row[tag_column] or " " in row[tag_column]):
        return f"has {row[tag_column]!r} for a tag; a tag is one word."
    return ""

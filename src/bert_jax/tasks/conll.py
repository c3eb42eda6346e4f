"""Files with a tagged word a line, as of CoNLL-2003: named entities (section 5.3 and Table 7 of the paper), parts of speech."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from etils import epath

from bert_jax.config.validation import require
from bert_jax.data.readers import lines
from bert_jax.errors import UserError
from bert_jax.io import atomic

DOCSTART = "-DOCSTART-"
"""First column of a line that begins a document."""
Kind = Literal["ner", "pos"]
"""What tags are: "ner", O, B-TYPE or I-TYPE; "pos", anything."""
_OUTSIDE = "O"
# Not all that Unicode calls a space: a no-break space may stand inside of a word.
_BLANK = " \t\r\n"


class Sentence(NamedTuple):
    """A sentence of a file."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    """As many as words; None where they were not read."""
    document: int
    """Number of its document in the file; where the file marks none, each sentence is a document."""
    line: int
    """Line of its first word, from 1; each word has a line."""
    where: str
    """Its file."""

    def at(self, word: int) -> str:
        """File and line of a word, for sentences that say what is wrong."""
        return f"{self.where}, line {self.line + word}"


def read(path: epath.PathLike, *, column: int = -1, tagged: bool = True) -> list[Sentence]:
    """Sentences of a file: a word a line, an empty line after a sentence, a -DOCSTART- line before a document.

    Columns are divided by tabs, in lines without one by spaces; the first is the word.

    Args:
      path: the file, also ``.gz``.
      column: which one is the tag, from 0, or from -1 backwards.
      tagged: whether tags are read; the word may be the only column otherwise.

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
        at = column if column >= 0 else width + column
        for number, row in enumerate(rows, line):
            wrong = _refusal(row, width, first, column, at if tagged else None)
            if wrong:
                raise UserError(f"{where}, line {number} {wrong}")
        tags = tuple(row[at] for row in rows) if tagged else None
        sentences.append(Sentence(tuple(row[0] for row in rows), tags, document, line, where))
    require(bool(sentences), f"{where} holds no words.")
    if not marked:
        sentences = [sentence._replace(document=number) for number, sentence in enumerate(sentences)]
    return sentences


def check_tags(sentences: Sequence[Sentence], kind: Kind) -> str:
    """Require that tags are what their kind says; of entities, that all are in one scheme.

    In IOB2 each entity begins with B. In IOB1 it begins with I, and with B only right after an entity of its type. What
    only the other scheme allows is refused, the one that fewer entities follow.

    Returns:
      "IOB1" or "IOB2" (where both fit, too); "" for parts of speech.

    Raises:
      UserError: a tag is none, or of the other scheme than most; the sentence names file and line.
    """
    require(kind in get_args(Kind), f"kind is {kind!r}; choose one of {', '.join(get_args(Kind))}.")
    if kind == "pos":
        return ""
    found: dict[str, list[str]] = {"IOB1": [], "IOB2": []}
    for sentence in sentences:
        before = ""
        for number, tag in enumerate(sentence.tags or ()):
            prefix, _, name = tag.partition("-")
            if tag != _OUTSIDE and (prefix not in ("B", "I") or not name):
                raise UserError(f"{sentence.at(number)}: {tag!r} is no tag of an entity; convert the file to O, B-TYPE and I-TYPE.")
            if prefix == "I" and name != before:
                found["IOB1"].append(f"{sentence.at(number)}: {tag} begins an entity, which a B does elsewhere in the file (IOB2)")
            elif prefix == "B" and name != before:
                found["IOB2"].append(f"{sentence.at(number)}: {tag} begins an entity, which an I does elsewhere in the file (IOB1)")
            before = name
    scheme, other = ("IOB1", "IOB2") if len(found["IOB1"]) > len(found["IOB2"]) else ("IOB2", "IOB1")
    if found[other]:
        raise UserError(f"{found[other][0]}; repair the file, or read it as conlleval does with --scheme loose.")
    return scheme


def labels(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """All tags, sorted.

    Raises:
      UserError: there are none.
    """
    found = tuple(sorted({tag for sentence in sentences for tag in sentence.tags or ()}))
    require(bool(found), "The sentences have no tags; read them with tags.")
    return found


def write(path: epath.PathLike, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]) -> None:
    """A file for conlleval: word, tag if there is one, and predicted tag with spaces between, an empty line after a sentence.

    A -DOCSTART- line with O in all columns stands before each document, unless each sentence is one. The script counts these
    lines as words in its accuracy, and in no other score. A space inside of a word becomes ``_``.

    Raises:
      UserError: the file exists or cannot be made, or tags are missing.
    """
    require(len(predicted) == len(sentences), f"Tags of {len(predicted):,} sentences are given for {len(sentences):,} sentences.")
    documents = [(sentence.where, sentence.document) for sentence in sentences]
    marked = len(set(documents)) < len(documents)
    out: list[str] = []
    for number, (sentence, tags) in enumerate(zip(sentences, predicted, strict=True)):
        count = len(sentence.words)
        require(len(tags) == count, f"{sentence.at(0)}: the sentence has {count} words; {len(tags)} tags are given for it.")
        columns = [[word.replace(" ", "_") for word in sentence.words], *([sentence.tags] if sentence.tags else []), tags]
        if marked and (number == 0 or documents[number - 1] != documents[number]):
            out.append(" ".join([DOCSTART, *([_OUTSIDE] * (len(columns) - 1))]) + "\n\n")
        out += [" ".join(row) + "\n" for row in zip(*columns, strict=True)]
        out.append("\n")
    with atomic.new(path) as work:
        work.write_bytes("".join(out).encode())


def _blocks(path: epath.PathLike) -> Iterator[tuple[int, list[list[str]]]]:
    """For each sentence its first line and the columns of its lines; none for a -DOCSTART- line."""
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


def _refusal(row: list[str], width: int, first: int, column: int, at: int | None) -> str:
    """What is wrong with a line, if anything is; ``at`` is where its tag should be."""
    if at is not None and len(row) == 1:
        return f"has no tag beside {row[0]!r}; put a tab or a space between a word and its tag."
    if len(row) != width:
        return f"has {len(row)} columns, line {first} has {width}; repair the line."
    if not row[0]:
        return "has no word in its first column."
    if at is not None and not 0 < at < width:
        return f"has {width} columns, the first of which is the word; column {column} is no tag."
    if at is not None and (not row[at] or " " in row[at]):
        return f"has {row[at]!r} for a tag; a tag is one word."
    return ""

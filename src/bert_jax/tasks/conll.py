"""Files with one tagged word a line, as in CoNLL-2003: named entities (section 5.3 of the paper) and parts of speech."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from etils import epath

from bert_jax.config.finetuning import Scheme
from bert_jax.errors import BertWarning, UserError
from bert_jax.io import atomic
from bert_jax.io.lines import lines
from bert_jax.tasks.metrics import schemes

DOCSTART = "-DOCSTART-"
"""First column of a line that begins a document."""
Kind = Literal["ner", "pos"]
"""Kind of tags: "ner" are O and tags of entities such as B-TYPE; "pos" are arbitrary."""
_OUTSIDE = "O"
# Prefixes of the schemes in which the last word of an entity has its own: first, further, last and only word.
_PREFIXES: dict[schemes.Scheme, str] = {"iobes": "BIES", "bilou": "BILU"}
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


def check_tags(sentences: Sequence[Sentence], kind: Kind, scheme: Scheme = "strict") -> str:
    """Check that tags are of their kind and, for entities, that all follow one scheme.

    In IOB2 each entity begins with B. In IOB1 it begins with I, and with B only directly after an entity of its type. In IOBES the
    last word has E, and the only word S; in BILOU they have L and U.

    Args:
      sentences: sentences with tags.
      kind: kind of tags.
      scheme: scheme that the tags have to follow; "strict" finds it: IOBES or BILOU if a tag has one of their prefixes, else
        of IOB1 and IOB2 the one that more entities follow. "iobes" and "bilou" accept entities without a first or last word, which
        seqeval does not count; "loose" accepts every tag.

    Returns:
      The name of the scheme in lower case ("iob2" if both kinds of IOB fit); "" for parts of speech and "loose".

    Raises:
      UserError: a tag is not of its kind, or contradicts the scheme; the sentence names file and line.

    Warns:
      BertWarning: the number of tags that are part of no entity.
    """
    if kind not in get_args(Kind):
        raise UserError(f"kind is {kind!r}; choose one of {', '.join(get_args(Kind))}.")
    if kind == "pos" or scheme == "loose":
        return ""
    found = find_scheme(itertools.chain.from_iterable(sentence.tags or () for sentence in sentences), scheme)
    letters = "BI" if found is None else _PREFIXES[found]
    for sentence in sentences:
        for index, tag in enumerate(sentence.tags or ()):
            prefix, _, name = tag.partition("-")
            if tag != _OUTSIDE and (prefix not in [*letters] or not name):
                forms = ", ".join(f"{letter}-TYPE" for letter in letters)
                raise UserError(f"{sentence.at(index)}: {tag!r} is not a tag of an entity; convert the file to O, {forms}.")
    if found is None:
        return _check_iob(sentences, scheme)
    wrong = [*_open_ends(sentences, found)]
    if wrong and scheme == "strict":
        raise UserError(f"{wrong[0]}; repair the file, or pass such tags over, as seqeval does, with --scheme {found}.")
    if wrong:
        warnings.warn(f"{wrong[0]}; {len(wrong):,} such tags are no entities in the scores.", BertWarning, stacklevel=2)
    return found


def find_scheme(tags: Iterable[str], scheme: Scheme) -> schemes.Scheme | None:
    """The scheme of tags, None for any kind of IOB.

    Args:
      tags: all tags.
      scheme: what the user chose; "strict" looks at the prefixes.

    Examples:
      >>> find_scheme(["O", "S-LOC"], "strict")
      'iobes'
    """
    prefixes = {tag.partition("-")[0] for tag in tags}
    for name, letters in _PREFIXES.items():
        if scheme == name or (scheme == "strict" and prefixes & set(letters[2:])):
            return name
    return None


def _open_ends(sentences: Sequence[Sentence], scheme: schemes.Scheme) -> Iterator[str]:
    """Yield a clause on each tag that continues no entity, and on each entity of several words without a last one."""
    first, inside, last = tuple(_PREFIXES[scheme])[:3]
    for sentence in sentences:
        before = ""
        for index, tag in enumerate([*(sentence.tags or ()), _OUTSIDE]):
            prefix, _, name = tag.partition("-")
            continues = prefix in (inside, last)
            if continues != bool(before) or (continues and name != before):
                wrong = f"{tag} continues no entity" if not before else f"the entity of {before} before it has no {last}-{before}"
                yield f"{sentence.at(min(index, len(sentence.words) - 1))}: {wrong} ({scheme.upper()})"
            before = name if prefix in (first, inside) else ""


def _check_iob(sentences: Sequence[Sentence], scheme: Scheme) -> str:
    evidence: dict[str, list[str]] = {"iob1": [], "iob2": []}
    for sentence in sentences:
        before = ""
        for index, tag in enumerate(sentence.tags or ()):
            prefix, _, name = tag.partition("-")
            place = sentence.at(index)
            if prefix == "I" and name != before:
                evidence["iob1"].append(f"{place}: {tag} begins an entity, but elsewhere in the file B begins one (IOB2)")
            elif prefix == "B" and name != before:
                evidence["iob2"].append(f"{place}: {tag} begins an entity, but elsewhere in the file I begins one (IOB1)")
            before = name
    more = "iob1" if len(evidence["iob1"]) > len(evidence["iob2"]) else "iob2"
    found = scheme if scheme in evidence else more
    other = next(name for name in evidence if name != found)
    if evidence[other]:
        raise UserError(f"{evidence[other][0]}; repair the file, or read it as conlleval does with --scheme loose.")
    return found


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

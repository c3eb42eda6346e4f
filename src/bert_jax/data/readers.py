"""Documents as lists of sentences, streamed from files of all kinds.

Reading is split in two: [`read_texts`][bert_jax.data.readers.read_texts] yields the text of each document as it is stored, and
[`sentences_of`][bert_jax.data.readers.sentences_of], which takes most of the time, makes sentences of it, in any process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet
import sentencex
from etils import epath

from bert_jax.data import mediawiki, tfds_texts
from bert_jax.errors import UserError
from bert_jax.io import remote
from bert_jax.io.addresses import refuse_credentials
from bert_jax.io.lines import COMPRESSED, STANDARD_INPUT, lines, require_file
from bert_jax.io.parsing import check_text, parse_json

Document = list[str]
Sentences = Literal["auto", "lines", "split"]
"""Source of sentence boundaries: "lines" takes each line as a sentence, "split" splits running text, "auto" means "lines" for text
files and "split" for other formats."""
Kind = Literal["lines", "running", "wikitext"]
"""What a stored text is: a sentence on each line, running text, or the markup of a MediaWiki page."""
_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)")
_JSON_LINES = ("jsonl", "ndjson", "json")
_SUFFIXES = ("txt", "text", "parquet", "xml", *_JSON_LINES)


class StoredText(NamedTuple):
    """The text of a document as it is stored."""

    text: str
    kind: Kind
    source: str = ""
    """Name of the source that it comes from."""


class Input(NamedTuple):
    """One file, or one data set of TFDS."""

    path: str
    size: int | None
    """Bytes, None where they are not known."""
    source: str = ""
    """Name of the source that it belongs to."""


def find_inputs(texts: Sequence[epath.PathLike]) -> list[Input]:
    """Find the files that paths stand for, in order.

    Args:
      texts: files; patterns such as ``wiki/*.txt.gz``; directories, of which all text files are taken, also those of
        directories in them; ``-`` for standard input; ``tfds:NAME`` for a data set of TFDS. Each may be preceded by the name
        of a source, as in ``books=gutenberg/*.txt``.

    Returns:
      The inputs of each source together, the sources in the order of their first inputs.

    Raises:
      UserError: a path or pattern matches nothing, a directory has no text files, or an address contains credentials.
    """
    found = [item for text in texts for item in _find(str(text))]
    sources = [*dict.fromkeys(item.source for item in found)]
    return sorted(found, key=lambda item: sources.index(item.source))


def _find(text: str) -> list[Input]:
    if (named := _NAMED.fullmatch(text)) and ("://" in text or not epath.Path(text).exists()):
        return [item._replace(source=named[1]) for item in _find(named[2])]
    if text == STANDARD_INPUT or text.startswith(tfds_texts.PREFIX):
        return [Input(text, None)]
    refuse_credentials(text, "The text")
    path = remote.open_path(text)
    if path.is_dir():
        files = [*_files_below(path)]
        if not files:
            raise UserError(f"{path} is a directory without text files ({', '.join(f'.{suffix}' for suffix in _SUFFIXES)}).")
    elif not path.exists() and any(character in text for character in "*?["):
        # A pattern may follow an absolute or remote root.
        root = epath.Path(text.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0] or ("/" if text[0] == "/" else "."))
        files = sorted(root.glob(text.removeprefix(str(root)).lstrip("/"))) if root.exists() else []
        if not files:
            raise UserError(f"No file matches {text}.")
    else:
        require_file(path)
        files = [path]
    return [Input(str(file), file.stat().length) for file in files]


def _files_below(directory: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_below(path)
        elif _suffix(path) in _SUFFIXES:
            yield path


def _suffix(path: epath.Path) -> str:
    name = path.name
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return name.rpartition(".")[2].lower()


def read_texts(
    path: str, *, sentences: Sentences = "auto", field: str = "text", opened: Callable[[Any], Any] = lambda file: file
) -> Iterator[StoredText]:
    """Yield the texts of one input that are not blank, in order.

    In ``.txt`` files (and any other suffix) a document ends at a blank line, as in the original, and at the end of the file; in
    ``.jsonl``, ``.ndjson``, ``.json`` (a record on each line) and ``.parquet`` files each record is a document; in ``.xml`` files,
    which are dumps of MediaWiki, each article.

    Args:
      path: path of an [`Input`][bert_jax.data.readers.Input].
      sentences: see [`Sentences`][bert_jax.data.readers.Sentences].
      field: field of a record that contains the text.
      opened: wraps the opened file, which may be compressed; called where there is one.

    Raises:
      UserError: the input is missing, contains no text, or is not of the format of its suffix; the message names file and line.
    """
    records, running = _records(path, field, opened)
    kind: Kind = "wikitext" if isinstance(records, mediawiki.Pages) else "lines"
    if kind == "lines" and (sentences == "split" or (sentences == "auto" and running)):
        kind = "running"
    empty = True
    for record in records:
        if record.strip():
            empty = False
            yield StoredText(record, kind)
    if empty:
        raise UserError(f"{path} contains no text.")


def _records(path: str, field: str, opened: Callable[[Any], Any]) -> tuple[Iterable[str], bool]:
    """The records of an input, and whether they are running text."""
    if path.startswith(tfds_texts.PREFIX):
        return tfds_texts.texts(path, field), True
    file = epath.Path(path)
    if path != STANDARD_INPUT:
        require_file(file)
    suffix = _suffix(file)
    if suffix == "parquet":
        return _parquet(file, field, opened), True
    if suffix == "xml":
        return mediawiki.Pages(file, opened), True
    if suffix in _JSON_LINES:
        return _json_lines(file, field, opened), True
    return _paragraphs(file, opened), False


def sentences_of(stored: StoredText, language: str = "en") -> Document:
    """Split the text of a document into sentences, without blank ones.

    Args:
      stored: the text.
      language: ISO 639 code for the sentence splitter.
    """
    text = mediawiki.plain_text(stored.text) if stored.kind == "wikitext" else stored.text
    document = [line for line in map(str.strip, text.split("\n")) if line]
    if stored.kind == "lines":
        return document
    return [part for line in document for part in map(str.strip, sentencex.segment(language, line)) if part]


def read_documents(
    texts: Sequence[epath.PathLike], *, sentences: Sentences = "auto", language: str = "en", field: str = "text"
) -> Iterator[Document]:
    """Yield the documents of all files in order, without empty ones; see [`find_inputs`][bert_jax.data.readers.find_inputs] and
    [`read_texts`][bert_jax.data.readers.read_texts].

    Raises:
      UserError: see there.
    """
    for found in find_inputs(texts):
        for stored in read_texts(found.path, sentences=sentences, field=field):
            if document := sentences_of(stored, language):
                yield document


def _paragraphs(path: epath.Path, opened: Callable[[Any], Any]) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in lines(path, opened=opened):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _json_lines(path: epath.Path, field: str, opened: Callable[[Any], Any]) -> Iterator[str]:
    for number, line in lines(path, opened=opened):
        if not line.strip():
            continue
        record = parse_json(line, f"{path}, line {number}")
        text: Any = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{path}, line {number}: no text under {field!r}; name the field with --field.")
        yield check_text(text, f"{path}, line {number}: {field!r}")


def _parquet(path: epath.Path, field: str, opened: Callable[[Any], Any]) -> Iterator[str]:
    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(opened(raw)) as file:
            if field not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column {field!r} but {', '.join(file.schema_arrow.names)}; name the column with --field."
                )
            for batch in file.iter_batches(columns=[field], batch_size=4096):
                yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {error}.") from None

"""Documents as lists of sentences, streamed from text, JSON Lines and Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import pyarrow
import pyarrow.parquet
import sentencex
from etils import epath

from bert_jax.errors import UserError
from bert_jax.io.lines import lines, require_file
from bert_jax.io.parsing import check_text, parse_json

Document = list[str]
Sentences = Literal["auto", "lines", "split"]
"""Source of sentence boundaries: "lines" takes each line as a sentence, "split" splits running text, "auto" means "lines" for text
files and "split" for other formats."""
_JSON_LINES = ("jsonl", "ndjson")


def read_documents(
    paths: Sequence[epath.PathLike], *, sentences: Sentences = "auto", language: str = "en", field: str = "text"
) -> Iterator[Document]:
    """Yield the documents of all files in order, without empty ones.

    In ``.txt`` files (and any other suffix) a document ends at a blank line, as in the original, and at the end of the file; in
    ``.jsonl`` and ``.parquet`` files each record is a document. ``.gz`` is decompressed.

    Args:
      paths: files, local or remote.
      sentences: see [`Sentences`][bert_jax.data.readers.Sentences].
      language: ISO 639 code for the sentence splitter.
      field: field of a record that contains the text.

    Raises:
      UserError: a file is missing, a directory, empty, or not of the format of its suffix; the message names file and line.
    """
    for path in map(epath.Path, paths):
        require_file(path)
        suffix = path.name.removesuffix(".gz").rpartition(".")[2]
        records: Iterable[str]
        if suffix in _JSON_LINES:
            records = _json_lines(path, field)
        elif suffix == "parquet":
            records = _parquet(path, field)
        else:
            records = _paragraphs(path)
        split = sentences == "split" or (sentences == "auto" and suffix in (*_JSON_LINES, "parquet"))
        empty = True
        for record in records:
            document = [line for line in map(str.strip, record.split("\n")) if line]
            if split:
                document = [part for line in document for part in map(str.strip, sentencex.segment(language, line)) if part]
            if document:
                empty = False
                yield document
        if empty:
            raise UserError(f"{path} contains no text.")


def _paragraphs(path: epath.Path) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _json_lines(path: epath.Path, field: str) -> Iterator[str]:
    for number, line in lines(path):
        if not line.strip():
            continue
        record = parse_json(line, f"{path}, line {number}")
        text: Any = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{path}, line {number}: no text under {field!r}; name the field with --field.")
        yield check_text(text, f"{path}, line {number}: {field!r}")


def _parquet(path: epath.Path, field: str) -> Iterator[str]:
    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            if field not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column {field!r} but {', '.join(file.schema_arrow.names)}; name the column with --field."
                )
            for batch in file.iter_batches(columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {error}.") from None

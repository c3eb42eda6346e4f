"""Documents as lists of sentences from text, JSON lines and Parquet, read as a stream."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Literal

import pyarrow
import pyarrow.parquet
import sentencex
from etils import epath

from bert_jax.errors import UserError

Document = list[str]
Sentences = Literal["auto", "lines", "split"]
"""How sentences are found: "lines", a line is a sentence; "split", running text is split; "auto", lines in text files,
split elsewhere."""


def read_documents(
    paths: Sequence[epath.PathLike], *, sentences: Sentences = "auto", language: str = "en", field: str = "text"
) -> Iterator[Document]:
    """Documents of all files in order, without empty ones.

    In ``.txt`` files (and any other suffix) a blank line ends a document, as in the original, and so does the end
    of a file; in ``.jsonl`` and ``.parquet`` files each record is a document. ``.gz`` is unpacked.

    Args:
      paths: files, local or remote.
      sentences: see :data:`Sentences`.
      language: ISO 639 code for the sentence splitter.
      field: name of the text in a record.

    Raises:
      UserError: a file is missing, a directory, empty, or not what its name says; the sentence names file and line.
    """
    for path in map(epath.Path, paths):
        if path.is_dir():
            raise UserError(f"{path} is a directory; name the files in it, for example {path}/*.txt.")
        if not path.exists():
            raise UserError(f"There is no file {path}.")
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        records: Iterable[str]
        if kind in ("jsonl", "ndjson"):
            records = _json_lines(path, field)
        elif kind == "parquet":
            records = _parquet(path, field)
        else:
            records = _paragraphs(path)
        split = sentences == "split" or (sentences == "auto" and kind in ("jsonl", "ndjson", "parquet"))
        empty = True
        for record in records:
            lines = [line for line in map(str.strip, record.split("\n")) if line]
            if split:
                lines = [part for line in lines for part in map(str.strip, sentencex.segment(language, line)) if part]
            if lines:
                empty = False
                yield lines
        if empty:
            raise UserError(f"{path} holds no text.")


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    with contextlib.ExitStack() as stack:
        file: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.open(file))
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{path}, line {number}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; convert the file to UTF-8."
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}.") from None


def _paragraphs(path: epath.Path) -> Iterator[str]:
    lines: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    yield "".join(lines)


def _json_lines(path: epath.Path, field: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}.") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise UserError(f"{path}, line {number}: no text under {field!r}; name the field with --field.")
        text = record[field]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path}, line {number}: half a surrogate pair at character {error.start + 1}; the text is damaged."
            ) from None
        yield text


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

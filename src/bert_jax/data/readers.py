"""Documents as lists of sentences from text, JSON lines and Parquet, read as a stream."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Literal

import pyarrow
import pyarrow.parquet
import sentencex
from etils import epath

from bert_jax.config.validation import parse_json
from bert_jax.errors import UserError

Document = list[str]
PAIR = " ||| "
"""What divides the two texts of a pair on one line."""
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
        _require_file(path)
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


def read_texts(path: epath.PathLike, *, field: str = "text") -> list[str | tuple[str, str]]:
    """Texts and pairs of texts to encode, one a line, empty lines included.

    In ``.jsonl`` files each record has a string, or a list of two, under ``field``; in others `` ||| `` divides a pair, as
    in the original's ``extract_features.py``. ``.gz`` is unpacked.

    Raises:
      UserError: the file is missing, empty, a directory, or not what its name says; the sentence names file and line.
    """
    path = epath.Path(path)
    _require_file(path)
    if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        texts = [value if isinstance(value, str) else (value[0], value[1]) for value in _json_lines(path, field, pairs=True)]
    else:
        texts = [_pair(line) for _, line in lines(path)]
    if not texts:
        raise UserError(f"{path} holds no text.")
    return texts


def _pair(line: str) -> str | tuple[str, str]:
    first, bars, second = line.strip().rpartition(PAIR)
    return (first.strip(), second.strip()) if bars else line.strip()


def _require_file(path: epath.Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the files in it, for example {path}/*.txt.")
    if not path.exists():
        raise UserError(f"There is no file {path}.")


def lines(path: epath.PathLike) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their numbers, from 1, and with what ends them; ``.gz`` is unpacked.

    Raises:
      UserError: the file is missing, a directory, not UTF-8 (the sentence names the line), not whole, or cannot be read.
    """
    path = epath.Path(path)
    _require_file(path)
    with contextlib.ExitStack() as stack:
        file: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.open(file))
        number = 0
        try:
            for number, line in enumerate(file, 1):
                # Some editors begin a file with a byte order mark.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{path}, line {number}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; convert the file to UTF-8."
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _paragraphs(path: epath.Path) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _json_lines(path: epath.Path, field: str, *, pairs: bool = False) -> Iterator[Any]:
    """What each record has under a field: a string, or, where pairs are allowed, a list of two."""
    for number, line in lines(path):
        if not line.strip():
            continue
        record = parse_json(line, f"{path}, line {number}")
        value: Any = record.get(field) if isinstance(record, dict) else None
        parts: list[Any] = value if pairs and isinstance(value, list) and len(value) == 2 else [value]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{path}, line {number}: no text under {field!r}; name the field with --field.")
        for text in parts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{path}, line {number}: half a surrogate pair at character {error.start + 1}; the text is damaged."
                ) from None
        yield value


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

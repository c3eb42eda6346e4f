"""One pass over the inputs of a build: chunks of texts, with the bytes that were read and a hash of each file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from bert_jax.data.chunks import Chunk
from bert_jax.data.duplicates import Duplicates, Filter, Map
from bert_jax.data.readers import Input, Sentences, StoredText, read_texts
from bert_jax.errors import UserError

CHUNK_CHARACTERS = 32_000_000
"""Characters of text in a chunk, which becomes a shard."""
_READ_BYTES = 2**20


@dataclass(frozen=True)
class BuildOptions:
    """How texts become documents.

    Raises:
      UserError: ``held_out`` is not in (0, 0.5].
    """

    held_out: float = 0.05
    """Fraction of documents kept for evaluation: every n-th, n = round(1 / held_out)."""
    sentences: Sentences = "auto"
    language: str = "en"
    field: str = "text"
    duplicates: Duplicates = "keep"

    def __post_init__(self) -> None:
        if not 0 < self.held_out <= 0.5:
            raise UserError(f"The held-out fraction is {self.held_out}; it must be greater than 0 and at most 0.5.")

    @property
    def every(self) -> int:
        """Each n-th document is held out."""
        return round(1 / self.held_out)


class Reader:
    """Reads inputs once: iterates over chunks, counts bytes, and hashes files.

    Args:
      inputs: from [`find_inputs`][bert_jax.data.readers.find_inputs].
      options: how texts become documents.
      apply: computes what near duplicates are found by, perhaps in several processes.
    """

    def __init__(self, inputs: Sequence[Input], options: BuildOptions, apply: Map = map) -> None:
        self._inputs, self._language = inputs, options.language
        self.bytes = 0
        self.files: list[dict[str, Any]] = []
        self._filter = Filter(options.duplicates, apply)
        self._texts = self._filter(self._read(options))

    @property
    def dropped(self) -> int:
        """Documents that repeat an earlier one and were left out."""
        return self._filter.dropped

    @classmethod
    def of_texts(cls, texts: Iterator[StoredText]) -> Reader:
        """A reader of texts that come from no file."""
        reader = cls((), BuildOptions())
        reader._texts = texts
        return reader

    def _read(self, options: BuildOptions) -> Iterator[StoredText]:
        for found in self._inputs:
            hashed: list[_Hashed] = []

            def opened(file: Any, hashed: list[_Hashed] = hashed) -> Any:
                hashed.append(_Hashed(file, self))
                return io.BufferedReader(hashed[0], _READ_BYTES)

            is_parquet = found.path.endswith(".parquet")
            wrap = {} if is_parquet else {"opened": opened}
            yield from read_texts(found.path, sentences=options.sentences, field=options.field, **wrap)
            description: dict[str, Any] = {"path": found.path}
            if is_parquet:
                # Its parts are read in another order.
                with epath.Path(found.path).open("rb") as file:
                    description |= {"bytes": found.size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                self.bytes += found.size or 0
            elif hashed:
                description |= {"bytes": hashed[0].bytes, "sha256": hashed[0].digest.hexdigest()}
            self.files.append(description)

    def __iter__(self) -> Iterator[tuple[Chunk, int]]:
        """Yield chunks, with the bytes that were read since the one before."""
        texts: list[StoredText] = []
        characters = number = first = reported = 0
        for text in self._texts:
            texts.append(text)
            characters += len(text.text)
            if characters >= CHUNK_CHARACTERS:
                yield Chunk(number, first, texts, self._language), self.bytes - reported
                number, first, reported = number + 1, first + len(texts), self.bytes
                texts, characters = [], 0
        if texts:
            yield Chunk(number, first, texts, self._language), self.bytes - reported


class _Hashed(io.RawIOBase):
    """A file whose content is hashed and counted while it is read."""

    def __init__(self, file: Any, reader: Reader) -> None:
        super().__init__()
        self._file, self._reader = file, reader
        self.digest, self.bytes = hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        self.bytes += count
        self._reader.bytes += count
        return count

"""One pass over the inputs of a build: chunks of texts, with the bytes that were read and a hash of each file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import select
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
_SIGNAL_MILLISECONDS = 1000
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
    """ISO 639 code for the sentence splitter, or codes of named sources, as in "german=de,french=fr"."""
    field: str = "text"
    duplicates: Duplicates = "keep"
    mix: str | None = None
    """Shares of the tokens of an epoch that come from each named source, up to a common factor, as in "wiki=2,books=1"."""
    smoothing: float | None = None
    """Exponent of the sources' sizes that gives their shares: 1 for the sizes as they are, 0.7 as for multilingual BERT."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out <= 0.5:
            raise UserError(f"The held-out fraction is {self.held_out}; it must be greater than 0 and at most 0.5.")
        if self.mix is not None and self.smoothing is not None:
            raise UserError("--mix and --smoothing both decide the shares of the sources; leave one out.")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise UserError(f"The smoothing is {self.smoothing}; it must lie in [0, 1].")
        self.languages()

    def weights(self, tokens: dict[str, int]) -> dict[str, float] | None:
        """The share of each source, given its tokens; None where each document is used once.

        Raises:
          UserError: ``mix`` names other sources, or a weight is not a positive number.
        """
        if self.smoothing is not None:
            return {source: float(count) ** self.smoothing for source, count in tokens.items()}
        if self.mix is None:
            return None
        weights = dict(_weight(part) for part in self.mix.split(","))
        if weights.keys() != tokens.keys():
            given, named = (", ".join(sorted(names)) or "none" for names in (weights, tokens))
            raise UserError(f"--mix gives weights to {given}, but the sources of the text are {named}; name each text SOURCE=PATH.")
        return weights

    def languages(self) -> dict[str, str]:
        """Languages by source; "" stands for all others.

        Raises:
          UserError: ``language`` is neither a code nor a list of codes.
        """
        parts = [part.strip().split("=") for part in self.language.split(",")]
        if len(parts) == len(parts[0]) == 1:
            return {"": parts[0][0]}
        if any(len(part) != 2 for part in parts):
            raise UserError(f"The language is {self.language!r}; give a code such as en, or SOURCE=CODE,SOURCE=CODE.")
        return {"": "en"} | {source: code for source, code in parts}

    @property
    def every(self) -> int:
        """Each n-th document is held out."""
        return round(1 / self.held_out)


def _weight(part: str) -> tuple[str, float]:
    source, _, value = part.strip().partition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"--mix contains {part.strip()!r}; give each source a positive number, as in wiki=2,books=1.")
    return source, weight


class Reader:
    """Reads inputs once: iterates over chunks, counts bytes, and hashes files.

    Args:
      inputs: from [`find_inputs`][bert_jax.data.readers.find_inputs].
      options: how texts become documents.
      apply: computes what near duplicates are found by, perhaps in several processes.
    """

    def __init__(self, inputs: Sequence[Input], options: BuildOptions, apply: Map = map) -> None:
        self._inputs, self._languages = inputs, options.languages()
        known = {found.source for found in inputs}
        if inputs:
            # Before hours of work.
            options.weights(dict.fromkeys(known, 1))
        if unknown := [source for source in self._languages if source and source not in known]:
            raise UserError(f"--language names {', '.join(unknown)}, but no text is given as {unknown[0]}=PATH.")
        self.bytes = 0
        self.files: dict[str, list[dict[str, Any]]] = {}
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
            for text in read_texts(found.path, sentences=options.sentences, field=options.field, **wrap):
                yield text._replace(source=found.source)
            description: dict[str, Any] = {"path": found.path}
            if is_parquet:
                # Its parts are read in another order.
                with epath.Path(found.path).open("rb") as file:
                    description |= {"bytes": found.size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                self.bytes += found.size or 0
            elif hashed:
                description |= {"bytes": hashed[0].bytes, "sha256": hashed[0].digest.hexdigest()}
            self.files.setdefault(found.source, []).append(description)

    def __iter__(self) -> Iterator[tuple[Chunk, int]]:
        """Yield chunks, with the bytes that were read since the one before."""
        number = first = reported = 0
        for texts in self._groups():
            source, count = texts[0].source, len(texts)
            language = self._languages.get(source, self._languages[""])
            yield Chunk(number, first, texts, language, source), self.bytes - reported
            # Not to hold these texts while the next ones are read.
            del texts
            number, first, reported = number + 1, first + count, self.bytes

    def _groups(self) -> Iterator[list[StoredText]]:
        texts: list[StoredText] = []
        characters = 0
        for text in self._texts:
            if texts and (characters >= CHUNK_CHARACTERS or text.source != texts[0].source):
                yield texts
                texts, characters = [], 0
            texts.append(text)
            characters += len(text.text)
        if texts:
            yield texts


class _Hashed(io.RawIOBase):
    """A file whose content is hashed and counted while it is read."""

    def __init__(self, file: Any, reader: Reader) -> None:
        super().__init__()
        self._file, self._reader = file, reader
        self.digest, self.bytes, self._waits = hashlib.sha256(), 0, False
        # Files of a store have no descriptor.
        self._poll = select.poll()
        with contextlib.suppress(OSError, AttributeError):
            self._poll.register(file.fileno(), select.POLLIN)
            self._waits = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A signal just before a read that blocks, of a pipe, would be noticed only after it.
        while self._waits and not self._poll.poll(_SIGNAL_MILLISECONDS):
            pass
        count: int = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        self.bytes += count
        self._reader.bytes += count
        return count

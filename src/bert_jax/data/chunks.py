"""Chunks: texts that one process turns into the files of a shard, the same whatever the number of processes."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from bert_jax import tokenizers
from bert_jax.data.readers import Document, StoredText, sentences_of
from bert_jax.io import atomic, remote
from bert_jax.tokenizers import Tokenizer

TRAIN, HELD_OUT = SPLITS = ("train", "held_out")
UNFINISHED = ".unfinished-"
"""Start of the names of directories with the files of a chunk that is being written."""
# Documents that are tokenized together.
_DOCUMENTS_PER_CALL = 256


class Chunk(NamedTuple):
    """Consecutive texts of one source."""

    number: int
    first: int
    """Index of its first text among the texts of all chunks."""
    texts: list[StoredText]
    language: str
    """ISO 639 code for the sentence splitter."""
    source: str = ""
    """Name of the source that all texts come from."""


class Files(NamedTuple):
    """The files of a chunk: documents of each split, and, written last, what is known of them."""

    directory: epath.Path
    number: int

    def documents(self, split: str) -> epath.Path:
        """An ArrayRecord file, absent where the chunk has no documents for the split."""
        return self.directory / f"{self.number:06}.{split}.array_record"

    @property
    def statistics(self) -> epath.Path:
        """An ``.npz`` file with the arrays of [`Statistics`][bert_jax.data.chunks.Statistics] of each split."""
        return self.directory / f"{self.number:06}.npz"


class Statistics:
    """What examples are planned from: the sentences of D documents, N in number, and counts of V tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)
        self.words = self.bytes = 0
        self._lengths: list[np.ndarray] = []

    def add(self, document: dict[str, np.ndarray], words: int, size: int) -> None:
        """Count a document that has so many words and, as stored, bytes."""
        self.counts += np.bincount(document["tokens"], minlength=self.counts.size)
        self.words += words
        self.bytes += size
        self._lengths.append(document["sentence_lengths"])

    def arrays(self) -> dict[str, np.ndarray]:
        """``sentences`` int32 [D] of each document, ``lengths`` int32 [N] of each sentence in tokens, ``counts`` int64 [V], and
        ``sizes`` int64 [2]: words, and bytes as stored."""
        return {
            "sentences": np.array([len(lengths) for lengths in self._lengths], np.int32),
            "lengths": np.concatenate([*self._lengths, np.zeros(0, np.int32)]).astype(np.int32),
            "counts": self.counts,
            "sizes": np.array([self.words, self.bytes], np.int64),
        }


def features() -> tfds.features.FeaturesDict:
    """The features of a stored document."""

    def vector(dtype: type) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {"tokens": vector(np.int32), "word_starts": vector(np.bool_), "sentence_lengths": vector(np.int32)}
    )


class Writer:
    """Writes the files of chunks.

    Args:
      directory: where to write.
      tokenizer: tokenizes the sentences.
      every: each n-th text is held out.
      should_stop: whether the chunk is to be given up.
    """

    def __init__(self, directory: str, tokenizer: Tokenizer, every: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop
        self._directory, self._tokenizer, self._every = epath.Path(directory), tokenizer, every
        self._features = features()

    def write(self, chunk: Chunk) -> int:
        """Write a chunk, whose statistics appear when its other files are complete, and return its number."""
        numbers = range(chunk.first, chunk.first + len(chunk.texts))
        arrays: dict[str, np.ndarray] = {}
        # A runner of Beam may let two workers write the same chunk. ArrayRecord writes local files.
        parent = None if remote.is_remote(self._directory) else self._directory
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=parent) as work:
            files = Files(epath.Path(work), chunk.number)
            for split in SPLITS:
                statistics = Statistics(len(self._tokenizer.tokens))
                texts = (
                    text
                    for number, text in zip(numbers, chunk.texts, strict=True)
                    if (number % self._every == self._every - 1) == (split == HELD_OUT)
                )
                records = self._records(texts, chunk.language, statistics)
                if (first := next(records, None)) is not None:
                    ArrayRecordFileAdapter.write_examples(files.documents(split), itertools.chain([first], records))
                arrays |= {f"{split}.{name}": values for name, values in statistics.arrays().items()}
            with files.statistics.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            for path in (*map(files.documents, SPLITS), files.statistics):
                if path.exists():
                    atomic.move(path, self._directory / path.name)
        return chunk.number

    def _records(self, texts: Iterator[StoredText], language: str, statistics: Statistics) -> Iterator[tuple[int, bytes]]:
        while chosen := list(itertools.islice(texts, _DOCUMENTS_PER_CALL)):
            if self._should_stop():
                raise InterruptedError
            documents = [sentences_of(text, language) for text in chosen]
            for sentences, document in zip(documents, tokenize(documents, self._tokenizer), strict=True):
                if document:
                    record = self._features.serialize_example(document)
                    statistics.add(document, sum(len(sentence.split()) for sentence in sentences), len(record))
                    yield 0, record


def tokenize(documents: list[Document], tokenizer: Tokenizer) -> Iterator[dict[str, np.ndarray]]:
    """Yield the stored form of each document, an empty one for a document without tokens."""
    encoded = iter(tokenizer.encode([sentence for document in documents for sentence in document], match_special=False))
    for document in documents:
        sentences = [sentence for sentence in itertools.islice(encoded, len(document)) if len(sentence.ids)]
        if not sentences:
            yield {}
            continue
        yield {
            "tokens": np.concatenate([sentence.ids for sentence in sentences]),
            "word_starts": np.concatenate([sentence.word_starts for sentence in sentences]),
            "sentence_lengths": np.array([len(sentence.ids) for sentence in sentences], np.int32),
        }


_writer: Writer


def start_worker(directory: str, files: dict[str, bytes], every: int, stop: Any) -> None:
    """Prepare a worker process for [`write_in_worker`][bert_jax.data.chunks.write_in_worker]; ``stop`` is an event."""
    global _writer
    # The main process stops the workers; a Ctrl-C in the terminal reaches all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Each process uses one core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _writer = Writer(directory, tokenizers.from_files(files), every, stop.is_set)


def compress(chunk: Chunk) -> bytes:
    """A chunk for a worker process; several of them wait in memory."""
    return zlib.compress(pickle.dumps(chunk), level=1)


def write_in_worker(compressed: bytes) -> int:
    """[`Writer.write`][bert_jax.data.chunks.Writer.write] in a worker process."""
    return _writer.write(pickle.loads(zlib.decompress(compressed)))

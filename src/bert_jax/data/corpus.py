"""A corpus: a TFDS data set of tokenized documents in ArrayRecord, written and read without TensorFlow.

The directory is an ordinary TFDS directory, which `tfds.builder_from_directory` opens. Beside its shards lie the tokenizer's files
and, for each split, three memory-mapped arrays: the first sentence of each document, the length of each sentence, from which
examples are planned without reading a document, and the count of each token.
"""

from __future__ import annotations

import array
import collections
import contextlib
import hashlib
import io
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bert_jax import tokenizers
from bert_jax.data.readers import Document
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.io.parsing import read_json
from bert_jax.tokenizers import Tokenizer

TRAIN, HELD_OUT = SPLITS = ("train", "held_out")
_DATASET_INFO = "dataset_info.json"
# Documents that are tokenized together.
_CHUNK = 1024
# Bytes of decoded documents that are cached, and the bytes that a cached document takes beside its arrays.
_CACHE_BYTES = 2**29
_DOCUMENT_OVERHEAD = 1024


class Documents:
    """Random access to documents, with a cache of the ones that were read most recently.

    Within a block of the plan, an epoch reads a document about as often as it makes examples from it.

    Args:
      source: a TFDS data source.
      cache_bytes: approximate size of the cache.
      where: name of the source in error messages.

    Raises:
      UserError: a document that is read is damaged.
    """

    def __init__(self, source: Any, *, cache_bytes: int = _CACHE_BYTES, where: str = "the corpus") -> None:
        self._source, self._cache_bytes, self._where = source, cache_bytes, where
        self._cache: collections.OrderedDict[int, dict[str, np.ndarray]] = collections.OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def read(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        """Read documents without keeping them in the cache."""
        try:
            return [*self._source.__getitems__(indices)] if indices else []
        except (OSError, RuntimeError, ValueError) as error:
            if len(indices) > 1:
                return [document for index in indices for document in self.read([index])]
            raise UserError(f"{self._where}: document {indices[0]:,} cannot be read: {_reason(error)}.") from None

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        with self._lock:
            missing = [index for index in dict.fromkeys(indices) if index not in self._cache]
            for index, document in zip(missing, self.read(missing), strict=True):
                self._cache[index] = document
                self._cached_bytes += _size(document)
            documents = [self._cache[index] for index in indices]
            for index in indices:
                self._cache.move_to_end(index)
            while self._cached_bytes > self._cache_bytes:
                self._cached_bytes -= _size(self._cache.popitem(last=False)[1])
            return documents


def _size(document: dict[str, np.ndarray]) -> int:
    return sum(values.nbytes for values in document.values()) + _DOCUMENT_OVERHEAD


class Split(NamedTuple):
    """One split of an opened corpus, with D documents, N sentences and V tokens in the vocabulary."""

    documents: Documents
    """Each document has ``tokens`` (int32 ids), ``word_starts`` (bool, whether a token is the first of a word) and
    ``sentence_lengths`` (int32)."""
    first: np.ndarray
    """int64 [D + 1], index of the first sentence of each document."""
    lengths: np.ndarray
    """int32 [N], tokens of each sentence."""
    counts: np.ndarray
    """int64 [V], occurrences of each token."""


class Corpus(NamedTuple):
    """An opened corpus."""

    path: epath.Path
    tokenizer: Tokenizer
    train: Split
    held_out: Split

    def digest(self) -> str:
        """Return a hex digest of the content that runs depend on, equal for equal corpora at any path."""
        summary = hashlib.blake2b(tokenizers.digest(self.tokenizer).encode(), digest_size=16)
        for split in (self.train, self.held_out):
            for values in (split.first, split.lengths, split.counts):
                summary.update(np.ascontiguousarray(values).data)
        return summary.hexdigest()


class _Statistics:
    """Sentence lengths and token counts, collected while documents are written."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)
        self.lengths, self.sentences_per_document = array.array("i"), array.array("i")

    def add(self, document: dict[str, np.ndarray]) -> None:
        self.counts += np.bincount(document["tokens"], minlength=self.counts.size)
        self.lengths.extend(document["sentence_lengths"].tolist())
        self.sentences_per_document.append(len(document["sentence_lengths"]))

    def save(self, directory: epath.Path, split: str) -> None:
        first = np.concatenate([[0], np.cumsum(self.sentences_per_document, dtype=np.int64)])
        for name, values in (("first", first), ("lengths", np.array(self.lengths, np.int32)), ("counts", self.counts)):
            with (directory / f"{split}.{name}.npy").open("wb") as file:
                np.save(file, values)

    def sizes(self) -> dict[str, int]:
        return {
            "documents": len(self.sentences_per_document),
            "sentences": len(self.lengths),
            "tokens": int(self.counts.sum()),
        }


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of tokenized documents in their original order."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "features pieces, starts, sentences",
        "2.0.0": "features tokens, word_starts, sentence_lengths",
    }
    name = "corpus"
    # TFDS looks for files that describe the data set in this directory; there are none.
    pkg_dir_path = epath.Path(__file__).parent

    def __init__(self, documents: Callable[[str], Iterable[dict[str, np.ndarray]]], **kwargs: Any) -> None:
        self._documents = documents
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def vector(dtype: type) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

        features = {"tokens": vector(np.int32), "word_starts": vector(np.bool_), "sentence_lengths": vector(np.int32)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tokenized documents: token ids, whether a token is the first of a word, tokens of each sentence.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, np.ndarray]]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        yield from enumerate(self._documents(split))


def write_corpus(
    read: Callable[[], Iterable[Document]],
    out: epath.PathLike,
    tokenizer: Tokenizer,
    *,
    held_out: float,
    progress: Callable[[int], None] = lambda documents: None,
) -> dict[str, dict[str, int]]:
    """Tokenize documents into a new corpus directory, which appears under its name only when it is complete.

    Args:
      read: returns the documents, the same ones at every call; it is called several times.
      out: directory to create.
      tokenizer: its files are stored with the corpus.
      held_out: fraction of documents kept for evaluation: every n-th, n = round(1 / held_out).
      progress: called with the number of documents written since the last call.

    Returns:
      Number of documents, sentences and tokens of each split.

    Raises:
      UserError: ``out`` exists, ``held_out`` is not in (0, 0.5], or there are too few documents for sentence pairs in both splits.
    """
    out = epath.Path(out)
    every = _held_out_interval(read, out, held_out)
    statistics = {split: _Statistics(len(tokenizer.tokens)) for split in SPLITS}

    def documents(split: str) -> Iterator[dict[str, np.ndarray]]:
        texts = (text for index, text in enumerate(read()) if (index % every == every - 1) == (split == HELD_OUT))
        while chunk := list(itertools.islice(texts, _CHUNK)):
            for document in _tokenize(chunk, tokenizer):
                statistics[split].add(document)
                yield document
            progress(len(chunk))

    with atomic.new_path(out) as path:
        tfds.disable_progress_bar()
        builder = Builder(documents, data_dir=path.parent / "tfds", file_format="array_record")
        # TFDS announces a download although nothing is downloaded.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        directory = epath.Path(builder.data_dir)
        tokenizers.save(tokenizer, directory)
        for split in SPLITS:
            statistics[split].save(directory, split)
        directory.rename(path)
    return {split: collected.sizes() for split, collected in statistics.items()}


def _held_out_interval(read: Callable[[], Iterable[Document]], out: epath.Path, held_out: float) -> int:
    """Return n such that every n-th document is held out, after a check that there are enough documents."""
    if not 0 < held_out <= 0.5:
        raise UserError(f"The held-out fraction is {held_out}; it must be greater than 0 and at most 0.5.")
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name.")
    every = round(1 / held_out)
    required = 2 * every
    count = sum(1 for _ in itertools.islice(read(), required))
    if count < required:
        raise UserError(
            f"The text has {count} document{'s' * (count != 1)}, but a held-out fraction of {held_out} needs at least {required}; "
            "separate documents by a blank line or raise the fraction."
        )
    return every


def open_corpus(path: epath.PathLike) -> Corpus:
    """Open a corpus that ``bert-jax prepare`` wrote.

    Raises:
      UserError: there is no corpus at this path, its format has another major version, or a file is missing or damaged.
    """
    path = epath.Path(path)
    if not (path / _DATASET_INFO).exists():
        raise UserError(f"{path} is not a corpus; create one with `bert-jax prepare`.")
    _check_version(path)
    tokenizer = tokenizers.load(path)

    def open_split(name: str) -> Split:
        arrays = (_load(path / f"{name}.{part}.npy") for part in ("first", "lengths", "counts"))
        return Split(Documents(builder.as_data_source(split=name), where=f"{path}, split {name}"), *arrays)

    try:
        builder = tfds.builder_from_directory(path)
        return Corpus(path, tokenizer, open_split(TRAIN), open_split(HELD_OUT))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be opened: {_reason(error)}; prepare it again with `bert-jax prepare`.") from None


def _reason(error: Exception) -> str:
    """The first line of what a library says, which is about the cause."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _load(path: epath.Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _reason(error)
        raise UserError(f"{path} cannot be read: {reason}; prepare the corpus again with `bert-jax prepare`.") from None
    return array


def _check_version(path: epath.Path) -> None:
    stored = str(read_json(path / _DATASET_INFO).get("version", "")).partition(".")[0]
    if stored == str(Builder.VERSION.major):
        return
    if not stored.isdecimal():
        raise UserError(f"{path / _DATASET_INFO} has no version; prepare the corpus again with `bert-jax prepare`.")
    age = "an earlier" if int(stored) < Builder.VERSION.major else "a later"
    raise UserError(
        f"{path} was prepared by {age} version of bert_jax (format {stored}); prepare it again with `bert-jax prepare`."
    )


def unigram_log_probabilities(split: Split) -> np.ndarray:
    """Return float32 [V], the log-probability of each token by its frequency alone, with one added occurrence for each token."""
    counts = split.counts + 1.0
    return np.log(counts / counts.sum()).astype(np.float32)


def _tokenize(documents: list[Document], tokenizer: Tokenizer) -> Iterator[dict[str, np.ndarray]]:
    """Yield the stored form of each document that has tokens."""
    encoded = iter(tokenizer.encode([sentence for document in documents for sentence in document], match_special=False))
    for document in documents:
        sentences = [sentence for sentence in itertools.islice(encoded, len(document)) if len(sentence.ids)]
        if sentences:
            yield {
                "tokens": np.concatenate([sentence.ids for sentence in sentences]),
                "word_starts": np.concatenate([sentence.word_starts for sentence in sentences]),
                "sentence_lengths": np.array([len(sentence.ids) for sentence in sentences], np.int32),
            }

"""A corpus: a TFDS data set of tokenized documents in ArrayRecord, written and read without TensorFlow.

The directory is an ordinary TFDS directory, which `tfds.builder_from_directory` opens. Beside its shards lie the tokenizer's files
and, for each split, three memory-mapped arrays: the first sentence of each document, the length of each sentence, from which
examples are planned without reading a document, and the count of each token.
"""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bert_jax import tokenizers
from bert_jax.data.chunks import HELD_OUT, TRAIN
from bert_jax.errors import UserError
from bert_jax.io import cache, remote
from bert_jax.io.parsing import read_json
from bert_jax.tokenizers import Tokenizer

VERSION = tfds.core.Version("2.0.0")
"""Format of a corpus; 1 had the features pieces, starts, sentences."""
DATASET_INFO = "dataset_info.json"
"""File that makes a directory a corpus."""
_FEATURES = "features.json"
_TFDS = "tensorflow_datasets."
# Names of the field with a class in TFDS's present and former formats.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type", "proto_cls")
# Bytes of decoded documents that are cached, and the bytes that a cached document takes beside its arrays.
_CACHE_BYTES = 2**29
_DOCUMENT_OVERHEAD = 1024
# Bytes of arrays that are hashed whenever a run starts, which takes a second; of larger ones the stored digest is taken.
_MAX_HASHED = 2**30
PROVENANCE = "provenance.json"
"""File that describes where a corpus comes from: sources with their hashes, options and counts."""


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


class Part(NamedTuple):
    """The documents of a source, and how often an epoch uses them."""

    start: int
    stop: int
    uses: int
    """Documents that an epoch takes, at least all of them once; where it is no multiple, each epoch takes others twice."""


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
    words: int | None = None
    """Words of the text, separated by white space; None for corpora of earlier versions."""
    mixture: tuple[Part, ...] = ()
    """How often each source is used; empty: an epoch takes each document once."""


class Corpus(NamedTuple):
    """An opened corpus."""

    path: epath.Path
    tokenizer: Tokenizer
    train: Split
    held_out: Split
    stored_digest: str | None = None
    """The digest as it was when the corpus was written."""
    words_per_token: float | None = None
    """Words in an epoch for each token of text; None for corpora of earlier versions."""

    def digest(self) -> str:
        """Return a hex digest of the content that runs depend on, equal for equal corpora at any path."""
        size = sum(values.nbytes for split in (self.train, self.held_out) for values in (split.first, split.lengths, split.counts))
        if size > _MAX_HASHED and self.stored_digest:
            return self.stored_digest
        return self.compute_digest()

    def compute_digest(self) -> str:
        """Return the digest, read from all arrays."""
        arrays = [values for split in (self.train, self.held_out) for values in (split.first, split.lengths, split.counts)]
        return compute_digest(self.tokenizer, arrays, self.train.mixture)


def compute_digest(tokenizer: Tokenizer, arrays: Iterable[np.ndarray], mixture: Sequence[Part]) -> str:
    """Return the digest of a corpus, from the arrays ``first``, ``lengths`` and ``counts`` of each split."""
    summary = hashlib.blake2b(tokenizers.digest(tokenizer).encode(), digest_size=16)
    for values in arrays:
        summary.update(np.ascontiguousarray(values).data)
    if mixture:
        summary.update(repr([tuple(part) for part in mixture]).encode())
    return summary.hexdigest()


def open_corpus(path: epath.PathLike) -> Corpus:
    """Open a corpus that ``bert-jax prepare`` wrote; one on an object store is [copied][bert_jax.io.cache.local_copy] first.

    Raises:
      UserError: there is no corpus at this path, its format has another major version, a file is missing or damaged, or its
        vocabulary is not the one that it was prepared with.
    """
    path = remote.open_path(path)
    if not (path / DATASET_INFO).exists():
        raise UserError(f"{path} is not a corpus; create one with `bert-jax prepare`.")
    local = cache.local_copy(path)
    try:
        return _open_local(local, str(path))._replace(path=path)
    except UserError as error:
        # The user knows the path, not the copy.
        raise UserError(str(error).replace(str(local), str(path))) from None


def _open_local(path: epath.Path, where: str) -> Corpus:
    _check_version(path)
    tokenizer = tokenizers.load(path)
    provenance = read_json(path / PROVENANCE) if (path / PROVENANCE).exists() else {}
    if provenance.get("tokenizer", digest := tokenizers.digest(tokenizer)) != digest:
        raise UserError(
            f"The vocabulary in {path} is not the one that its documents were tokenized with; restore its files, or prepare the "
            "corpus again."
        )

    def open_split(name: str) -> Split:
        first, lengths, counts = (_load(path / f"{name}.{part}.npy") for part in ("first", "lengths", "counts"))
        mixture = mixture_of(provenance) if name == TRAIN else ()
        documents = Documents(builder.as_data_source(split=name), where=f"{where}, split {name}")
        words = provenance["counts"][name]["words"] if provenance else None
        return Split(documents, first, lengths, counts, words, mixture)

    _check_features(path)
    try:
        builder = tfds.builder_from_directory(path)
        _require_shards(path, builder)
        splits = open_split(TRAIN), open_split(HELD_OUT)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be opened: {_reason(error)}; prepare it again with `bert-jax prepare`.") from None
    return Corpus(path, tokenizer, *splits, provenance.get("digest"), _words_per_token(provenance))


def _check_features(path: epath.Path) -> None:
    """Refuse a corpus that names classes of other modules, which TFDS would import."""
    unchecked: list[Any] = [read_json(path / _FEATURES)] if (path / _FEATURES).exists() else []
    while unchecked:
        entry = unchecked.pop()
        if isinstance(entry, dict):
            for name in (entry.get(key) for key in _CLASS_KEYS):
                if isinstance(name, str) and not name.startswith(_TFDS):
                    raise UserError(f"{path / _FEATURES} refers to {name}, which is not a part of TFDS, and it was not imported.")
        unchecked += entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()


def _require_shards(path: epath.Path, builder: Any) -> None:
    present = {file.name for file in path.iterdir()}
    for name, info in builder.info.splits.items():
        shards = sorted(info.filenames)
        if missing := [shard for shard in shards if shard not in present]:
            raise UserError(f"{path} lacks {len(missing)} of the {len(shards)} shards of {name}, such as {missing[0]}; copy them.")


def _words_per_token(provenance: dict[str, Any]) -> float | None:
    if not provenance:
        return None
    counts = [(source["name"], source["counts"][TRAIN]) for source in provenance["sources"]]
    shares = provenance.get("mix") or {name: sizes["tokens"] for name, sizes in counts}
    words = sum(shares[name] * sizes["words"] / max(1, sizes["tokens"]) for name, sizes in counts)
    return float(words / max(1, sum(shares.values())))


def mixture_of(provenance: dict[str, Any]) -> tuple[Part, ...]:
    """The parts of the training split: one source is used once, and all others as often as their weights ask for."""
    if not provenance.get("mix"):
        return ()
    counts = [(source["name"], source["counts"][TRAIN]) for source in provenance["sources"]]
    # Uses of a token, up to a common factor.
    uses = {name: provenance["mix"][name] / max(1, sizes["tokens"]) for name, sizes in counts}
    least = min(uses.values())
    parts, start = [], 0
    for name, sizes in counts:
        stop = start + sizes["documents"]
        parts.append(Part(start, stop, round(sizes["documents"] * uses[name] / least)))
        start = stop
    return tuple(parts)


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
    stored = str(read_json(path / DATASET_INFO).get("version", "")).partition(".")[0]
    if stored == str(VERSION.major):
        return
    if not stored.isdecimal():
        raise UserError(f"{path / DATASET_INFO} has no version; prepare the corpus again with `bert-jax prepare`.")
    age = "an earlier" if int(stored) < VERSION.major else "a later"
    raise UserError(
        f"{path} was prepared by {age} version of bert_jax (format {stored}); prepare it again with `bert-jax prepare`."
    )


def unigram_log_probabilities(split: Split) -> np.ndarray:
    """Return float32 [V], the log-probability of each token by its frequency alone, with one added occurrence for each token."""
    counts = split.counts + 1.0
    return np.log(counts / counts.sum()).astype(np.float32)

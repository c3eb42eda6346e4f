"""A corpus: a TFDS data set of tokenized documents in ArrayRecord, read and written without TensorFlow.

The directory is an ordinary TFDS directory (``tfds.builder_from_directory`` opens it). Beside its shards lie the
tokenizer's files and, for each split, two small arrays that are mapped into memory: sentence lengths, from which
examples are planned without reading a document, and piece counts.
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
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bert_jax import tokenizers
from bert_jax.data.readers import Document
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tokenizers import Tokenizer

TRAIN, HELD_OUT = SPLITS = ("train", "held_out")
_CHUNK = 1024
# Bytes of decoded documents, and what one takes beside its pieces.
_KEPT = 2**29
_EACH = 1024


class Documents:
    """Random access to documents; those that were read last stay in memory, decoded.

    An epoch reads a document about as often as it makes examples of it, within one block of the plan.

    Args:
      source: a TFDS data source.
      limit: about how many bytes of documents stay.
    """

    def __init__(self, source: Any, *, limit: int = _KEPT) -> None:
        self._source, self._limit = source, limit
        self._kept: collections.OrderedDict[int, dict[str, np.ndarray]] = collections.OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, np.ndarray]]:
        with self._lock:
            missing = [number for number in dict.fromkeys(numbers) if number not in self._kept]
            for number, document in zip(missing, self._source.__getitems__(missing) if missing else [], strict=True):
                self._kept[number] = document
                self._held += _size(document)
            found = [self._kept[number] for number in numbers]
            for number in numbers:
                self._kept.move_to_end(number)
            while self._held > self._limit:
                self._held -= _size(self._kept.popitem(last=False)[1])
            return found


def _size(document: dict[str, np.ndarray]) -> int:
    return sum(values.nbytes for values in document.values()) + _EACH


class Split(NamedTuple):
    """One split of an opened corpus; D documents, N sentences."""

    documents: Documents
    """Each has ``pieces`` int32, ``starts`` bool (of a word) and ``sentences`` int32 (lengths)."""
    first: np.ndarray
    """int64 [D + 1], number of the first sentence of each document."""
    lengths: np.ndarray
    """int32 [N], pieces of each sentence."""
    counts: np.ndarray
    """int64 [V], occurrences of each piece."""


class Corpus(NamedTuple):
    """An opened corpus."""

    path: epath.Path
    tokenizer: Tokenizer
    train: Split
    held_out: Split

    def digest(self) -> str:
        """Hex digest of what runs read from it: equal for equal corpora, wherever they lie."""
        summary = hashlib.blake2b(tokenizers.digest(self.tokenizer).encode(), digest_size=16)
        for split in (self.train, self.held_out):
            for values in (split.first, split.lengths, split.counts):
                summary.update(np.ascontiguousarray(values).data)
        return summary.hexdigest()


class _Notes:
    """Sentence lengths and piece counts, gathered while documents pass by."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)
        self.lengths, self.sentences = array.array("i"), array.array("i")

    def add(self, pieces: np.ndarray, sentences: np.ndarray) -> None:
        self.counts += np.bincount(pieces, minlength=self.counts.size)
        self.lengths.extend(sentences.tolist())
        self.sentences.append(len(sentences))

    def save(self, directory: epath.Path, split: str) -> None:
        first = np.concatenate([[0], np.cumsum(self.sentences, dtype=np.int64)])
        for name, values in (("first", first), ("lengths", np.array(self.lengths, np.int32)), ("counts", self.counts)):
            with (directory / f"{split}.{name}.npy").open("wb") as file:
                np.save(file, values)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Tokenized documents in their original order."""

    VERSION = tfds.core.Version("1.0.0")
    name = "corpus"
    # TFDS looks for the description of a data set beside its code; this one has none.
    pkg_dir_path = epath.Path(__file__).parent

    def __init__(self, documents: Callable[[str], Iterable[dict[str, np.ndarray]]], **kwargs: Any) -> None:
        self._documents = documents
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def vector(dtype: type) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

        features = {"pieces": vector(np.int32), "starts": vector(np.bool_), "sentences": vector(np.int32)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tokenized documents: word pieces, where words start, and how long each sentence is.",
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
    """Tokenize documents into a new corpus directory, which appears under its name only when it is whole.

    Args:
      read: gives the documents, the same ones each time it is called; it is called once for each split.
      out: directory to make.
      tokenizer: its files go with the corpus.
      held_out: share of documents kept for evaluation: every n-th, n = round(1 / held_out).
      progress: called with the number of documents written since the last call.

    Returns:
      Documents, sentences and pieces of each split.

    Raises:
      UserError: ``out`` exists, or there are too few documents for both splits to hold sentence pairs.
    """
    out = epath.Path(out)
    every = _check(read, out, held_out)
    notes = {split: _Notes(len(tokenizer.pieces)) for split in SPLITS}

    def documents(split: str) -> Iterator[dict[str, np.ndarray]]:
        mine = (text for number, text in enumerate(read()) if (number % every == every - 1) == (split == HELD_OUT))
        while chunk := list(itertools.islice(mine, _CHUNK)):
            for document in _tokenize(chunk, tokenizer):
                notes[split].add(document["pieces"], document["sentences"])
                yield document
            progress(len(chunk))

    with atomic.new(out) as path:
        tfds.disable_progress_bar()
        builder = Builder(documents, data_dir=path.parent / "tfds", file_format="array_record")
        # TFDS announces a download that does not happen.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        directory = epath.Path(builder.data_dir)
        tokenizers.save(tokenizer, directory)
        for split in SPLITS:
            notes[split].save(directory, split)
        directory.rename(path)
    return {
        split: {"documents": len(note.sentences), "sentences": len(note.lengths), "pieces": int(note.counts.sum())}
        for split, note in notes.items()
    }


def _check(read: Callable[[], Iterable[Document]], out: epath.Path, held_out: float) -> int:
    """Every how many documents one is held out, after a look at whether there are enough of them."""
    if not 0 < held_out <= 0.5:
        raise UserError(f"The held-out share is {held_out}; it must be above 0 and at most 0.5.")
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name.")
    every = round(1 / held_out)
    least = 2 * every
    count = sum(1 for _ in itertools.islice(read(), least))
    if count < least:
        raise UserError(
            f"The text holds {count} document{'s' * (count != 1)}; with a held-out share of {held_out} at least {least} "
            "are needed. A blank line ends a document."
        )
    return every


def open_corpus(path: epath.PathLike) -> Corpus:
    """Open a corpus that ``bert-jax prepare`` wrote.

    Raises:
      UserError: there is none at this path.
    """
    path = epath.Path(path)
    if not (path / "dataset_info.json").exists():
        raise UserError(f"{path} is not a corpus; `bert-jax prepare` makes one.")
    tokenizer = tokenizers.load(path)
    builder = tfds.builder_from_directory(path)

    def split(name: str) -> Split:
        arrays = (np.load(path / f"{name}.{part}.npy", mmap_mode="r") for part in ("first", "lengths", "counts"))
        return Split(Documents(builder.as_data_source(split=name)), *arrays)

    return Corpus(path, tokenizer, split(TRAIN), split(HELD_OUT))


def unigram_log_probabilities(split: Split) -> np.ndarray:
    """float32 [V]: what the frequency of each piece alone says, with one more occurrence for each piece."""
    counts = split.counts + 1.0
    return np.log(counts / counts.sum()).astype(np.float32)


def _tokenize(documents: list[Document], tokenizer: Tokenizer) -> Iterator[dict[str, np.ndarray]]:
    encoded = iter(tokenizer.encode([sentence for document in documents for sentence in document]))
    for document in documents:
        sentences = [pieces for pieces in itertools.islice(encoded, len(document)) if len(pieces.ids)]
        if sentences:
            yield {
                "pieces": np.concatenate([pieces.ids for pieces in sentences]),
                "starts": np.concatenate([pieces.starts for pieces in sentences]),
                "sentences": np.array([len(pieces.ids) for pieces in sentences], np.int32),
            }

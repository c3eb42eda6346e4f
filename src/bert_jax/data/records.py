"""Batches from TFRecord files of masked sentence pairs, the format of the original's ``create_pretraining_data.py``.

The files may come from the original, ``bert-jax prepare --builder google``, or any program that writes its seven features, under
their first names or those of the TensorFlow Models. Masks are those of the files.
"""

from __future__ import annotations

import functools
import glob
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from etils import epath

from bert_jax import tokenizers
from bert_jax.batch import KEPT, MASKED, RANDOM, HostBatch
from bert_jax.config.data import DataConfig, Meaning
from bert_jax.config.lengths import Rates
from bert_jax.data import pipeline
from bert_jax.data.google import DESCRIPTION
from bert_jax.errors import UserError
from bert_jax.io import remote, tfrecord
from bert_jax.io.parsing import read_json
from bert_jax.io.tfrecord import RecordFile
from bert_jax.tokenizers import SentencePiece, Tokenizer, WordPiece

# Names in the TensorFlow Models -> names in the original.
_NAMES = {"input_word_ids": "input_ids", "input_type_ids": "segment_ids"}
REQUIRED = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
"""Features of every record, under the original's names."""
NSP = "next_sentence_labels"
"""The feature of records of sentence pairs."""
# Bytes at both ends of a file that its digest depends on.
_DIGEST_BYTES = 65_536
# Records from which the frequencies of tokens are estimated.
_SAMPLED_RECORDS = 4096
_OPEN_FILES = 16


class Place(NamedTuple):
    """Columns int64 [N]: where the records of rows are."""

    file: np.ndarray
    """Index of the file; -1 for an empty row."""
    record: np.ndarray
    """Index of the record in its file."""
    example: np.ndarray
    """Id from which the randomness of the row's dropout is derived."""


class Records:
    """TFRecord files as the data of a pretraining run; a [`PretrainingData`][bert_jax.data.sources.PretrainingData].

    Args:
      config: ``corpus`` is a file, a directory or a pattern; ``held_out`` another one, for evaluations.

    Raises:
      UserError: there are no such files or no vocabulary, the first record has other features or another length than ``config``,
        or ``config`` asks for something that is fixed in the files.
    """

    static_masks = True

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.train, self.held_out = find_files(config.corpus), find_files(config.held_out) if config.held_out else []
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(RecordFile)
        # What is no such file has no vocabulary either.
        self._open(self.train[0])
        self.tokenizer = _tokenizer(config, self.train)
        for files in (self.train, self.held_out):
            if files:
                self._check(files[0])

    def digest(self) -> str:
        """A hex digest of the tokenizer and of the size, the start and the end of each file."""
        summary = hashlib.blake2b(tokenizers.digest(self.tokenizer).encode(), digest_size=16)
        for path in self.train:
            size = path.stat().length
            with path.open("rb") as file:
                summary.update(f"{size} ".encode() + file.read(_DIGEST_BYTES))
                file.seek(max(0, size - _DIGEST_BYTES))
                summary.update(file.read())
        return summary.hexdigest()

    def unigram_log_probabilities(self) -> np.ndarray:
        """float32 [V], log-probabilities of tokens by their frequency in the first records."""
        counts = np.ones(len(self.tokenizer.tokens))
        for ids in self._sample():
            np.add.at(counts, ids, 1)
        return np.log(counts / counts.sum()).astype(np.float32)

    def rates(self, *, seed: int) -> Rates:
        """What a step takes from the files, measured on the first records."""
        del seed
        special, starts = [*self.tokenizer.special_tokens], _word_starts(self.tokenizer)
        rows = tokens = words = 0
        for ids in self._sample():
            rows, tokens = rows + 1, tokens + len(ids)
            words += int(starts[ids[~np.isin(ids, special)]].sum())
        size = self._config.batch_size
        return Rates(words / rows * size, tokens / rows * size, size / sum(len(self._open(path)) for path in self.train))

    def _sample(self) -> Iterator[np.ndarray]:
        """Yield the ids of the first records as they were before masking, without padding."""
        path = self.train[0]
        for index in range(min(len(self._open(path)), _SAMPLED_RECORDS)):
            yield original_tokens(self._read(path, index))

    def train_batches(self, *, seed: int, rows: np.ndarray) -> grain.DatasetIterator[HostBatch]:
        """An endless iterator of batches; each epoch goes through files, and through the records of each, in random order."""

        def load(epoch: int, block: int) -> Place:
            number = int(np.random.default_rng([seed, epoch]).permutation(len(self.train))[block])
            records = np.random.default_rng([seed, epoch, 1 + number]).permutation(len(self._open(self.train[number])))
            # Far apart for the files, so that hardly any two rows of an epoch have the same one.
            first = (epoch * 0x9E3779B1 + number * 0x85EBCA77) % 2**32
            return Place(np.full_like(records, number), records, (first + records) % 2**32)

        places = pipeline.Rows(load, len(self.train), self._config.batch_size, rows)
        return pipeline.prefetch(places.map(lambda place: self._assemble(self.train, place)))

    def eval_batches(self, *, rows: np.ndarray, limit: int | None) -> Iterator[HostBatch]:
        """Yield the records of the held-out files once, in order; the last batch is filled up with empty rows."""
        size = self._config.batch_size
        sizes = [len(self._open(path)) for path in self.held_out]
        file = np.repeat(np.arange(len(sizes)), sizes)
        record = np.concatenate([np.arange(count) for count in sizes]) if sizes else np.zeros(0, int)
        count = -(-len(file) // size)
        file, record = (
            np.pad(column, (0, count * size - len(column)), constant_values=fill) for column, fill in ((file, -1), (record, 0))
        )
        for batch in range(count if limit is None else min(count, limit)):
            chosen = batch * size + rows
            yield self._assemble(self.held_out, Place(file[chosen], record[chosen], record[chosen]))

    def _assemble(self, files: Sequence[epath.Path], place: Place) -> HostBatch:
        present = np.flatnonzero(place.file >= 0)
        found = [self._read(files[place.file[row]], int(place.record[row])) for row in present]
        empty = {name: np.zeros_like(values) for name, values in (found[0] if found else self._read(files[0], 0)).items()}
        read = {index: values for index, values in zip(present.tolist(), found, strict=True)}
        rows = [read.get(index, empty) for index in range(len(place.file))]

        def stack(name: str, dtype: type = np.int32) -> np.ndarray:
            return np.stack([row[name] for row in rows]).astype(dtype)

        mask, weights = stack("input_mask"), stack("masked_lm_weights", np.float32)
        ids, positions, labels = stack("input_ids"), stack("masked_lm_positions"), stack("masked_lm_ids")
        inputs = np.take_along_axis(ids, positions, axis=1)
        kinds = mask_kinds(inputs, labels, self.tokenizer.special_tokens.mask)
        has_pair = np.zeros((len(rows), 1), np.float32)
        has_pair[present] = self._config.pairs
        return {
            "input_ids": ids,
            "token_type_ids": stack("segment_ids"),
            "segment_ids": mask,
            "position_ids": np.arange(ids.shape[1], dtype=np.int32) * mask,
            "word_ids": np.full_like(ids, -1),
            "example_ids": place.example.astype(np.uint32).view(np.int32)[:, None],
            "cls_positions": np.zeros((len(rows), 1), np.int32),
            "nsp_labels": self._nsp_labels(stack(NSP)) if self._config.pairs else np.zeros((len(rows), 1), np.int32),
            "nsp_weights": has_pair,
            "mlm_positions": positions,
            "mlm_ids": labels,
            "mlm_weights": weights,
            "mlm_kinds": np.where(weights > 0, kinds, MASKED).astype(np.int32),
            "mlm_selected": (weights > 0).sum(1, dtype=np.int32),
            "mlm_dropped": np.zeros(len(rows), np.int32),
        }

    def _nsp_labels(self, stored: np.ndarray) -> np.ndarray:
        """int32 [B, 1], 1 for a random second segment, whatever the files mean by 1."""
        return stored.reshape(-1, 1) if self._config.nsp_label == "random" else 1 - stored.reshape(-1, 1)

    def _read(self, path: epath.Path, index: int) -> dict[str, np.ndarray]:
        features = decode(self._open(path)[index], f"{path}, record {index}")
        if missing := [name for name in ((*REQUIRED, NSP) if self._config.pairs else REQUIRED) if name not in features]:
            found = ", ".join(sorted(features)) or "no numbers"
            hint = "; use --data.no-pairs" if missing == [NSP] else ""
            raise UserError(f"{path}, record {index} has no {', '.join(missing)} (but {found}){hint}.")
        length = self._config.sequence_length
        if len(features["input_ids"]) != length:
            raise UserError(
                f"{path}, record {index} has {len(features['input_ids'])} tokens, but data.sequence_length is {length}; "
                f"use --data.sequence-length {len(features['input_ids'])}."
            )
        return features

    def _check(self, path: epath.Path) -> None:
        """Check the first record of a file."""
        if not len(self._open(path)):
            raise UserError(f"{path} has no records.")
        row = self._read(path, 0)
        if (largest := int(row["input_ids"].max())) >= len(self.tokenizer.tokens):
            raise UserError(
                f"{path} contains token id {largest}, but the vocabulary has {len(self.tokenizer.tokens)} tokens; name the "
                "directory of the one with which it was made with --data.vocab."
            )


def decode(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The features of a record under the original's names, whichever it has.

    Raises:
      UserError: the data is not an example.
    """
    try:
        features = tfrecord.decode_example(data)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
    return {_NAMES.get(name, name): values for name, values in features.items()}


def original_tokens(features: dict[str, np.ndarray]) -> np.ndarray:
    """The tokens of a record before masking, without padding."""
    ids, predicted = features["input_ids"].copy(), features["masked_lm_weights"] > 0
    ids[features["masked_lm_positions"][predicted]] = features["masked_lm_ids"][predicted]
    return ids[features["input_mask"] > 0]


def is_random(features: dict[str, np.ndarray], nsp_label: Meaning) -> bool:
    """Whether the second segment of a record is random, where label 1 means ``nsp_label``."""
    return bool(features[NSP][0] > 0) == (nsp_label == "random")


def mask_kinds(inputs: np.ndarray, labels: np.ndarray, mask: int) -> np.ndarray:
    """What replaced each predicted token, as far as it can be seen: a random token that is drawn again counts as kept.

    Args:
      inputs: ids at the predicted places.
      labels: the original ids.
      mask: id of [MASK].
    """
    return np.where(inputs == mask, MASKED, np.where(inputs == labels, KEPT, RANDOM))


def _word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V], whether a token is the first of a word."""
    if isinstance(tokenizer, WordPiece | SentencePiece):
        return tokenizer.is_word_start
    return np.ones(len(tokenizer.tokens), np.bool_)


def has_vocabulary(directory: epath.Path) -> bool:
    """Whether a directory contains a vocabulary."""
    return any((directory / name).exists() for name in tokenizers.VOCABULARIES)


def is_records(path: str) -> bool:
    """Whether a corpus is TFRecord files: a file, a pattern, or a directory with such files."""
    return any(character in path for character in "*?[") or remote.open_path(path).is_file() or bool(_records_in(epath.Path(path)))


def find_files(path: str) -> list[epath.Path]:
    """Find TFRecord files, in the order of their names.

    Args:
      path: a file, a directory, which may contain other files beside ``*tfrecord*``, or a pattern.

    Raises:
      UserError: there are none.
    """
    named = remote.open_path(path)
    if named.is_dir():
        files = _records_in(named)
    elif named.exists():
        files = [named]
    elif not glob.has_magic(path):
        files = []
    elif remote.is_remote(path):
        files = sorted(named.parent.glob(named.name))
    else:
        files = [epath.Path(name) for name in sorted(glob.glob(path))]
    if not files:
        raise UserError(
            f"There are no TFRecord files {path}; name a directory with files *.tfrecord, or a pattern such as 'data/*'."
        )
    return files


def _records_in(directory: epath.Path) -> list[epath.Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if ".tfrecord" in path.name and not path.name.startswith("."))


def _tokenizer(config: DataConfig, files: Sequence[epath.Path]) -> Tokenizer:
    directory = config.vocab or files[0].parent
    if config.vocab is None and not has_vocabulary(files[0].parent):
        raise UserError(
            f"{directory} contains no vocabulary; name the directory of the one that the files were made with: --data.vocab."
        )
    tokenizer, description = tokenizers.load(directory), files[0].parent / DESCRIPTION
    stored = read_json(description).get("tokenizer") if config.vocab is None and description.exists() else None
    # Files of earlier versions have no digest.
    if stored not in (None, tokenizers.digest(tokenizer)):
        raise UserError(f"The vocabulary in {directory} is not the one that its files were made with; restore it.")
    return tokenizer

"""What TFRecord files of masked sentence pairs contain: every file is opened, and a sample of their records is read.

The results are for [`bert_jax.evaluation.inspection`][bert_jax.evaluation.inspection].
"""

from __future__ import annotations

import array
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from bert_jax import tokenizers
from bert_jax.batch import KEPT, MASKED, RANDOM
from bert_jax.config.data import Meaning
from bert_jax.data.distribution import Distribution
from bert_jax.data.google import DESCRIPTION
from bert_jax.data.inspection import Frequencies, frequencies
from bert_jax.data.records import NSP, REQUIRED, decode, find_files, has_vocabulary, is_random, mask_kinds, original_tokens
from bert_jax.errors import BertWarning, UserError
from bert_jax.io.parsing import read_json
from bert_jax.io.tfrecord import RecordFile
from bert_jax.tokenizers import Tokenizer

Features = dict[str, np.ndarray]
# Names of what replaced a predicted token.
_KINDS = {"masked": MASKED, "random": RANDOM, "kept": KEPT}
# Files that stay open between counting their records and reading some of them.
_OPEN_FILES = 16


@dataclass(frozen=True)
class RecordSample:
    """The files, and what is known from the records of the sample."""

    files: int
    records: int
    sequence_length: int
    slots: int
    """Predictions that a record has room for."""
    pairs: bool
    """Whether records have labels of next sentence prediction."""
    verified: bool
    """Whether every checksum of every file was computed."""
    sampled: int
    """Records of the sample, at equal distances in all files together."""
    tokens_per_record: Distribution
    """Special tokens counted, padding not."""
    padding: float
    """Share of the places that hold no token."""
    random: float
    """Share of pairs whose second segment comes from another document."""
    predictions: float
    """Mean number of predictions of a record."""
    kinds: dict[str, float]
    """Shares of the predicted tokens that became [MASK], became a random token, and were kept, as far as it can be seen."""
    frequencies: Frequencies
    """Of the tokens before masking, [CLS] and [SEP] not counted."""
    description: dict[str, Any] | None
    """Flags and counts that ``bert-jax prepare --builder google`` has stored beside the files."""


def open_tokenizer(files: Sequence[epath.Path], vocab: str | None) -> Tokenizer:
    """The tokenizer that the files were made with.

    Args:
      files: the files.
      vocab: its directory; None: that of the files.

    Raises:
      UserError: there is none.
    """
    directory = files[0].parent
    if vocab is None and not has_vocabulary(directory):
        raise UserError(f"{directory} contains no vocabulary; name the directory of the one that made the files with --vocab.")
    return tokenizers.load(vocab or directory)


def sample_records(
    path: str,
    vocab: str | None,
    *,
    limit: int,
    listed: int,
    kept: int = 0,
    seed: int = 0,
    verify: bool = False,
    nsp_label: Meaning = "random",
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> tuple[RecordSample, Tokenizer, list[Features]]:
    """Count the records of all files and read a sample of them.

    Args:
      path: a file, a directory, or a pattern.
      vocab: directory of the vocabulary; None: that of the files.
      limit: maximum number of records in the sample.
      listed: length of the lists of tokens.
      kept: how many records are returned, chosen at random from the sample.
      seed: seed of this choice.
      verify: whether to compute the checksum of every record, also of those that are not in the sample.
      nsp_label: what label 1 says of the second segment.
      progress: called with the number of files done and their number.

    Returns:
      The findings, the tokenizer, and the features of the chosen records.

    Raises:
      UserError: a file is missing or damaged, a record of the sample differs from the first one in its features or their sizes or
        has tokens that are not in the vocabulary, or there is no vocabulary.
    """
    files = find_files(path)
    opened = functools.lru_cache(maxsize=_OPEN_FILES)(RecordFile)
    sizes = _sizes(files, opened, verify, progress)
    ends = np.cumsum(sizes)
    if not (total := int(ends[-1])):
        raise UserError(f"{path} has no records.")
    # At equal distances; the first record, which decides what the others must have, is one of them.
    sample = np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(np.int64))
    returned = {*np.random.default_rng(seed).permutation(sample)[:kept].tolist()}
    totals: _Totals | None = None
    rows = []
    for index, place in zip(sample.tolist(), np.searchsorted(ends, sample, side="right").tolist(), strict=True):
        number = index - int(ends[place]) + sizes[place]
        where = f"{files[place]}, record {number}"
        features = decode(opened(files[place])[number], where)
        if totals is None:
            totals = _Totals(check_record(features, where), open_tokenizer(files, vocab), nsp_label)
        totals.add(features, where)
        if index in returned:
            rows.append(features)
    assert totals
    description = _description(files[0].parent, total)
    return totals.summary(len(files), total, listed, verified=verify, description=description), totals.tokenizer, rows


def _sizes(
    files: Sequence[epath.Path], opened: Callable[[epath.Path], RecordFile], verify: bool, progress: Callable[[int, int], None]
) -> list[int]:
    """Number of records of each file."""
    sizes = []
    for number, name in enumerate(files):
        file = opened(name)
        sizes.append(len(file))
        for index in range(len(file) if verify else 0):
            file[index]  # computes the checksum
        progress(number + 1, len(files))
    return sizes


class _Totals:
    """Sums over the records of the sample.

    Args:
      first: the first record.
      tokenizer: the tokenizer that it was made with.
      nsp_label: what label 1 says of the second segment.
    """

    def __init__(self, first: Features, tokenizer: Tokenizer, nsp_label: Meaning) -> None:
        self.tokenizer, self.nsp_label = tokenizer, nsp_label
        self.form = _form(first)
        self.sizes = {name: size for name, (size, _) in self.form.items()}
        self.lengths = array.array("i")
        self.random = self.predictions = 0
        self.kinds = np.zeros(3, np.int64)
        self.counts = np.zeros(len(tokenizer.tokens), np.int64)

    def add(self, features: Features, where: str) -> None:
        """Check a record, and count what it contains."""
        if _form(features) != self.form:
            sizes = ", ".join(f"{name} {len(values)}" for name, values in features.items())
            raise UserError(f"{where} has other features or sizes than the first record ({sizes}); a run needs equal ones.")
        predicted = features["masked_lm_weights"] > 0
        positions, labels = features["masked_lm_positions"], features["masked_lm_ids"]
        ids = np.concatenate([features["input_ids"], labels])
        if ids.min() < 0 or ids.max() >= len(self.counts):
            raise UserError(
                f"{where} contains token id {ids.max() if ids.min() >= 0 else ids.min()}, but the vocabulary has "
                f"{len(self.counts)} tokens; name the directory of the one with which it was made with --vocab."
            )
        _check_positions(features, where)
        special = self.tokenizer.special_tokens
        inputs = features["input_ids"][positions[predicted]]
        self.kinds += np.bincount(mask_kinds(inputs, labels[predicted], special.mask), minlength=3)
        self.predictions += int(predicted.sum())
        self.random += is_random(features, self.nsp_label) if NSP in self.sizes else 0
        tokens = original_tokens(features)
        self.lengths.append(len(tokens))
        self.counts += np.bincount(tokens[(tokens != special.cls) & (tokens != special.sep)], minlength=len(self.counts))

    def summary(self, files: int, records: int, listed: int, *, verified: bool, description: dict[str, Any] | None) -> RecordSample:
        """Means and shares."""
        sampled, length = len(self.lengths), self.sizes["input_ids"]
        lengths = Distribution.of(np.array(self.lengths))
        return RecordSample(
            files=files,
            records=records,
            sequence_length=length,
            slots=self.sizes["masked_lm_positions"],
            pairs=NSP in self.sizes,
            verified=verified,
            sampled=sampled,
            tokens_per_record=lengths,
            padding=1 - lengths.mean() / length,
            random=self.random / sampled,
            predictions=self.predictions / sampled,
            kinds={name: int(self.kinds[kind]) / max(self.predictions, 1) for name, kind in _KINDS.items()},
            frequencies=frequencies(self.counts, self.tokenizer, listed=listed),
            description=description,
        )


def _form(features: Features) -> dict[str, tuple[int, str]]:
    """Size and kind of number of each feature."""
    return {name: (len(features[name]), features[name].dtype.kind) for name in (*REQUIRED, NSP) if name in features}


def check_record(features: Features, where: str) -> Features:
    """The features of a record, after a check that they are those of masked sentences and belong together.

    Raises:
      UserError: they are not.
    """
    if missing := [name for name in REQUIRED if name not in features]:
        found = ", ".join(sorted(features)) or "no numbers"
        raise UserError(f"{where} has no {', '.join(missing)} (but {found}); these are no masked sentence pairs.")
    for names in (REQUIRED[:3], REQUIRED[3:], (NSP,) if NSP in features else ()):
        sizes = [len(features[name]) for name in names]
        if len({*sizes}) > 1 or 0 in sizes or (names == (NSP,) and sizes != [1]):
            raise UserError(f"{where}: {', '.join(names)} have {', '.join(map(str, sizes))} values; the record is damaged.")
    if wrong := [name for name, (_, kind) in _form(features).items() if kind != "i" and name != "masked_lm_weights"]:
        raise UserError(f"{where}: {', '.join(wrong)} have no whole numbers; the record is damaged.")
    _check_positions(features, where)
    return features


def _check_positions(features: Features, where: str) -> None:
    predicted, length = features["masked_lm_positions"][features["masked_lm_weights"] > 0], len(features["input_ids"])
    if outside := [position for position in predicted.tolist() if not 0 <= position < length]:
        raise UserError(f"{where} predicts position {outside[0]} of {length}; the record is damaged.")


def _description(directory: epath.Path, records: int) -> dict[str, Any] | None:
    """Content of the file with the flags of the builder, if there is one."""
    path = directory / DESCRIPTION
    if not path.exists():
        return None
    stored = read_json(path)
    counts = stored.get("counts")
    written = counts.get("instances") if isinstance(counts, dict) else None
    if isinstance(written, int) and written != records:
        warnings.warn(f"{path} tells of {written:,} pairs, but the files have {records:,}.", BertWarning, stacklevel=2)
    return stored

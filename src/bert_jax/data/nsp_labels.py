"""What the NSP labels of TFRecord files mean, found from the text of the pairs.

The original writes 1 for a random second segment, other builders write 1 for the next one, and nothing in a file tells which.
But segments of one document share rare tokens, and segments of two documents hardly do. So the labels are correlated with what the
segments share, and the sign of this correlation is their meaning.
"""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath
from scipy import stats

from bert_jax.config.data import DataConfig, Meaning
from bert_jax.data.record_inspection import check_record
from bert_jax.data.records import NSP, Records, decode, original_tokens
from bert_jax.errors import BertWarning, UserError
from bert_jax.io import tfrecord
from bert_jax.tokenizers.protocol import SpecialTokens

SIGNIFICANT = 5.0
"""Standard errors of a correlation from which on it is believed."""
# Pairs that are read of all files together before a run starts, and of each; one takes about 0.1 ms.
_PAIRS = 8192
_FEWEST, _MOST = 256, 1024
# Tokens in more than this share of the pairs are no evidence: those of a template that many documents follow are also shared by
# segments of two documents.
_COMMON = 0.05
# Tokens of a run that occurs again where the same text is paired again.
_REPEATED = 5
_PHRASES: dict[Meaning, str] = {"random": "a random", "next": "the next"}


class Pair(NamedTuple):
    """The tokens of a record before masking, without special ones, and its label."""

    first: list[int]
    second: list[int]
    label: int


@dataclass(frozen=True)
class LabelMeaning:
    """What the NSP labels of a file mean."""

    file: str
    pairs: int
    """Pairs that were compared; a pair with text of an earlier one is left out."""
    z: float
    """Correlation of label 1 with segments that share little, in its standard errors; positive where 1 means random."""
    label_1: Meaning | None
    """What label 1 says of the second segment; None if the correlation may be chance."""
    pairs_needed: int
    """Approximate number of pairs in which the correlation would be significant; a lower bound where it is below one
    standard error."""


def check(data: Records, config: DataConfig) -> None:
    """Check that all files label pairs as ``config.nsp_label`` says, as far as the first pairs of up to 32 files tell.

    A file whose labels say nothing of the text passes.

    Warns:
      BertWarning: the files agree with each other, but not with ``config``.

    Raises:
      UserError: two files contradict each other.
    """
    files = [*data.train, *data.held_out]
    most = _PAIRS // _FEWEST
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), most)).round().astype(int))
    found: dict[Meaning | None, LabelMeaning] = {}
    for meaning in label_meanings([files[index] for index in chosen], data.tokenizer.special_tokens, pairs=_PAIRS):
        found.setdefault(meaning.label_1, meaning)
    if "random" in found and "next" in found:
        raise UserError(
            f"By the words that segments share, the NSP label 1 means a random second segment in {found['random'].file}, but the "
            f"next one in {found['next'].file}; train on files of one kind, or use --data.no-pairs."
        )
    other: Meaning = "next" if config.nsp_label == "random" else "random"
    if other in found:
        warnings.warn(
            f"By the words that segments share, the NSP label 1 means {_PHRASES[other]} second segment in {found[other].file}, but "
            f"data.nsp_label is {config.nsp_label}; use --data.nsp-label {other}.",
            BertWarning,
            stacklevel=2,
        )


def label_meanings(files: Sequence[epath.Path], special_tokens: SpecialTokens, *, pairs: int) -> Iterable[LabelMeaning]:
    """Yield the meaning of the labels of each file, from its first pairs.

    Args:
      files: TFRecord files.
      special_tokens: those of the vocabulary, which are no text.
      pairs: about how many are read of all files together, at least 256 and at most 1,024 of each.

    Raises:
      UserError: a file cannot be read, or is damaged at its start.
    """
    count = min(_MOST, max(_FEWEST, pairs // len(files)))
    for path in files:
        yield label_meaning(str(path), read_pairs(path, special_tokens, count))


def read_pairs(path: epath.Path, special_tokens: SpecialTokens, count: int) -> list[Pair]:
    """The pairs among the first ``count`` records of a file.

    Raises:
      UserError: the file cannot be read, is damaged at its start, or contains other records.
    """
    pairs, special = [], np.array(special_tokens)
    for index, data in enumerate(tfrecord.first_records(path, count)):
        where = f"{path}, record {index}"
        features = check_record(decode(data, where), where)
        if NSP not in features:
            continue
        tokens, types = original_tokens(features), features["segment_ids"][features["input_mask"] > 0]
        text = ~np.isin(tokens, special)
        first, second = (tokens[text & (types == segment)].tolist() for segment in (0, 1))
        if first and second:
            pairs.append(Pair(first, second, int(features[NSP][0] > 0)))
    return pairs


def label_meaning(file: str, pairs: Sequence[Pair]) -> LabelMeaning:
    """The meaning of labels, by Spearman's correlation of label and shared tokens.

    With two labels this is the Mann-Whitney test. Its only assumption is that, if labels meant nothing, each order of them would
    be equally likely, whatever the distribution of the text. That holds once no text is counted twice.
    """
    pairs = _without_repeats(pairs)
    shared, labels = shared_tokens(pairs), np.array([pair.label for pair in pairs])
    z = 0.0
    if len(pairs) > 2 and np.ptp(shared) and np.ptp(labels):
        z = -float(stats.spearmanr(shared, labels).statistic) * math.sqrt(len(pairs) - 1)
    meaning: Meaning | None = None if abs(z) < SIGNIFICANT else "random" if z > 0 else "next"
    needed = math.ceil(len(pairs) * (SIGNIFICANT / max(abs(z), 1.0)) ** 2)
    return LabelMeaning(file, len(pairs), z, meaning, needed)


def shared_tokens(pairs: Sequence[Pair]) -> np.ndarray:
    """float64 [N], how much the segments of each pair share: the cosine of their tokens, weighted by how rare these are."""
    sets = [(frozenset(pair.first), frozenset(pair.second)) for pair in pairs]
    counts = collections.Counter(token for first, second in sets for token in first | second)
    common = max(2, _COMMON * len(pairs))
    weights = {token: math.log(len(pairs) / count) ** 2 if count <= common else 0.0 for token, count in counts.items()}

    def total(tokens: Iterable[int]) -> float:
        return math.fsum(weights[token] for token in tokens)

    norms = [math.sqrt(total(first) * total(second)) for first, second in sets]
    return np.array([total(first & second) / norm if norm else 0.0 for (first, second), norm in zip(sets, norms, strict=True)])


def _without_repeats(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs without those that have a run of tokens of an earlier one: builders pair each text several times."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for pair in pairs:
        runs = {
            tuple(tokens[start : start + _REPEATED])
            for tokens in (pair.first, pair.second)
            for start in range(max(1, len(tokens) - _REPEATED + 1))
        }
        if seen.isdisjoint(runs):
            kept.append(pair)
            seen |= runs
    return kept

"""What a corpus contains: lengths, words, duplicates, frequencies of tokens, and what its rows would waste.

Lengths, counts and plans come from the memory-mapped tables of a corpus, a part at a time, and documents are read once; what is
kept of a document is a hash. The results are for [`bert_jax.evaluation.inspection`][bert_jax.evaluation.inspection].
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.config.data import DataConfig
from bert_jax.data import pipeline, sentence_pairs
from bert_jax.data.corpus import Split
from bert_jax.data.distribution import Distribution
from bert_jax.errors import UserError
from bert_jax.tokenizers import Tokenizer

PACKINGS = (1, DataConfig.packing)
"""Maximum examples in a row for which padding is computed: one, and the default of a run."""
# Documents, and sentences, that are looked at together.
_DOCUMENTS, _SENTENCES = 1024, 4_194_304
_SHOWN_DUPLICATES, _SHOWN_TOKENS = 3, 16


@dataclass(frozen=True)
class Duplicate:
    """A document that is there more than once."""

    copies: int
    beginning: str


@dataclass(frozen=True)
class DocumentScan:
    """What is known of the documents of a split that were read."""

    documents: int
    """How many were read, the first ones of the split."""
    words: int
    """Tokens that begin a word."""
    tokens: int
    duplicates: int
    """Documents that are equal to an earlier one, token by token."""
    commonest: list[Duplicate]
    """Those with the most copies."""
    hashes: np.ndarray
    """uint64 [N], a hash of the tokens of each document."""


@dataclass(frozen=True)
class Frequencies:
    """How often tokens occur."""

    tokens: int
    unknown: int
    """How often [UNK] does."""
    vocabulary: int
    """V, with special tokens."""
    never: int
    """Tokens that do not occur, special tokens not counted."""
    most: list[tuple[str, int]]
    least: list[tuple[str, int]]
    """The rarest of those that do occur."""


@dataclass(frozen=True)
class RowReport:
    """The examples of the first block of the plan at one sequence length, and the rows that they fill."""

    sequence_length: int
    documents: int
    """Documents of the block."""
    examples: int
    random: float
    """Share of pairs whose second segment comes from another document."""
    cut: float
    """Share of examples that lost tokens because they were longer than a row."""
    lost: float
    """Share of the tokens that are lost in this way."""
    rows: dict[int, int]
    """For each maximum of examples in a row, the number of rows."""
    padding: dict[int, float]
    """For each maximum of examples in a row, the share of places that hold no token."""


def check_tables(split: Split, where: str) -> None:
    """Check that the tables of a split belong to each other and to its documents.

    Raises:
      UserError: they do not.
    """
    first, tokens = split.first, sum(int(part.sum(dtype=np.int64)) for part in _parts(split.lengths))
    consistent = len(first) > 0 and int(first[0]) == 0 and int(first[-1]) == len(split.lengths) and (np.diff(first) > 0).all()
    if not consistent or len(split.documents) != len(first) - 1 or tokens != int(split.counts.sum()):
        raise UserError(f"{where}: the tables of documents, sentences and tokens contradict each other; prepare the corpus again.")


def sentence_lengths(split: Split) -> Distribution:
    """Tokens per sentence."""
    return Distribution.merge([Distribution.of(part) for part in _parts(split.lengths)])


def document_lengths(split: Split) -> Distribution:
    """Tokens per document."""
    found, documents, begin = list[Distribution](), len(split.first) - 1, 0
    while begin < documents:
        # As many documents as have so many sentences together, at least one.
        last = int(np.searchsorted(split.first, split.first[begin] + _SENTENCES, side="right")) - 1
        end = min(max(last, begin + 1), documents)
        found.append(Distribution.of(_document_lengths(split, begin, end)))
        begin = end
    return Distribution.merge(found)


def _document_lengths(split: Split, begin: int, end: int) -> np.ndarray:
    sentences = split.first[begin : end + 1]
    ends = np.cumsum(split.lengths[sentences[0] : sentences[-1]], dtype=np.int64)
    return np.diff(np.concatenate([[0], ends])[sentences - sentences[0]])


def _parts(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + _SENTENCES] for start in range(0, len(values), _SENTENCES)]


def scan_documents(
    split: Split,
    tokenizer: Tokenizer,
    where: str,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda documents: None,
) -> DocumentScan:
    """Read the documents of a split once, compare them with its tables, count words and find duplicates.

    Args:
      split: the split.
      tokenizer: the corpus's.
      where: name of the split in error messages.
      limit: maximum number of documents; None for all.
      progress: called with the number of documents read since the last call.

    Raises:
      UserError: a document is damaged, or contradicts the tables.
    """
    documents = len(split.first) - 1
    count = documents if limit is None else min(limit, documents)
    words, counts, hashes = 0, np.zeros(len(split.counts), np.int64), array.array("Q")
    for begin in range(0, count, _DOCUMENTS):
        end = min(begin + _DOCUMENTS, count)
        chunk = split.documents.read([*range(begin, end)])
        stored = [document["sentence_lengths"] for document in chunk]
        lengths = split.lengths[split.first[begin] : split.first[end]]
        if any(sizes.sum() != len(document["tokens"]) for sizes, document in zip(stored, chunk, strict=True)) or not np.array_equal(
            np.concatenate(stored), lengths
        ):
            raise UserError(f"{where}: documents {begin:,} to {end - 1:,} are not those of its tables; prepare the corpus again.")
        tokens = np.concatenate([document["tokens"] for document in chunk])
        if tokens.min() < 0 or tokens.max() >= len(counts):
            raise UserError(f"{where}: documents {begin:,} to {end - 1:,} have tokens that are not in the corpus's vocabulary.")
        words += sum(int(document["word_starts"].sum()) for document in chunk)
        counts += np.bincount(tokens, minlength=len(counts))
        hashes.extend(map(_hash, chunk))
        progress(len(chunk))
    if count == documents and not np.array_equal(counts, split.counts):
        raise UserError(f"{where}: the table of counts is not that of the documents; prepare the corpus again.")
    found = np.frombuffer(hashes, np.uint64)
    distinct, first, copies = np.unique(found, return_index=True, return_counts=True)
    order = np.argsort(-copies, kind="stable")[:_SHOWN_DUPLICATES]
    commonest = [
        Duplicate(int(copies[index]), _beginning(split, int(first[index]), tokenizer)) for index in order if copies[index] > 1
    ]
    return DocumentScan(count, words, int(counts.sum()), count - len(distinct), commonest, found)


def _hash(document: dict[str, np.ndarray]) -> int:
    return int.from_bytes(hashlib.blake2b(document["tokens"].astype("<i4").tobytes(), digest_size=8).digest(), "little")


def _beginning(split: Split, index: int, tokenizer: Tokenizer) -> str:
    tokens = split.documents.read([index])[0]["tokens"]
    return tokenizer.decode(tokens[:_SHOWN_TOKENS].tolist()) + (" ..." if len(tokens) > _SHOWN_TOKENS else "")


def frequencies(counts: np.ndarray, tokenizer: Tokenizer, *, listed: int) -> Frequencies:
    """The most and the least frequent tokens.

    Args:
      counts: occurrences int64 [V] of each token.
      tokenizer: gives the tokens and the ids of the special ones.
      listed: length of each list.
    """
    special = np.isin(np.arange(len(counts)), tokenizer.special_tokens)
    order = np.argsort(-counts, kind="stable")
    occurring = order[: int((counts > 0).sum())]

    def named(ids: np.ndarray) -> list[tuple[str, int]]:
        return [(tokenizer.tokens[token], int(counts[token])) for token in ids.tolist()]

    return Frequencies(
        tokens=int(counts.sum()),
        unknown=int(counts[tokenizer.special_tokens.unk]),
        vocabulary=len(counts),
        never=int(((counts == 0) & ~special).sum()),
        most=named(occurring[:listed]),
        least=named(occurring[::-1][:listed]),
    )


def rows(split: Split, config: DataConfig, *, seed: int, packings: Sequence[int] = PACKINGS) -> RowReport:
    """Plan the first block of a run's first epoch, and pack its examples into rows.

    Args:
      split: the split.
      config: the sequence length and the sampling of examples.
      seed: seed of the run.
      packings: maximum examples in a row, each in place of ``config.packing``.

    Raises:
      UserError: there are too few documents for pairs.
    """
    plan = sentence_pairs.plan(split, config, seed=seed, epoch=0, block=0)
    tokens, lost = int(plan.tokens(config).sum()), int(plan.dropped.sum())
    packed = {
        packing: len(pipeline.packed_rows(plan, dataclasses.replace(config, packing=packing), seed=seed)) for packing in packings
    }
    return RowReport(
        sequence_length=config.sequence_length,
        documents=(len(split.first) - 1) // sentence_pairs.blocks(split),
        examples=len(plan.example),
        random=float(plan.random_next.mean()),
        cut=float((plan.dropped > 0).mean()),
        lost=lost / (int((plan.length_a + plan.length_b).sum()) + lost),
        rows=packed,
        padding={packing: 1 - tokens / (count * config.sequence_length) for packing, count in packed.items()},
    )

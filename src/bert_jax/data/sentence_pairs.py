"""Which tokens make which example: sentence pairs as the paper draws them, planned when an epoch is read.

An example is two ranges of tokens and a label. A plan holds the examples of a block of documents; it is a function
of (seed, epoch, block) and of sentence lengths alone, so that every host can make the same plan without reading a
document and no example is ever stored.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from bert_jax.config.run import DataConfig
from bert_jax.data.corpus import Split
from bert_jax.errors import UserError

# Most documents, and about how many sentences, are planned together, in the epoch's random order; random next sentences
# come from the same block, which is a random sample of the corpus. Blocks of an epoch are of equal size.
BLOCK = 65_536
SENTENCES = 4_194_304


class Examples(NamedTuple):
    """Columns int64 [N] of a plan, or [R, E] for the examples of rows; ranges are in pieces of a document."""

    document_a: np.ndarray
    start_a: np.ndarray
    length_a: np.ndarray
    document_b: np.ndarray
    start_b: np.ndarray
    length_b: np.ndarray
    random_next: np.ndarray
    """1 where B comes from another document, the original's label."""
    example: np.ndarray
    """Id that randomness is keyed by: epoch x sentences of the corpus + number of A's first sentence, modulo 2**32."""

    def take(self, numbers: np.ndarray) -> Examples:
        """Examples by their numbers; -1 gives one that is not there, of zeros."""
        return Examples(*(np.where(numbers < 0, 0, column[numbers]) for column in self))

    def tokens(self, config: DataConfig) -> np.ndarray:
        """Tokens of each example as [CLS] A [SEP] B [SEP] or [CLS] A [SEP]; 0 where there is none."""
        return np.where(self.length_a > 0, self.length_a + self.length_b + _specials(config), 0)


def blocks(split: Split) -> int:
    """Blocks in an epoch."""
    return max(1, -(-(len(split.first) - 1) // BLOCK), -(-split.lengths.size // SENTENCES))


def _specials(config: DataConfig) -> int:
    return 3 if config.pairs else 2


def plan(split: Split, config: DataConfig, *, seed: int, epoch: int, block: int) -> Examples:
    """Examples of one block in random order (the original's ``create_instances_from_document``).

    For each document: a target length, with probability ``short_sequences`` a random shorter one; sentences are
    gathered until the target is reached; a random number of them is A; B is the rest, or with probability
    ``random_next`` (always, if A took all) a stretch of another document, and the unused sentences are put back.
    Pairs longer than a row lose tokens of the longer part, at a random end.
    """
    if config.dupe_factor is not None:
        epoch %= config.dupe_factor
    count = len(split.first) - 1
    parts = blocks(split)
    order = _order(count, seed, epoch)[block * count // parts : (block + 1) * count // parts]
    if config.pairs and len(order) < 2:
        raise UserError("Sentence pairs need at least two documents to draw a random next sentence from.")
    return _Planner(split, config, order, np.random.default_rng([seed, epoch, 1 + block])).run(epoch)


@functools.lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class _Planner:
    """Works on all documents of the block at once, one example of each in a round."""

    def __init__(self, split: Split, config: DataConfig, documents: np.ndarray, rng: np.random.Generator) -> None:
        self.config, self.documents, self.rng = config, documents, rng
        self.sentences = split.lengths.size
        sizes = (split.first[1:] - split.first[:-1])[documents]
        self.last = np.cumsum(sizes)
        self.first = self.last - sizes
        # Sentences of the block, one after the other; `source` is their number in the corpus.
        self.source = np.repeat(split.first[documents] - self.first, sizes) + np.arange(sizes.sum())
        lengths = split.lengths[self.source].astype(np.int64)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.room = config.sequence_length - _specials(config)

    def run(self, epoch: int) -> Examples:
        count = len(self.documents)
        short = self.rng.random(count) < self.config.short_sequences
        target = np.where(short, self.rng.integers(2, self.room + 1, count), self.room)
        active, at = np.arange(count), self.first.copy()
        rounds = []
        while active.size:
            columns, after = self._round(active, at[active], target[active])
            rounds.append(columns)
            at[active] = after
            active = active[after < self.last[active]]
        document_a, a, a_stop, document_b, b, b_stop, random_next, sentence = map(np.concatenate, zip(*rounds, strict=True))
        base = self.starts[self.first]
        a, length_a, b, length_b = self._truncate(a, a_stop - a, b, b_stop - b)
        examples = Examples(
            document_a=self.documents[document_a],
            start_a=a - base[document_a],
            length_a=length_a,
            document_b=self.documents[document_b],
            start_b=b - base[document_b],
            length_b=length_b,
            random_next=random_next.astype(np.int64),
            example=(epoch * self.sentences + self.source[sentence]) % 2**32,
        )
        return examples.take(self.rng.permutation(len(sentence)))

    def _round(self, documents: np.ndarray, at: np.ndarray, target: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """One example of each document, starting at sentence ``at``; and the sentences to go on from."""
        stop = self._reach(at, target, self.last[documents])
        if not self.config.pairs:
            end = self.ends[stop - 1]
            return (documents, self.starts[at], end, documents, end, end, np.zeros(len(at), bool), at), stop
        gathered = stop - at
        first_b = at + 1 + self._below(np.maximum(gathered - 1, 1))
        random_next = (gathered == 1) | (self.rng.random(len(at)) < self.config.random_next)

        other = (documents + 1 + self._below(np.full(len(at), len(self.documents) - 1))) % len(self.documents)
        begin = self.first[other] + self._below(self.last[other] - self.first[other])
        a_start, a_stop = self.starts[at], self.ends[first_b - 1]
        end = self._reach(begin, np.maximum(target - (a_stop - a_start), 1), self.last[other])

        # Where A took every sentence, first_b is past the block's end at times; B is random there.
        inside = np.minimum(first_b, len(self.starts) - 1)
        columns = (
            documents,
            a_start,
            a_stop,
            np.where(random_next, other, documents),
            np.where(random_next, self.starts[begin], self.starts[inside]),
            np.where(random_next, self.ends[end - 1], self.ends[stop - 1]),
            random_next,
            at,
        )
        return columns, np.where(random_next, first_b, stop)

    def _reach(self, begin: np.ndarray, tokens: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Sentence after the one that brings the tokens since ``begin`` to ``tokens``, or after the document's last."""
        return np.minimum(np.searchsorted(self.ends, self.starts[begin] + tokens) + 1, last)

    def _below(self, bounds: np.ndarray) -> np.ndarray:
        """Random integers in [0, bound)."""
        return self.rng.integers(0, bounds)

    def _truncate(self, a: np.ndarray, length_a: np.ndarray, b: np.ndarray, length_b: np.ndarray) -> tuple[np.ndarray, ...]:
        """Starts and lengths after tokens were dropped one by one from the longer part (from B if equal)."""
        half = self.room - self.room // 2
        kept_a = np.where(length_a + length_b > self.room, np.minimum(length_a, np.maximum(half, self.room - length_b)), length_a)
        kept_b = np.minimum(length_b, self.room - kept_a)
        # Each dropped token comes off the front with probability one half.
        front_a = self.rng.binomial(length_a - kept_a, 0.5)
        front_b = self.rng.binomial(length_b - kept_b, 0.5)
        return a + front_a, kept_a, b + front_b, kept_b

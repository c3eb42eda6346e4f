"""Sampling of examples: sentence pairs as in the paper (section 3.1 and appendix A.2), planned when an epoch is read.

An example is two ranges of tokens and a label. A plan holds the examples of a block of documents. It is a function of
(seed, epoch, block) and of sentence lengths alone, so every host makes the same plan without reading a document, and no example is
stored.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import grain
import numpy as np

from bert_jax.config.data import DataConfig
from bert_jax.data.corpus import Split
from bert_jax.errors import UserError

# Maximum number of documents, and approximate number of sentences, that are planned together, in the random order of the epoch.
# Random next sentences come from the same block, which is a random sample of the corpus. The blocks of an epoch have equal sizes.
DOCUMENTS_PER_BLOCK = 65_536
SENTENCES_PER_BLOCK = 4_194_304
# Documents whose order is held in memory, 128 MiB; that of more is computed block by block. The arrays of a block take 250 MiB with
# rows of 128 tokens and up to 1.5 GiB where each sentence makes an example, whatever the size of the corpus.
MAX_PERMUTATION = 2**24


class Examples(NamedTuple):
    """Columns int64 [N] of a plan, or [R, E] for the examples of rows; ranges count tokens of a document."""

    document_a: np.ndarray
    """Index of the document of segment A."""
    start_a: np.ndarray
    length_a: np.ndarray
    document_b: np.ndarray
    """Index of the document of segment B."""
    start_b: np.ndarray
    length_b: np.ndarray
    random_next: np.ndarray
    """1 where B comes from another document, the label of the original's next sentence prediction."""
    dropped: np.ndarray
    """Tokens that the pair lost because it was longer than a row."""
    example: np.ndarray
    """Id from which the randomness of an example is derived: (n * sentences in the corpus + index of A's first sentence) modulo
    2**32, where n is the epoch, or counts the uses of a document where a mixture repeats it."""

    def take(self, indices: np.ndarray) -> Examples:
        """Return the examples at these indices; -1 gives an absent example, which is all zeros."""
        return Examples(*(np.where(indices < 0, 0, column[indices]) for column in self))

    def rows(self, chosen: np.ndarray | slice) -> Examples:
        """Return some of the rows."""
        return Examples(*(column[chosen] for column in self))

    def tokens(self, config: DataConfig) -> np.ndarray:
        """Return the tokens of each example as [CLS] A [SEP] B [SEP] or [CLS] A [SEP]; 0 for an absent one."""
        return np.where(self.length_a > 0, self.length_a + self.length_b + _special_tokens(config), 0)


def blocks(split: Split) -> int:
    """Return the number of blocks in an epoch."""
    documents = _uses(split)
    sentences = split.lengths.size * documents // max(1, len(split.first) - 1)
    return max(1, -(-documents // DOCUMENTS_PER_BLOCK), -(-sentences // SENTENCES_PER_BLOCK))


def _uses(split: Split) -> int:
    """Documents that an epoch takes, repetitions counted."""
    return sum(part.uses for part in split.mixture) or len(split.first) - 1


def _special_tokens(config: DataConfig) -> int:
    return 3 if config.pairs else 2


def plan(split: Split, config: DataConfig, *, seed: int, epoch: int, block: int) -> Examples:
    """Plan the examples of one block, in random order, as the original's ``create_instances_from_document`` does.

    In each document, sentences are gathered until a target length is reached, which is the row, or with probability
    ``short_sequences`` a random shorter length. A random number of the gathered sentences becomes A. B is the rest, or with
    probability ``random_next`` (always, if A took all sentences) a range of another document; the unused sentences are then
    gathered again. Pairs longer than a row lose tokens of the longer segment, at a random end.

    Raises:
      UserError: pairs are configured and the block has fewer than two documents.
    """
    if config.dupe_factor is not None:
        epoch %= config.dupe_factor
    documents, copies = _documents(split, epoch, _order(_uses(split), blocks(split), seed, epoch, block))
    if config.pairs and len(documents) < 2:
        raise UserError(
            "Sentence pairs need at least two documents for random next sentences; add documents or set pairs to False."
        )
    most = max((-(-part.uses // max(1, part.stop - part.start)) for part in split.mixture), default=1)
    return _Planner(split, config, documents, np.random.default_rng([seed, epoch, 1 + block])).run(epoch * most + copies)


def _documents(split: Split, epoch: int, uses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents of an epoch's uses, and for each one how often the epoch has used it before."""
    if not split.mixture:
        return uses, np.zeros(len(uses), np.int64)
    parts = np.array(split.mixture)
    ends = np.cumsum(parts[:, 2])
    source = np.searchsorted(ends, uses, side="right")
    start, stop, count = parts[source].T
    place, size = uses - (ends - parts[:, 2])[source], stop - start
    copy = place // size
    # The uses beyond whole rounds go on, epoch after epoch, where the one before ended.
    rest = np.where(copy == count // size, epoch * (count % size), 0)
    return start + (place + rest) % size, copy


def _order(documents: int, blocks: int, seed: int, epoch: int, block: int) -> np.ndarray:
    """The documents of a block, in an order in which every epoch goes through all documents."""
    start, stop = block * documents // blocks, (block + 1) * documents // blocks
    if documents <= MAX_PERMUTATION:
        return _permutation(documents, seed, epoch)[start:stop]
    # Grain computes each element of the permutation by itself.
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    shuffle = functools.partial(grain.experimental.index_shuffle, max_index=documents - 1, seed=state, rounds=4)
    return np.fromiter(map(shuffle, range(start, stop)), np.int64, stop - start)


@functools.lru_cache(maxsize=1)
def _permutation(documents: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(documents)


class _Planner:
    """Plans all documents of a block together; each round makes one example of each document."""

    def __init__(self, split: Split, config: DataConfig, documents: np.ndarray, rng: np.random.Generator) -> None:
        self.config, self.documents, self.rng = config, documents, rng
        self.corpus_sentences = split.lengths.size
        sizes = split.first[documents + 1] - split.first[documents]
        self.last = np.cumsum(sizes)
        self.first = self.last - sizes
        # The sentences of the block, one document after the other; `source` is their index in the corpus.
        self.source = np.repeat(split.first[documents] - self.first, sizes) + np.arange(sizes.sum())
        lengths = split.lengths[self.source].astype(np.int64)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.room = config.sequence_length - _special_tokens(config)

    def run(self, rounds_before: np.ndarray) -> Examples:
        """Plan the block, given how often each document may have been used before, which makes the ids of examples unique."""
        count = len(self.documents)
        short = self.rng.random(count) < self.config.short_sequences
        target = np.where(short, self.rng.integers(2, self.room + 1, count), self.room)
        active, sentence = np.arange(count), self.first.copy()
        rounds = []
        while active.size:
            columns, next_sentence = self._round(active, sentence[active], target[active])
            rounds.append(columns)
            sentence[active] = next_sentence
            active = active[next_sentence < self.last[active]]
        document_a, a, a_stop, document_b, b, b_stop, random_next, first_sentence = map(np.concatenate, zip(*rounds, strict=True))
        document_starts = self.starts[self.first]
        gathered = a_stop - a + b_stop - b
        a, length_a, b, length_b = self._truncate(a, a_stop - a, b, b_stop - b)
        examples = Examples(
            document_a=self.documents[document_a],
            start_a=a - document_starts[document_a],
            length_a=length_a,
            document_b=self.documents[document_b],
            start_b=b - document_starts[document_b],
            length_b=length_b,
            random_next=random_next.astype(np.int64),
            dropped=gathered - length_a - length_b,
            example=(rounds_before[document_a] * self.corpus_sentences + self.source[first_sentence]) % 2**32,
        )
        return examples.take(self.rng.permutation(len(first_sentence)))

    def _round(self, documents: np.ndarray, sentence: np.ndarray, target: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Make one example of each document from its sentences at ``sentence`` on.

        Returns:
          Columns of the examples, with ranges in tokens of the block, and the sentence of each document to continue with.
        """
        stop = self._reach(sentence, target, self.last[documents])
        if not self.config.pairs:
            end = self.ends[stop - 1]
            return (documents, self.starts[sentence], end, documents, end, end, np.zeros(len(sentence), bool), sentence), stop
        gathered = stop - sentence
        first_b = sentence + 1 + self._integers_below(np.maximum(gathered - 1, 1))
        random_next = (gathered == 1) | (self.rng.random(len(sentence)) < self.config.random_next)

        other = (documents + 1 + self._integers_below(np.full(len(sentence), len(self.documents) - 1))) % len(self.documents)
        begin = self.first[other] + self._integers_below(self.last[other] - self.first[other])
        a_start, a_stop = self.starts[sentence], self.ends[first_b - 1]
        end = self._reach(begin, np.maximum(target - (a_stop - a_start), 1), self.last[other])

        # Where A took every sentence, first_b can lie past the end of the block; B is random there.
        inside = np.minimum(first_b, len(self.starts) - 1)
        columns = (
            documents,
            a_start,
            a_stop,
            np.where(random_next, other, documents),
            np.where(random_next, self.starts[begin], self.starts[inside]),
            np.where(random_next, self.ends[end - 1], self.ends[stop - 1]),
            random_next,
            sentence,
        )
        return columns, np.where(random_next, first_b, stop)

    def _reach(self, begin: np.ndarray, tokens: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return the sentence after the one with which ``tokens`` tokens since ``begin`` are reached, at most ``last``."""
        return np.minimum(np.searchsorted(self.ends, self.starts[begin] + tokens) + 1, last)

    def _integers_below(self, bounds: np.ndarray) -> np.ndarray:
        """Return random integers in [0, bound)."""
        return self.rng.integers(0, bounds)

    def _truncate(self, a: np.ndarray, length_a: np.ndarray, b: np.ndarray, length_b: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return starts and lengths after tokens were dropped one by one from the longer segment (from B if equal)."""
        half = self.room - self.room // 2
        kept_a = np.where(length_a + length_b > self.room, np.minimum(length_a, np.maximum(half, self.room - length_b)), length_a)
        kept_b = np.minimum(length_b, self.room - kept_a)
        # Each token is dropped from the front with probability one half, else from the end.
        front_a = self.rng.binomial(length_a - kept_a, 0.5)
        front_b = self.rng.binomial(length_b - kept_b, 0.5)
        return a + front_a, kept_a, b + front_b, kept_b

"""Batches from a corpus as a Grain data set whose state is three numbers: epoch, block and row.

The rows of every global batch are a function of (seed, epoch, block, row). A host makes only its own rows, so batches do not depend
on the number of hosts, workers or devices, nor on the step from which a run was resumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grain
import numpy as np

from bert_jax.batch import HostBatch
from bert_jax.config.data import DataConfig
from bert_jax.data import packing, sentence_pairs
from bert_jax.data.corpus import Split
from bert_jax.data.sentence_pairs import Examples
from bert_jax.tokenizers import SpecialTokens

_PREFETCHED_BATCHES = 4

T = TypeVar("T", bound=tuple[np.ndarray, ...])


def train_batches(
    split: Split, special_tokens: SpecialTokens, config: DataConfig, *, seed: int, rows: np.ndarray
) -> grain.DatasetIterator[HostBatch]:
    """Return an endless iterator of batches, which a thread prepares ahead; epochs follow each other without a gap.

    Args:
      split: documents from which examples are made.
      special_tokens: ids of the special tokens.
      config: sequence length, batch size and the sampling of sentence pairs.
      seed: seed of the order of documents and of all sampling.
      rows: indices [R] of the rows of the global batch that this process makes.

    Returns:
      An iterator of batches with R rows and the arrays of [`bert_jax.batch`][bert_jax.batch] that precede masking. Its
      ``get_state`` and ``set_state`` identify the next batch.
    """

    def load(epoch: int, block: int) -> Examples:
        plan = sentence_pairs.plan(split, config, seed=seed, epoch=epoch, block=block)
        repeated = epoch if config.dupe_factor is None else epoch % config.dupe_factor
        return plan.take(packed_rows(plan, config, seed=[seed, repeated, 1 + block, 1]))

    examples = Rows(load, sentence_pairs.blocks(split), config.batch_size, rows)
    return prefetch(examples.map(lambda examples: assemble(split, special_tokens, config, examples)))


def prefetch(batches: grain.IterDataset[HostBatch]) -> grain.DatasetIterator[HostBatch]:
    """Iterate over batches that a thread prepares ahead."""
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCHED_BATCHES).__iter__()


def eval_batches(
    split: Split, special_tokens: SpecialTokens, config: DataConfig, *, rows: np.ndarray, limit: int | None
) -> Iterator[HostBatch]:
    """Iterate over every example of a fixed epoch once, in batches of equal shape; the last one is filled up with empty rows.

    The examples do not depend on the run's seed, so that runs can be compared.

    Args:
      split: documents from which examples are made.
      special_tokens: ids of the special tokens.
      config: sequence length, batch size and the sampling of sentence pairs.
      rows: indices [R] of the rows of the global batch that this process makes.
      limit: maximum number of batches; None for all.
    """
    batches = itertools.islice(_global_batches(split, config), limit)
    return (assemble(split, special_tokens, config, examples.rows(rows)) for examples in batches)


def _global_batches(split: Split, config: DataConfig) -> Iterator[Examples]:
    """Yield the examples of each batch of a fixed epoch, planned block by block; the last one is filled up with absent ones."""
    size, left = config.batch_size, None
    for block in range(sentence_pairs.blocks(split)):
        plan = sentence_pairs.plan(split, config, seed=0, epoch=0, block=block)
        planned = plan.take(packed_rows(plan, config, seed=0))
        if left is not None:
            planned = Examples(*map(np.concatenate, zip(left, planned, strict=True)))
        whole = len(planned.example) // size * size
        for start in range(0, whole, size):
            yield planned.rows(slice(start, start + size))
        left = planned.rows(slice(whole, None))
    if left is not None and (missing := -len(left.example) % size):
        yield Examples(*(np.pad(column, ((0, missing), (0, 0))) for column in left))


def packed_rows(plan: Examples, config: DataConfig, *, seed: int | list[int]) -> np.ndarray:
    """Return the indices [R, E] of the examples of each row, -1 in unused slots, with the rows in random order."""
    rows = packing.pack(plan.tokens(config), config.sequence_length, config.packing)
    # Packing sorts by length, so similar rows are neighbours until they are shuffled.
    return rows if config.packing == 1 else np.random.default_rng(seed).permutation(rows)


def assemble(split: Split, special_tokens: SpecialTokens, config: DataConfig, examples: Examples) -> HostBatch:
    """Read the documents of R x E examples and lay them out in R rows, each as [CLS] A [SEP] (B [SEP])."""
    present = examples.length_a > 0
    tokens, word_starts, from_a, from_b = _read(split, examples, present)
    column = np.arange(config.sequence_length)
    lengths = examples.tokens(config)
    ends = np.cumsum(lengths, axis=1)
    slot = np.minimum((column[:, None] >= ends[:, None, :]).sum(-1), lengths.shape[1] - 1)

    def per_column(values: np.ndarray) -> np.ndarray:
        """Values [R, E] of the example that each column belongs to, [R, S]."""
        return np.take_along_axis(values, slot, axis=1)

    valid = column < ends[:, -1:]
    offset = np.where(valid, column - per_column(ends - lengths), 0)
    a, b = per_column(examples.length_a), per_column(examples.length_b)
    in_a = valid & (offset >= 1) & (offset <= a)
    in_b = valid & (offset >= a + 2) & (offset < a + 2 + b)
    in_text = in_a | in_b
    source = np.where(in_a, per_column(from_a) + offset - 1, np.where(in_b, per_column(from_b) + offset - a - 2, 0))
    separator = valid & ~in_text & (offset > 0)
    # A segment may begin in the middle of a word; the rest of that word counts as one.
    words_begun = np.cumsum(in_text & (word_starts[source] | (offset == 1) | (offset == a + 2)), axis=1)
    words_before = np.take_along_axis(words_begun, np.minimum(ends - lengths, column[-1]), axis=1)

    special = np.where(separator, special_tokens.sep, np.where(valid, special_tokens.cls, special_tokens.pad))
    return {
        "input_ids": _int32(np.where(in_text, tokens[source], special)),
        "token_type_ids": _int32(valid & (offset >= a + 2)),
        "segment_ids": _int32(np.where(valid, slot + 1, 0)),
        "position_ids": _int32(offset),
        "word_ids": _int32(np.where(in_text, words_begun - per_column(words_before) - 1, -1)),
        "example_ids": np.ascontiguousarray(examples.example, np.uint32).view(np.int32),
        "cls_positions": _int32(np.where(present, ends - lengths, 0)),
        "nsp_labels": _int32(examples.random_next),
        "nsp_weights": (present & config.pairs).astype(np.float32),
    }


def _read(split: Split, examples: Examples, present: np.ndarray) -> tuple[np.ndarray, ...]:
    """Read the documents of the present examples.

    Returns:
      Token ids and word starts [N] of these documents, one after the other, and the indices [R, E] in them at which segment A and
      segment B of each example start.
    """
    needed, document = np.unique(np.concatenate([examples.document_a[present], examples.document_b[present]]), return_inverse=True)
    documents = split.documents.__getitems__(needed.tolist())
    # One element more, so that index 0 exists when all rows are empty.
    tokens = np.concatenate([*(document["tokens"] for document in documents), np.zeros(1, np.int32)])
    word_starts = np.concatenate([*(document["word_starts"] for document in documents), np.zeros(1, np.bool_)])
    document_starts = np.cumsum([0] + [len(document["tokens"]) for document in documents])[document]
    from_a, from_b = examples.start_a.copy(), examples.start_b.copy()
    from_a[present] += document_starts[: present.sum()]
    from_b[present] += document_starts[present.sum() :]
    return tokens, word_starts, from_a, from_b


def _int32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32)


class Rows(grain.IterDataset[T]):
    """The rows of each global batch that this process makes, epoch after epoch; their state is epoch, block and row.

    Args:
      load: load(epoch, block) -> a named tuple of columns [N, ...] with the rows of a block, in the order in which they are used.
      blocks: number of blocks in an epoch.
      batch_size: rows of the global batch.
      rows: indices [R] of the rows of the global batch that this process makes.
    """

    def __init__(self, load: Callable[[int, int], T], blocks: int, batch_size: int, rows: np.ndarray) -> None:
        super().__init__()
        self._arguments = (load, blocks, batch_size, rows)

    def __iter__(self) -> grain.DatasetIterator[T]:
        return _RowIterator(*self._arguments)


class _RowIterator(grain.DatasetIterator[T]):
    def __init__(self, load: Callable[[int, int], T], blocks: int, batch_size: int, rows: np.ndarray) -> None:
        super().__init__()
        self._load, self._blocks, self._batch_size, self._rows = load, blocks, batch_size, rows
        self._epoch = self._block = self._row = 0
        self._loaded: T | None = None

    def __next__(self) -> T:
        parts, missing = [], self._batch_size
        while missing:
            if self._loaded is None:
                self._loaded = self._load(self._epoch, self._block)
            columns = self._loaded
            parts.append([column[self._row : self._row + missing] for column in columns])
            count = len(parts[-1][0])
            missing -= count
            self._row += count
            if self._row == len(columns[0]):
                self._advance()
        return type(columns)(*(np.concatenate(column)[self._rows] for column in zip(*parts, strict=True)))

    def _advance(self) -> None:
        self._loaded, self._row = None, 0
        self._block += 1
        if self._block == self._blocks:
            self._block = 0
            self._epoch += 1

    def get_state(self) -> dict[str, Any]:
        """Return epoch, block and row of the next batch."""
        return {"epoch": self._epoch, "block": self._block, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state that ``get_state`` returned."""
        self._epoch, self._block, self._row = state["epoch"], state["block"], state["row"]
        self._loaded = None

"""Batches from a corpus as a Grain data set whose state is three numbers.

The rows of every global batch are a function of (seed, epoch, block, row); a host makes only its own rows, so
batches do not depend on hosts, workers, devices or on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from bert_jax.config.run import DataConfig
from bert_jax.data import packing, sentence_pairs
from bert_jax.data.corpus import Split
from bert_jax.data.sentence_pairs import Examples
from bert_jax.tokenizers import Specials

HostBatch = dict[str, np.ndarray]


def train_batches(
    split: Split, specials: Specials, config: DataConfig, *, seed: int, rows: np.ndarray
) -> grain.DatasetIterator[HostBatch]:
    """Endless batches, prepared ahead in a thread; epochs follow each other without a gap.

    Args:
      split: documents to make examples from.
      specials: ids of the special pieces.
      config: how examples are made.
      seed: what everything random in them depends on.
      rows: rows [R] of the global batch that this process makes.

    Returns:
      An iterator of batches with R rows (the batch contract in ``docs/design.md``), whose ``get_state`` and
      ``set_state`` name the next batch to come.
    """
    plans = _Plans(split, config, seed, rows)
    made = plans.map(lambda examples: assemble(split, specials, config, examples))
    return grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=4).__iter__()


def eval_batches(
    split: Split, specials: Specials, config: DataConfig, *, rows: np.ndarray, limit: int | None
) -> Iterator[HostBatch]:
    """Every example of a fixed epoch once, in batches of equal shape; empty rows fill up the last.

    The examples do not depend on the run's seed, so that runs can be compared.
    """
    parts = [sentence_pairs.plan(split, config, seed=0, epoch=0, block=block) for block in range(sentence_pairs.blocks(split))]
    plan = Examples(*map(np.concatenate, zip(*parts, strict=True)))
    packed = packed_rows(plan, config, seed=0)
    count = -(-len(packed) // config.batch_size)
    packed = np.pad(packed, ((0, count * config.batch_size - len(packed)), (0, 0)), constant_values=-1)
    for batch in range(count if limit is None else min(count, limit)):
        yield assemble(split, specials, config, plan.take(packed[batch * config.batch_size + rows]))


def packed_rows(plan: Examples, config: DataConfig, *, seed: int | list[int]) -> np.ndarray:
    """Numbers [R, E] of the examples of each row, -1 where there are fewer; rows in random order."""
    rows = packing.pack(plan.tokens(config), config.sequence_length, config.packing)
    # Packed by length, rows of one kind lie together.
    return rows if config.packing == 1 else np.random.default_rng(seed).permutation(rows)


def assemble(split: Split, specials: Specials, config: DataConfig, examples: Examples) -> HostBatch:
    """Read the documents of R x E examples and lay them out in R rows, each as [CLS] A [SEP] (B [SEP])."""
    present = examples.length_a > 0
    needed, places = np.unique(np.concatenate([examples.document_a[present], examples.document_b[present]]), return_inverse=True)
    documents = split.documents.__getitems__(needed.tolist())
    # With one more, so that there is something to read where all rows are empty.
    pieces = np.concatenate([*(document["pieces"] for document in documents), np.zeros(1, np.int32)])
    starts = np.concatenate([*(document["starts"] for document in documents), np.zeros(1, np.bool_)])
    base = np.cumsum([0] + [len(document["pieces"]) for document in documents])[places]
    from_a, from_b = examples.start_a.copy(), examples.start_b.copy()
    from_a[present] += base[: present.sum()]
    from_b[present] += base[present.sum() :]

    column = np.arange(config.sequence_length)
    tokens = examples.tokens(config)
    ends = np.cumsum(tokens, axis=1)
    slot = np.minimum((column[:, None] >= ends[:, None, :]).sum(-1), tokens.shape[1] - 1)

    def its(values: np.ndarray) -> np.ndarray:
        """What holds of the example that a column belongs to."""
        return np.take_along_axis(values, slot, axis=1)

    valid = column < ends[:, -1:]
    offset = np.where(valid, column - its(ends - tokens), 0)
    a, b = its(examples.length_a), its(examples.length_b)
    in_a = valid & (offset >= 1) & (offset <= a)
    in_b = valid & (offset >= a + 2) & (offset < a + 2 + b)
    words = in_a | in_b
    source = np.where(in_a, its(from_a) + offset - 1, np.where(in_b, its(from_b) + offset - a - 2, 0))
    separator = valid & ~words & (offset > 0)
    # A part may begin in the middle of a word; its rest counts as one.
    begun = np.cumsum(words & (starts[source] | (offset == 1) | (offset == a + 2)), axis=1)
    before = np.take_along_axis(begun, np.minimum(ends - tokens, column[-1]), axis=1)

    def integers(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.int32)

    ids = np.where(words, pieces[source], np.where(separator, specials.sep, np.where(valid, specials.cls, specials.pad)))
    return {
        "ids": integers(ids),
        "types": integers(valid & (offset >= a + 2)),
        "positions": integers(offset),
        "segments": integers(np.where(valid, slot + 1, 0)),
        "offsets": integers(offset),
        "words": integers(np.where(words, begun - its(before) - 1, -1)),
        "examples": np.ascontiguousarray(examples.example, np.uint32).view(np.int32),
        "cls_positions": integers(np.where(present, ends - tokens, 0)),
        "nsp_labels": integers(examples.random_next),
        "nsp_weights": (present & config.pairs).astype(np.float32),
    }


class _Plans(grain.IterDataset[Examples]):
    """This process's part of each global batch, as examples to be read."""

    def __init__(self, split: Split, config: DataConfig, seed: int, rows: np.ndarray) -> None:
        super().__init__()
        self._arguments = (split, config, seed, rows)

    def __iter__(self) -> grain.DatasetIterator[Examples]:
        return _PlanIterator(*self._arguments)


class _PlanIterator(grain.DatasetIterator[Examples]):
    """Walks epochs, blocks and rows; the state is where the next batch begins."""

    def __init__(self, split: Split, config: DataConfig, seed: int, rows: np.ndarray) -> None:
        super().__init__()
        self._split, self._config, self._seed, self._rows = split, config, seed, rows
        self._epoch = self._block = self._row = 0
        self._plan: tuple[Examples, np.ndarray] | None = None

    def __next__(self) -> Examples:
        parts, missing = [], self._config.batch_size
        while missing:
            if self._plan is None:
                self._plan = self._next_plan()
            plan, rows = self._plan
            parts.append(plan.take(rows[self._row : self._row + missing]))
            count = len(parts[-1].example)
            missing -= count
            self._row += count
            if self._row == len(rows):
                self._advance()
        return Examples(*(np.concatenate(columns)[self._rows] for columns in zip(*parts, strict=True)))

    def _next_plan(self) -> tuple[Examples, np.ndarray]:
        config, seed = self._config, self._seed
        epoch = self._epoch if config.dupe_factor is None else self._epoch % config.dupe_factor
        plan = sentence_pairs.plan(self._split, config, seed=seed, epoch=self._epoch, block=self._block)
        return plan, packed_rows(plan, config, seed=[seed, epoch, 1 + self._block, 1])

    def _advance(self) -> None:
        self._plan, self._row = None, 0
        self._block += 1
        if self._block == sentence_pairs.blocks(self._split):
            self._block = 0
            self._epoch += 1

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "block": self._block, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._block, self._row = state["epoch"], state["block"], state["row"]
        self._plan = None

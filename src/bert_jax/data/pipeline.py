"""Batches from a corpus as a Grain data set whose state is three numbers.

The rows of every global batch are a function of (seed, epoch, block, row); a host makes only its own rows, so
batches do not depend on hosts, workers, devices or on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from bert_jax.config import DataConfig
from bert_jax.data import pairs
from bert_jax.data.corpus import Split
from bert_jax.data.pairs import Examples
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
    parts = [pairs.plan(split, config, seed=0, epoch=0, block=block) for block in range(pairs.blocks(split))]
    plan = Examples(*map(np.concatenate, zip(*parts, strict=True)))
    count = -(-len(plan.example) // config.batch_size)
    for batch in range(count if limit is None else min(count, limit)):
        chosen = batch * config.batch_size + rows
        present = chosen < len(plan.example)
        made = assemble(split, specials, config, plan.take(np.where(present, chosen, 0)))
        for name, values in made.items():
            values[~present] = -1 if name == "words" else 0
        yield made


def assemble(split: Split, specials: Specials, config: DataConfig, examples: Examples) -> HostBatch:
    """Read the documents of R examples and lay them out as rows [CLS] A [SEP] (B [SEP])."""
    needed, places = np.unique(np.concatenate([examples.document_a, examples.document_b]), return_inverse=True)
    documents = split.documents.__getitems__(needed.tolist())
    pieces = np.concatenate([document["pieces"] for document in documents])
    starts = np.concatenate([document["starts"] for document in documents])
    base = np.cumsum([0] + [len(document["pieces"]) for document in documents])[places]
    from_a, from_b = base[: len(examples.example)] + examples.start_a, base[len(examples.example) :] + examples.start_b

    column = np.arange(config.sequence_length)
    a, b = examples.length_a[:, None], examples.length_b[:, None]
    in_a = (column >= 1) & (column <= a)
    in_b = (column >= a + 2) & (column < a + 2 + b)
    total = a + 2 + np.where(b > 0, b + 1, 0) if config.pairs else a + 2
    valid = column < total
    words = in_a | in_b
    source = np.where(in_a, from_a[:, None] + column - 1, np.where(in_b, from_b[:, None] + column - a - 2, 0))
    separator = valid & ~words & (column > 0)
    # A part may begin in the middle of a word; its rest counts as one.
    begins = words & (starts[source] | (column == 1) | (column == a + 2))

    def integers(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.int32)

    ids = np.where(words, pieces[source], np.where(separator, specials.sep, np.where(valid, specials.cls, specials.pad)))
    place = integers(np.where(valid, column, 0))
    ones = np.ones((len(examples.example), 1))
    return {
        "ids": integers(ids),
        "types": integers(valid & (column >= a + 2)),
        "positions": place,
        "segments": integers(valid),
        "offsets": place,
        "words": integers(np.where(words, np.cumsum(begins, axis=1) - 1, -1)),
        "examples": np.ascontiguousarray(examples.example[:, None], np.uint32).view(np.int32),
        "cls_positions": integers(0 * ones),
        "nsp_labels": integers(examples.random_next[:, None]),
        "nsp_weights": (ones * config.pairs).astype(np.float32),
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
        self._plan: Examples | None = None

    def __next__(self) -> Examples:
        parts, missing = [], self._config.batch_size
        while missing:
            if self._plan is None:
                self._plan = pairs.plan(self._split, self._config, seed=self._seed, epoch=self._epoch, block=self._block)
            part = self._plan.take(slice(self._row, self._row + missing))
            parts.append(part)
            missing -= len(part.example)
            self._row += len(part.example)
            if self._row == len(self._plan.example):
                self._advance()
        return Examples(*map(np.concatenate, zip(*parts, strict=True))).take(self._rows)

    def _advance(self) -> None:
        self._plan, self._row = None, 0
        self._block += 1
        if self._block == pairs.blocks(self._split):
            self._block = 0
            self._epoch += 1

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "block": self._block, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._block, self._row = state["epoch"], state["block"], state["row"]
        self._plan = None

"""Examples of a task laid out in rows, several to a row, and batches of them whose position can be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from bert_jax.data import packing
from bert_jax.data.pipeline import HostBatch
from bert_jax.tasks.example import Example

# Most parts in a row; more would only make wide arrays of what is mostly empty.
_MOST = 32


class Place(NamedTuple):
    """Where an example went."""

    row: int
    slot: int
    """Number of its first part in the row."""
    start: int
    """Column of its first piece."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How examples of a task share rows; what they share changes neither their scores nor their gradients."""

    head: str
    """What is asked: "classify", "regress", "tag", "span" or "choose"."""
    width: int
    """S, pieces in a row."""
    parts: int
    """Parts of an example: 1, or its choices."""
    packing: bool
    """Whether examples share rows at all."""
    pad: int
    """Id of padding."""
    multiple: int
    """Rows of a batch are a multiple of this."""

    @property
    def slots(self) -> int:
        """E, parts in a row."""
        return max(self.parts, _MOST // self.parts * self.parts) if self.packing else self.parts

    def assign(self, examples: Sequence[Example]) -> np.ndarray:
        """Numbers [R, E / parts] of the examples of each row, -1 where there are fewer."""
        lengths = np.array([sum(len(part.ids) for part in example.parts) for example in examples])
        return packing.pack(lengths, self.width, self.slots // self.parts)

    def rows(self, count: int) -> int:
        """Rows of the batch that holds ``count`` filled ones: more by a quarter at most, so that a task compiles few shapes."""
        groups = -(-count // self.multiple)
        step = 1 << max(groups.bit_length() - 3, 0)
        return -(-groups // step) * step * self.multiple

    def lay(
        self, examples: Sequence[Example], numbers: Sequence[int], assigned: np.ndarray, rows: int
    ) -> tuple[HostBatch, dict[int, Place]]:
        """A batch of examples, and where each went.

        Args:
          examples: what :meth:`assign` was given.
          numbers: of each example, for its dropout.
          assigned: some rows of what it returned.
          rows: at least as many; the rest is padding.

        Returns:
          ``ids, types, positions, segments`` int32 [B, S]; ``examples, cls_positions`` int32 [B, E]; ``labels`` and ``weights``
          as :func:`bert_jax.training.losses.task` takes them; and row and slot by the place in ``examples``.
        """
        batch = self._empty(rows)
        places: dict[int, Place] = {}
        for row, group in enumerate(assigned):
            slot = at = 0
            for one in group[group >= 0].tolist():
                example = examples[one]
                places[one] = Place(row, slot, at)
                self._label(batch, example, places[one])
                for part in example.parts:
                    size = len(part.ids)
                    here = slice(at, at + size)
                    batch["ids"][row, here] = part.ids
                    batch["types"][row, at + part.first : at + size] = 1
                    batch["positions"][row, here] = np.arange(size)
                    batch["segments"][row, here] = slot + 1
                    batch["cls_positions"][row, slot] = at
                    batch["examples"][row, slot] = np.uint32(numbers[one] % 2**32).astype(np.int32)
                    at, slot = at + size, slot + 1
        return batch, places

    def _empty(self, rows: int) -> HostBatch:
        shape, slots = (rows, self.width), (rows, self.slots)
        batch = {name: np.zeros(shape, np.int32) for name in ("types", "positions", "segments")}
        batch["ids"] = np.full(shape, self.pad, np.int32)
        batch |= {name: np.zeros(slots, np.int32) for name in ("examples", "cls_positions")}
        labels = {"tag": shape, "span": (*slots, 2), "choose": (rows, self.slots // self.parts)}.get(self.head, slots)
        batch["labels"] = np.zeros(labels, np.float32 if self.head == "regress" else np.int32)
        batch["weights"] = np.zeros(labels[:2], np.float32)
        return batch

    def _label(self, batch: HostBatch, example: Example, place: Place) -> None:
        if example.label is None:
            return
        labels, weights, row = batch["labels"], batch["weights"], place.row
        if self.head == "tag":
            here = slice(place.start, place.start + len(example.label))
            labels[row, here] = np.maximum(example.label, 0)
            weights[row, here] = example.label >= 0
            return
        slot = place.slot // self.parts
        labels[row, slot] = example.label + place.start if self.head == "span" else example.label
        weights[row, slot] = 1.0

    def scores(self, logits: np.ndarray, example: Example, place: Place) -> np.ndarray:
        """An example's own scores out of a batch's [B, N, C]: [C], or [parts], or [N, C] for its N pieces."""
        if self.head in ("tag", "span"):
            return logits[place.row, place.start : place.start + len(example.parts[0].ids)]
        mine = logits[place.row, place.slot : place.slot + self.parts]
        return mine[:, 0] if self.head == "choose" else mine[0]


def once(examples: Sequence[Example], layout: Layout, rows: int) -> Iterator[tuple[HostBatch, dict[int, Place]]]:
    """Every example once, in batches of ``rows`` rows; the last is filled up with padding."""
    assigned = layout.assign(examples)
    for start in range(0, len(assigned), rows):
        yield layout.lay(examples, range(len(examples)), assigned[start : start + rows], rows)


class Shuffled(grain.IterDataset[HostBatch]):
    """Endless batches of a fixed number of examples, in another order each epoch, which is a function of (seed, epoch).

    Args:
      examples: all of them.
      layout: how they share rows.
      size: examples in a batch.
      seeds: one; or several, of runs that are trained at a time, whose batches get a leading axis.
      local: rows of a batch -> those that this process makes.
      more: arrays that every batch carries.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        layout: Layout,
        *,
        size: int,
        seeds: int | Sequence[int],
        local: Callable[[int], np.ndarray],
        more: dict[str, np.ndarray],
    ) -> None:
        super().__init__()
        self.examples, self.layout, self.size, self.local, self.more = examples, layout, size, local, more
        self.stacked = not isinstance(seeds, int)
        self.seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)

    def __iter__(self) -> grain.DatasetIterator[HostBatch]:
        return _Iterator(self)


class _Iterator(grain.DatasetIterator[HostBatch]):
    """The state is the number of the next batch."""

    def __init__(self, source: Shuffled) -> None:
        super().__init__()
        self._source = source
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._next = 0

    def __next__(self) -> HostBatch:
        first = self._next * self._source.size
        numbers = range(first, first + self._source.size)
        self._next += 1
        chosen = [[self._example(seed, number) for number in numbers] for seed in self._source.seeds]
        assigned = [self._source.layout.assign(examples) for examples in chosen]
        rows = self._source.layout.rows(max(map(len, assigned)))
        local = self._source.local(rows)
        batches = [self._source.layout.lay(mine, numbers, whose, rows)[0] for mine, whose in zip(chosen, assigned, strict=True)]
        batch = {name: [each[name][local] for each in batches] for name in batches[0]}
        return {name: np.stack(each) if self._source.stacked else each[0] for name, each in batch.items()} | self._source.more

    def _example(self, seed: int, number: int) -> Example:
        """An example by its number, counted on over epochs."""
        epoch, place = divmod(number, len(self._source.examples))
        if (seed, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[1] >= epoch - 1}
            self._orders[seed, epoch] = np.random.default_rng([seed, epoch]).permutation(len(self._source.examples))
        return self._source.examples[self._orders[seed, epoch][place]]

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = state["next"]

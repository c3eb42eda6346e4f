"""Layout of a task's examples in rows, several to a row, and a resumable stream of shuffled batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from bert_jax.batch import HostBatch
from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.data.packing import pack
from bert_jax.tasks.example import Example
from bert_jax.tasks.label_layout import LabelLayout, Placement
from bert_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """How examples of a task share rows. Sharing changes neither their outputs nor their gradients.

    Examples:
      >>> from bert_jax.tasks.example import EncodedText
      >>> from bert_jax.tasks.label_layout import ExampleLabels
      >>> examples = [Example((EncodedText(np.arange(4), 4),), np.int32(1)) for _ in range(3)]
      >>> layout = RowLayout("sequence_classification", ExampleLabels(), sequence_length=8)
      >>> layout.assign(examples)[:, :2].tolist()
      [[0, 2], [1, -1]]
    """

    head: str
    """Head that computes the outputs."""
    labels: LabelLayout
    """Where labels stand in a batch."""
    sequence_length: int
    """S, tokens in a row."""
    texts: int = 1
    """Texts of an example: 1, or the number of its choices."""
    packing: int = 32
    """Maximum texts in a row; 1: one example per row."""
    pad: int = 0
    """Token id of padding."""
    multiple: int = 1
    """The number of rows of a batch is a multiple of this."""

    @classmethod
    def for_task(
        cls,
        task: Task,
        task_data: TaskDataConfig,
        *,
        texts: int,
        outputs: int,
        pad: int,
        multiple: int,
        class_weights: tuple[float, ...] | None = None,
    ) -> RowLayout:
        """The layout of a task's rows.

        Args:
          task, task_data: the task and how its data are read.
          texts: texts of an example.
          outputs: outputs of the head.
          pad: token id of padding.
          multiple: divisor of the number of rows of a batch.
          class_weights: weight of each class in the loss, for a label layout that has them.
        """
        sequence_length, packing = task_data.sequence_length * texts, task_data.packing
        labels = task.label_layout(outputs)
        if class_weights is not None:
            labels = dataclasses.replace(labels, class_weights=class_weights)  # type: ignore[type-var]
        return cls(task.head, labels, sequence_length, texts, packing, pad, multiple)

    @property
    def slots(self) -> int:
        """E, slots for texts in a row: a multiple of the texts of an example."""
        return max(self.texts, self.packing // self.texts * self.texts)

    def assign(self, examples: Sequence[Example]) -> np.ndarray:
        """Indices [R, E / texts] of the examples of each row, -1 for empty slots."""
        lengths = np.array([sum(len(text.ids) for text in example.texts) for example in examples])
        return pack(lengths, self.sequence_length, self.slots // self.texts)

    def rows(self, count: int) -> int:
        """Rows of the batch that holds ``count`` filled rows: at most a quarter more, so that a task compiles few shapes."""
        groups = -(-count // self.multiple)
        step = 1 << max(groups.bit_length() - 3, 0)
        return -(-groups // step) * step * self.multiple

    def lay(
        self, examples: Sequence[Example], ids: Sequence[int], assigned: np.ndarray, rows: int
    ) -> tuple[HostBatch, dict[int, Placement]]:
        """Lay examples out in a batch.

        Args:
          examples: the argument of ``assign``.
          ids: an id for each example, from which its dropout is derived.
          assigned: some rows of the result of ``assign``.
          rows: rows of the batch, at least as many; the others are padding.

        Returns:
          ``input_ids, token_type_ids, position_ids, segment_ids`` int32 [B, S]; ``example_ids, cls_positions`` int32 [B, E];
          ``labels`` and ``weights`` as [`task`][bert_jax.training.losses.task] takes them; and the placement of each example, by
          its index in ``examples``.
        """
        batch = self._empty(rows)
        placements: dict[int, Placement] = {}
        for row, group in enumerate(assigned):
            slot = start = 0
            for index in group[group >= 0].tolist():
                example = examples[index]
                placements[index] = Placement(row, slot, start)
                if example.label is not None:
                    self.labels.write(batch["labels"][row], batch["weights"][row], example, placements[index])
                for text in example.texts:
                    size = len(text.ids)
                    columns = slice(start, start + size)
                    batch["input_ids"][row, columns] = text.ids
                    batch["token_type_ids"][row, start + text.first_length : start + size] = 1
                    batch["position_ids"][row, columns] = np.arange(size)
                    batch["segment_ids"][row, columns] = slot + 1
                    batch["cls_positions"][row, slot] = start
                    batch["example_ids"][row, slot] = np.uint32(ids[index] % 2**32).astype(np.int32)
                    start, slot = start + size, slot + 1
        return batch, placements

    def _empty(self, rows: int) -> HostBatch:
        shape, slots = (rows, self.sequence_length), (rows, self.slots)
        batch = {name: np.zeros(shape, np.int32) for name in ("token_type_ids", "position_ids", "segment_ids")}
        batch["input_ids"] = np.full(shape, self.pad, np.int32)
        batch |= {name: np.zeros(slots, np.int32) for name in ("example_ids", "cls_positions")}
        labels = (rows, *self.labels.shape(sequence_length=self.sequence_length, slots=self.slots, texts=self.texts))
        batch["labels"] = np.zeros(labels, self.labels.dtype)
        batch["weights"] = np.zeros(labels[:2], np.float32)
        return batch

    def outputs(self, logits: np.ndarray, example: Example, placement: Placement) -> np.ndarray:
        """The outputs for one example from the logits [B, N, C] of a batch; the shape depends on the label layout."""
        return self.labels.outputs(logits[placement.row], example, placement)


def once(examples: Sequence[Example], layout: RowLayout, rows: int) -> Iterator[tuple[HostBatch, dict[int, Placement]]]:
    """Every example once, in batches of ``rows`` rows; the last batch is filled up with padding."""
    assigned = layout.assign(examples)
    for start in range(0, len(assigned), rows):
        yield layout.lay(examples, range(len(examples)), assigned[start : start + rows], rows)


class Shuffled(grain.IterDataset[HostBatch]):
    """Endless batches of a fixed number of examples; the order in each epoch is a function of (seed, epoch).

    Args:
      examples: all examples.
      layout: how examples share rows.
      size: examples in a batch.
      seeds: one seed; or the seeds of an ensemble of runs, for which batches get a leading axis.
      local: maps the number of rows of a batch to the indices of the rows that this process makes.
      more: arrays that are added to every batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        layout: RowLayout,
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
    """The state is the index of the next batch."""

    def __init__(self, source: Shuffled) -> None:
        super().__init__()
        self._source = source
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._next = 0

    def __next__(self) -> HostBatch:
        first = self._next * self._source.size
        ids = range(first, first + self._source.size)
        self._next += 1
        examples = [[self._example(seed, index) for index in ids] for seed in self._source.seeds]
        assigned = [self._source.layout.assign(run_examples) for run_examples in examples]
        rows = self._source.layout.rows(max(map(len, assigned)))
        local = self._source.local(rows)
        batches = [
            self._source.layout.lay(run_examples, ids, run_rows, rows)[0]
            for run_examples, run_rows in zip(examples, assigned, strict=True)
        ]
        batch = {name: [run_batch[name][local] for run_batch in batches] for name in batches[0]}
        joined = {name: np.stack(values) if self._source.stacked else values[0] for name, values in batch.items()}
        return joined | self._source.more

    def _example(self, seed: int, index: int) -> Example:
        """The example with an index that counts on over the epochs."""
        epoch, place = divmod(index, len(self._source.examples))
        if (seed, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[1] >= epoch - 1}
            self._orders[seed, epoch] = np.random.default_rng([seed, epoch]).permutation(len(self._source.examples))
        return self._source.examples[self._orders[seed, epoch][place]]

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = state["next"]

"""The parts of a pretraining run, each with rows of its own, as one stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax import tokenizers
from bert_jax.batch import HostBatch
from bert_jax.config.run import Config
from bert_jax.data import nsp_labels, sources
from bert_jax.data.records import Records
from bert_jax.data.sources import PretrainingData
from bert_jax.errors import UserError
from bert_jax.models.encoder import attention_implementation
from bert_jax.training.job import Batches


class Part(NamedTuple):
    """A part of a run."""

    start: int
    """Updates of the run before it."""
    config: Config
    data: PretrainingData


Rows = Callable[[int], np.ndarray]
"""Number of rows of a global batch -> those that this process makes."""


def open_parts(config: Config, data: PretrainingData) -> list[Part]:
    """The parts of a run.

    Args:
      config: the run.
      data: that of its first part.

    Raises:
      UserError: the data of a phase cannot be opened, is of another kind, or has another vocabulary; or the labels of sentence
        pairs contradict the config.
    """
    parts: list[Part] = []
    for start, part in config.parts():
        opened = sources.open_data(part.data) if start else data
        if opened.static_masks != data.static_masks:
            raise UserError(
                f"Of {part.data.corpus} and {config.data.corpus} one has TFRecord files; all phases need the same kind of data."
            )
        if tokenizers.digest(opened.tokenizer) != tokenizers.digest(data.tokenizer):
            raise UserError(f"{part.data.corpus} has another vocabulary than {config.data.corpus}; prepare both with the same.")
        if isinstance(opened, Records) and config.data.pairs:
            nsp_labels.check(opened, part.data)
        parts.append(Part(start, part, opened))
    return parts


def digest(parts: Sequence[Part]) -> str:
    """A digest of the content of the data of all parts."""
    return "+".join(dict.fromkeys(part.data.digest() for part in parts))


def describe(part: Part, *, with_start: bool) -> str:
    """A sentence about the attention of a part, and with its start about its rows."""
    config = part.config
    attention, scoring = (
        attention_implementation(config.model, config.data.sequence_length, training=training) for training in (True, False)
    )
    where = f"from step {part.start:,}: {config.data.batch_size} x {config.data.sequence_length} tokens; " if with_start else ""
    return f"{where}attention: {attention}" + (f" (evaluation: {scoring})" if scoring != attention else "")


def batches(parts: Sequence[Part], rows: Rows, *, seed: int) -> Batches:
    """An endless iterator of the batches of all parts; that of a single part has the positions of earlier releases."""
    if len(parts) > 1:
        return PhasedBatches(parts, rows, seed=seed)
    single: Batches = parts[0].data.train_batches(seed=seed, rows=rows(parts[0].config.data.batch_size))
    return single


def part_at(parts: Sequence[Part], step: int) -> Part:
    """The part in which a step, counted from 1, was taken."""
    return [part for part in parts if part.start < max(step, 1)][-1]


class PhasedBatches:
    """The batches of each part in turn; a part ends after as many batches as it has steps.

    A run that rolled back has passed over batches, so that its later parts begin that much earlier. Each part has a seed of its
    own, so that it does not repeat the order of the part before it.

    Args:
      parts: the parts of the run.
      rows: of a batch, those that this process makes.
      seed: that of the first part.
    """

    def __init__(self, parts: Sequence[Part], rows: Rows, *, seed: int) -> None:
        self._parts, self._rows, self._seed = parts, rows, seed
        self._taken = 0
        self._open(0)

    def _open(self, index: int) -> None:
        part = self._parts[index]
        self._index = index
        rows = self._rows(part.config.data.batch_size)
        self._batches: Batches = part.data.train_batches(seed=self._seed + index, rows=rows)

    def __next__(self) -> HostBatch:
        following = self._index + 1
        if following < len(self._parts) and self._taken >= self._parts[following].start:
            self.close()
            self._open(following)
        self._taken += 1
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch."""
        return {"part": self._index, "taken": self._taken, "batches": self._batches.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on at a position."""
        if state["part"] != self._index:
            self.close()
            self._open(state["part"])
        self._taken = state["taken"]
        self._batches.set_state(state["batches"])

    def close(self) -> None:
        """Stop the workers that read ahead."""
        self._batches.close()

"""Where the labels of an example stand in a batch, and which of a batch's outputs belong to an example."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from bert_jax.tasks.example import Example


class Placement(NamedTuple):
    """Place of an example in a batch."""

    row: int
    slot: int
    """Index of its first text in the row."""
    start: int
    """Column of its first token."""


@runtime_checkable
class LabelLayout(Protocol):
    """The shape of a task's labels in a batch. Each task owns one; rows and heads do not depend on it.

    ``labels`` has the shape [B, *shape], ``weights`` the first two axes of that. A weight of 0 excludes a label.
    """

    @property
    def dtype(self) -> type[np.generic]:
        """Type of ``labels``."""

    def shape(self, *, sequence_length: int, slots: int, texts: int) -> tuple[int, ...]:
        """Shape of a row's labels, from its tokens, its slots for texts, and the number of texts of an example."""

    def write(self, labels: np.ndarray, weights: np.ndarray, example: Example, placement: Placement) -> None:
        """Write the label of an example into the ``labels`` and ``weights`` of its row."""

    def outputs(self, logits: np.ndarray, example: Example, placement: Placement) -> np.ndarray:
        """The outputs for one example from the logits [N, C] of its row."""


@dataclasses.dataclass(frozen=True)
class ExampleLabels:
    """One label for each example: [E], or one for each example and class: [E, C]. The outputs are [C]."""

    dtype: type[np.generic] = np.int32
    classes: int | None = None
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss; None: 1."""

    def shape(self, *, sequence_length: int, slots: int, texts: int) -> tuple[int, ...]:
        return (slots,) if self.classes is None else (slots, self.classes)

    def write(self, labels: np.ndarray, weights: np.ndarray, example: Example, placement: Placement) -> None:
        weight = 1.0 if self.class_weights is None else self.class_weights[int(np.asarray(example.label))]
        labels[placement.slot], weights[placement.slot] = example.label, weight

    def outputs(self, logits: np.ndarray, example: Example, placement: Placement) -> np.ndarray:
        return logits[placement.slot]


@dataclasses.dataclass(frozen=True)
class ChoiceLabels:
    """The index of the right choice of each question: [E / choices]. The outputs are [choices]."""

    dtype: type[np.generic] = np.int32

    def shape(self, *, sequence_length: int, slots: int, texts: int) -> tuple[int, ...]:
        return (slots // texts,)

    def write(self, labels: np.ndarray, weights: np.ndarray, example: Example, placement: Placement) -> None:
        question = placement.slot // len(example.texts)
        labels[question], weights[question] = example.label, 1.0

    def outputs(self, logits: np.ndarray, example: Example, placement: Placement) -> np.ndarray:
        return logits[placement.slot : placement.slot + len(example.texts), 0]


@dataclasses.dataclass(frozen=True)
class TokenLabels:
    """A label for each token: [S]; tokens with the label -1 get the weight 0. The outputs are [N, C] for the N tokens."""

    dtype: type[np.generic] = np.int32
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss; None: 1."""

    def shape(self, *, sequence_length: int, slots: int, texts: int) -> tuple[int, ...]:
        return (sequence_length,)

    def write(self, labels: np.ndarray, weights: np.ndarray, example: Example, placement: Placement) -> None:
        assert example.label is not None
        columns = slice(placement.start, placement.start + len(example.label))
        # Labels are compared with class indices, so that they must never be negative.
        labels[columns] = np.maximum(example.label, 0)
        weights[columns] = example.label >= 0
        if self.class_weights is not None:
            weights[columns] *= np.array(self.class_weights, np.float32)[labels[columns]]

    def outputs(self, logits: np.ndarray, example: Example, placement: Placement) -> np.ndarray:
        return logits[placement.start : placement.start + len(example.texts[0].ids)]


@dataclasses.dataclass(frozen=True)
class SpanLabels:
    """The columns of the first and the last token of a span: [E, 2]. The outputs are [N, 2] for the N tokens."""

    dtype: type[np.generic] = np.int32

    def shape(self, *, sequence_length: int, slots: int, texts: int) -> tuple[int, ...]:
        return (slots, 2)

    def write(self, labels: np.ndarray, weights: np.ndarray, example: Example, placement: Placement) -> None:
        assert example.label is not None
        labels[placement.slot], weights[placement.slot] = example.label + placement.start, 1.0

    def outputs(self, logits: np.ndarray, example: Example, placement: Placement) -> np.ndarray:
        return logits[placement.start : placement.start + len(example.texts[0].ids)]

"""The interface of a kind of task: everything that training, evaluation and prediction need from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from etils import epath

from bert_jax.tasks.example import Example, Source, Split, StreamChunk
from bert_jax.tasks.label_layout import LabelLayout


@runtime_checkable
class Task(Protocol):
    """A task: how its files become examples, and how a model's outputs become scores and results.

    There is one class for each kind of task, in a module of its own; ``tasks/registry.py`` holds an instance for each name. A new
    kind of task is a class with these members, a line in the registry, and its name in ``config.finetuning.TaskName``. A head of a
    new kind also needs a loss in ``training/losses.py``.
    """

    @property
    def name(self) -> str:
        """Name on the command line and in stored configs."""

    @property
    def head(self) -> str:
        """Name of the head, for example "sequence_classification"."""

    @property
    def main_score(self) -> str:
        """Name of the score by which models are compared; greater is better."""

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Splits that are evaluated during training; the first one selects the best model."""

    @property
    def perfect(self) -> float:
        """Best possible main score: 1.0 or 100.0."""

    @property
    def named_outputs(self) -> bool:
        """Whether each output of the head has a name, such as a class or a tag."""

    def outputs(self, labels: Sequence[str]) -> int:
        """Number of outputs of the head, for the names that ``train`` returns."""

    def label_layout(self, outputs: int) -> LabelLayout:
        """Where labels stand in a batch, for a head with so many outputs."""

    def train(self, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        """Read the training examples and the names of the outputs, which are empty where outputs have no names.

        Raises:
          UserError: a file is missing or refused; the sentence names the file and the line or the question.
        """

    def split(self, source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
        """Read a split for evaluation.

        Args:
          source: the data.
          name: "dev" or "test"; for MNLI also "dev_mismatched" and "test_mismatched".
          labels: names of the model's outputs, in order.
          threshold: SQuAD 2.0: null odds above which no answer is given.

        Raises:
          UserError: as for ``train``; or the split holds a label that the model does not have.
        """

    def stream(
        self, source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0
    ) -> Iterator[StreamChunk]:
        """Read the records or questions of a file in chunks; labels in the file are ignored. Arguments as for ``split``."""

    def facts(self, source: Source, split: str) -> Mapping[str, str | int]:
        """What the summary of a split says beyond its examples: at least its ``file``."""

    def constant_score(self, examples: Sequence[Example], labels: Sequence[str], split: Split) -> float:
        """Main score on a split of the constant answer that is most frequent in the training examples."""

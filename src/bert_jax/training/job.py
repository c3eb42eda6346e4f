"""What the trainer needs from a run: its job, its batches, and how it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from matplotlib.figure import Figure

from bert_jax.batch import HostBatch, Params
from bert_jax.checkpoints import Meta
from bert_jax.config.logging import LogConfig
from bert_jax.config.training import TrainConfig
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import Scores
from bert_jax.training.step import TrainStep

ShouldStop = Callable[[], bool]
"""Returns whether a signal has arrived and an evaluation should be abandoned."""


@runtime_checkable
class Batches(Protocol):
    """An endless iterator of batches with a position that can be stored."""

    def __next__(self) -> HostBatch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Counts(NamedTuple):
    """What batches contain."""

    tokens: int
    examples: int
    slots: int
    """Places for tokens: rows times row length."""


@runtime_checkable
class TrainingJob(Protocol):
    """What a run trains and how it is scored: [`PretrainingJob`][bert_jax.training.pretraining.PretrainingJob] and
    [`FinetuningJob`][bert_jax.training.finetuning.FinetuningJob]. The trainer does everything else."""

    run_dir: str
    train: TrainConfig
    log: LogConfig
    launcher: Launcher
    train_step: TrainStep
    """Pure and not yet compiled."""
    batches: Batches
    source: Any
    """Arrays that ``init`` starts from."""
    shapes_vary: bool
    """Whether batches have a few different shapes, for each of which the step is compiled."""
    texts_per_example: int
    """Texts of an example, each of which is a segment of a row: more than one for multiple choice."""
    split: str
    """Name of the split that evaluations score."""
    best: str | None
    """Score by which the best model is kept in a directory of its own; None: no best model is kept."""
    recovers: bool
    """Whether the run answers anomalies as ``train.on_anomaly`` says; otherwise it stops."""
    patience: int | None
    """Evaluations without a better score after which the run ends; None: no early stopping."""

    def init(self, source: Any) -> Any:
        """The state before the first step; runs inside a compiled program."""
        ...

    def learning_rate(self, step: int) -> float:
        """Learning rate of an update, counted from 0."""
        ...

    def flop(self, counts: Counts, metrics: Scores) -> float:
        """Floating-point operations of the matrix products of steps with these counts, the last of which has these metrics."""
        ...

    def evaluate(self, params: Any, step: int, should_stop: ShouldStop) -> tuple[Scores, str] | None:
        """Scores after a step, and a sentence about them; None if the evaluation was abandoned."""
        ...

    def best_params(self, params: Any, scores: Scores) -> Params:
        """The parameters to keep as the best model."""
        ...

    def meta(self, position: dict[str, Any]) -> Meta:
        """What a checkpoint stores beside the state, given the position of the batches."""
        ...

    def figure(self) -> Figure:
        """The curves of the run."""
        ...


class Result(NamedTuple):
    """How a run ended."""

    step: int
    held_out: Scores | None
    """Scores of the last evaluation."""
    signal: signal.Signals | None
    """The signal that stopped the run before its last step, or None."""

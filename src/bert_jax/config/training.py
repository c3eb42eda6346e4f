"""Length of a run, evaluation, checkpoints and logging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bert_jax.config import lengths
from bert_jax.config.retention import Retention
from bert_jax.config.validation import check_choices, require_positive
from bert_jax.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Length of a run, and how often it is evaluated, saved and logged.

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> TrainConfig(steps=1000, eval_every=250).save_every
      1000
    """

    steps: int = 1_000_000
    """Optimizer updates."""
    words: str | int | float | None = None
    """Length of a pretraining run in words of text instead of steps, such as 100M."""
    tokens: str | int | float | None = None
    """Length of a pretraining run in tokens instead of steps, special tokens included, such as 3B."""
    epochs: int | float | None = None
    """Length of a pretraining run in epochs instead of steps."""
    seed: int = 0
    """Seed of the initial parameters, the order of the examples, the masks and dropout."""
    eval_every: int = 10_000
    """Steps between held-out evaluations; the last step is always evaluated."""
    eval_batches: int | None = None
    """Held-out batches per evaluation; None: all of them."""
    save_every: int = 1_000
    """Steps between checkpoints; evaluated steps and the last one are always saved."""
    keep: int = 3
    """Number of newest checkpoints that are kept."""
    keep_best: int = 0
    """Further checkpoints that are kept: those of the evaluated steps with the lowest held-out MLM loss."""
    keep_every: int | None = None
    """Checkpoints at multiples of this step are kept for good."""
    keep_hours: int | float | None = None
    """The first checkpoint is kept for good, and then the first one after so many hours, and so on."""
    save_at: tuple[int, ...] = ()
    """Steps of checkpoints that are kept for good."""
    save_at_words: str | None = None
    """Further checkpoints that are kept for good, at numbers of words such as 1M,2M,3M."""
    save_at_tokens: str | None = None
    """The same at numbers of tokens."""
    save_at_epochs: str | None = None
    """The same at numbers of epochs, such as 0.5,1,2."""
    log_every: int = 10
    """Steps between lines of metrics."""
    on_anomaly: Literal["stop", "skip", "rollback"] = "stop"
    """What pretraining does at a loss or gradient that is not finite, or at a loss spike: stop the run;
    skip the step, which leaves the model and the optimizer as they were;
    or roll back to the newest checkpoint before it, and pass over all batches since then.
    The step is written to RUN/anomalies, for `bert-jax replay`."""
    spike_factor: float | None = None
    """A loss is a spike if it is more than so many robust standard deviations above the median of the last losses.
    The robust standard deviation is 1.4826 times the median absolute deviation from the median; anomalies do not count.
    None: nothing is a spike."""
    spike_window: int = 128
    """Number of losses that a loss is compared with; until there are so many, nothing is a spike."""
    max_skips: int = 5
    """Number of anomalies one after the other at which a run that skips rolls back instead."""
    max_rollbacks: int = 5
    """Number of rollbacks of a run; at the next one, it stops."""
    anomaly_dumps: int = 5
    """Number of steps that a run writes to RUN/anomalies, each as large as a checkpoint.
    The step that stops a run is always written."""
    distributed: bool = False
    """Join the processes of a run on several hosts, found in the environment of a TPU pod, Slurm, Open MPI or Kubernetes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the environment does not name it; the port after it is used, too."""
    processes: int | None = None
    """Number of processes, where the environment does not name it."""
    process_id: int | None = None
    """Index of this process, counted from 0, where the environment does not name it."""
    process_timeout: float | int = 300
    """Seconds for which processes wait for one that is missing or lags behind before all end with a sentence."""

    def __post_init__(self) -> None:
        check_choices(self, "train")
        for name in ("steps", "eval_every", "save_every", "keep", "log_every", "spike_window", "max_skips"):
            require_positive(f"train.{name}", getattr(self, name))
        require_positive("train.process_timeout", self.process_timeout)
        for name in ("eval_batches", "keep_every", "keep_hours", "processes", "spike_factor"):
            if (value := getattr(self, name)) is not None:
                require_positive(f"train.{name}", value)
        for name in ("keep_best", "max_rollbacks", "anomaly_dumps", "seed"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"train.{name} is {value}; it must not be negative.")
        if self.keep_every and self.keep_every % self.save_every and self.keep_every % self.eval_every:
            raise UserError(
                f"train.keep_every is {self.keep_every}, but steps are saved every {self.save_every} (train.save_every); use a "
                "multiple."
            )
        if len(given := [unit for unit in lengths.UNITS if getattr(self, unit) is not None]) > 1:
            raise UserError(f"train.{given[0]} and train.{given[1]} both set the length of the run; leave one out.")
        for unit in lengths.UNITS:
            if (length := getattr(self, unit)) is not None:
                lengths.parse_amount(length, f"train.{unit}")
            if (points := getattr(self, name := f"save_at_{unit}")) is not None:
                lengths.parse_amounts(points, f"train.{name}")
        if any(step <= 0 for step in self.save_at):
            raise UserError(f"train.save_at is {self.save_at}; its steps must be greater than 0.")

    @property
    def retention(self) -> Retention:
        """Which checkpoints are kept."""
        return Retention(self.keep, self.save_at, every=self.keep_every, hours=self.keep_hours, best=self.keep_best)

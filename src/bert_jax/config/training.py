"""Length of a run, evaluation, checkpoints and logging."""

from __future__ import annotations

from dataclasses import dataclass

from bert_jax.config.validation import require_positive
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
    log_every: int = 10
    """Steps between lines in metrics.jsonl and TensorBoard."""
    distributed: bool = False
    """Join a multi-host run with jax.distributed.initialize, which detects TPU pods and Slurm."""

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "save_every", "keep", "log_every"):
            require_positive(f"train.{name}", getattr(self, name))
        if self.eval_batches is not None:
            require_positive("train.eval_batches", self.eval_batches)
        if self.seed < 0:
            raise UserError(f"train.seed is {self.seed}; it must not be negative.")

"""What a run reports beside its losses, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from bert_jax.errors import UserError

LoggerName = Literal["tensorboard", "wandb"]
"""Where metrics go beside ``metrics.jsonl``, which every run writes, because the program itself reads it."""


@dataclass(frozen=True)
class LogConfig:
    """What a run reports beside its losses, and where; nothing of it changes what is computed.

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> LogConfig(loggers=("wandb",), profile_steps=(10, 15)).norms
      False
    """

    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    """Loggers beside metrics.jsonl: tensorboard, wandb (Weights & Biases), both or none.
    wandb reads its key, project and mode from WANDB_API_KEY, WANDB_PROJECT and WANDB_MODE."""
    norms: bool = False
    """Also log the norms of the gradients and of the updates of each layer."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of which JAX's profiler writes a trace to the run's directory "profile"."""
    peak_flops: int | float | None = None
    """Peak FLOP/s of a device, of which the MFU is a share; by default the bfloat16 peak of known GPUs and TPUs."""

    def __post_init__(self) -> None:
        for name in self.loggers:
            if name not in get_args(LoggerName):
                raise UserError(f"log.loggers names {name!r}; choose among {', '.join(get_args(LoggerName))}.")
        if len(set(self.loggers)) < len(self.loggers):
            raise UserError(f"log.loggers is {', '.join(self.loggers)}; name each logger once.")
        if self.profile_steps is not None:
            steps = self.profile_steps
            if len(steps) != 2 or not all(isinstance(step, int) for step in steps) or not 0 < steps[0] <= steps[1]:
                raise UserError(f"log.profile_steps is {steps}; give the first and the last step, such as 10 15.")
        if self.peak_flops is not None and not self.peak_flops > 0:
            raise UserError(f"log.peak_flops is {self.peak_flops}; it must be greater than 0.")

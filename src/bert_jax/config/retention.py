"""Which checkpoints of a run are kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay when a step is saved: those that any of its rules keeps.

    ``bert_jax.checkpoints.retention.reasons`` applies it.
    """

    newest: int
    """Number of newest steps."""
    steps: tuple[int, ...] = ()
    """Steps that are kept for good."""
    every: int | None = None
    """Multiples of this step are kept for good."""
    hours: int | float | None = None
    """The first step is kept for good, and then the first one after so many hours, and so on."""
    best: int = 0
    """Number of steps with the lowest held-out loss."""

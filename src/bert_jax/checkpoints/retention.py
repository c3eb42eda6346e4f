"""Which checkpoints are kept, and why."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from orbax.checkpoint import checkpoint_managers

from bert_jax.config.retention import Retention


@runtime_checkable
class HasStep(Protocol):
    """What Orbax knows about a step."""

    @property
    def step(self) -> int: ...
    @property
    def time(self) -> datetime.datetime: ...


class Saved(NamedTuple):
    """A step that was saved."""

    step: int
    time: datetime.datetime
    metrics: None = None


def reasons(retention: Retention, saved: Sequence[HasStep], losses: Mapping[int, float]) -> dict[int, list[str]]:
    """Why each step is kept; a step without a reason is deleted.

    Args:
      retention: the rules.
      saved: the steps, in ascending order.
      losses: step -> held-out loss, for steps that were evaluated.

    Examples:
      >>> saved = [Saved(step, datetime.datetime(2026, 1, 1, step // 100)) for step in (100, 200, 300, 400, 500)]
      >>> for step, why in reasons(Retention(newest=1, steps=(200,), best=1), saved, {100: 7.1, 300: 6.5}).items():
      ...     print(step, why)
      100 []
      200 ['for good']
      300 ['best']
      400 []
      500 ['newest']
    """
    evaluated = sorted((info.step for info in saved if info.step in losses), key=lambda step: (losses[step], step))
    policies: dict[str, Any] = {
        "newest": checkpoint_managers.LatestN(retention.newest),
        "for good": checkpoint_managers.CustomSteps(retention.steps),
        # Orbax's BestN needs the loss of a step when it is saved, which is before it is evaluated.
        "best": checkpoint_managers.CustomSteps(evaluated[: retention.best]),
    }
    if retention.every:
        policies["by step"] = checkpoint_managers.EveryNSteps(retention.every)
    if retention.hours:
        policies["by time"] = checkpoint_managers.EveryNSeconds(round(3600 * retention.hours))
    context = checkpoint_managers.PreservationContext()
    kept = {reason: policy.should_preserve(saved, context=context) for reason, policy in policies.items()}
    return {info.step: [reason for reason, steps in kept.items() if steps[index]] for index, info in enumerate(saved)}


@dataclasses.dataclass
class Preservation:
    """Rules as a policy of Orbax, which asks it when a step is saved."""

    retention: Retention
    losses: Callable[[], Mapping[int, float]]

    def should_preserve(
        self, checkpoints: Sequence[HasStep], *, context: checkpoint_managers.PreservationContext
    ) -> Sequence[bool]:
        """Whether each checkpoint is kept."""
        del context
        losses = self.losses() if self.retention.best else {}
        return [bool(why) for why in reasons(self.retention, checkpoints, losses).values()]

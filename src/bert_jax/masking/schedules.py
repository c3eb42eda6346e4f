"""Values of schedules at a step, on the device and before a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax.config.schedules import Schedule, depends_on_loss, name_of, parse, varies
from bert_jax.errors import UserError

MAX_SCHEDULE_LOSS = 16.0
"""Loss in nats to which the argument of a schedule is clipped; schedules are checked up to it, every quarter nat."""
_LOSSES = np.linspace(0.0, MAX_SCHEDULE_LOSS, 65, dtype=np.float32)
# Steps at which a function of the loss is checked; a function of the step alone is checked at every step.
_CHECKED_STEPS = 64


def _linear(progress: Array, loss: Array | None, begin: float, end: float) -> Array:
    return begin + (end - begin) * progress


def _cosine(progress: Array, loss: Array | None, begin: float, end: float) -> Array:
    return end + (begin - end) * (1 + jnp.cos(jnp.pi * progress)) / 2


def _steps(progress: Array, loss: Array | None, *values: float) -> Array:
    return jnp.asarray(values)[jnp.minimum((progress * len(values)).astype(jnp.int32), len(values) - 1)]


def _cyclic(progress: Array, loss: Array | None, begin: float, middle: float, cycles: float) -> Array:
    return middle + (begin - middle) * jnp.abs(1 - 2 * ((progress * cycles) % 1.0))


def _adaptive(progress: Array, loss: Array, begin: float, end: float, high: float, low: float) -> Array:
    return end + (begin - end) * jnp.clip((loss - low) / (high - low), 0.0, 1.0)


_EVALUATE: dict[str, Callable[..., Array]] = {
    "linear": _linear,
    "cosine": _cosine,
    "steps": _steps,
    "cyclic": _cyclic,
    "adaptive": _adaptive,
}


def value(
    schedule: Schedule, step: Int[Array, ""] | int, steps: int | None, loss: Float[Array, ""] | float | None = None
) -> float | Float[Array, ""]:
    """Evaluate a schedule: a float for a constant, otherwise a float32 scalar.

    Args:
      schedule: the schedule.
      step: training step, from 0.
      steps: steps over which the schedule runs; afterwards it keeps its last value.
      loss: EMA of the MLM loss in nats, for schedules that depend on it, clipped to ``MAX_SCHEDULE_LOSS``.

    Raises:
      UserError: the schedule needs ``steps`` or ``loss``, or is a function that JAX cannot compile.

    Examples:
      >>> round(float(value("linear(0.3, 0.1)", 5, 10)), 6)
      0.2
    """
    if isinstance(schedule, str):
        form, arguments = parse("The schedule", schedule)
        if steps is None:
            raise UserError(f"The schedule {schedule!r} runs over a number of steps; give it as steps=.")
        _require_loss(schedule, loss)
        progress = jnp.clip(jnp.asarray(step, jnp.float32) / jnp.float32(steps), 0.0, 1.0)
        return jnp.asarray(_EVALUATE[form](progress, loss, *arguments), jnp.float32)
    if not callable(schedule):
        return float(schedule)
    _require_loss(schedule, loss)
    step = step if steps is None else jnp.minimum(step, steps)
    try:
        keywords = {"loss": jnp.clip(loss, 0.0, MAX_SCHEDULE_LOSS)} if depends_on_loss(schedule) else {}
        result = schedule(step, **keywords)
        return jnp.asarray(result, jnp.float32).reshape(())
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        raise UserError(
            f"{name_of(schedule)} cannot be compiled, because it branches on the value of the step in Python; use jnp.where "
            "instead of if."
        ) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{name_of(schedule)} is not a function of the step that returns a number: {error}.") from None


def _require_loss(schedule: Schedule, loss: Float[Array, ""] | float | None) -> None:
    if loss is None and depends_on_loss(schedule):
        shown = name_of(schedule) if callable(schedule) else schedule
        raise UserError(f"The schedule {shown} depends on the loss; pass it as loss=.")


def table(schedules: Sequence[Schedule], steps: int | None) -> Float[np.ndarray, "K N"]:
    """Values that schedules take together in a run: one column for each step, the step after the last included.

    Where a schedule depends on the loss, one column for each pair of some steps and losses.

    Raises:
      UserError: as ``value``; a schedule varies and ``steps`` is None.
    """
    if not any(map(varies, schedules)):
        return np.array([[value(schedule, 0, steps)] for schedule in schedules], np.float32)
    if steps is None:
        raise UserError("The mask policy has schedules but no number of steps; give it as steps=.")

    def at(step: Array, loss: Array) -> list[Array]:
        return [jnp.asarray(value(schedule, step, steps, loss), jnp.float32) for schedule in schedules]

    # The table is needed while a step is traced, and does not depend on traced values.
    with jax.ensure_compile_time_eval():
        if any(map(depends_on_loss, schedules)):
            some = np.unique(np.linspace(0, steps, _CHECKED_STEPS).astype(np.int32))
            values = jax.vmap(jax.vmap(at, (None, 0)), (0, None))(jnp.asarray(some), jnp.asarray(_LOSSES))
        else:
            values = jax.vmap(at, (0, None))(jnp.arange(steps + 1), jnp.float32(0))
        return np.stack([np.ravel(each) for each in values])

"""The learning rate of each update."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase


def schedule(config: OptimConfig, steps: int, phases: Sequence[Phase] = ()) -> optax.Schedule:
    """Learning rate at an update, counted from 0: linear warm-up, then decay to 0 at ``steps``.

    With ``decay="from_zero"`` the line of the decay starts at step 0 (the original's ``optimization.py``), so that the rate drops
    to ``peak_lr · (1 - warmup_steps / steps)`` at the end of warm-up; with "from_peak" the decay starts there, at the peak. Update
    0 of a warm-up has rate 0 in both, unless ``first_update`` is 1. With "schedule_free" the rate stays at the peak.

    Args:
      config: peak, warm-up and form of the decay.
      steps: length of the run.
      phases: parts of the run; one with a peak ends the schedule before it, and starts one of its own.

    Examples:
      >>> rate = schedule(bert_jax.OptimConfig(peak_lr=1.0, warmup_steps=10), 100)
      >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 100)]
      [0.0, 0.5, 0.9, 0.0]
    """
    parts, starts = [config], [0]
    for phase in phases:
        if phase.peak_lr is not None:
            parts.append(dataclasses.replace(config, peak_lr=phase.peak_lr, warmup_steps=phase.warmup_steps))
            starts.append(phase.start)
    rates = [_schedule(part, end - start) for part, start, end in zip(parts, starts, [*starts[1:], steps], strict=True)]
    return optax.join_schedules(rates, starts[1:])


def _schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Warm-up and decay of one part of a run."""
    peak, warmup = config.peak_lr, config.warmup_steps
    rise = optax.linear_schedule(0.0, peak, warmup)
    if config.name == "schedule_free":
        fall = optax.constant_schedule(peak)
    else:
        top = peak if config.decay == "from_peak" else peak * (1 - warmup / steps) ** config.decay_power
        fraction = optax.linear_schedule(1.0, 0.0, steps - warmup)

        def fall(count: ArrayLike) -> ArrayLike:
            # XLA multiplies by the reciprocal of the steps, so that the last fraction may be just below 0, and its root no number.
            return top * jnp.maximum(fraction(count), 0.0) ** config.decay_power

    rate = optax.join_schedules([rise, fall], [warmup]) if warmup else fall
    return (lambda count: rate(count + 1)) if config.first_update else rate

"""Anomalies on the device: a step with a loss or gradient that is not finite, or with a loss spike, does not change the model.

The decision is part of the compiled step and depends on global values only, so that it is the same on every device, mesh and
process. After an anomaly the following steps change nothing either, until the host, which reads metrics one step late, has
decided what to do (`bert_jax.training.recovery`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bert_jax.batch import Batch
from bert_jax.training.step import Metrics, TrainState, TrainStep

ANOMALY, LOSS_LIMIT = "anomaly", "loss_limit"
"""Metrics of a watched step: what is wrong with it, and the loss above which it is a spike."""
FINE, NOT_FINITE, SPIKE = range(3)
"""Values of the metric ``anomaly``."""

# Standard deviations of a normal distribution in its median absolute deviation (Rousseeuw and Croux 1993, section 1).
_DEVIATIONS = 1.4826


class Watch(NamedTuple):
    """What a watched step carries beside the state."""

    halted: Bool[Array, ""]
    """Whether an anomaly has occurred that the host does not know of yet; steps then change nothing."""
    losses: Float[Array, " N"] | None
    """Losses of the last N steps that were no anomalies, NaN where there were fewer; None without a rule for spikes."""


WatchedStep = Callable[[tuple[TrainState, Watch], Batch], tuple[tuple[TrainState, Watch], Metrics]]


def first_watch(losses: Sequence[float], window: int | None) -> Watch:
    """The watch of a step that follows steps with these losses.

    Args:
      losses: in the order of the steps; only the last ``window`` count.
      window: N, losses that the rule for spikes compares with; None without one.

    Examples:
      >>> first_watch([3.0, 2.0], 3).losses.tolist()
      [nan, 3.0, 2.0]
    """
    kept = None
    if window is not None:
        last = np.asarray(losses, np.float32)[-window:]
        kept = jnp.asarray(np.pad(last, (window - len(last), 0), constant_values=np.nan))
    return Watch(jnp.zeros((), jnp.bool_), kept)


def loss_limit(losses: Float[Array, " N"], factor: float) -> Float[Array, ""]:
    """The loss above which a step is a spike: the median of ``losses`` plus ``factor`` robust standard deviations.

    The robust standard deviation is 1.4826 times the median absolute deviation from the median, which a few outliers do not
    change. The limit is NaN, and nothing is a spike, until there are N losses.

    Examples:
      >>> round(float(loss_limit(jnp.array([2.0, 2.1, 1.9, 9.0, 2.0]), 3.0)), 4)
      2.4448
    """
    median = jnp.median(losses)
    return median + factor * _DEVIATIONS * jnp.median(jnp.abs(losses - median))


def watched(step: TrainStep, factor: float | None) -> WatchedStep:
    """A train step that leaves parameters, optimizer state and moving average as they were, bit for bit, at an anomaly.

    The step counter goes on, except in steps that follow an anomaly that the host has not answered yet.

    Args:
      step: from [`make_train_step`][bert_jax.training.step.make_train_step].
      factor: robust standard deviations above the median at which a loss is a spike; None: there are no spikes.

    Examples:
      >>> def step(state, batch):
      ...     return state._replace(step=state.step + 1, params=batch), batch | {"grad_norm": jnp.float32(1)}
      >>> state = TrainState(jnp.int32(0), {"loss": jnp.float32(5)}, (), jnp.zeros(2, jnp.uint32))
      >>> (state, watch), _ = watched(step, None)((state, first_watch((), None)), {"loss": jnp.float32("nan")})
      >>> int(state.step), float(state.params["loss"]), bool(watch.halted)
      (1, 5.0, True)
    """

    def watched_step(carry: tuple[TrainState, Watch], batch: Batch) -> tuple[tuple[TrainState, Watch], Metrics]:
        state, watch = carry
        new, metrics = step(state, batch)
        with jax.named_scope("anomalies"):
            loss, losses = metrics["loss"], watch.losses
            finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
            kind = jnp.where(finite, FINE, NOT_FINITE)
            if losses is not None and factor is not None:
                limit = loss_limit(losses, factor)
                kind = jnp.where(finite & (loss > limit), SPIKE, kind)
                metrics = metrics | {LOSS_LIMIT: limit}
            counts = (kind == FINE) & ~watch.halted
            if losses is not None:
                losses = jnp.where(counts, jnp.append(losses[1:], loss), losses)
            kept = jax.tree.map(lambda after, before: jnp.where(counts, after, before), new, state)
            kept = kept._replace(step=jnp.where(watch.halted, state.step, new.step))
        return (kept, Watch(watch.halted | (kind != FINE), losses)), metrics | {ANOMALY: kind.astype(jnp.float32)}

    return watched_step

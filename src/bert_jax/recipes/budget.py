"""Runs of a given time: the number of steps that the devices take in so many hours."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from bert_jax.config import lengths
from bert_jax.config.run import Config
from bert_jax.config.validation import require_positive
from bert_jax.errors import UserError
from bert_jax.evaluation import benchmark
from bert_jax.training.logging import log
from bert_jax.training.run_directory import CONFIG

_MEASURED_STEPS = 10


def within(config: Config, hours: float) -> Config:
    """The run with as many steps as these devices take in so many hours; a run that has begun keeps its number of steps.

    Steps of each part of the run are measured on full rows. Warm-up and phases keep their shares of the run, and the learning rate
    and every other schedule end with it. A run is a function of its steps, not of a clock: it can be interrupted, and be repeated
    bit for bit with the number of steps that is stored in its config. Compilation, evaluations and saves come on top of the time.

    Args:
      config: the run.
      hours: time of its steps.

    Raises:
      UserError: hours is not positive; the run has another length than in steps or several processes; or it reads a file of token
        weights.
    """
    require_positive("hours", hours)
    if lengths.has_lengths(config.train):
        raise UserError("The run has a length in words, tokens or epochs; give either that or hours.")
    stored = epath.Path(config.run) / CONFIG
    if stored.exists():
        return with_steps(config, Config.from_json(stored.read_text()).train.steps)
    total = 0.0
    ends = [*(start for start, _ in config.parts()[1:]), config.train.steps]
    for (start, part), end in zip(config.parts(), ends, strict=True):
        seconds = float(np.median(benchmark.run(part, steps=_MEASURED_STEPS).seconds))
        log(f"{part.data.batch_size} x {part.data.sequence_length} tokens: {seconds:.4f} s a step")
        total += seconds * (end - start)
    steps = round(config.train.steps * hours * 3600 / total)
    log(f"{steps:,} steps in {hours:g} hours; --train.steps {steps} repeats this run.")
    return with_steps(config, steps)


def with_steps(config: Config, steps: int) -> Config:
    """The run with another number of steps; warm-up, phases and the steps of mask schedules keep their shares.

    Raises:
      UserError: as [`Config`][bert_jax.Config], where a share becomes less than a step.

    Examples:
      >>> config = bert_jax.Config("run", bert_jax.DataConfig("corpus"), phases=(bert_jax.Phase(900_000, sequence_length=512),))
      >>> shorter = with_steps(config, 1000)
      >>> shorter.train.steps, shorter.optim.warmup_steps, shorter.phases[0].start
      (1000, 10, 900)
    """

    def scaled(count: int) -> int:
        return round(count * steps / config.train.steps)

    phases = [dataclasses.replace(part, start=scaled(part.start), warmup_steps=scaled(part.warmup_steps)) for part in config.phases]
    mask_steps = None if config.mask.steps is None else max(1, scaled(config.mask.steps))
    return dataclasses.replace(
        config,
        mask=dataclasses.replace(config.mask, steps=mask_steps),
        optim=dataclasses.replace(config.optim, warmup_steps=scaled(config.optim.warmup_steps)),
        train=dataclasses.replace(config.train, steps=steps),
        phases=tuple(phases),
    )

"""Intervals over pretraining and fine-tuning seeds (Sellam et al. 2022, "The MultiBERTs", section 4)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside the interval; a single run has no interval, and excludes nothing."""
        return self.low < self.high and not self.low <= value <= self.high


def multibootstrap(scores: Float[np.ndarray, "P F"]) -> Interval:
    """95 % percentile interval of the mean, over pretraining and fine-tuning seeds; deterministic.

    Seeds of pretraining and of fine-tuning are drawn with replacement, each independently, so that the interval covers another run
    of both. For a paired comparison pass differences of runs that have the same seeds. Test examples are not resampled: the
    interval is about training, on this development set.

    Args:
      scores: of each pretraining seed, after fine-tuning with each seed.

    Examples:
      >>> multibootstrap(np.array([[80.0, 82.0], [81.0, 83.0]]))
      Interval(mean=81.5, low=80.0, high=83.0)
      >>> multibootstrap(np.array([[80.0]])).excludes(0.0)
      False
    """
    rng = np.random.default_rng(0)
    models, runs = (rng.integers(0, size, (_RESAMPLES, size)) for size in scores.shape)
    means = scores[models[:, :, None], runs[:, None, :]].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(scores.mean()), float(low), float(high))

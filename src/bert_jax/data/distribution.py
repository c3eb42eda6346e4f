"""The distribution of lengths: different values and their counts, from which everything else about them follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


class Distribution(NamedTuple):
    """Different whole numbers and how often each occurs.

    Examples:
      >>> from bert_jax.data.distribution import Distribution
      >>> Distribution.of(np.array([3, 1, 3, 9])).summary()["percentiles"]["50"]
      3
    """

    values: np.ndarray
    """int64 [K], increasing."""
    counts: np.ndarray
    """int64 [K], at least 1."""

    @classmethod
    def of(cls, values: np.ndarray) -> Distribution:
        """The distribution of numbers [N], none of them negative."""
        return cls(*np.unique(values.astype(np.int64), return_counts=True))

    @classmethod
    def merge(cls, parts: Sequence[Distribution]) -> Distribution:
        """The distribution of the numbers of several ones together."""
        nothing = np.zeros(0, np.int64)
        values, place = np.unique(np.concatenate([nothing, *(part.values for part in parts)]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, np.concatenate([nothing, *(part.counts for part in parts)]))
        return cls(values, counts)

    @property
    def total(self) -> int:
        """N, how many numbers there are."""
        return int(self.counts.sum())

    def mean(self) -> float:
        """The mean; 0 of no numbers."""
        return float((self.values * self.counts).sum() / max(self.total, 1))

    def percentile(self, percent: int) -> int:
        """The smallest number that at least so many percent do not exceed (NumPy's ``inverted_cdf``)."""
        rank = -(-percent * self.total // 100)
        return int(self.values[np.searchsorted(np.cumsum(self.counts), rank)])

    def histogram(self) -> list[tuple[int, int, int]]:
        """First and last number of each power of two (0, 1, 2 to 3, 4 to 7, ...), and how many numbers lie in between."""
        if not self.total:
            return []
        powers = np.frexp(self.values.astype(float))[1]
        counts = np.bincount(powers, weights=self.counts).astype(int).tolist()
        return [(2**power // 2, 2**power - 1, counts[power]) for power in range(int(powers[0]), len(counts))]

    def summary(self) -> dict[str, Any]:
        """Mean, extremes, percentiles and the histogram, as JSON values."""
        if not self.total:
            return {"count": 0}
        return {
            "count": self.total,
            "mean": self.mean(),
            "min": int(self.values[0]),
            "percentiles": {str(percent): self.percentile(percent) for percent in PERCENTILES},
            "max": int(self.values[-1]),
            "histogram": [{"from": first, "to": last, "count": count} for first, last, count in self.histogram()],
        }

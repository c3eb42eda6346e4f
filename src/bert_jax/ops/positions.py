"""Position tables."""

from __future__ import annotations

import numpy as np


def sinusoidal(length: int, width: int) -> np.ndarray:
    """Fixed table [length, width]: sines in the first half of the columns, cosines in the second.

    Wavelengths form a geometric progression from 2π to 10000·2π (Vaswani et al. 2017, section 3.5, whose
    interleaved columns are a permutation of these).
    """
    half = (width + 1) // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)

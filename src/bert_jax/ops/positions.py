"""Fixed position embeddings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def sinusoidal(length: int, width: int) -> Float[np.ndarray, "S D"]:
    """Table [length, width] with sines in the first half of the columns and cosines in the second.

    Wavelengths form a geometric progression from 2π to 10000·2π (Vaswani et al. 2017, section 3.5; the paper interleaves
    these columns).

    Examples:
      >>> sinusoidal(2, 4).round(3).tolist()
      [[0.0, 0.0, 1.0, 1.0], [0.8410000205039978, 0.009999999776482582, 0.5400000214576721, 1.0]]
    """
    half = (width + 1) // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)

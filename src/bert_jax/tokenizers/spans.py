"""Spans: the characters of a text that each token covers."""

from __future__ import annotations

import unicodedata

import numpy as np


def add_accents(text: str, spans: np.ndarray) -> np.ndarray:
    """Extend the spans of tokens over accents that follow their last letter and belong to no other token."""
    if not len(spans):
        return spans
    is_mark = np.array([unicodedata.category(character) == "Mn" for character in text] + [False])
    positions = np.arange(len(is_mark))
    # For each position the first one at or after it that is no combining mark.
    past_marks = np.minimum.accumulate(np.where(is_mark, len(is_mark), positions)[::-1])[::-1]
    next_starts = np.append(spans[1:, 0], len(text))
    ends = np.maximum(spans[:, 1], np.minimum(past_marks[spans[:, 1]], next_starts))
    return np.stack([spans[:, 0], ends], axis=1).astype(np.int32)

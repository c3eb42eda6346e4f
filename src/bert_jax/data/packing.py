"""Packing: which examples share a row, decided from their lengths alone."""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int, max_examples: int) -> np.ndarray:
    """Assign examples to rows by best-fit decreasing: each one goes into the fullest row that has room for it.

    Examples of equal length are placed together, so the time depends on the number of different lengths rather than on the number
    of examples (the idea of the histogram packers of Krell et al. 2021, arXiv 2107.02027). The result is a pure function of the
    arguments.

    Args:
      lengths: tokens [N] of each example, each at least 1.
      capacity: tokens per row.
      max_examples: examples per row.

    Returns:
      Indices [R, max_examples] of the examples of each row in the order of their placement, -1 in unused slots.

    Examples:
      >>> from bert_jax.data import packing
      >>> packing.pack(np.array([5, 3, 8, 2]), capacity=10, max_examples=2).tolist()
      [[2, 3], [0, 1]]
    """
    if max_examples == 1:
        return np.arange(len(lengths))[:, None]
    rows = np.full((len(lengths), max_examples), -1)
    examples_in_row = np.zeros(len(lengths), int)
    # Rows that can take another example, by their remaining room.
    open_rows: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
    used_rows = 0
    for length in np.unique(lengths)[::-1].tolist():
        examples, room = np.flatnonzero(lengths == length), length
        while len(examples):
            while room <= capacity and not open_rows[room]:
                room += 1
            if room > capacity:
                count = -(-len(examples) // min(capacity // length, max_examples))
                chosen, left = np.arange(used_rows, used_rows + count), capacity
                used_rows += count
            else:
                chosen, left = open_rows[room].pop(), room
                if len(chosen) > len(examples):
                    open_rows[room].append(chosen[len(examples) :])
                    chosen = chosen[: len(examples)]
            rows[chosen, examples_in_row[chosen]] = examples[: len(chosen)]
            examples_in_row[chosen] += 1
            examples = examples[len(chosen) :]
            left -= length
            chosen = chosen[examples_in_row[chosen] < max_examples]
            if len(chosen) and left:
                open_rows[left].append(chosen)
                room = min(room, left) if left >= length else room
    return rows[:used_rows]

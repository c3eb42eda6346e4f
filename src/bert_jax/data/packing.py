"""Several examples in a row: which ones share it, decided from their lengths alone."""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int, most: int) -> np.ndarray:
    """Best-fit decreasing: every example once, each in the fullest row that still has room for it.

    Examples of one length are placed together, so that the time depends on the number of lengths, not of examples (the
    idea of the histogram packers of Krell et al. 2021, arXiv 2107.02027). A pure function of its arguments.

    Args:
      lengths: tokens [N] of each example, each at least 1.
      capacity: tokens in a row.
      most: examples in a row.

    Returns:
      Examples [R, most] of each row in the order in which they were placed, -1 where there are fewer.
    """
    if most == 1:
        return np.arange(len(lengths))[:, None]
    rows = np.full((len(lengths), most), -1)
    held = np.zeros(len(lengths), int)
    # Rows that can take more, by the room that is left in them.
    open_rows: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
    used = 0
    for length in np.unique(lengths)[::-1].tolist():
        group, room = np.flatnonzero(lengths == length), length
        while len(group):
            while room <= capacity and not open_rows[room]:
                room += 1
            if room > capacity:
                count = -(-len(group) // min(capacity // length, most))
                chosen, left = np.arange(used, used + count), capacity
                used += count
            else:
                chosen, left = open_rows[room].pop(), room
                if len(chosen) > len(group):
                    open_rows[room].append(chosen[len(group) :])
                    chosen = chosen[: len(group)]
            rows[chosen, held[chosen]] = group[: len(chosen)]
            held[chosen] += 1
            group = group[len(chosen) :]
            left -= length
            chosen = chosen[held[chosen] < most]
            if len(chosen) and left:
                open_rows[left].append(chosen)
                room = min(room, left) if left >= length else room
    return rows[:used]

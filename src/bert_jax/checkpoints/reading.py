"""Which checkpoint is read: the newest one that is whole for every process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from etils import epath

from bert_jax.checkpoints.verification import first_line
from bert_jax.errors import RunError, UserError
from bert_jax.processes import Group

T = TypeVar("T")


def newest(
    path: epath.Path, steps: Sequence[int], read: Callable[[int], T], *, set_aside: Callable[[int], object] | None = None
) -> T | None:
    """Read the newest step that can be read, or return None if there is none.

    Args:
      path: directory of the steps.
      steps: in ascending order, the same on every process.
      read: reads a step; a step for which it raises an exception is damaged.
      set_aside: called with every damaged step when a step was read.

    Raises:
      UserError: what ``read`` raises.
      RunError: every step is damaged.
    """
    damaged: list[tuple[int, str]] = []
    for step in reversed(steps):
        try:
            value = read(step)
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types of exceptions for damaged files.
            damaged.append((step, first_line(error)))
            continue
        # That this step could be read shows that the others are damaged, and reading itself works.
        for damaged_step, reason in damaged:
            if jax.process_index() == 0:
                print(f"bert-jax: checkpoint {path / str(damaged_step)} is damaged ({reason}); using step {step}.", file=sys.stderr)
            if set_aside:
                set_aside(damaged_step)
        return value
    if damaged:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
        raise RunError(f"No checkpoint in {path} can be read ({reasons}); nothing was changed there.")
    return None


def agreed(group: Group, step: int, read: Callable[[], T]) -> T:
    """The result of ``read``, if it has one on every process; it must not wait for other processes.

    Raises:
      ValueError: a process cannot read its part; it is named. Every process raises it.
    """
    name = f"reading checkpoint {step}"
    try:
        value = read()
    except Exception as error:  # As above.
        group.gather(name, first_line(error))
        raise
    for index, reason in enumerate(group.gather(name, None)):
        if reason is not None:
            raise ValueError(f"{group.describe(index)}: {reason}")
    return value

"""A program of its own with as many simulated devices as a plan has: ``python -m bert_jax.cluster.search``.

JAX fixes the number of devices when a process first uses one. A plan is therefore computed in a child process, which reads a
pickled [`Task`][bert_jax.cluster.search.Task] from standard input and writes a pickled outcome to standard output.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import NamedTuple

import cloudpickle
import jax

from bert_jax.cluster.changes import changes
from bert_jax.cluster.compilation import Estimate, Shapes, estimate, resident_bytes
from bert_jax.config.run import Config
from bert_jax.errors import RunError, UserError


class Task(NamedTuple):
    """What a child process has to find out."""

    config: Config
    shapes: Shapes
    masked: bool
    """Whether the data is masked already."""
    memory: int | None
    """Bytes of a device, or None to search for no changes."""


class Trial(NamedTuple):
    """A change that was tried."""

    options: str
    """The options that make it."""
    peak: int
    """Peak bytes on a device; a lower bound, the parameters and optimizer state, where these alone do not fit."""
    fits: bool
    same_result: bool
    """Whether the run computes the same as before, up to the rounding of sums."""


class Outcome(NamedTuple):
    """An estimate, and the changes that were tried because the config does not fit."""

    estimate: Estimate
    trials: list[Trial]
    """In the order in which they were tried; the search ends with the first that fits."""


def search(task: Task) -> Outcome:
    """Compile the task's config for the devices of this process, and changed ones until one fits.

    Raises:
      UserError: the devices, the model or the batch do not divide as configured.
    """
    found, trials = estimate(task.config, task.shapes, masked=task.masked), list[Trial]()
    limit = task.memory
    if limit is None or found.memory.peak <= limit:
        return Outcome(found, trials)
    for options, config, same_result in changes(task.config, jax.device_count()):
        peak = resident_bytes(config)
        if peak <= limit:
            print(f"trying {options}", file=sys.stderr, flush=True)
            rows = config.data.batch_size
            shapes = {name: ((rows, *shape[1:]), dtype) for name, (shape, dtype) in task.shapes.items()}
            peak = estimate(config, shapes, masked=task.masked).memory.peak
        trials.append(Trial(options, peak, peak <= limit, same_result))
        if peak <= limit:
            break
    return Outcome(found, trials)


def search_on(devices: int, task: Task) -> Outcome:
    """``search`` in a child process with this number of simulated CPU devices.

    Raises:
      UserError: the devices, the model or the batch do not divide as configured.
      RunError: the child process failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_FLAGS", "JAX_", "LIBTPU"))}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Programs that are read from a cache have no memory statistics.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name], input=cloudpickle.dumps(task), env=environment, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise RunError(f"Compiling for {devices} devices failed with exit status {done.returncode}; its messages are above.")
    outcome: Outcome | UserError = pickle.loads(done.stdout)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def main() -> None:
    """Read a task from standard input, and write the outcome or the user's mistake to standard output."""
    # Libraries that print to standard output must not disturb the answer.
    answer, sys.stdout = sys.stdout.buffer, sys.stderr
    outcome: Outcome | UserError
    try:
        outcome = search(pickle.load(sys.stdin.buffer))
    except UserError as error:
        outcome = error
    answer.write(pickle.dumps(outcome))
    answer.flush()


if __name__ == "__main__":
    # The classes must have the name under which the parent imports them.
    from bert_jax.cluster import search as program

    program.main()

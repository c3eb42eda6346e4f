"""Traces of JAX's profiler for chosen steps of a run."""

from __future__ import annotations

import contextlib
import tempfile

import jax
from etils import epath

from bert_jax.io import remote

PROFILE = "profile"
"""Name of the directory of traces in a run directory, which TensorBoard's profile plugin and xprof read."""


class ProfileWindow:
    """Traces some steps of a run; every process of a multi-host run traces its own devices.

    Args:
      run: the run directory.
      steps: first and last step to trace, or None.
    """

    def __init__(self, run: epath.PathLike, steps: tuple[int, int] | None) -> None:
        self._run, self._steps, self._running = epath.Path(run), steps, False
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def starts(self, step: int) -> bool:
        """Whether the trace starts before this step, which may be the first one of a run that was resumed within the window."""
        return self._steps is not None and not self._running and self._steps[0] <= step <= self._steps[1]

    def ends(self, step: int) -> bool:
        """Whether the trace ends after this step."""
        return self._running and self._steps is not None and step >= self._steps[1]

    def start(self) -> None:
        """Start the trace."""
        options = jax.profiler.ProfileOptions()
        # Calls of Python are many, and slow a step down.
        options.python_tracer_level = 0
        if remote.is_remote(self._run):
            self._local = tempfile.TemporaryDirectory()
        directory = self._local.name if self._local else self._run / PROFILE
        jax.profiler.start_trace(directory, profiler_options=options)
        self._running = True

    def step(self, step: int) -> contextlib.AbstractContextManager[object]:
        """A context for a step, by which a profile tells steps apart."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._running else contextlib.nullcontext()

    def close(self) -> None:
        """End the trace, and write it, if it is running."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        if self._local:
            remote.upload(self._local.name, self._run / PROFILE)
            self._local.cleanup()

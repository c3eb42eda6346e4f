"""Signals that stop a run."""

from __future__ import annotations

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """SIGINT and SIGTERM during a run, with the same answer on every process."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """What this process received; decisive only in a single process."""
        # Of several processes, JAX's own handler receives SIGTERM; ours would replace it.
        handled = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
        self._previous = {name: signal.signal(name, self._handle) for name in handled}

    def agreed(self, step: int) -> signal.Signals | None:
        """The signal to stop by after this step, or None; every process calls it once per step."""
        if jax.process_count() == 1:
            return self.signal
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    def restore(self) -> None:
        """Reinstall the previous handlers."""
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A second signal acts at once.
        self.restore()
        self.signal = signal.Signals(number)

"""Signals that stop a run."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import Future
from types import FrameType
from typing import Any

from bert_jax.processes import Group


class StopSignal:
    """SIGINT and SIGTERM during a run, with the same answer on every process.

    The first signal asks for a stop after the step that is running. The second one, often sent by somebody who sees no effect of
    the first, is answered by a sentence; the third acts at once, so that steps since the last checkpoint are lost.

    Args:
      group: the processes of the run.
    """

    def __init__(self, group: Group) -> None:
        self._group, self._received = group, 0
        self.signal: signal.Signals | None = None
        """What this process received; decisive only in a single process."""
        self._vote: Future[list[Any]] | None = None
        self._agreed: signal.Signals | None = None
        self._previous = {name: signal.signal(name, self._handle) for name in (signal.SIGINT, signal.SIGTERM)}

    def agreed(self) -> signal.Signals | None:
        """The signal to stop by, or None; the same on every process.

        Of several processes each calls it at the same places. A call returns what the processes had received at their previous
        call, so that none of them waits for a message.
        """
        if len(self._group) == 1:
            return self.signal
        if self._agreed is None:
            vote, self._vote = self._vote, self._group.start_gather("a step", self.signal)
            votes = [vote for vote in (vote.result() if vote else ()) if vote is not None]
            # SIGTERM, which a cluster sends, says more than the Ctrl-C of a person.
            self._agreed = signal.Signals(max(votes)) if votes else None
        return self._agreed

    def restore(self) -> None:
        """Reinstall the previous handlers."""
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received += 1
        if self._received == 1:
            self.signal = signal.Signals(number)
        elif self._received == 2:
            print("bert-jax: stopping after this step; a third signal stops at once and loses it.", file=sys.stderr, flush=True)
        else:
            self.restore()
            signal.raise_signal(number)

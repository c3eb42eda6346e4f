"""Goodput: the share of a run's time that trained the model, over all its starts.

The definition is that of Google's ml-goodput-measurement: the time of steps that count, divided by the time since the first
start. Time is lost to input, checkpoints, evaluation, compilation and start-up, between a stop and the next start, and to steps
that were done again because they came after the checkpoint from which a run was resumed.

The events are lines of a file that each start appends to, so that they survive a killed process.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Literal

import jax
from etils import epath

from bert_jax.io import atomic

EVENTS = "goodput.jsonl"
"""Name of the file of events in a run directory; those of other processes than the first one have a number in it."""

Loss = Literal["input", "checkpoint", "evaluation", "compilation", "profile", "startup", "stopped", "repeated"]
"""What time is lost to."""


class Goodput:
    """Sums of a run's events, in the order in which they were written.

    An event is a JSON object with its name, the time in seconds since 1970 and a step. A "start" has the step from which the
    run starts or resumes. "time" has seconds since the event before it, up to this step, by what they were spent on.

    Examples:
      >>> goodput = Goodput()
      >>> goodput.add({"event": "start", "time": 100.0, "step": 0})
      >>> goodput.add({"event": "time", "time": 110.0, "step": 5, "productive": 8.0, "input": 2.0})
      >>> goodput.add({"event": "start", "time": 120.0, "step": 0})
      >>> goodput.add({"event": "time", "time": 140.0, "step": 10, "productive": 20.0})
      >>> goodput.share, goodput.lost
      (0.5, {'input': 2.0, 'stopped': 10.0, 'repeated': 8.0})
    """

    def __init__(self) -> None:
        self.starts = self.recompilations = 0
        self.step = 0
        """The last step."""
        self.productive = 0.0
        """Seconds of steps that count."""
        self.lost: dict[str, float] = {}
        """Seconds by what they were lost to."""
        self._first = self._last = 0.0
        self._steps: list[tuple[int, float]] = []

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event."""
        kind, step = event["event"], event["step"]
        if kind == "start":
            if not self.starts:
                self._first = self._last = event["time"]
            self._lose("stopped", event["time"] - self._last)
            while self._steps and self._steps[-1][0] > step:
                seconds = self._steps.pop()[1]
                self.productive -= seconds
                self._lose("repeated", seconds)
            self.starts += 1
        elif kind == "time":
            if seconds := event.get("productive", 0.0):
                self._steps.append((step, seconds))
                self.productive += seconds
            for name, seconds in event.items():
                if name not in ("event", "time", "step", "productive"):
                    self._lose(name, seconds)
        else:
            self.recompilations += 1
        self.step = step
        if kind != "recompilation":
            # Clocks of two hosts may differ.
            self._last = max(self._last, event["time"])

    def _lose(self, what: str, seconds: float) -> None:
        if seconds > 0:
            self.lost[what] = self.lost.get(what, 0.0) + seconds

    @property
    def total(self) -> float:
        """Seconds from the first start to the last event."""
        return self._last - self._first

    @property
    def share(self) -> float:
        """The goodput, in [0, 1]."""
        return self.productive / self.total if self.total > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """The sums as JSON values; times in seconds."""
        return {
            "goodput": round(self.share, 4),
            "step": self.step,
            "starts": self.starts,
            "recompilations": self.recompilations,
            "total_seconds": round(self.total, 3),
            "productive_seconds": round(self.productive, 3),
            "lost_seconds": {name: round(seconds, 3) for name, seconds in sorted(self.lost.items())},
        }


class EventLog:
    """The file of events of this process, and their sums.

    Args:
      directory: where the file is written.
      run: the run directory, where the file of earlier starts is.
    """

    def __init__(self, directory: epath.Path, run: epath.PathLike) -> None:
        index = jax.process_index()
        name = EVENTS if index == 0 else EVENTS.replace(".", f"-{index}.")
        events = _read(epath.Path(run) / name)
        self.sums = Goodput()
        for event in events:
            self.sums.add(event)
        directory.mkdir(parents=True, exist_ok=True)
        # Without an unfinished last line, to which the next one would be appended.
        with atomic.replaced_path(directory / name) as part:
            part.write_text("".join(json.dumps(event) + "\n" for event in events))
        self._file = (directory / name).open("a")

    def write(self, event: str, time: float, step: int, **values: float | str) -> None:
        """Append an event."""
        line = {"event": event, "time": round(time, 6), "step": step}
        line |= {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
        self.sums.add(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_goodput(run: epath.PathLike) -> dict[str, Any] | None:
    """Goodput of a run and what its time was lost to, or None where a directory has no such record.

    Of several processes, the first one's times are returned, and the seconds that each of them waited for input.

    Args:
      run: the run directory.

    Examples:
      >>> read_goodput("no-such-run") is None
      True
    """
    first, *others = (_sums(path) for path in [epath.Path(run) / EVENTS, *_of_others(epath.Path(run))])
    if not first.starts:
        return None
    waits = [round(sums.lost.get("input", 0.0), 3) for sums in (first, *others)]
    return first.summary() | ({"input_seconds_by_process": waits} if others else {})


def _of_others(run: epath.Path) -> list[epath.Path]:
    stem, _, suffix = EVENTS.partition(".")
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if path.name.startswith(f"{stem}-") and path.name.endswith(suffix)]
    return sorted(found, key=lambda path: int(path.name.removeprefix(f"{stem}-").partition(".")[0]))


def _sums(path: epath.Path) -> Goodput:
    sums = Goodput()
    for event in _read(path):
        sums.add(event)
    return sums


def _read(path: epath.Path) -> list[dict[str, Any]]:
    """The events of a file, without an unfinished last line, which a killed process may leave."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events

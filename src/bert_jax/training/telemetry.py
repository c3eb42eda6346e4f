"""What a run reports about itself: its speed, where its time goes, compilation and traces."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from bert_jax import processes
from bert_jax.errors import BertWarning
from bert_jax.training.compilation import CompilationWatch, describe_changes
from bert_jax.training.goodput import EventLog, Loss
from bert_jax.training.job import Counts, TrainingJob
from bert_jax.training.logging import RunLog, Scores
from bert_jax.training.throughput import Throughput, count_all, peak_flops
from bert_jax.training.tracing import ProfileWindow


class WallClock:
    """Seconds since 1970 that never go back within a process."""

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()

    def __call__(self) -> float:
        """The time."""
        return self._offset + time.perf_counter()


class Telemetry:
    """Measures a run of the trainer, and calls its step.

    Time that is lost to nothing in particular is productive. Each [`lost`][bert_jax.training.telemetry.Telemetry.lost], and each
    line of metrics, stores an event, so that no step from which a run can be resumed lies between two events.

    Args:
      job: what is trained.
      log: the logs of the run.
      step: the compiled step.
      start: step from which the run starts or resumes.
      began: when the process began to prepare the run, by the clock.
      finished: the run has no step left; its record then ends with the last step.
      clock: seconds since 1970.
    """

    def __init__(
        self,
        job: TrainingJob,
        log: RunLog,
        step: Callable[..., Any],
        *,
        start: int,
        began: float,
        finished: bool,
        clock: Callable[[], float],
    ) -> None:
        self._log, self._clock, self._step, self._first = log, clock, start, start
        self._records, self._shapes_vary = not finished, job.shapes_vary
        self._watch = CompilationWatch(step, clock)
        self._profile = ProfileWindow(job.run_dir, job.log.profile_steps)
        peak = job.log.peak_flops or peak_flops(jax.devices()[0])
        first_row = int(job.launcher.rows(job.launcher.shards)[0])
        total = functools.partial(count_all, processes.group(), first_row)
        self._throughput = Throughput(job.flop, peak=peak and float(peak) * jax.device_count(), clock=clock, total=total)
        self._events = EventLog(log.directory, job.run_dir)
        # Reads when a step has ended on the devices, so that only time in which they were idle counts as lost to input.
        self._pool = ThreadPoolExecutor(1, "bert-jax-steps")
        self._ended: Future[float] | None = None
        # Seconds since the last event, and those that the last line has reported.
        self._lost: dict[str, float] = {}
        self._reported = dict(self._events.sums.lost)
        if self._records:
            self._events.write("start", began, start)
        self._since = began
        self._lose("startup", clock() - began)
        self._store(start)

    def train_step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Take the next step."""
        self._step += 1
        if self._profile.starts(self._step):
            with self.lost("profile", self._step - 1):
                self._profile.start()
        with self._profile.step(self._step):
            state, metrics = self._watch(state, batch)
        if self._watch.seconds:
            self._compiled()
        if self._profile.ends(self._step):
            jax.block_until_ready(metrics)
            with self.lost("profile", self._step):
                self._profile.close()
        self._ended = self._pool.submit(self._wait, metrics)
        return state, metrics

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for getting the next batch: time in which the devices have no step to compute is lost to input."""
        began = self._clock()
        yield
        if self._ended is None:
            self._lose("input", self._clock() - began)
        elif self._ended.done():
            self._lose("input", self._clock() - max(began, self._ended.result()))

    @contextlib.contextmanager
    def lost(self, what: Loss, step: int) -> Iterator[None]:
        """A context for something that keeps the trainer from training after a step."""
        self._store(step)
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._lose(what, seconds)
            self._store(step)
            if what == "evaluation":
                self._throughput.exclude(seconds)

    def add(self, counts: Counts) -> None:
        """Count what a step contains."""
        self._throughput.add(counts)

    def take(self, step: int, metrics: Scores) -> Scores:
        """The values of a line of metrics: throughput, the goodput so far, and the seconds lost since the last line."""
        self._store(step)
        sums, before = self._events.sums, self._reported
        self._reported = dict(sums.lost)
        lost = {f"{name}_seconds": round(seconds - before.get(name, 0.0), 6) for name, seconds in sums.lost.items()}
        values = self._throughput.take(metrics) | {"goodput": sums.share}
        return values | {name: seconds for name, seconds in lost.items() if seconds > 0}

    def close(self) -> None:
        """End a trace that is running, and close the file of events."""
        self._profile.close()
        self._watch.close()
        self._pool.shutdown(wait=False)
        self._events.close()

    def _compiled(self) -> None:
        seconds, step = self._watch.seconds, self._step
        self._lose("compilation", seconds)
        if step > self._first + 1:
            changed = describe_changes(self._watch.changes)
            self._events.write("recompilation", self._clock(), step, seconds=seconds, changed=changed)
            if self._shapes_vary and any(change.startswith("input_ids ") for change in self._watch.changes):
                return
            warnings.warn(
                f"The training step was compiled again at step {step}, which took {seconds:.1f} s: what changed is {changed}; "
                "keep shapes and types the same from step to step.",
                BertWarning,
                stacklevel=2,
            )

    def _wait(self, metrics: Any) -> float:
        # The trainer reads the metrics, too, and reports what is wrong with them.
        with contextlib.suppress(Exception):
            jax.block_until_ready(metrics)
        return self._clock()

    def _lose(self, what: Loss, seconds: float) -> None:
        self._lost[what] = self._lost.get(what, 0.0) + max(0.0, seconds)

    def _store(self, step: int) -> None:
        """Write how the time since the last event was spent."""
        now = self._clock()
        lost, self._lost = self._lost, {}
        productive = max(0.0, now - self._since - sum(lost.values()))
        spent = {name: seconds for name, seconds in ({"productive": productive} | lost).items() if seconds > 0}
        if spent and self._records:
            self._events.write("time", now, step, **spent)
            self._log.changed()
        self._since = now

"""What a run does at an anomaly: it stops, skips the step, or rolls back to the checkpoint before it; the host's part.

A rollback is a restart in the same process: the trainer is built anew from the newest checkpoint before the anomaly, but the
position of the data stays, so that all batches since then are passed over. The file ``rollbacks.json`` makes a run that is
killed afterwards do the same when it is resumed.
"""

from __future__ import annotations

import collections
import json
import math
from typing import Any, NamedTuple

import jax
from etils import epath

from bert_jax import processes
from bert_jax.checkpoints import Checkpoints, Meta
from bert_jax.errors import RunError
from bert_jax.io import atomic
from bert_jax.io.parsing import read_json
from bert_jax.training import anomalies, dumps, launchers
from bert_jax.training.anomalies import ANOMALY, FINE, LOSS_LIMIT, Watch
from bert_jax.training.dumps import Anomaly
from bert_jax.training.job import TrainingJob
from bert_jax.training.logging import log

ROLLBACKS = "rollbacks.json"
"""File of a run's rollbacks, in the directory of its dumps."""


class RollBack(Exception):
    """The run has to go on from an earlier checkpoint, with a new trainer."""


class _Taken(NamedTuple):
    """A step that was computed and may not have been checked."""

    step: int
    batch: Any
    position: dict[str, Any]
    """Position of the data after the batch."""


class Recovery:
    """Computes the steps of a job, and answers its anomalies; it outlives the trainers of a run that rolls back.

    Args:
      job: what is trained; one that does not recover stops at a loss or gradient that is not finite.
      checkpoints: those of the job's run directory.
    """

    def __init__(self, job: TrainingJob, checkpoints: Checkpoints) -> None:
        self._job, self._train, self._checkpoints = job, job.train, checkpoints
        step: Any = anomalies.watched(job.train_step, job.train.spike_factor) if job.recovers else job.train_step
        self._compiled = job.launcher.compile_step(step)
        self._path = epath.Path(job.run_dir) / dumps.DIRECTORY
        file = self._path / ROLLBACKS
        dumped = [path.parent.name for path in self._path.glob(f"*/{dumps.FACTS}")] if job.recovers else []
        rollbacks = read_json(file)["rollbacks"] if job.recovers and file.exists() else []
        # A shared file system may show other processes another state of the directory.
        found = processes.group().gather("reading anomalies", {"dumps": dumped, "rollbacks": rollbacks})[0]
        self._dumps: set[str] = {*found["dumps"]}
        self._rollbacks: list[dict[str, Any]] = found["rollbacks"]
        self._next: dict[str, Any] | None = None
        # The step that is being computed and the one before it, which is being checked.
        self._taken: collections.deque[_Taken] = collections.deque(maxlen=2)
        self._step, self.skipped, self._in_a_row = 0, 0, 0

    def resume(self, step: int, meta: Meta | None) -> None:
        """Take up a run at a step: set the position of its data, and what is known of earlier anomalies.

        Args:
          step: the step of the checkpoint; 0 without one.
          meta: what the checkpoint stores; None without one.
        """
        job, stored = self._job, dict(meta.anomalies) if meta else {}
        self._step, self.skipped, self._in_a_row = step, int(stored.get("skipped", 0)), int(stored.get("in_a_row", 0))
        self._taken.clear()
        if job.recovers:
            self._watch = self._place(stored.get("losses", ()))
        # Rollbacks to later steps belong to a part of the run that is repeated.
        self._rollbacks = [rollback for rollback in self._rollbacks if rollback["to"] <= step]
        if self._next is not None:
            self._rollbacks.append(self._next | {"to": step})
            self._next = None
            if jax.process_index() == 0:
                with atomic.explained(self._path):
                    self._path.mkdir(parents=True, exist_ok=True)
                    with atomic.replaced_path(self._path / ROLLBACKS) as part:
                        part.write_text(json.dumps({"rollbacks": self._rollbacks}))
            log(f"Continuing from step {step}; the batches up to that of step {self._rollbacks[-1]['step']} are passed over.")
        positions = [rollback["position"] for rollback in self._rollbacks if rollback["to"] == step]
        if positions or meta:
            job.batches.set_state(positions[-1] if positions else meta.data if meta else {})

    def compute(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """The next step, from a batch whose successor has not been read yet; the state is donated."""
        self._step += 1
        self._taken.append(_Taken(self._step, batch, self._job.batches.get_state()))
        return self.repeat(state)

    def repeat(self, state: Any) -> tuple[Any, Any]:
        """The same step again, which changed nothing because the step before it was an anomaly."""
        batch = self._taken[-1].batch
        if not self._job.recovers:
            result: tuple[Any, Any] = self._compiled(state, batch)
            return result
        (state, self._watch), metrics = self._compiled((state, self._watch), batch)
        return state, metrics

    def check(self, step: int, metrics: dict[str, float], state: Any) -> bool:
        """Whether a step was skipped; every process comes to the same result.

        Args:
          step: its number.
          metrics: of this step; those that concern anomalies alone are removed.
          state: the newest state, which an anomaly of this step has left as it was.

        Raises:
          RunError: the run has to stop.
          RollBack: it has to go on from the checkpoint before the anomaly.
        """
        wrong = next((name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])), None)
        kind, limit = metrics.pop(ANOMALY, FINE), metrics.pop(LOSS_LIMIT, math.nan)
        if wrong is None and kind == FINE:
            self._in_a_row = 0
            return False
        reason = f"{wrong} is {metrics[wrong]}" if wrong else f"loss {metrics['loss']:.4g} is a spike, above {limit:.4g},"
        train, self._in_a_row = self._train, self._in_a_row + 1
        answer = train.on_anomaly if self._job.recovers else "stop"
        if answer == "skip" and self._in_a_row >= train.max_skips:
            answer = "rollback"
        exhausted = answer == "rollback" and len(self._rollbacks) >= train.max_rollbacks
        self._checkpoints.wait()
        kept = self._dump(Anomaly(step, reason, metrics), state, always=exhausted or answer == "stop")
        if answer == "stop" or exhausted:
            last = self._checkpoints.latest()
            good = f"Step {last} is the last good checkpoint." if last is not None else "No checkpoint was saved before it."
            times = f", after {len(self._rollbacks)} rollbacks (train.max_rollbacks)" if exhausted else ""
            raise RunError(f"{reason} at step {step}; the run stops{times}. {good}{kept}")
        if answer == "rollback":
            self._roll_back(step, f"{reason} at step {step}; the run rolls back.{kept}")
        self.skipped += 1
        self._watch = self._watch._replace(halted=self._place(()).halted)
        log(f"{reason} at step {step}, which is skipped ({self.skipped} so far).{kept}")
        return True

    def stored(self) -> dict[str, Any]:
        """What a checkpoint of the newest step stores for ``resume``."""
        counts = {"skipped": self.skipped, "in_a_row": self._in_a_row}
        stored: dict[str, Any] = {name: count for name, count in counts.items() if count}
        if self._job.recovers and self._watch.losses is not None:
            losses = jax.device_get(self._watch.losses).tolist()
            stored["losses"] = [loss for loss in losses if math.isfinite(loss)]
        return stored

    def _place(self, losses: Any) -> Watch:
        """A watch after these losses, on the run's devices."""
        train = self._train
        window = None if train.spike_factor is None else train.spike_window

        def first() -> Watch:
            return anomalies.first_watch(losses, window)

        watch: Watch = launchers.create(first, self._job.launcher.shardings(jax.eval_shape(first)))
        return watch

    def _dump(self, anomaly: Anomaly, state: Any, *, always: bool) -> str:
        """Write a dump, unless there are enough of them, and return a sentence about it."""
        times = len(self._rollbacks)
        name = f"step-{anomaly.step}" + (f"-after-rollback-{times}" if times else "")
        enough = len(self._dumps - {name}) >= self._train.anomaly_dumps
        if not self._job.recovers or (enough and not always):
            return ""
        taken = next(taken for taken in self._taken if taken.step == anomaly.step)
        launcher, meta = self._job.launcher, self._job.meta(taken.position)
        meta = meta._replace(anomalies=self.stored())
        dumps.write(self._path / name, anomaly, state, launcher.collect(taken.batch), meta, launcher=launcher)
        self._dumps.add(name)
        return f" The step is in {self._path / name}, for bert-jax replay."

    def _roll_back(self, step: int, message: str) -> None:
        """Delete the checkpoints of skipped steps, which are no earlier than the first anomaly in a row, and say where to go on."""
        first, steps = step - self._in_a_row + 1, self._checkpoints.steps()
        # If only such checkpoints are left, the newest one is better than the beginning of the run.
        if earlier := [saved for saved in steps if saved < first]:
            self._checkpoints.forget(after=max(earlier))
        taken = next(taken for taken in self._taken if taken.step == step)
        self._next = {"step": step, "position": taken.position}
        log(message)
        raise RollBack

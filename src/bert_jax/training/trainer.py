"""The trainer: resumes a job, feeds its step, evaluates, saves, and stops cleanly. The same for every job."""

from __future__ import annotations

import contextlib
import math
import signal
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax import processes
from bert_jax.batch import Params
from bert_jax.checkpoints import BEST, Checkpoints, abstract
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.models.loaded import LoadedModel
from bert_jax.training import launchers, plots
from bert_jax.training.job import Counts, Result, TrainingJob
from bert_jax.training.logging import RunLog, Scores, held_out_losses, read_metrics
from bert_jax.training.recovery import Recovery, RollBack
from bert_jax.training.run_directory import RunDirectory
from bert_jax.training.signals import StopSignal
from bert_jax.training.telemetry import Telemetry, WallClock


def fit(job: TrainingJob, directory: RunDirectory) -> Result:
    """Train to the last step, or resume; [`pretrain`][bert_jax.pretrain] documents the guarantees.

    Args:
      job: what to train.
      directory: the job's run directory.

    Raises:
      UserError: the run was started with other data.
      RunError: the loss is not finite, or a checkpoint cannot be written or read.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(job.batches.close)
        checkpoints = Checkpoints(job.run_dir, keep=job.train.retention, losses=lambda: held_out_losses(job.run_dir))
        stack.callback(checkpoints.close)
        # The trainer's sentence about what is saved; it would keep the state in memory.
        stack.callback(setattr, processes.group(), "advice", str)
        stop = StopSignal(processes.group())
        stack.callback(stop.restore)
        recovery = Recovery(job, checkpoints)
        while (result := _attempt(job, checkpoints, directory, recovery, stop)) is None:
            pass
        return result


def _attempt(
    job: TrainingJob, checkpoints: Checkpoints, directory: RunDirectory, recovery: Recovery, stop: StopSignal
) -> Result | None:
    """Train from the newest checkpoint; None if the run has to go on from an earlier one."""
    trainer = Trainer(job, checkpoints, directory, recovery)
    with (
        contextlib.closing(trainer.log),
        contextlib.closing(trainer.telemetry),
        # Before what closes, which may wait for other processes.
        processes.group().reporting(),
        contextlib.suppress(RollBack),
        job.launcher.context(),
    ):
        return trainer.run(stop)
    return None


class Trainer:
    """A run in progress, with its parts built in the order that resuming requires.

    Args:
      job: what to train.
      checkpoints: those of the job's run directory.
      directory: the run directory.
      recovery: computes the steps, and answers anomalies.
    """

    def __init__(self, job: TrainingJob, checkpoints: Checkpoints, directory: RunDirectory, recovery: Recovery) -> None:
        self.job, self.checkpoints, self.directory, self.recovery = job, checkpoints, directory, recovery
        self.group = processes.group()
        self.group.advice = self._advice
        clock = WallClock()
        began = clock()
        self.state = self._first_state()
        self.step = self.first_step = int(np.ravel(jax.tree.leaves(self.state)[0])[0])
        self.log = RunLog(job.run_dir, start=self.step, steps=job.train.steps, loggers=job.log.loggers)
        self.best_scores: list[float] = []
        if job.best:
            self.best_scores = [line[job.best] for line in self._score_lines() if line["step"] <= self.step]
        self.telemetry = Telemetry(
            job, self.log, recovery.compute, start=self.step, began=began, finished=self._finished(), clock=clock
        )

    def _first_state(self) -> Any:
        """The newest undamaged checkpoint, or fresh parameters."""
        job = self.job
        shapes = jax.eval_shape(job.init, job.source)
        shardings = job.launcher.shardings(shapes)
        with job.launcher.context():
            restored = self.checkpoints.restore(abstract(shapes, shardings))
        if restored is None:
            self.recovery.resume(0, None)
            return launchers.create(job.init, shardings, job.source)
        state, meta = restored
        if meta.corpus != job.meta({}).corpus:
            raise UserError(f"{job.run_dir} was started with other data; restore its data, or choose another run directory.")
        self.recovery.resume(int(np.ravel(jax.tree.leaves(state)[0])[0]), meta)
        return state

    def run(self, stop: StopSignal) -> Result:
        """Train to the last step, until early stopping, or until a signal."""
        job, train = self.job, self.job.train
        if self.step and not self._finished():
            self.log.message(f"{job.run_dir} is resumed from step {self.step}.")
        if self._evaluation_is_missing():  # the run was killed between saving a step and scoring it
            self._evaluate(stop)
        stopped = stop.agreed()
        pending: tuple[int, Any, Counts] | None = None
        batch, counts = ({}, Counts(0, 0, 0)) if stopped or self._finished() else self._next_batch()
        while not self._finished() and stopped is None:
            self.state, metrics = self.telemetry.train_step(self.state, batch)
            self.step += 1
            done = (self.step, metrics, counts)
            position = job.batches.get_state()
            batch, counts = self._next_batch()
            # The previous step's metrics are read while this step runs, so that reading never blocks the device.
            if pending and self.report(*pending):
                self.state, metrics = self.recovery.repeat(self.state)
                done = (self.step, metrics, done[2])
            pending = done
            stopped = stop.agreed()
            self.checkpoints.check_for_errors()
            evaluates, saves = (
                self.step % every == 0 or self.step == train.steps for every in (train.eval_every, train.save_every)
            )
            if evaluates or saves or stopped or self.step in train.save_at:
                # This step must be known to be finite before it is saved or evaluated.
                self.report(*pending)
                pending = None
                with self.telemetry.lost("checkpoint", self.step):
                    self.log.sync()
                    meta = job.meta(position)._replace(anomalies=self.recovery.stored())
                    self.directory.check()
                    self.checkpoints.save(self.step, job.launcher.storable(self.state), meta)
                if evaluates and not stopped:
                    self._evaluate(stop)
                    stopped = stop.agreed()
        with self.telemetry.lost("checkpoint", self.step):
            self.checkpoints.wait()
        self._announce_end(stopped)
        self.log.sync()
        self._draw()
        return Result(self.step, self._last_scores(), stopped)

    def _announce_end(self, stopped: signal.Signals | None) -> None:
        job = self.job
        if stopped:
            self.log.message(f"Stopped by {stopped.name} at step {self.step}, which is saved; the same command resumes from there.")
        elif self.step == self.first_step:
            self.log.message(f"{job.run_dir} is complete at step {self.step}.")
        elif self.step < job.train.steps:
            self.log.message(f"Early stopping at step {self.step}: no better {job.best} in {job.patience} evaluations.")

    def _finished(self) -> bool:
        job = self.job
        if self.step >= job.train.steps or not job.best or job.patience is None:
            return self.step >= job.train.steps
        return bool(self.best_scores) and len(self.best_scores) - 1 - int(np.argmax(self.best_scores)) >= job.patience

    def _evaluation_is_missing(self) -> bool:
        train = self.job.train
        due = self.step > 0 and (self.step % train.eval_every == 0 or self.step == train.steps)
        return due and not any(line["step"] == self.step for line in self._score_lines())

    def _draw(self) -> None:
        path = epath.Path(self.job.run_dir) / plots.CURVES
        if jax.process_index() == 0 and (self.step > self.first_step or not path.exists()):
            with atomic.replaced_path(path) as part:
                self.job.figure().savefig(part, dpi=150, format="png")

    def _next_batch(self) -> tuple[Any, Counts]:
        with self.telemetry.waiting():
            host = next(self.job.batches)
            batch = self.job.launcher.place(host)
        return batch, self._count(host["segment_ids"])

    def _count(self, segment_ids: np.ndarray) -> Counts:
        """What the rows [..., R, S] of this process contain."""
        tokens, segments = int((segment_ids > 0).sum()), int(segment_ids.max(-1).sum())
        return Counts(tokens, segments // self.job.texts_per_example, segment_ids.size)

    def report(self, step: int, metrics: Any, counts: Counts) -> bool:
        """Check the metrics of a step, and log them where a line is due; return whether the step was skipped."""
        values = self.job.launcher.means(metrics)
        if self.recovery.check(step, values, self.state):
            self.log.write(step, "anomaly", {"skipped": float(self.recovery.skipped)})
            return True
        self.telemetry.add(counts)
        if step % self.job.train.log_every == 0 or step == self.job.train.steps:
            rate = self.job.learning_rate(step - 1 - self.recovery.skipped)
            values |= {"learning_rate": rate} | self.telemetry.take(step, values)
            self.log.write(step, "train", values)
            self.log.progress(step, values)
        return False

    def _evaluate(self, stop: StopSignal) -> None:
        """Score the model; a signal abandons it, and the resumed run catches up."""
        with self.telemetry.lost("evaluation", self.step):
            self._score(stop)

    def _score(self, stop: StopSignal) -> None:
        job = self.job
        params = job.launcher.params(self.state)
        evaluated = job.evaluate(params, self.step, lambda: stop.agreed() is not None)
        if evaluated is None:
            return
        scores, sentence = evaluated
        if job.best:
            if scores[job.best] > max(self.best_scores, default=-math.inf):
                self._keep_best(job.best_params(params, scores))
            self.best_scores.append(scores[job.best])
        self.log.write(self.step, job.split, scores)
        self.log.message(f"step {self.step}: {sentence}")

    def _keep_best(self, params: Params) -> None:
        meta = self.job.meta({})
        best = Checkpoints(epath.Path(self.job.run_dir) / BEST, keep=1)
        # A run that was killed before it logged these scores comes here again.
        if self.group.gather("the best model", best.latest())[0] != self.step:
            # A best model of a later step belongs to a part of the run that is now repeated.
            best.forget(after=self.step)
            best.save_model(LoadedModel(meta.model, params, meta.tokenizer, meta.labels), step=self.step)
            best.wait()
        best.close()

    def _score_lines(self) -> list[dict[str, Any]]:
        """Lines of scores, as the process that writes them reads them."""
        own = (
            [line for line in read_metrics(self.job.run_dir) if line["split"] == self.job.split] if self.group.index == 0 else None
        )
        lines: list[dict[str, Any]] = self.group.gather("reading scores", own)[0]
        return lines

    def _advice(self) -> str:
        """What a user should know when a failure of another process ends this one."""
        last = self.checkpoints.latest()
        kept = f"Step {last} is the newest complete checkpoint" if last is not None else "No checkpoint is complete"
        return f"{kept}; start the same command again on every host to go on from there."

    def _last_scores(self) -> Scores | None:
        lines = self._score_lines()
        return {name: value for name, value in lines[-1].items() if name not in ("step", "split", "seconds")} if lines else None

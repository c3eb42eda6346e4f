"""The host loop of every run: resume, feed the step, evaluate, save, stop cleanly."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bert_jax.checkpoints import BEST, Checkpoints, Meta, abstract
from bert_jax.config.run import TrainConfig
from bert_jax.data.pipeline import HostBatch
from bert_jax.errors import Failure, UserError
from bert_jax.models.encoder import Params
from bert_jax.training import plots
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import RunLog, Scores, read_metrics
from bert_jax.training.step import Metrics, TrainStep

CONFIG = "config.json"
_PART = f".{CONFIG}"

Reported = Metrics | list[dict[str, Float[Array, "..."]]]
"""What a step says; of several runs a list over the groups that are computed together."""

Clock = Callable[[], bool]
"""Whether a signal has come, and what is being done should be given up."""


class Batches(Protocol):
    """Endless batches whose position can be stored."""

    def __next__(self) -> HostBatch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Work(NamedTuple):
    """What a run does; how it is done, the loop knows."""

    run: str
    """Directory of the run."""
    train: TrainConfig
    launcher: Launcher
    init: Callable[[Any], Any]
    """``source`` -> the state before the first step, or a list of states of several runs, made inside a program."""
    train_step: TrainStep
    """Not yet compiled."""
    rate: optax.Schedule
    batches: Batches
    counts: Callable[[HostBatch], np.ndarray]
    """Tokens, examples and places for tokens, of all processes, in a batch of this one."""
    evaluate: Callable[[Any, Clock], tuple[Scores, str] | None]
    """Parameters, or a list of those of several runs -> scores, and a sentence about them; None when it was given up."""
    meta: Callable[[dict[str, Any]], Meta]
    """Position of the batches -> what a checkpoint holds beside the state."""
    split: str
    """Name of what is evaluated on."""
    figure: Callable[[], Figure]
    source: Any = ()
    """Arrays that ``init`` begins with."""
    best: str | None = None
    """Score whose best model is kept in a directory of its own, or None."""
    patience: int | None = None
    """Evaluations without a better score after which the run ends."""
    pick: Callable[[Any, Scores], Params] = lambda params, scores: params
    """The parameters to be kept as the best model."""


class Result(NamedTuple):
    """How a run ended."""

    step: int
    held_out: Scores | None
    """Last scores, with what they are to be held against."""
    signal: signal.Signals | None
    """The signal that stopped the run before its last step, or None."""


def fit(work: Work) -> Result:
    """Train to the last step, or go on from where the run stopped; see :func:`bert_jax.pretrain` for what is promised.

    Raises:
      UserError: the run was begun on other data.
      Failure: the loss is not finite, or a checkpoint cannot be written or read.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(work.batches.close)
        checkpoints = Checkpoints(work.run, keep=work.train.keep)
        stack.callback(checkpoints.close)
        stop = _Stop()
        stack.callback(stop.restore)
        trainer = Trainer(work, checkpoints)
        stack.callback(trainer.log.close)
        with work.launcher.context():
            return trainer.run(stop)


class Trainer:
    """The pieces of a run, put together in the order in which a resumed run needs them."""

    def __init__(self, work: Work, checkpoints: Checkpoints) -> None:
        self.work, self.checkpoints = work, checkpoints
        self.train_step = work.launcher.compile(work.train_step, donate=True)
        self.state = self._first_state()
        self.step = self.first = int(np.ravel(jax.tree.leaves(self.state)[0])[0])
        self.log = RunLog(work.run, start=self.step, steps=work.train.steps)
        self.clock, self.held = time.perf_counter(), np.zeros(4, int)
        # Scores that the best model is chosen by, one for each evaluation.
        self.found: list[float] = (
            [line[work.best] for line in self._score_lines() if line["step"] <= self.step] if work.best else []
        )

    def _first_state(self) -> Any:
        """The newest whole checkpoint, or fresh parameters made where they will live."""
        work = self.work
        shapes = jax.eval_shape(work.init, work.source)
        shardings = work.launcher.shardings(shapes)
        with work.launcher.context():
            restored = self.checkpoints.restore(abstract(shapes, shardings))
        if restored is None:
            return work.launcher.create(work.init, shardings, work.source)
        state, meta = restored
        if meta.corpus != work.meta({}).corpus:
            raise UserError(f"{work.run} was begun on other data; give it back its own, or choose another run directory.")
        work.batches.set_state(meta.data)
        return state

    def run(self, stop: _Stop) -> Result:
        """Train to the last step, until there is no hope of a better score, or until asked to stop."""
        work, train = self.work, self.work.train
        if self._owes_scores():
            # A run killed between saving a step and scoring it.
            self._evaluate(stop)
        stopped: signal.Signals | None = None
        pending: tuple[int, Reported, np.ndarray] | None = None
        batch, held = self._next_batch() if not self._finished() else ({}, np.zeros(3, int))
        while not self._finished() and stopped is None:
            self.state, metrics = self.train_step(self.state, batch)
            self.step += 1
            done = (self.step, metrics, held)
            position = work.batches.get_state()
            batch, held = self._next_batch()
            # The previous step's metrics are read while this step runs, so that reading never keeps the device waiting.
            if pending:
                self.report(*pending)
            pending = done
            stopped = stop.agreed(self.step)
            evaluates, saves = (
                self.step % every == 0 or self.step == train.steps for every in (train.eval_every, train.save_every)
            )
            if evaluates or saves or stopped:
                # Nothing is saved or evaluated before this very step is known to be finite.
                self.report(*pending)
                pending = None
                self.checkpoints.save(self.step, self.state, work.meta(position))
                if evaluates and not stopped:
                    self._evaluate(stop)
                    stopped = stop.signal
        self.checkpoints.wait()
        if stopped:
            self.log.say(f"Stopped by {stopped.name} at step {self.step}, which is saved; the same command goes on from there.")
        elif self.step == self.first:
            self.log.say(f"{work.run} is complete at step {self.step}.")
        elif self.step < train.steps:
            self.log.say(f"No better {work.best} for {work.patience} evaluations: the run ends at step {self.step}.")
        self._draw()
        return Result(self.step, self._last_scores(), stopped)

    def _finished(self) -> bool:
        work = self.work
        if self.step >= work.train.steps or not work.best or work.patience is None:
            return self.step >= work.train.steps
        return bool(self.found) and len(self.found) - 1 - int(np.argmax(self.found)) >= work.patience

    def _owes_scores(self) -> bool:
        train = self.work.train
        due = self.step > 0 and (self.step % train.eval_every == 0 or self.step == train.steps)
        return due and not any(line["step"] == self.step for line in self._score_lines())

    def _draw(self) -> None:
        path = epath.Path(self.work.run) / plots.CURVES
        if jax.process_index() == 0 and (self.step > self.first or not path.exists()):
            part = path.parent / f".{plots.CURVES}"
            self.work.figure().savefig(part, dpi=150, format="png")
            part.replace(path)

    def _next_batch(self) -> tuple[Any, np.ndarray]:
        """The next batch, and what it holds."""
        host = next(self.work.batches)
        return self.work.launcher.place(host), self.work.counts(host)

    def report(self, number: int, metrics: Reported, held: np.ndarray) -> None:
        """Look at the metrics of a step, and write them down where that is due."""
        values = _means(jax.device_get(metrics))
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if wrong:
            self.checkpoints.wait()
            last = self.checkpoints.latest()
            kept = f"Step {last} is the last good checkpoint." if last is not None else "No checkpoint was saved before it."
            raise Failure(f"{wrong[0]} is {values[wrong[0]]} at step {number}; the run stops. {kept}")
        self.held += np.append(held, 1)
        if number % self.work.train.log_every == 0 or number == self.work.train.steps:
            now = time.perf_counter()
            tokens, examples, places, count = self.held.tolist()
            values |= {"learning_rate": float(self.work.rate(number - 1)), "tokens_per_second": tokens / (now - self.clock)}
            values |= {"examples_per_step": examples / count, "fill": tokens / places}
            self.clock, self.held = now, np.zeros(4, int)
            self.log.write(number, "train", values)
            self.log.progress(number, values)

    def _evaluate(self, stop: _Stop) -> None:
        """Score; given up when a signal comes, and made up for when the run goes on."""
        work, began = self.work, time.perf_counter()
        found = work.evaluate(self._params(), lambda: stop.signal is not None)
        if found is None:
            return
        scores, sentence = found
        if work.best:
            if scores[work.best] > max(self.found, default=-math.inf):
                self._keep(work.pick(self._params(), scores))
            self.found.append(scores[work.best])
        self.log.write(self.step, work.split, scores)
        self.log.say(f"step {self.step}: {sentence}")
        self.clock += time.perf_counter() - began

    def _params(self) -> Any:
        return [state.params for state in self.state] if isinstance(self.state, list) else self.state.params

    def _keep(self, params: Params) -> None:
        meta = self.work.meta({})
        best = Checkpoints(epath.Path(self.work.run) / BEST, keep=1)
        # A run killed between this and writing its scores down comes here again.
        if best.latest() != self.step:
            # What a part of the run left that is now taken anew.
            best.forget(after=self.step)
            best.save_model(meta.model, params, meta.tokenizer, meta.labels, step=self.step)
            best.wait()
        best.close()

    def _score_lines(self) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.work.run) if line["split"] == self.work.split]

    def _last_scores(self) -> Scores | None:
        lines = self._score_lines()
        return {name: value for name, value in lines[-1].items() if name not in ("step", "split", "seconds")} if lines else None


def _means(metrics: Any) -> Scores:
    """Metrics of a step; of several runs their means over those that are finite: one that diverged does not stop the others."""
    if not isinstance(metrics, list):
        return {name: float(value) for name, value in metrics.items()}
    joined = {name: np.concatenate([np.ravel(group[name]) for group in metrics]) for name in metrics[0]}
    good = np.isfinite(joined["loss"]) & np.isfinite(joined["grad_norm"])
    return {name: float(values[good].mean() if good.any() else values[0]) for name, values in joined.items()}


class _Stop:
    """Whether to stop after a step, the same answer on every process."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """What this process was sent; only a process alone decides by it."""
        # Of several processes, JAX's own handler hears SIGTERM; ours would take its place.
        ours = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
        self._previous = {name: signal.signal(name, self._handle) for name in ours}

    def agreed(self, number: int) -> signal.Signals | None:
        """The signal to stop by after this step, or None; to be asked once a step by every process."""
        if jax.process_count() == 1:
            return self.signal
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(number) else None

    def restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A second signal is not waited for.
        self.restore()
        self.signal = signal.Signals(number)


def claim(run: epath.PathLike, text: str, differences: Callable[[str], list[str]]) -> None:
    """Write a run's config into its directory, or check it against the one that is there.

    Args:
      run: the directory.
      text: the config, as JSON.
      differences: stored JSON -> how the config differs from it in what it computes.

    Raises:
      UserError: the directory holds something else, or a run with another config.
    """
    run = epath.Path(run)
    path = run / CONFIG
    if path.exists():
        if changed := differences(path.read_text()):
            raise UserError(
                f"{run} holds a run with another config ({'; '.join(changed)}); "
                "choose another --run, or the config it was begun with."
            )
    elif run.exists() and (not run.is_dir() or any(path.name != _PART for path in run.iterdir())):
        raise UserError(f"{run} exists and is not a run; choose another --run.")
    if jax.process_count() > 1:
        # Every process has looked before one of them writes.
        multihost_utils.sync_global_devices("config")
    if jax.process_index() == 0:
        run.mkdir(parents=True, exist_ok=True)
        part = run / _PART
        part.write_text(text)
        part.replace(path)

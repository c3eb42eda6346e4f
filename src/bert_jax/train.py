"""The host loop: resume, feed the step, evaluate, save, stop cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from bert_jax import checkpoint, losses, optim, parallel, plot, step
from bert_jax.attention import select
from bert_jax.checkpoint import Checkpoints, Meta
from bert_jax.config import Config, differences
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline
from bert_jax.data.corpus import Corpus
from bert_jax.data.pipeline import HostBatch
from bert_jax.errors import Failure, UserError
from bert_jax.log import RunLog, read_metrics
from bert_jax.model import Batch
from bert_jax.parallel import Launcher
from bert_jax.step import Metrics, TrainState

CONFIG = "config.json"
_PART = f".{CONFIG}"

Scores = dict[str, float]


class Result(NamedTuple):
    """How a call of :func:`pretrain` ended."""

    step: int
    held_out: Scores | None
    """Last held-out metrics: losses in nats, with ``unigram_loss`` and ``nsp_majority`` to hold them against."""
    signal: signal.Signals | None
    """The signal that stopped the run before its last step, or None."""


def pretrain(config: Config) -> Result:
    """Pretrain, or go on with, the run that ``config`` describes.

    Everything is saved every ``train.save_every`` steps, at the last step, and when SIGINT or SIGTERM comes; the
    same call then goes on. On a CPU or a TPU it ends with the same parameters, bit for bit, as if it had never
    stopped; with another number of devices the batches and masks are the same and sums are rounded differently.

    Raises:
      UserError: the config does not fit the corpus, the devices, or what the run directory holds.
      Failure: the loss is not finite, or a checkpoint cannot be written or read.
    """
    if config.train.distributed:
        jax.distributed.initialize()
    config, corpus = _open(config)
    launcher = parallel.launch(config)
    kernels = [select(config.model, config.data.sequence_length, training=training) for training in (True, False)]
    _claim(config)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(config.run, keep=config.train.keep)
        stack.callback(checkpoints.close)
        stop = _Stop()
        stack.callback(stop.restore)
        trainer = _Trainer(config, corpus, launcher, checkpoints)
        stack.callback(trainer.close)
        trainer.log.say(f"attention: {kernels[0]}" + (f", while scoring {kernels[1]}" if kernels[1] != kernels[0] else ""))
        with launcher.context():
            return trainer.run(stop)


def resolve(config: Config) -> Config:
    """The config as it is run and stored: with what the mask policy takes from the corpus's tokenizer.

    Raises:
      UserError: there is no corpus, or its tokenizer does not fit the model.
    """
    return _open(config)[0]


class _Trainer:
    """The pieces of a run, put together in the order in which a resumed run needs them."""

    def __init__(self, config: Config, corpus: Corpus, launcher: Launcher, checkpoints: Checkpoints) -> None:
        self.config, self.corpus, self.launcher, self.checkpoints = config, corpus, launcher, checkpoints
        self.digest = corpus.digest()
        specials = corpus.tokenizer.specials
        optimizer = optim.make_optimizer(config.optim, config.train.steps)
        self.rate = optim.schedule(config.optim, config.train.steps)
        self.batches: grain.DatasetIterator[HostBatch] = pipeline.train_batches(
            corpus.train, specials, config.data, seed=config.train.seed, rows=launcher.rows
        )
        self.held_out: Callable[[], Iterator[HostBatch]] = lambda: pipeline.eval_batches(
            corpus.held_out, specials, config.data, rows=launcher.rows, limit=config.train.eval_batches
        )
        axis, unigram = launcher.axis_name, corpora.unigram_log_probabilities(corpus.train)
        self.train_step = launcher.compile(step.make_train_step(config, optimizer, axis_name=axis), donate=True)
        self.eval_step = launcher.compile(step.make_eval_step(config, unigram, axis_name=axis))
        self.state = self._first_state(lambda: step.init_state(config, optimizer))
        self.step = self.first = int(self.state.step)
        self.log = RunLog(config.run, start=self.step, steps=config.train.steps)
        self.clock, self.held = time.perf_counter(), np.zeros(3, int)

    def _first_state(self, init: Callable[[], TrainState]) -> TrainState:
        """The newest whole checkpoint, or fresh parameters made where they will live."""
        shapes = jax.eval_shape(init)
        shardings = self.launcher.shardings(shapes)
        with self.launcher.context():
            restored = self.checkpoints.restore(checkpoint.abstract(shapes, shardings))
        if restored is None:
            return jax.jit(init, out_shardings=shardings)()
        state, meta = restored
        if meta.corpus != self.digest:
            raise UserError(
                f"{self.config.run} was begun on another corpus than {self.config.data.corpus}; "
                "give it back its own, or choose another run directory."
            )
        self.batches.set_state(meta.data)
        return state

    def run(self, stop: _Stop) -> Result:
        """Train to the last step or until asked to stop."""
        train = self.config.train
        if self._owes_scores():
            # A run killed between saving a step and scoring it.
            self._evaluate(stop)
        stopped: signal.Signals | None = None
        pending: tuple[int, Metrics, np.ndarray] | None = None
        batch, held = self._next_batch() if self.step < train.steps else ({}, np.zeros(3, int))
        while self.step < train.steps and stopped is None:
            self.state, metrics = self.train_step(self.state, batch)
            self.step += 1
            done = (self.step, metrics, held)
            position = self.batches.get_state()
            batch, held = self._next_batch()
            # The previous step's metrics are read while this step runs, so that reading never keeps the device waiting.
            if pending:
                self._report(*pending)
            pending = done
            stopped = stop.agreed(self.step)
            evaluates, saves = (
                self.step % every == 0 or self.step == train.steps for every in (train.eval_every, train.save_every)
            )
            if evaluates or saves or stopped:
                # Nothing is saved or evaluated before this very step is known to be finite.
                self._report(*pending)
                pending = None
                self.checkpoints.save(self.step, self.state, Meta(self.config, self.corpus.tokenizer, self.digest, position))
                if evaluates and not stopped:
                    self._evaluate(stop)
                    stopped = stop.signal
        self.checkpoints.wait()
        if stopped:
            self.log.say(f"Stopped by {stopped.name} at step {self.step}, which is saved; the same command goes on from there.")
        elif self.step == self.first:
            self.log.say(f"{self.config.run} is complete at step {self.step}.")
        self._draw()
        return Result(self.step, self._last_scores(), stopped)

    def close(self) -> None:
        """Leave the terminal, the files and the reading thread in order."""
        self.log.close()
        self.batches.close()

    def _owes_scores(self) -> bool:
        train = self.config.train
        due = self.step > 0 and (self.step % train.eval_every == 0 or self.step == train.steps)
        return due and not any(line["step"] == self.step for line in self._score_lines())

    def _draw(self) -> None:
        path = epath.Path(self.config.run) / plot.CURVES
        if jax.process_index() == 0 and (self.step > self.first or not path.exists()):
            part = path.parent / f".{plot.CURVES}"
            plot.curves(self.config.run).savefig(part, dpi=150, format="png")
            part.replace(path)

    def _next_batch(self) -> tuple[Batch, np.ndarray]:
        """The next batch, and its tokens, its examples and its places for tokens."""
        host = next(self.batches)
        if self.step == self.first and (largest := int(host["ids"].max())) >= self.config.model.vocab_size:
            raise UserError(f"The corpus holds id {largest}; model.vocab_size is {self.config.model.vocab_size}.")
        segments = host["segments"]
        held = np.array([(segments > 0).sum(), segments.max(axis=1).sum(), segments.size]) * jax.process_count()
        return self.launcher.place(host), held

    def _report(self, number: int, metrics: Metrics, held: np.ndarray) -> None:
        values: Scores = {name: float(value) for name, value in jax.device_get(metrics).items()}
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if wrong:
            self.checkpoints.wait()
            last = self.checkpoints.latest()
            kept = f"Step {last} is the last good checkpoint." if last is not None else "No checkpoint was saved before it."
            raise Failure(f"{wrong[0]} is {values[wrong[0]]} at step {number}; the run stops. {kept}")
        self.held += held
        if number % self.config.train.log_every == 0 or number == self.config.train.steps:
            now = time.perf_counter()
            tokens, examples, places = self.held.tolist()
            speed = tokens / (now - self.clock)
            examples *= self.config.data.batch_size * self.config.data.sequence_length / places
            values |= {"learning_rate": float(self.rate(number - 1)), "tokens_per_second": speed}
            values |= {"examples_per_step": examples, "fill": tokens / places}
            self.clock, self.held = now, np.zeros(3, int)
            self.log.write(number, "train", values)
            self.log.progress(number, values)

    def _evaluate(self, stop: _Stop) -> None:
        """Score the held-out examples; given up when a signal comes, and made up for when the run goes on."""
        began, total = time.perf_counter(), None
        for batch in self.held_out():
            if stop.signal:
                return
            sums = self.eval_step(self.state.params, self.launcher.place(batch))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        if total is None:
            raise UserError(f"{self.config.data.corpus} holds no held-out example.")
        scores = {name: float(value) for name, value in jax.device_get(losses.means(total)).items()}
        share = scores.pop("nsp_random")
        scores["nsp_majority"] = max(share, 1.0 - share)
        self.log.write(self.step, corpora.HELD_OUT, scores)
        self.log.say(
            f"step {self.step}: held out: masked-word loss {scores['mlm_loss']:.3f} (unigram model {scores['unigram_loss']:.3f}), "
            f"accuracy {scores['mlm_accuracy']:.1%}; "
            f"next sentence {scores['nsp_accuracy']:.1%} (majority {scores['nsp_majority']:.1%})"
        )
        self.clock += time.perf_counter() - began

    def _score_lines(self) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.config.run) if line["split"] == corpora.HELD_OUT]

    def _last_scores(self) -> Scores | None:
        lines = self._score_lines()
        return {name: value for name, value in lines[-1].items() if name not in ("step", "split", "seconds")} if lines else None


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


def _open(config: Config) -> tuple[Config, Corpus]:
    """The corpus, and the config with what the mask policy takes from its tokenizer."""
    corpus = corpora.open_corpus(config.data.corpus)
    pieces, model = len(corpus.tokenizer.pieces), config.model.vocab_size
    if pieces > model:
        raise UserError(
            f"{config.data.corpus} was tokenized with {pieces} pieces, but model.vocab_size is {model}; "
            f"use --model.vocab-size {pieces}."
        )
    found = {"mask_id": corpus.tokenizer.specials.mask, "vocab_size": pieces}
    for name, value in found.items():
        if getattr(config.mask, name) not in (None, value):
            raise UserError(f"mask.{name} is {getattr(config.mask, name)}, but the tokenizer of {config.data.corpus} says {value}.")
    return dataclasses.replace(config, mask=dataclasses.replace(config.mask, mask_id=found["mask_id"], vocab_size=pieces)), corpus


def _claim(config: Config) -> None:
    """Write the config into the run directory, or check it against the one that is there."""
    run = epath.Path(config.run)
    path = run / CONFIG
    if path.exists():
        changed = differences(Config.from_json(path.read_text()), config)
        if changed:
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
        part.write_text(config.to_json())
        part.replace(path)

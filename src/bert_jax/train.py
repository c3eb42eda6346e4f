"""The host loop: resume, feed the step, evaluate, save, stop cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from bert_jax import checkpoint, losses, optim, parallel, plot, step
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
    corpus = corpora.open_corpus(config.data.corpus)
    config = _fit_to_corpus(config, corpus)
    launcher = parallel.launch(config)
    _claim(config)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(config.run, keep=config.train.keep)
        stack.callback(checkpoints.close)
        trainer = _Trainer(config, corpus, launcher, checkpoints)
        stack.callback(trainer.close)
        stop = _Stop()
        stack.callback(stop.restore)
        with launcher.context():
            return trainer.run(stop)


class _Trainer:
    """The pieces of a run, put together in the order in which a resumed run needs them."""

    def __init__(self, config: Config, corpus: Corpus, launcher: Launcher, checkpoints: Checkpoints) -> None:
        self.config, self.corpus, self.launcher, self.checkpoints = config, corpus, launcher, checkpoints
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
        self.clock, self.tokens = time.perf_counter(), 0

    def _first_state(self, init: Callable[[], TrainState]) -> TrainState:
        """The newest whole checkpoint, or fresh parameters made where they will live."""
        shapes = jax.eval_shape(init)
        shardings = self.launcher.shardings(shapes)
        with self.launcher.context():
            restored = self.checkpoints.restore(checkpoint.abstract(shapes, shardings))
        if restored is None:
            return jax.jit(init, out_shardings=shardings)()
        state, meta = restored
        if meta.corpus != self.corpus.digest():
            raise UserError(
                f"{self.config.run} was begun on another corpus than {self.config.data.corpus}; "
                "give it back its own, or choose another run directory."
            )
        self.batches.set_state(meta.data)
        return state

    def run(self, stop: _Stop) -> Result:
        """Train to the last step or until asked to stop."""
        train, run = self.config.train, self.config.run
        if self.step == train.steps:
            self.log.say(f"{run} is complete at step {self.step}.")
            return Result(self.step, self._last_scores(), None)
        batch, tokens = self._next_batch()
        pending: tuple[int, Metrics] | None = None
        while self.step < train.steps and not stop.signal:
            self.state, metrics = self.train_step(self.state, batch)
            self.step += 1
            self.tokens += tokens
            position = self.batches.get_state()
            batch, tokens = self._next_batch()
            # The previous step's metrics are read while this step runs, so that reading never keeps the device waiting.
            if pending:
                self._report(*pending)
            pending = (self.step, metrics)
            stop.agree(self.step)
            evaluates, saves = (
                self.step % every == 0 or self.step == train.steps for every in (train.eval_every, train.save_every)
            )
            if evaluates or saves or stop.signal:
                # Nothing is evaluated or saved before this very step is known to be finite.
                self._report(*pending)
                pending = None
                if evaluates:
                    self._evaluate()
                if saves or stop.signal:
                    self.checkpoints.save(
                        self.step, self.state, Meta(self.config, self.corpus.tokenizer, self.corpus.digest(), position)
                    )
        self.checkpoints.wait()
        if stop.signal:
            self.log.say(f"Stopped by {stop.signal.name} at step {self.step}, which is saved; the same command goes on from there.")
        if jax.process_index() == 0:
            plot.curves(run).savefig(epath.Path(run) / plot.CURVES, dpi=150)
        return Result(self.step, self._last_scores(), stop.signal)

    def close(self) -> None:
        """Leave the terminal, the files and the reading thread in order."""
        self.log.close()
        self.batches.close()

    def _next_batch(self) -> tuple[Batch, int]:
        host = next(self.batches)
        if self.step == self.first and (largest := int(host["ids"].max())) >= self.config.model.vocab_size:
            raise UserError(f"The corpus holds id {largest}; model.vocab_size is {self.config.model.vocab_size}.")
        return self.launcher.place(host), int((host["segments"] > 0).sum()) * jax.process_count()

    def _report(self, number: int, metrics: Metrics) -> None:
        values: Scores = {name: float(value) for name, value in jax.device_get(metrics).items()}
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if wrong:
            self.checkpoints.wait()
            last = self.checkpoints.latest()
            kept = f"Step {last} is the last good checkpoint." if last is not None else "No checkpoint was saved before it."
            raise Failure(f"{wrong[0]} is {values[wrong[0]]} at step {number}; the run stops. {kept}")
        if number % self.config.train.log_every == 0 or number == self.config.train.steps:
            now = time.perf_counter()
            speed = self.tokens / (now - self.clock)
            self.clock, self.tokens = now, 0
            values |= {"learning_rate": float(self.rate(number - 1)), "tokens_per_second": speed}
            self.log.write(number, "train", values)
            self.log.progress(number, values)

    def _evaluate(self) -> None:
        began, total = time.perf_counter(), None
        for batch in self.held_out():
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

    def _last_scores(self) -> Scores | None:
        lines = [line for line in read_metrics(self.config.run) if line["split"] == corpora.HELD_OUT]
        return {name: lines[-1][name] for name in lines[-1] if name not in ("step", "split", "seconds")} if lines else None


class _Stop:
    """Whether to stop: asked by a signal, agreed on by all processes at the same step."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {name: signal.signal(name, self._handle) for name in (signal.SIGINT, signal.SIGTERM)}

    def agree(self, number: int) -> None:
        # jax.distributed has its own SIGTERM handler and tells every process the same step to stop at.
        if jax.process_count() > 1:
            self.signal = signal.SIGTERM if multihost_utils.reached_preemption_sync_point(number) else None

    def restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A second signal is not waited for.
        self.restore()
        self.signal = signal.Signals(number)


def _fit_to_corpus(config: Config, corpus: Corpus) -> Config:
    """Take from the tokenizer what the mask policy needs, after checking that model and tokenizer agree."""
    pieces, model = len(corpus.tokenizer.pieces), config.model.vocab_size
    if pieces > model:
        raise UserError(
            f"{config.data.corpus} was tokenized with {pieces} pieces, but model.vocab_size is {model}; "
            f"use --model.vocab-size {pieces}."
        )
    mask = dataclasses.replace(config.mask, mask_id=corpus.tokenizer.specials.mask, vocab_size=pieces)
    return dataclasses.replace(config, mask=mask)


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
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} exists and is not a run; choose another --run.")
    if jax.process_index() == 0:
        run.mkdir(parents=True, exist_ok=True)
        part = run / f".{CONFIG}"
        part.write_text(config.to_json())
        part.replace(path)

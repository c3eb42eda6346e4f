"""Pretraining: a corpus, its objective and its scores, given to the loop."""

from __future__ import annotations

import dataclasses
import functools
import json

import grain
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.checkpoints import Meta
from bert_jax.config.run import FREE_ON_RESUME, Config, ModelConfig
from bert_jax.config.validation import differences, require
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline
from bert_jax.data.corpus import Corpus
from bert_jax.data.pipeline import HostBatch
from bert_jax.errors import UserError
from bert_jax.masking import policy, schedules, token_weights
from bert_jax.masking.policy import MaskPolicy
from bert_jax.models.encoder import Params
from bert_jax.ops.attention import select
from bert_jax.training import launchers, losses, optimizers, plots, step
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import Scores, say
from bert_jax.training.trainer import Clock, Result, Work, claim, fit

# Documents in which borders of words are looked for.
_LOOKED_AT = 100
# Of pieces, the share that begins a word where the text has words.
_FEWEST = 0.05


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
    launcher = launchers.launch(config)
    kernels = [select(config.model, config.data.sequence_length, training=training) for training in (True, False)]
    written = config.to_json()
    # Functions are compared as they are stored, by some of their values.
    claim(config.run, written, lambda stored: differences(Config.from_json(stored), Config.from_json(written), FREE_ON_RESUME))
    say(f"attention: {kernels[0]}" + (f", while scoring {kernels[1]}" if kernels[1] != kernels[0] else ""))
    return fit(_work(config, corpus, launcher))


def resolve(config: Config) -> Config:
    """The config as it is run and stored: with what the mask policy takes from the corpus's tokenizer.

    Raises:
      UserError: there is no corpus, or its tokenizer does not fit the model.
    """
    return _open(config)[0]


def _work(config: Config, corpus: Corpus, launcher: Launcher) -> Work:
    specials, train, axis = corpus.tokenizer.specials, config.train, launcher.axis_name
    rows = launcher.rows(config.data.batch_size)
    optimizer = optimizers.make_optimizer(config.optim, train.steps)
    unigram = corpora.unigram_log_probabilities(corpus.train)
    digest = corpus.digest()
    eval_step = launcher.compile(step.make_eval_step(config, unigram, axis_name=axis))
    return Work(
        run=config.run,
        train=train,
        launcher=launcher,
        init=lambda _: step.init_state(config, optimizer),
        train_step=step.make_train_step(step.pretraining(config), optimizer, axis_name=axis),
        rate=optimizers.schedule(config.optim, train.steps),
        batches=_Checked(pipeline.train_batches(corpus.train, specials, config.data, seed=train.seed, rows=rows), config.model),
        counts=_counts,
        evaluate=functools.partial(_evaluate, config, corpus, launcher, eval_step),
        meta=lambda position: Meta(json.loads(config.to_json()), config.model, corpus.tokenizer, digest, position),
        split=corpora.HELD_OUT,
        figure=lambda: plots.curves(config.run),
    )


def _counts(host: HostBatch) -> np.ndarray:
    segments = host["segments"]
    return np.array([(segments > 0).sum(), segments.max(axis=1).sum(), segments.size]) * jax.process_count()


class _Checked:
    """Batches of which the first is held against the model."""

    def __init__(self, batches: grain.DatasetIterator[HostBatch], model: ModelConfig) -> None:
        self._batches, self._model, self._checked = batches, model, False
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __next__(self) -> HostBatch:
        host: HostBatch = next(self._batches)
        if not self._checked and (largest := int(host["ids"].max())) >= self._model.vocab_size:
            raise UserError(f"The corpus holds id {largest}; model.vocab_size is {self._model.vocab_size}.")
        self._checked = True
        return host


def _evaluate(
    config: Config, corpus: Corpus, launcher: Launcher, eval_step: step.EvalStep, params: Params, asked: Clock
) -> tuple[Scores, str] | None:
    """Scores of the held-out examples, and what frequencies alone would reach."""
    rows, limit, specials = launcher.rows(config.data.batch_size), config.train.eval_batches, corpus.tokenizer.specials
    total = None
    for batch in pipeline.eval_batches(corpus.held_out, specials, config.data, rows=rows, limit=limit):
        if asked():
            return None
        sums = eval_step(params, launcher.place(batch))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if total is None:
        raise UserError(f"{config.data.corpus} holds no held-out example.")
    scores = {name: float(value) for name, value in jax.device_get(losses.means(total)).items()}
    share = scores.pop("nsp_random")
    scores["nsp_majority"] = max(share, 1.0 - share)
    return scores, (
        f"held out: masked-word loss {scores['mlm_loss']:.3f} (unigram model {scores['unigram_loss']:.3f}), "
        f"accuracy {scores['mlm_accuracy']:.1%}; "
        f"next sentence {scores['nsp_accuracy']:.1%} (majority {scores['nsp_majority']:.1%})"
    )


def _open(config: Config) -> tuple[Config, Corpus]:
    """The corpus, and the config with what the mask policy takes from its tokenizer."""
    corpus = corpora.open_corpus(config.data.corpus)
    pieces, model = len(corpus.tokenizer.pieces), config.model.vocab_size
    if pieces > model:
        raise UserError(
            f"{config.data.corpus} was tokenized with {pieces} pieces, but model.vocab_size is {model}; "
            f"use --model.vocab-size {pieces}."
        )
    return dataclasses.replace(config, mask=_policy(config, corpus)), corpus


def _policy(config: Config, corpus: Corpus) -> MaskPolicy:
    """The run's mask policy, complete and looked at."""
    mask, length = config.mask.of(corpus.tokenizer), config.data.sequence_length
    if mask.steps is None and any(map(schedules.changes, mask.numbers().values())):
        mask = dataclasses.replace(mask, steps=config.train.steps)
    if isinstance(mask.weights, str):
        mask = dataclasses.replace(mask, weights=token_weights.read_weights(mask.weights, corpus.tokenizer.pieces))
    if callable(mask.weights):
        mask = dataclasses.replace(mask, weights=token_weights.known(mask.weights, length, len(corpus.tokenizer.pieces)))
    policy.check(mask, length)
    if mask.select in ("word", "ngram", "span"):
        documents = corpus.train.documents
        some = documents.__getitems__([*range(min(len(documents), _LOOKED_AT))])
        share = float(np.concatenate([document["starts"] for document in some]).mean())
        where = f"mask.select is {mask.select}, but in {config.data.corpus}"
        require(
            share < 1 or mask.select != "word",
            f"{where} every piece begins a word, as in a vocabulary of characters; use --mask.select token, or prepare the corpus "
            "with words of several pieces.",
        )
        require(
            share > _FEWEST,
            f"{where} words have {1 / max(share, 1e-6):.0f} pieces on average, as in text that does not show where words end; use "
            "--mask.select token or t5.",
        )
    return mask

"""Pretraining as a job: a corpus, the MLM and NSP losses, and held-out scores."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bert_jax import masking, processes, tokenizers
from bert_jax.batch import HostBatch, Params
from bert_jax.checkpoints import Meta
from bert_jax.config import lengths
from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.model import ModelConfig
from bert_jax.config.run import FREE_ON_RESUME, Config
from bert_jax.config.validation import differences
from bert_jax.data import corpus as corpora
from bert_jax.data import sources
from bert_jax.data.sources import Documents, PretrainingData
from bert_jax.errors import UserError
from bert_jax.masking import ResolvedMaskPolicy
from bert_jax.masking.policy import with_identity
from bert_jax.models.heads import PRETRAINING
from bert_jax.processes import Group
from bert_jax.training import initialization, launchers, learning_rate, loggers, losses, optimizers, plots, step
from bert_jax.training.job import Batches, Counts, Result, ShouldStop
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import Scores, log
from bert_jax.training.phases import batches, describe, digest, open_parts, part_at
from bert_jax.training.run_directory import open_run_dir
from bert_jax.training.throughput import training_flop
from bert_jax.training.trainer import fit

# Fields of ``data`` that TFRecord files have decided.
_DECIDED = ("random_next", "short_sequences", "dupe_factor")
# Documents in which word boundaries are counted.
_SAMPLED_DOCUMENTS = 100
# Smallest share of tokens that begin a word in text that has words.
_MIN_WORD_STARTS = 0.05


def pretrain(config: Config) -> Result:
    """Pretrain the run that ``config`` describes, or resume it.

    Everything is saved every ``train.save_every`` steps, at the last step, and on SIGINT or SIGTERM; the same call then
    resumes. On the same CPUs a resumed run ends with the same parameters, bit for bit, as an unbroken one. On another
    number of devices the batches and masks are the same, and sums are rounded differently.

    Args:
      config: the run.

    Returns:
      The last step, its held-out scores, and the signal that stopped the run, if any.

    Raises:
      UserError: the config does not fit the corpus, the devices, or the contents of the run directory.
      RunError: the loss is not finite, or a checkpoint cannot be written or read.

    Examples:
      >>> import pathlib, tempfile
      >>> from bert_jax.data.building import write_corpus
      >>> directory = pathlib.Path(tempfile.mkdtemp())
      >>> document = ["the cat sat on the mat", "the dog lay on the rug"]
      >>> tokenizer = bert_jax.tokenizers.train(lambda: document, kind="wordpiece", size=64)
      >>> sizes = write_corpus([document] * 40, directory / "corpus", tokenizer, held_out=0.1)
      >>> config = bert_jax.Config(
      ...     run=str(directory / "run"),
      ...     data=bert_jax.DataConfig(str(directory / "corpus"), sequence_length=16, batch_size=8),
      ...     model=bert_jax.ModelConfig.size("tiny", vocab_size=64, layers="scan"),
      ...     optim=bert_jax.OptimConfig(warmup_steps=1),
      ...     train=bert_jax.TrainConfig(steps=2, eval_every=2),
      ... )
      >>> bert_jax.pretrain(config).step
      2
    """
    with join(config).reporting():
        return _pretrain(config)


def _pretrain(config: Config) -> Result:
    config, data, policy = open_run(config)
    source = initialization.read(config, data.tokenizer)
    # Before the launcher connects the devices, which waits for all processes.
    require_agreement(config, data, source)
    launcher = launchers.launch(config)
    job = PretrainingJob(config, data, policy, launcher, source)
    loggers.check(config.log.loggers)
    with open_run_dir(config.run, config.to_json(), lambda stored: changes(stored, config), processes.group()) as directory:
        for part in job.parts:
            log(describe(part, with_start=len(job.parts) > 1))
        log(initialization.describe(config, source))
        if lengths.has_lengths(config.train):
            log(f"length: {config.train.steps:,} steps" + _points(config))
        if data.static_masks and config.data.held_out is None:
            log("There are no evaluations, because data.held_out names no files.")
        return fit(job, directory)


def resolve(config: Config) -> Config:
    """The config as it is run and stored: with the identity and the steps of the mask policy.

    Raises:
      UserError: there is no corpus, or its tokenizer does not fit the model or the policy.
    """
    with join(config).reporting():
        return open_run(config)[0]


def changes(stored: str, config: Config) -> list[str]:
    """How a config computes something else than one that is stored as JSON; functions are compared by their identity."""
    return differences(Config.from_json(stored), Config.from_json(config.to_json()), FREE_ON_RESUME)


def require_agreement(config: Config, data: PretrainingData, source: Params) -> None:
    """Check that all processes have started the same run on the same data.

    Raises:
      UserError: as [`require_agreement`][bert_jax.processes.agreement.require_agreement].
    """
    digests = {"content of the data": data.digest(), "vocabulary": tokenizers.digest(data.tokenizer)}
    processes.require_agreement(processes.group(), config.to_json(), digests | initialization.digests(source))


class PretrainingJob:
    """A [`TrainingJob`][bert_jax.training.job.TrainingJob] that minimizes the MLM and NSP losses.

    Args:
      config: the run.
      data: the opened data.
      policy: the run's mask policy, resolved with the data's tokenizer; None where the data is masked already.
      launcher: where to compute.
      source: parameters that the run starts from, from [`read`][bert_jax.training.initialization.read]; empty: random ones.
    """

    split = corpora.HELD_OUT
    batches: Batches
    best: str | None = None
    patience: int | None = None
    recovers = True
    texts_per_example = 1

    def __init__(
        self,
        config: Config,
        data: PretrainingData,
        policy: ResolvedMaskPolicy | None,
        launcher: Launcher,
        source: Params | None = None,
    ) -> None:
        self.config, self.data, self.launcher, self.source = config, data, launcher, source or {}
        self.run_dir, self.train, self.log = config.run, config.train, config.log
        self._optimizer = optimizers.make_optimizer(config.optim, self.train.steps, config.phases)
        self._schedule = learning_rate.schedule(config.optim, self.train.steps, config.phases)
        pairs = config.data.pairs
        self.parts = open_parts(config, data)
        accumulate = {part.config.data.sequence_length: part.config.optim.accumulate for part in self.parts}
        objective = step.pretraining(config.model, policy, accumulate=accumulate, pairs=pairs, **step.replicas(config.optim))
        self._losses = tuple(objective.weights)
        self.train_step = step.make_train_step(objective, self._optimizer, axis_name=launcher.axis_name, norms=config.log.norms)
        held_out = policy.held_out() if policy else None
        unigram = data.unigram_log_probabilities()
        eval_step = step.make_eval_step(config.model, held_out, unigram, axis_name=launcher.axis_name, pairs=pairs)
        self._eval_step = launcher.compile(eval_step)
        self.shapes_vary = len(self.parts) > 1
        self.batches = _CheckedBatches(batches(self.parts, launcher.rows, seed=self.train.seed), config.model)
        self._digest = digest(self.parts)
        # The digest of a function's program would be another one in the context of a mesh.
        self._stored = json.loads(config.to_json())

    def init(self, source: Any) -> step.TrainState:
        """The state before the first step, a function of the seed and of ``source``."""
        return step.init_state(self.config, self._optimizer, source)

    def learning_rate(self, step: int) -> float:
        """Learning rate of an update, counted from 0."""
        return float(self._schedule(step))

    def flop(self, counts: Counts, metrics: Scores) -> float:
        """Operations of the matrix products of steps, with as many predictions per token as in the last one."""
        return training_flop(self.config.model, counts, predictions=metrics["prediction_rate"] * counts.tokens)

    def evaluate(self, params: Params, step: int, should_stop: ShouldStop) -> tuple[Scores, str] | None:
        """Held-out scores, with those of a unigram model and of the majority class for comparison."""
        part, total = part_at(self.parts, step), None
        config, data = part.config, part.data
        rows = self.launcher.rows(config.data.batch_size)
        for batch in data.eval_batches(rows=rows, limit=self.train.eval_batches):
            if should_stop():
                return None
            sums = self._eval_step(params, self.launcher.place(batch))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        if total is None and data.static_masks:
            return None
        if total is None:
            raise UserError(f"{config.data.corpus} has no held-out examples; prepare it with a larger --held-out.")
        scores = {name: float(value) for name, value in jax.device_get(losses.means(total, self._losses)).items()}
        sentence = (
            f"held out: MLM loss {scores['mlm_loss']:.3f} (unigram model {scores['unigram_loss']:.3f}), "
            f"MLM accuracy {scores['mlm_accuracy']:.1%}"
        )
        if config.data.pairs:
            random_share = scores.pop("nsp_random")
            scores["nsp_majority"] = max(random_share, 1.0 - random_share)
            sentence += f"; NSP accuracy {scores['nsp_accuracy']:.1%} (majority class {scores['nsp_majority']:.1%})"
        return scores, sentence

    def best_params(self, params: Params, scores: Scores) -> Params:
        """The parameters; pretraining keeps no best model."""
        del scores
        return params

    def meta(self, position: dict[str, Any]) -> Meta:
        """What a checkpoint stores beside the state."""
        return Meta(self._stored, self.config.model, self.data.tokenizer, self._digest, position, heads=PRETRAINING)

    def figure(self) -> Figure:
        """Losses and accuracies over steps."""
        return plots.curves(self.run_dir)


class _CheckedBatches:
    """Batches, the first of which is checked against the model's vocabulary."""

    def __init__(self, batches: Batches, model: ModelConfig) -> None:
        self._batches, self._model, self._checked = batches, model, False

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._batches.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()

    def __next__(self) -> HostBatch:
        batch: HostBatch = next(self._batches)
        if not self._checked and (largest := int(batch["input_ids"].max())) >= self._model.vocab_size:
            raise UserError(f"The corpus contains token id {largest}; model.vocab_size is {self._model.vocab_size}.")
        self._checked = True
        return batch


def join(config: Config) -> Group:
    """Join the processes of the run, before the policy's schedules are evaluated on a device."""
    train = config.train
    return processes.join(
        train.distributed,
        coordinator=train.coordinator,
        processes=train.processes,
        process_id=train.process_id,
        timeout=float(train.process_timeout),
    )


def open_run(config: Config) -> tuple[Config, PretrainingData, ResolvedMaskPolicy | None]:
    """The config as it is stored, the data, and the resolved mask policy; the processes have joined.

    Raises:
      UserError: as ``resolve``.
    """
    data = sources.open_data(config.data)
    if lengths.has_lengths(config.train):
        config = dataclasses.replace(config, train=lengths.resolve(config.train, data.rates(seed=config.train.seed)))
    tokens, rows = len(data.tokenizer.tokens), config.model.vocab_size
    if tokens > rows:
        raise UserError(
            f"The vocabulary of {config.data.corpus} has {tokens} tokens, but model.vocab_size is {rows}; "
            f"use --model.vocab-size {tokens}."
        )
    if not isinstance(data, Documents):
        _require_defaults(config)
        return config, data, None
    length = max(part.data.sequence_length for _, part in config.parts())
    policy = masking.resolve(config.mask, data.tokenizer, steps=config.train.steps, sequence_length=length)
    masking.check(policy, length)
    if config.mask.select in ("word", "ngram", "span"):
        _check_words(config, data.corpus)
    return dataclasses.replace(config, mask=with_identity(config.mask, policy)), data, policy


def _points(config: Config) -> str:
    points = ", ".join(f"{step:,}" for step in config.train.save_at)
    return f"; kept checkpoints: {points}" if points else ""


def _require_defaults(config: Config) -> None:
    """Refuse settings of what TFRecord files have already decided."""
    settings = {"mask": (config.mask, MaskPolicy())}
    settings |= {f"data.{name}": (getattr(config.data, name), getattr(DataConfig, name)) for name in _DECIDED}
    if changed := [name for name, (value, default) in settings.items() if value != default]:
        raise UserError(
            f"{config.data.corpus} contains masked sentence pairs, for which {', '.join(changed)} cannot be chosen any more; leave "
            "it at its default, or prepare a corpus of documents."
        )


def _check_words(config: Config, corpus: corpora.Corpus) -> None:
    """Refuse to select words in text without word boundaries."""
    documents = corpus.train.documents
    sample = documents.__getitems__([*range(min(len(documents), _SAMPLED_DOCUMENTS))])
    share = float(np.concatenate([document["word_starts"] for document in sample]).mean())
    select, where = config.mask.select, config.data.corpus
    if select == "word" and share == 1:
        raise UserError(
            f"mask.select is word, but in {where} every token begins a word, as in a vocabulary of characters; use "
            "--mask.select token, or prepare the corpus with a vocabulary that splits words."
        )
    if share <= _MIN_WORD_STARTS:
        raise UserError(
            f"mask.select is {select}, but in {where} words have {1 / max(share, 1e-6):.0f} tokens on average, as in text "
            "without word boundaries; use --mask.select token or t5."
        )

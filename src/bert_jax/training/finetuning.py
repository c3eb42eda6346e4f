"""Fine-tuning as a job: a task, a pretrained model, and one run or an ensemble of runs."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Int
from matplotlib.figure import Figure

from bert_jax import convert, ops, processes, tokenizers
from bert_jax.batch import Batch, Params
from bert_jax.checkpoints import Meta
from bert_jax.config.finetuning import FREE_ON_RESUME, FinetuneConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.validation import differences
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.io.checksums import checksums
from bert_jax.models.encoder import attention_implementation
from bert_jax.models.heads import POOLED_HEADS, init_params
from bert_jax.models.loaded import LoadedModel
from bert_jax.tasks import summary
from bert_jax.tasks.layout import RowLayout, Shuffled
from bert_jax.training import launchers, learning_rate, loggers, losses, optimizers, plots, step
from bert_jax.training.ensemble import EnsembleLauncher, Groups, default_runs_per_device, group_runs
from bert_jax.training.job import Counts, Result, ShouldStop
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import RUN_PREFIX, Scores, log
from bert_jax.training.run_directory import open_run_dir
from bert_jax.training.scoring import Scorer
from bert_jax.training.step import Objective, TrainState
from bert_jax.training.task_data import TaskData, open_task
from bert_jax.training.throughput import training_flop
from bert_jax.training.trainer import fit

_INIT = 0
# An array of the batch with the learning rate of each run of an ensemble.
_RATE = "learning_rate"
BEST_RUN = "best_run"
"""Metric: index of the best run of an ensemble."""
CONSTANT = "constant"
"""Metric: score of the answer that is most frequent in the training data."""


def finetune(config: FinetuneConfig) -> Result:
    """Fine-tune the run that ``config`` describes, or resume it: one model, or an ensemble of several seeds and rates.

    The step, the trainer, the checkpoints and the guarantees are those of [`pretrain`][bert_jax.pretrain]. The model with the best
    score on the first development split is kept in the directory "best" of the run, where [`load`][bert_jax.load] and
    [`Predictor`][bert_jax.Predictor] find it.

    Args:
      config: the run.

    Returns:
      The last step, its development scores, and the signal that stopped the run, if any.

    Raises:
      UserError: the config does not fit the data, the model, the devices, or the contents of the run directory.
      RunError: the loss is not finite, or a checkpoint cannot be written or read.

    Examples:
      >>> bert_jax.finetune(bert_jax.FinetuneConfig(run="run", task="classify", init="no-such-model", data="data"))
      Traceback (most recent call last):
      bert_jax.errors.UserError: There is no model no-such-model; ...
    """
    group = processes.join(
        config.distributed,
        coordinator=config.coordinator,
        processes=config.processes,
        process_id=config.process_id,
        timeout=float(config.process_timeout),
    )
    with group.reporting():
        return _finetune(config)


def _finetune(config: FinetuneConfig) -> Result:
    loggers.check(config.log.loggers)
    pretrained = convert.read(config.init, vocab=config.vocab, added_tokens=config.added_tokens)
    model = config.model_config(pretrained.config)
    _check(config, model)
    data = open_task(config, pretrained)
    steps = int(len(data.examples) * config.epochs / config.batch_size)
    if steps == 0:
        raise UserError(
            f"{len(data.examples)} examples make no batch of {config.batch_size} in {config.epochs} epochs; use a smaller "
            "--batch-size, or more --epochs."
        )
    attention = attention_implementation(model, config.task_data.sequence_length, training=True)
    # Checkpoints store the states in groups, so the grouping belongs to the run.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(pretrained.params))
    runs_per_device = config.runs_per_device or default_runs_per_device(config.num_runs, size)
    config = dataclasses.replace(config, runs_per_device=runs_per_device)
    _require_agreement(config, pretrained, data)
    # The job is built first, so that what it refuses leaves no directory.
    job = FinetuningJob(config, model, pretrained, data, steps)
    text = config.to_json()
    with open_run_dir(
        config.run, text, lambda stored: differences(FinetuneConfig.from_json(stored), config, FREE_ON_RESUME), processes.group()
    ) as directory:
        _write_summary(directory.path / summary.FILE, summary.to_file(data.summaries))
        for line in summary.lines(data.task, data.summaries, sequence_length=config.task_data.sequence_length):
            log(line)
        head = "kept" if job.keeps_head and not config.from_scratch else "new"
        log(
            f"{config.task}: {len(data.examples):,} examples, {steps:,} steps; {data.task.head} head ({head}); "
            f"attention: {attention}"
        )
        return fit(job, directory)


def _require_agreement(config: FinetuneConfig, pretrained: LoadedModel, data: TaskData) -> None:
    digests = {"content of the data": data.digest(), "vocabulary": tokenizers.digest(data.tokenizer)}
    if len(processes.group()) > 1 and not config.from_scratch:
        digests |= {f"weights {name}": f"{value:08x}" for name, value in checksums(pretrained.params).items()}
    processes.require_agreement(processes.group(), config.to_json(), digests)


def _write_summary(file: epath.Path, content: str) -> None:
    # A complete run is left alone.
    if jax.process_index() == 0 and not (file.exists() and file.read_text() == content):
        with atomic.replaced_path(file) as part:
            part.write_text(content)


def _check(config: FinetuneConfig, model: ModelConfig) -> None:
    model.check_length(config.task_data.sequence_length)
    if config.reinit_layers > model.num_hidden_layers:
        raise UserError(f"reinit_layers is {config.reinit_layers}; the model has {model.num_hidden_layers} layers.")
    if model.attention_probs_dropout_prob > 0 and model.attention not in ("auto", "reference"):
        raise UserError(
            f"The attention implementation {model.attention} has no dropout; use --model.dropout 0, or leave attention to auto."
        )


class FinetuningJob:
    """A [`TrainingJob`][bert_jax.training.job.TrainingJob] that trains a task's head, and the encoder, from a pretrained model.

    Args:
      config: the run.
      model: shape of the model as the run computes it.
      pretrained: the model to start from.
      data: the task and its examples.
      steps: training steps.
    """

    split = "dev"
    recovers, shapes_vary = False, True
    best: str | None

    def __init__(self, config: FinetuneConfig, model: ModelConfig, pretrained: LoadedModel, data: TaskData, steps: int) -> None:
        self.config, self.model, self.data, self.steps = config, model, data, steps
        self.run_dir, self.train = config.run, config.train_config(steps, len(data.examples))
        self.log = config.log
        self.best, self.patience = data.task.main_score, config.patience
        self.source = {} if config.from_scratch else jax.tree.map(np.asarray, pretrained.params)
        self.keeps_head = _same_head(model, pretrained, data)
        count, single = config.num_runs, config.num_runs == 1
        self._ensemble = None if single else EnsembleLauncher(count, config.runs_per_device or 1)
        self.launcher: Launcher = self._ensemble or launchers.for_model(model, config.mesh, config.parallel)
        # Each run of an ensemble has a seed and a learning rate.
        self._seeds = [config.seed + index for _ in config.learning_rates for index in range(config.seeds)]
        rates = np.repeat(np.array(config.learning_rates, np.float32), config.seeds)
        optim = config.optim_config(steps)
        self._schedule = learning_rate.schedule(optim, steps)
        self.train_step = self._train_step()
        layout = self._layout(self.launcher.shards * optim.accumulate)
        self.texts_per_example = layout.texts
        self._scorer = Scorer(model, layout, self.launcher, 0 if single else count)
        batches = Shuffled(
            data.examples,
            layout,
            size=config.batch_size,
            seeds=config.seed if single else self._seeds,
            local=self.launcher.rows,
            more={} if single else {_RATE: rates},
        )
        self.batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=4).__iter__()
        self._digest = data.digest()

    def _layout(self, multiple: int) -> RowLayout:
        texts, data = len(self.data.examples[0].texts), self.config.task_data
        pad = self.data.tokenizer.special_tokens.pad
        weights = None if self._positive_weights or self.data.class_weights is None else tuple(self.data.class_weights.tolist())
        return RowLayout.for_task(
            self.data.task, data, texts=texts, outputs=self.data.outputs, pad=pad, multiple=multiple, class_weights=weights
        )

    @property
    def _positive_weights(self) -> tuple[float, ...] | None:
        """Weights in the loss of a multi-label task, whose examples have several classes."""
        weights = self.data.class_weights
        is_multilabel = self.data.task.head == "multilabel_classification"
        return tuple(weights.tolist()) if is_multilabel and weights is not None else None

    def _optimizer(self, rate: Any) -> optax.GradientTransformation:
        """The optimizer for a learning rate that may be a traced value; a constant rate is computed the same way."""
        unit = dataclasses.replace(self.config.optim_config(self.steps), peak_lr=1.0)
        optimizer = optimizers.make_optimizer(unit, self.steps, scale_rate=rate)
        return optimizers.freeze_encoder(optimizer) if self.config.freeze_encoder else optimizer

    def _train_step(self) -> step.TrainStep:
        config, head = self.config, self.data.task.head
        objective = Objective(
            weights={"task_loss": "weights"},
            sums=functools.partial(
                losses.task, self.model, head=head, freeze_encoder=config.freeze_encoder, positive_weights=self._positive_weights
            ),
            accumulate=config.optim.accumulate,
        )
        if self._ensemble is None:
            optimizer = self._optimizer(config.learning_rates[0])
            return step.make_train_step(objective, optimizer, axis_name=self.launcher.axis_name, norms=config.log.norms)

        def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, step.Metrics]:
            arrays = {name: value for name, value in batch.items() if name != _RATE}
            return step.make_train_step(objective, self._optimizer(batch[_RATE]), norms=config.log.norms)(state, arrays)

        return train_step

    def init(self, source: Params) -> Any:
        """The pretrained parameters, completed with fresh ones, and the optimizer's state; of each group for an ensemble."""
        if self._ensemble is None:
            return self._init_run(source, self.config.seed)
        side_by_side = jax.vmap(self._init_run, in_axes=(None, 0))
        states = []
        for group in group_runs(self.config.num_runs, self.config.runs_per_device or 1):
            seeds = self._seeds[group[0] : group[-1] + 1]
            states.append(self._init_run(source, seeds[0]) if len(seeds) == 1 else side_by_side(source, jnp.array(seeds)))
        return Groups(states)

    def _init_run(self, source: Params, seed: Int[Array, ""] | int) -> TrainState:
        key, head = jax.random.key(seed, impl=ops.GENERATOR), self.data.task.head
        heads = {head: self.data.outputs}
        fresh = init_params(self.model, jax.random.fold_in(key, _INIT), heads=heads, pooler=head in POOLED_HEADS)
        params = fresh
        if source:
            encoder = {name: source["bert"][name] for name in fresh["bert"] if name in source["bert"]}
            kept = {name: source[name] for name in (head, "readout") if self.keeps_head and name in fresh}
            params = fresh | {"bert": fresh["bert"] | encoder} | kept
            if self.config.reinit_layers:
                params["bert"] = _reinitialize(params["bert"], fresh["bert"], self.config.reinit_layers)
        # The state does not depend on the learning rate.
        optimizer = self._optimizer(1.0)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(key))

    def learning_rate(self, step: int) -> float:
        """Learning rate of an update, counted from 0; of an ensemble that of the first run."""
        return float(self._schedule(step))

    def flop(self, counts: Counts, metrics: Scores) -> float:
        """Operations of the matrix products of steps, of all runs of an ensemble."""
        del metrics
        texts = counts._replace(examples=counts.examples * self.texts_per_example)
        return training_flop(self.model, texts, frozen=self.config.freeze_encoder)

    def evaluate(self, params: Any, step: int, should_stop: ShouldStop) -> tuple[Scores, str] | None:
        """Scores of every development split; of an ensemble those of the best run, and the main score of each."""
        main, sentences = self.data.task.main_score, []
        scores: Scores = {}
        for name, split in self.data.splits.items():
            outputs = self._scorer(params, split.examples, should_stop)
            if outputs is None:
                return None
            finite = [self._ensemble is None or all(np.isfinite(output).all() for output in run) for run in outputs]
            # A diverged run gives one constant answer, and is never the best.
            runs = [split.score(run if good else [*map(np.nan_to_num, run)]) for run, good in zip(outputs, finite, strict=True)]
            ranks = [run[main] if good else -np.inf for run, good in zip(runs, finite, strict=True)]
            best = int(np.argmax(ranks)) if name == "dev" else int(scores.get(BEST_RUN, 0))
            if name == "dev":
                scores |= runs[best] | {CONSTANT: self.data.constant}
                if len(runs) > 1:
                    scores |= {BEST_RUN: best} | {f"{RUN_PREFIX}{index}": run[main] for index, run in enumerate(runs)}
            else:
                scores |= {f"{name}/{key}": value for key, value in runs[best].items()}
            sentences.append(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in runs[best].items()))
        prefix = "" if self._ensemble is None else f"best of {self.config.num_runs}: "
        return scores, prefix + "; ".join(sentences)

    def best_params(self, params: Any, scores: Scores) -> Params:
        """The parameters of the best run."""
        if self._ensemble is None:
            single: Params = params
            return single
        return self._ensemble.run(params, int(scores[BEST_RUN]))

    def meta(self, position: dict[str, Any]) -> Meta:
        """What a checkpoint stores beside the state."""
        data, head = self.data, self.data.task.head
        stored = json.loads(self.config.to_json())
        heads, pooler = {head: data.outputs}, head in POOLED_HEADS
        return Meta(stored, self.model, data.tokenizer, self._digest, position, data.labels, heads, pooler)

    def figure(self) -> Figure:
        """Training loss and development score over steps."""
        return plots.task_curves(self.run_dir, self.data.task.main_score)


def _same_head(model: ModelConfig, pretrained: LoadedModel, data: TaskData) -> bool:
    """Whether the pretrained head has the outputs and labels of this task."""
    head = pretrained.params.get(data.task.head)
    if (model.lstm_layers, model.states) != (pretrained.config.lstm_layers, pretrained.config.states):
        return False
    return head is not None and head["bias"].shape[-1] == data.outputs and (not data.labels or pretrained.labels == data.labels)


def _reinitialize(params: Params, fresh: Params, count: int) -> Params:
    """The encoder with fresh top layers and a fresh pooler (Zhang et al. 2021)."""
    layers = jax.tree.map(lambda old, new: old.at[-count:].set(new[-count:]), params["layers"], fresh["layers"])
    return params | {"layers": layers} | ({"pooler": fresh["pooler"]} if "pooler" in fresh else {})

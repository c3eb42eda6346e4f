"""Fine-tuning: a task and a pretrained model, given to the loop; and a fine-tuned model asked again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bert_jax.checkpoints import Meta
from bert_jax.config.finetuning import FREE_ON_RESUME, FinetuneConfig
from bert_jax.config.run import ModelConfig
from bert_jax.config.validation import differences, require
from bert_jax.data.pipeline import HostBatch
from bert_jax.errors import UserError
from bert_jax.inference import bert
from bert_jax.inference.bert import Bert
from bert_jax.inference.predictor import Scorer
from bert_jax.models.encoder import Batch, Params
from bert_jax.models.heads import init_params
from bert_jax.ops.attention import select
from bert_jax.tasks import registry
from bert_jax.tasks.example import Example, Source, Split
from bert_jax.tasks.layout import Layout, Shuffled
from bert_jax.tokenizers import Tokenizer
from bert_jax.training import ensemble, launchers, losses, optimizers, plots, step
from bert_jax.training.launchers import Launcher
from bert_jax.training.logging import MEMBER, Scores, say
from bert_jax.training.step import Objective, TrainState
from bert_jax.training.trainer import Clock, Result, Work, claim, fit

_INIT = 0
_RATE, _BEST = "rate", "best_member"
FLOOR = "constant"
"""Name of the score of the answer that is most frequent in the training data."""


class Task(NamedTuple):
    """What is learned, and from what."""

    head: str
    outputs: int
    labels: tuple[str, ...]
    examples: list[Example]
    splits: dict[str, Split]
    source: Source
    floor: float
    """Score of the answer that is most frequent in the training data."""


def finetune(config: FinetuneConfig) -> Result:
    """Fine-tune, or go on with, the run that ``config`` describes: one model, or several side by side.

    The same step, loop and checkpoints as :func:`bert_jax.pretrain`; what is promised there holds here. The model with the
    best score of the first development split is kept in the directory "best" of the run, where :func:`bert_jax.load` and
    :func:`evaluate` find it.

    Raises:
      UserError: the config does not fit the data, the model, the devices, or what the run directory holds.
      Failure: the loss is not finite, or a checkpoint cannot be written or read.
    """
    if config.distributed:
        jax.distributed.initialize()
    pretrained = bert.load(config.init)
    if pretrained.tokenizer is None:
        raise UserError(f"{config.init} came without a vocabulary; put its vocab.txt beside the weights.")
    model = config.model(pretrained.config)
    _check_length(config.reading.length, model)
    task = _open(config, pretrained.tokenizer)
    steps = int(len(task.examples) * config.epochs / config.batch_size)
    require(
        steps > 0,
        f"{len(task.examples)} examples make no batch of {config.batch_size} in {config.epochs} epochs; use a smaller one.",
    )
    most = model.num_hidden_layers
    require(config.reinit_layers <= most, f"reinit_layers is {config.reinit_layers}; the model has {most} layers.")
    drops = model.attention_probs_dropout_prob > 0 and model.attention not in ("auto", "reference")
    require(not drops, f"attention by {model.attention} has no dropout; use --dropout 0, or leave attention to auto.")
    kernel = select(model, config.reading.length, training=True)
    # States are stored as they are grouped.
    config = dataclasses.replace(config, together=_together(config, pretrained.params))
    # Before the directory is claimed, so that what is refused here leaves nothing.
    work = _work(config, model, pretrained, task, steps)
    claim(config.run, config.to_json(), lambda stored: differences(FinetuneConfig.from_json(stored), config, FREE_ON_RESUME))
    kept = not config.scratch and _same_head(model, pretrained, task)
    head = "taken over" if kept else "fresh"
    say(f"{config.task}: {len(task.examples):,} examples, {steps:,} steps; {task.head} head, {head}; attention: {kernel}")
    return fit(work)


def _open(config: FinetuneConfig, tokenizer: Tokenizer) -> Task:
    source = Source(config.task, config.data, config.reading, tokenizer)
    examples, labels = registry.train(source)
    splits = {name: registry.split(source, name, labels) for name in registry.splits(config.task)}
    head, count = registry.head(config.task), registry.outputs(config.task, labels)
    floor = _floor(head, count, examples, splits["dev"], registry.main_score(config.task))
    return Task(head, count, labels, examples, splits, source, floor)


def _floor(head: str, count: int, examples: Sequence[Example], split: Split, main: str) -> float:
    if head == "span":
        # No answer is the most frequent one, where that is one: [CLS] as both ends, by far.
        sure = [np.zeros((len(example.parts[0].ids), 2)) for example in split.examples]
        for logits in sure:
            logits[0] = 1e3
        return split.score(sure)[main] if main.startswith("best") else 0.0
    known = np.concatenate([np.ravel(example.label) for example in examples if example.label is not None])
    if head == "regress":
        constant = np.array([known.mean()])
    else:
        width = len(examples[0].parts) if head == "choose" else count
        constant = np.eye(width)[np.argmax(np.bincount(known[known >= 0].astype(int), minlength=width))]
    if head == "tag":
        return split.score([np.tile(constant, (len(example.parts[0].ids), 1)) for example in split.examples])[main]
    return split.score([constant] * len(split.examples))[main]


def _check_length(length: int, model: ModelConfig) -> None:
    most = model.max_position_embeddings
    require(length <= most, f"The length of {length} pieces is above the model's {most} positions; use --length {most}.")


def _same_head(model: ModelConfig, pretrained: Bert, task: Task) -> bool:
    """Whether the model's head was trained to say what this task asks."""
    head = pretrained.params.get(task.head)
    if (model.lstm_layers, model.states) != (pretrained.config.lstm_layers, pretrained.config.states):
        return False
    return head is not None and head["bias"].shape[-1] == task.outputs and (not task.labels or pretrained.labels == task.labels)


def _work(config: FinetuneConfig, model: ModelConfig, pretrained: Bert, task: Task, steps: int) -> Work:
    count, train = config.members, config.train(steps, len(task.examples))
    single, together = count == 1, config.together or 1
    launcher = launchers.for_model(model, config.mesh, config.parallel) if single else ensemble.launch(count, together=together)
    # Of several runs each has a seed and a rate of its own, and their batches a leading axis.
    seeds = [config.seed + number for _ in config.learning_rates for number in range(config.seeds)]
    rates = np.repeat(np.array(config.learning_rates, np.float32), config.seeds)
    layout = _layout(config, task, launcher.shards * config.accumulate)
    batches = Shuffled(
        task.examples,
        layout,
        size=config.batch_size,
        seeds=config.seed if single else seeds,
        local=launcher.rows,
        more={} if single else {_RATE: rates},
    )
    score = Scorer(model, layout, launcher, 0 if single else count)
    content = json.loads(config.to_json())
    return Work(
        run=config.run,
        train=train,
        launcher=launcher,
        init=_init(
            config, model, pretrained, task, steps, [seeds[part[0] : part[-1] + 1] for part in ensemble.groups(count, together)]
        ),
        train_step=_train_step(config, model, task.head, steps, launcher, single=single),
        rate=optimizers.schedule(config.optim(steps), steps),
        batches=grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=4).__iter__(),
        counts=functools.partial(_counts, parts=layout.parts),
        evaluate=functools.partial(_evaluate, config, task, score),
        meta=functools.partial(_meta, content, model, task, _digest(task)),
        split="dev",
        figure=functools.partial(plots.task_curves, config.run, registry.main_score(config.task)),
        source={} if config.scratch else jax.tree.map(np.asarray, pretrained.params),
        best=registry.main_score(config.task),
        patience=config.patience,
        pick=(lambda params, _: params) if single else functools.partial(_pick, together=together, count=count),
    )


def _layout(config: FinetuneConfig, task: Task, multiple: int) -> Layout:
    parts = len(task.examples[0].parts)
    width = config.reading.length * parts
    return Layout(task.head, width, parts, config.reading.packing, task.source.tokenizer.specials.pad, multiple)


def _init(
    config: FinetuneConfig, model: ModelConfig, pretrained: Bert, task: Task, steps: int, seeds: Sequence[Sequence[int]]
) -> Any:
    """The pretrained parameters, with what they lack made fresh, and the optimizer's state."""
    keep_head = _same_head(model, pretrained, task)
    pooler = task.head in ("classify", "regress", "choose")

    def one(given: Params, seed: Int[Array, ""] | int) -> TrainState:
        key = jax.random.key(seed)
        fresh = init_params(model, jax.random.fold_in(key, _INIT), heads={task.head: task.outputs}, pooler=pooler)
        params = fresh
        if given:
            taken = {name: given["bert"][name] for name in fresh["bert"] if name in given["bert"]}
            heads = {name: given[name] for name in (task.head, "readout") if keep_head and name in fresh}
            params = fresh | {"bert": fresh["bert"] | taken} | heads
            if config.reinit_layers:
                params["bert"] = _reinitialised(params["bert"], fresh["bert"], config.reinit_layers)
        # A rate is part of no state.
        optimizer = _optimizer(config, steps, 1.0)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(key))

    def init(given: Params) -> TrainState | list[TrainState]:
        if config.members == 1:
            return one(given, config.seed)
        side_by_side = jax.vmap(one, in_axes=(None, 0))
        return [one(given, group[0]) if len(group) == 1 else side_by_side(given, jnp.array(group)) for group in seeds]

    return init


def _reinitialised(params: Params, fresh: Params, count: int) -> Params:
    """The encoder with its top layers and its pooler as they were before pretraining."""
    layers = jax.tree.map(lambda old, new: old.at[-count:].set(new[-count:]), params["layers"], fresh["layers"])
    return params | {"layers": layers} | ({"pooler": fresh["pooler"]} if "pooler" in fresh else {})


def _optimizer(config: FinetuneConfig, steps: int, rate: Any) -> Any:
    """The optimizer with a rate that may be known inside of a program only; computed alike where it is known before."""
    unit = dataclasses.replace(config.optim(steps), peak_lr=1.0)
    optimizer = optimizers.make_optimizer(unit, steps, scale_rate=rate)
    return optimizers.frozen(optimizer) if config.frozen else optimizer


def _train_step(
    config: FinetuneConfig, model: ModelConfig, head: str, steps: int, launcher: Launcher, *, single: bool
) -> step.TrainStep:
    objective = Objective(
        weights={"task_loss": "weights"},
        sums=functools.partial(losses.task, model, head=head, frozen=config.frozen),
        accumulate=config.accumulate,
    )
    if single:
        return step.make_train_step(objective, _optimizer(config, steps, config.learning_rates[0]), axis_name=launcher.axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, step.Metrics]:
        rest = {name: value for name, value in batch.items() if name != _RATE}
        return step.make_train_step(objective, _optimizer(config, steps, batch[_RATE]))(state, rest)

    return train_step


def _counts(host: HostBatch, *, parts: int) -> np.ndarray:
    segments = host["segments"]
    examples = segments.max(-1).sum() // parts
    return np.array([(segments > 0).sum(), examples, segments.size]) * jax.process_count()


def _meta(content: dict[str, Any], model: ModelConfig, task: Task, digest: str, position: dict[str, Any]) -> Meta:
    return Meta(content, model, task.source.tokenizer, digest, position, task.labels)


def _digest(task: Task) -> str:
    """Equal for equal examples in the same order, and the same names of what they are."""
    summary = hashlib.blake2b(json.dumps(task.labels).encode(), digest_size=16)
    for example in itertools.chain(task.examples, *(split.examples for split in task.splits.values())):
        for part in example.parts:
            summary.update(part.ids.tobytes() + part.first.to_bytes(4))
        summary.update(b"" if example.label is None else example.label.tobytes())
    return summary.hexdigest()


def _evaluate(
    config: FinetuneConfig, task: Task, score: Scorer, params: Params | list[Params], asked: Clock
) -> tuple[Scores, str] | None:
    """Scores of every split: of several runs the best one's, and the main score of each."""
    main, said = registry.main_score(config.task), []
    scores: Scores = {}
    for name, split in task.splits.items():
        found = score(params, split.examples, asked)
        if found is None:
            return None
        whole = [config.members == 1 or all(np.isfinite(output).all() for output in outputs) for outputs in found]
        # One that diverged answers all alike, and is never the best.
        each = [
            split.score(outputs if good else [*map(np.nan_to_num, outputs)]) for outputs, good in zip(found, whole, strict=True)
        ]
        ranks = [one[main] if good else -np.inf for one, good in zip(each, whole, strict=True)]
        number = int(np.argmax(ranks)) if name == "dev" else int(scores.get(_BEST, 0))
        shown = (
            each[number] | {FLOOR: task.floor} if name == "dev" else {f"{name}/{key}": value for key, value in each[number].items()}
        )
        if len(each) > 1 and name == "dev":
            shown = shown | {_BEST: number} | {f"{MEMBER}{at}": one[main] for at, one in enumerate(each)}
        scores |= shown
        said.append(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in each[number].items()))
    return scores, (f"best of {config.members}: " if config.members > 1 else "") + "; ".join(said)


def _pick(params: list[Params], scores: Scores, *, together: int, count: int) -> Params:
    found: Params = ensemble.member(params, int(scores[_BEST]), together=together, count=count)
    return found


def _together(config: FinetuneConfig, params: Params) -> int:
    return config.together or ensemble.together(config.members, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))

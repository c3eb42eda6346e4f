"""The data of a fine-tuning run: the task, its examples and splits, read and checked before the first step."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import NamedTuple

import numpy as np

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError
from bert_jax.models.loaded import LoadedModel, tokenizer_of
from bert_jax.tasks import registry, summary
from bert_jax.tasks.class_weights import class_weights
from bert_jax.tasks.example import Example, Source, Split
from bert_jax.tasks.summary import Summary
from bert_jax.tasks.task import Task
from bert_jax.tokenizers import Tokenizer


class TaskData(NamedTuple):
    """A task with its examples."""

    task: Task
    outputs: int
    labels: tuple[str, ...]
    examples: list[Example]
    splits: dict[str, Split]
    summaries: dict[str, Summary]
    """What each split holds, for the user."""
    tokenizer: Tokenizer
    constant: float
    """Score of the answer that is most frequent in the training data."""
    class_weights: np.ndarray | None = None
    """float32 [C], weights of the classes in the loss."""

    def digest(self) -> str:
        """Equal for equal examples in the same order, and equal names of the labels."""
        summary = hashlib.blake2b(json.dumps(self.labels).encode(), digest_size=16)
        for example in itertools.chain(self.examples, *(split.examples for split in self.splits.values())):
            for text in example.texts:
                summary.update(text.ids.tobytes() + text.first_length.to_bytes(4))
            summary.update(b"" if example.label is None else example.label.tobytes())
        if self.class_weights is not None:
            summary.update(self.class_weights.tobytes())
        return summary.hexdigest()


def open_task(config: FinetuneConfig, pretrained: LoadedModel) -> TaskData:
    """Read the data of a run, and check everything that training and scoring would refuse.

    Raises:
      UserError: a file is refused, or does not fit the model or the config.
    """
    tokenizer = tokenizer_of(pretrained)
    if len(tokenizer.tokens) > pretrained.config.vocab_size:
        raise UserError(
            f"The vocabulary has {len(tokenizer.tokens):,} tokens, but the word embeddings have {pretrained.config.vocab_size:,} "
            f"rows; --added-tokens with one of the last tokens, {tokenizer.tokens[-1]!r}, adds rows for all of them."
        )
    task = registry.get(config.task)
    source = Source(config.data, config.task_data, tokenizer)
    examples, labels = task.train(source)
    source = source._replace(pairs=examples[0].texts[0].is_pair)
    splits = {name: task.split(source, name, labels) for name in task.dev_splits}
    parts = {"train": examples} | {name: split.examples for name, split in splits.items()}
    summaries = summary.summarize(task, source, parts, labels)
    # Every split is scored once, so that what scoring refuses is refused before the first step.
    constants = {name: task.constant_score(examples, labels, split) for name, split in splits.items()}
    weights = None if config.class_weights is None else class_weights(config.class_weights, task, examples, labels)
    return TaskData(task, task.outputs(labels), labels, examples, splits, summaries, tokenizer, constants["dev"], weights)

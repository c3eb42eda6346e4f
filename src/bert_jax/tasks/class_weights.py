"""Weights of classes in the loss of a classification, for classes of different frequency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath
from sklearn.utils.class_weight import compute_class_weight

from bert_jax.errors import UserError
from bert_jax.io.parsing import read_json
from bert_jax.tasks.example import Example
from bert_jax.tasks.task import Task

BALANCED = "balanced"
HEADS = ("sequence_classification", "token_classification", "multilabel_classification")
"""Heads whose loss can have weights."""


def class_weights(choice: str, task: Task, examples: Sequence[Example], labels: Sequence[str]) -> np.ndarray:
    """The weight of each class.

    Args:
      choice: "balanced", which is scikit-learn's n / (classes * count), or, for a multi-label task, the ratio of the examples
        without a label to those with it; or a JSON file with an object from the names of all classes to their weights.
      task: the task.
      examples: the training examples.
      labels: names of the classes.

    Returns:
      float32 [C]. A class without an example has the weight 1.

    Raises:
      UserError: the task is no classification, or the file lacks a class, has another one, or has a weight that is not positive.
    """
    if task.head not in HEADS:
        raise UserError(f"class_weights is set, but the loss of the task {task.name} has no classes that could be weighted.")
    if choice == BALANCED:
        return _balanced(task, examples, len(labels))
    weights = read_json(epath.Path(choice))
    if set(weights) != set(labels):
        differing = sorted(set(weights) ^ set(labels))
        raise UserError(f"{choice} has weights of {sorted(weights)}, but the classes are {sorted(labels)}; see {differing[0]!r}.")
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < np.inf:
            raise UserError(f"{choice} gives {name!r} the weight {weight!r}; a weight must be a number greater than 0.")
    return np.array([weights[name] for name in labels], np.float32)


def _balanced(task: Task, examples: Sequence[Example], count: int) -> np.ndarray:
    known = [np.asarray(example.label) for example in examples if example.label is not None]
    if task.head == "multilabel_classification":
        positive = np.sum(known, axis=0)
        return np.where(positive > 0, (len(known) - positive) / np.maximum(positive, 1), 1).clip(1 / len(known)).astype(np.float32)
    values = np.concatenate([np.ravel(label) for label in known])
    present = np.unique(values[values >= 0])
    weights = np.ones(count, np.float32)
    weights[present] = compute_class_weight(BALANCED, classes=present, y=values[values >= 0])
    return weights

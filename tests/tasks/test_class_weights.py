"""Weights of classes: scikit-learn's numbers, files, and the loss of torch."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from bert_jax.errors import UserError
from bert_jax.tasks import registry
from bert_jax.tasks.class_weights import class_weights
from bert_jax.tasks.example import EncodedText, Example
from bert_jax.tasks.layout import RowLayout
from bert_jax.training import losses
from tests.runs import TASK_DATA

RNG = np.random.default_rng(0)
TEXT = (EncodedText(np.arange(5, dtype=np.int32), 5),)
NAMES = ("a", "b", "c")


def examples_of(labels):
    return [Example(TEXT, np.asarray(label)) for label in labels]


def batch_of(task, examples, outputs, weights):
    task = registry.get(task)
    layout = RowLayout.for_task(task, TASK_DATA, texts=1, outputs=outputs, pad=0, multiple=1, class_weights=weights)
    assigned = layout.assign(examples)
    batch, _ = layout.lay(examples, range(len(examples)), assigned, len(assigned))
    return {name: jnp.asarray(batch[name]) for name in ("labels", "weights")}


def test_balanced_classes_are_those_of_scikit_learn():
    labels = RNG.choice(3, 50, p=[0.7, 0.2, 0.1]).astype(np.int32)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights("balanced", registry.get("classify"), examples_of(labels), NAMES), expected, rtol=1e-6)
    # Tokens that are not scored have the label -1; a class without an example has the weight 1.
    rows = [np.array([-1, 0, 0, 1, -1], np.int32), np.array([-1, 0, -1, -1, -1], np.int32)]
    weights = class_weights("balanced", registry.get("ner"), examples_of(rows), NAMES)
    np.testing.assert_allclose(weights, [4 / (2 * 3), 4 / (2 * 1), 1], rtol=1e-6)


def test_balanced_labels_are_the_ratio_of_negative_to_positive():
    labels = (RNG.random((40, 3)) < [0.5, 0.1, 0]).astype(np.float32)
    positive = labels.sum(0)
    weights = class_weights("balanced", registry.get("multilabel"), examples_of(labels), NAMES)
    np.testing.assert_allclose(weights, [*((40 - positive[:2]) / positive[:2]), 1], rtol=1e-6)


@pytest.mark.parametrize("task", ["classify", "ner"])
def test_the_loss_is_torchs(task):
    weights = (0.25, 1.0, 3.5)
    labels = RNG.choice(3, (8,) if task == "classify" else (8, 5)).astype(np.int32)
    if task == "ner":
        labels[:, 0] = -1
    batch = batch_of(task, examples_of(labels), 3, weights)
    logits = RNG.normal(size=(*batch["labels"].shape, 3)).astype(np.float32)
    head = registry.get(task).head
    sums = losses.TASK_LOSSES[head](jnp.asarray(logits), batch)
    known = np.asarray(batch["weights"]) > 0
    assert known.sum() == (labels >= 0).sum()
    right = torch.tensor(np.asarray(batch["labels"])[known]).long()
    expected = torch.nn.CrossEntropyLoss(torch.tensor(weights))(torch.tensor(logits[known]), right)
    np.testing.assert_allclose(losses.means(sums, ["task_loss"])["loss"], expected.numpy(), rtol=1e-6)
    # The accuracy is not weighted.
    accuracy = (logits[known].argmax(-1) == right.numpy()).mean()
    np.testing.assert_allclose(losses.means(sums, ["task_loss"])["accuracy"], accuracy, rtol=1e-6)


def test_the_multilabel_loss_is_torchs():
    weights = (0.25, 1.0, 3.5)
    batch = batch_of("multilabel", examples_of((RNG.random((8, 3)) < 0.4).astype(np.float32)), 3, None)
    logits = RNG.normal(size=batch["labels"].shape).astype(np.float32)
    sums = losses._multilabel_loss(jnp.asarray(logits), batch, weights)
    known = np.asarray(batch["weights"]) > 0
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))
    expected = loss(torch.tensor(logits[known]), torch.tensor(np.asarray(batch["labels"])[known]))
    np.testing.assert_allclose(losses.means(sums, ["task_loss"])["loss"], expected.numpy(), rtol=1e-6)


def test_a_batch_of_small_weights_has_a_mean_loss():
    logits, batch = jnp.zeros((1, 1, 2)), {"labels": jnp.zeros((1, 1), int), "weights": jnp.full((1, 1), 0.125)}
    sums = losses.TASK_LOSSES["sequence_classification"](logits, batch)
    np.testing.assert_allclose(losses.means(sums, ["task_loss"])["loss"], np.log(2), rtol=1e-6)
    assert jax.tree.all(jax.tree.map(jnp.isfinite, losses.means(sums, ["task_loss"])))


def test_weights_of_a_file(tmp_path):
    path = tmp_path / "weights.json"
    examples = examples_of(np.array([0, 1, 2], np.int32))

    def read(content, task="classify"):
        path.write_text(json.dumps(content))
        return class_weights(str(path), registry.get(task), examples, NAMES)

    np.testing.assert_array_equal(read({"c": 3, "a": 1, "b": 0.5}), np.array([1, 0.5, 3], np.float32))
    for content, sentence in (
        ({"a": 1, "b": 1}, r"weights of \['a', 'b'\], but the classes are \['a', 'b', 'c'\]; see 'c'"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "see 'd'"),
        ({"a": 1, "b": 1, "c": 0}, "gives 'c' the weight 0; a weight must be a number greater than 0"),
        ({"a": 1, "b": 1, "c": "1"}, "gives 'c' the weight '1'"),
    ):
        with pytest.raises(UserError, match=sentence):
            read(content)
    for task in ("regress", "squad", "swag"):
        with pytest.raises(UserError, match=f"the loss of the task {task} has no classes that could be weighted"):
            read({}, task)
    with pytest.raises(UserError, match="There is no file"):
        class_weights(str(tmp_path / "none.json"), registry.get("classify"), examples, NAMES)

"""Losses of tasks against NumPy; what examples share a row changes neither them nor their gradients."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bert_jax import sharding
from bert_jax.config.mesh import MeshConfig
from bert_jax.models import heads
from bert_jax.tasks import registry
from bert_jax.tasks.layout import RowLayout
from bert_jax.training import launchers, losses
from tests import reference
from tests.conftest import MODEL
from tests.tasks.test_layout import LABELS, make_examples

CLASSES = {
    "sequence_classification": 5,
    "regression": 1,
    "multilabel_classification": 4,
    "token_classification": 4,
    "question_answering": 2,
    "multiple_choice": 1,
}
CONFIG = dataclasses.replace(MODEL, vocab_size=400, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
CONFIGS = {
    "plain": CONFIG,
    "lstm": dataclasses.replace(CONFIG, lstm_layers=1),
    "causal": dataclasses.replace(CONFIG, causal=True),
    "causal lstm": dataclasses.replace(CONFIG, causal=True, lstm_layers=1, states="sum_all"),
}
SEED, LENGTH, ROWS = 6, 32, 16
EXAMPLES = {
    head: make_examples(
        head, 6 if head == "multiple_choice" else 11, seed=SEED, most=20 if head == "multiple_choice" else 13, first=5
    )
    for head in CLASSES
}


@functools.cache
def params_of(config):
    return random_params(config, CLASSES)


def random_params(config, classes):
    """Parameters large enough that every part matters; those of all heads."""
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0), heads=classes))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape) * 0.3), shapes)


def layout_of(head, *, packing=32):
    return RowLayout(head, LABELS[head], LENGTH, 3 if head == "multiple_choice" else 1, packing)


@functools.cache
def batches(*, packed):
    """A batch of each head, of one shape whether its examples share rows or not."""
    found = {}
    for head, examples in EXAMPLES.items():
        layout = layout_of(head)
        assigned = layout.assign(examples) if packed else np.arange(len(examples))[:, None]
        assert len(assigned) < len(examples) or not packed
        found[head] = layout.lay(examples, range(len(examples)), assigned, ROWS)[0]
    return found


@functools.cache
def alone():
    """Each example in a row of its own, without a second slot."""
    found = {}
    for head, examples in EXAMPLES.items():
        layout = layout_of(head, packing=1)
        found[head] = layout.lay(examples, range(len(examples)), layout.assign(examples), len(examples))[0]
    return found


@contextlib.contextmanager
def encoded_once():
    """Heads that look at the same array of tokens share its states, or compiling would take most of the time."""
    readout, known = losses.readout, {}

    def shared(config, params, batch, **options):
        where = id(batch["input_ids"])
        if where not in known:
            known[where] = readout(config, params, batch, **options)
        return known[where]

    with mock.patch.object(losses, "readout", shared):
        yield


ANSWERS = ("labels", "weights")


def joined(batches):
    """Batches of all heads as two: what the heads look at, and the answers of each head."""
    found = []
    for group in (tuple(head for head in CLASSES if head != "multiple_choice"), ("multiple_choice",)):
        base, *others = ({name: value for name, value in batches[head].items() if name not in ANSWERS} for head in group)
        for other in others:
            jax.tree.map(np.testing.assert_array_equal, base, other)
        found.append((base, {head: {name: batches[head][name] for name in ANSWERS} for head in group}))
    return found


def total(params, config, joined):
    """The sum of all heads' mean losses, and what each of them is."""
    with encoded_once():
        sums = {
            head: losses.task(config, params, base | answers, head=head)
            for base, heads in joined
            for head, answers in heads.items()
        }
    means = {head: losses.means(each, ("task_loss",)) for head, each in sums.items()}
    return sum(mean["loss"] for mean in means.values()), (sums, means)


# Compiled as fast as may be: these programs run for milliseconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
compiled = jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)


def gradient(params, config, batches):
    return compiled(params, config, joined(batches))


@functools.partial(jit, static_argnums=0)
def all_logits(config, params, joined):
    with encoded_once():
        return {head: losses.task_logits(config, params, base, head=head) for base, heads in joined for head in heads}


def close(found, expected, share=1e-5):
    """Equal to a share of the largest value of each tensor; one that has none above a hundredth of the largest of all is held
    against that."""
    most = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def one(path, a, b):
        scale = max(np.abs(b).max(), most / 100)
        np.testing.assert_allclose(a, b, rtol=share, atol=share * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(one, jax.device_get(found), jax.device_get(expected))


def surprise(logits, label):
    """-log softmax(logits)[label]."""
    return -np.log(reference.softmax(np.asarray(logits, np.float64))[label])


def expected_sums(head, examples, logits):
    """(loss, weight) and (right, weight) of logits [N, ...] of single examples, by the definition."""
    loss = weight = right = 0.0
    for number, example in enumerate(examples):
        mine, label, size = logits[number], example.label, len(example.texts[0].ids)
        if head == "regression":
            loss, weight = loss + (mine[0, 0] - label) ** 2, weight + 1
        elif head == "multilabel_classification":
            probability = 1 / (1 + np.exp(-mine[0].astype(np.float64)))
            loss -= (label * np.log(probability) + (1 - label) * np.log(1 - probability)).mean()
            right, weight = right + ((probability >= 0.5) == (label == 1)).mean(), weight + 1
        elif head == "token_classification":
            for place in np.flatnonzero(label >= 0):
                loss, weight = loss + surprise(mine[place], label[place]), weight + 1
                right += mine[place].argmax() == label[place]
        elif head == "question_answering":
            for end in range(2):
                loss, weight = loss + surprise(mine[:size, end], label[end]) / 2, weight + 0.5
                right += (mine[:size, end].argmax() == label[end]) / 2
        else:
            scores = mine[:3, 0] if head == "multiple_choice" else mine[0]
            loss, weight, right = loss + surprise(scores, label), weight + 1, right + (scores.argmax() == label)
    sums = {"task_loss": (loss, weight)}
    return sums if head == "regression" else sums | {"accuracy": (right, weight)}


@pytest.fixture(scope="module")
def single():
    """Logits of single examples."""
    return jax.device_get(all_logits(CONFIG, params_of(CONFIG), joined(alone())))


@pytest.mark.parametrize("head", CLASSES)
def test_logits_are_those_of_the_reference(single, head):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params_of(CONFIG))
    for number, example in enumerate(EXAMPLES[head]):
        rows = []
        for text in example.texts:
            hidden, pooled = reference.encode_one(
                CONFIG, params["bert"], text.ids, (np.arange(len(text.ids)) >= text.first_length) * 1
            )
            rows += [hidden] if head in heads.TOKEN_HEADS else [pooled[None]]
        expected = np.concatenate(rows) @ params[head]["kernel"] + params[head]["bias"]
        np.testing.assert_allclose(single[head][number, : len(expected)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", CLASSES)
def test_losses_are_their_definitions(single, head):
    """Of packed examples, from the logits of single ones."""
    _, (sums, means) = gradient(params_of(CONFIG), CONFIG, batches(packed=True))[0]
    expected = expected_sums(head, EXAMPLES[head], single[head])
    assert sums[head].keys() == expected.keys()
    for name, (value, weight) in expected.items():
        np.testing.assert_allclose(sums[head][name], (value, weight), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(means[head][name], value / weight, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(means[head]["loss"], means[head]["task_loss"])


def test_the_multilabel_loss_is_torchs():
    """``BCEWithLogitsLoss`` divides by examples and labels; a weight of 0 excludes an example."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 5)).astype(np.float32) * 9, rng.integers(0, 2, (3, 4, 5)).astype(np.float32)
    for weights in (np.ones((3, 4), np.float32), rng.integers(0, 2, (3, 4)).astype(np.float32)):
        batch = {"labels": labels, "weights": weights}
        sums = losses.TASK_LOSSES["multilabel_classification"](jnp.array(logits), jax.tree.map(jnp.array, batch))
        known = weights > 0
        expected = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits[known]), torch.tensor(labels[known]))
        np.testing.assert_allclose(losses.means(sums, ("task_loss",))["loss"], expected.numpy(), rtol=1e-6)
        np.testing.assert_array_equal(sums["task_loss"][1], weights.sum())


def test_every_head_of_a_task_has_a_loss():
    assert {task.head for task in registry.TASKS.values()} == {*losses.TASK_LOSSES} == {*CLASSES}


def test_some_answers_are_right_and_some_wrong(single):
    """Else the test of accuracies would show little."""
    shares = {head: expected_sums(head, EXAMPLES[head], single[head]).get("accuracy", (1, 2)) for head in CLASSES}
    assert all(0 < right < weight for right, weight in shares.values()), shares


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("lstm", "causal") else ()) for name in CONFIGS]
)
def test_packed_examples_have_the_losses_and_gradients_of_single_ones(name):
    config = CONFIGS[name]
    (_, (sums, _)), packed = gradient(params_of(config), config, batches(packed=True))
    (_, (sums_alone, _)), unpacked = gradient(params_of(config), config, batches(packed=False))
    close(sums, sums_alone)
    close(packed, unpacked)
    # Every parameter takes part, but those that add the same number to all that a softmax is over.
    for path, leaf in jax.tree_util.tree_leaves_with_path(packed):
        names = [key.key for key in path]
        assert np.abs(leaf).max() > 0 or names[-2:] in (
            ["key", "bias"],
            ["multiple_choice", "bias"],
            ["question_answering", "bias"],
        ), names


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mine", [0, 3, 5])
def test_nothing_passes_between_examples_of_a_row(name, mine):
    """No two examples share a token: of the word table, the loss of one moves the rows of its own tokens only."""
    config, given = CONFIGS[name], {}
    for head, batch in batches(packed=True).items():
        layout, examples = layout_of(head), EXAMPLES[head]
        only = [example._replace(label=example.label if number == mine else None) for number, example in enumerate(examples)]
        given[head], places = layout.lay(only, range(len(examples)), layout.assign(examples), ROWS)
        row = [number for number, place in places.items() if place.row == places[mine].row]
        assert len(row) > 1, "the example shares no row"
        assert 0 < given[head]["weights"].sum() < batch["weights"].sum()
    own = {head: np.concatenate([text.ids for text in examples[mine].texts]) for head, examples in EXAMPLES.items()}
    for head in CLASSES:
        # The same program for each: the others weigh nothing.
        silent = {other: batch | {"weights": batch["weights"] * (other == head)} for other, batch in given.items()}
        table = np.abs(gradient(params_of(config), config, silent)[1]["bert"]["embeddings"]["word"]).max(1)
        inside = np.isin(np.arange(config.vocab_size), own[head])
        np.testing.assert_array_equal(table[~inside], 0, err_msg=head)
        if head in ("token_classification", "question_answering") and config.causal and not config.lstm_layers:
            assert table[inside].max() > 0
        else:
            assert (table[inside] > 0).all(), head


@pytest.mark.parametrize("name", CONFIGS)
def test_without_weight_or_without_examples_nothing_is_learned(name):
    config = CONFIGS[name]
    silent = {head: batch | {"weights": 0 * batch["weights"]} for head, batch in batches(packed=True).items()}
    empty = {head: layout_of(head).lay([], [], np.empty((0, 1), int), ROWS)[0] for head in CLASSES}
    for given in (silent, empty):
        (loss, (sums, means)), grads = gradient(params_of(config), config, given)
        assert loss == 0
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), (sums, means, grads))


MESHES = {
    "data 8": MeshConfig(8, 1, 1),
    "fsdp 8": MeshConfig(1, 8, 1),
    "data 2 x tensor 4": MeshConfig(2, 1, 4),
    "all": MeshConfig(2, 2, 2),
}


def on_mesh(config, mesh):
    """The launcher of a mesh, parameters and a packed batch on it."""
    launcher = launchers.MeshLauncher(config, sharding.make_mesh(**dataclasses.asdict(MESHES[mesh])))
    params = jax.device_put(params_of(config), launcher.shardings(jax.eval_shape(lambda: params_of(config))))
    return (
        launcher,
        params,
        [
            (launcher.place(base), {head: launcher.place(answers) for head, answers in by_head.items()})
            for base, by_head in joined(batches(packed=True))
        ],
    )


@pytest.mark.parametrize("mesh", MESHES)
def test_every_head_type_checks_on_every_mesh(mesh):
    """Explicit sharding is part of an array's type: tracing checks every layout, of gradients too."""
    config = CONFIGS["causal lstm"]
    launcher, params, given = on_mesh(config, mesh)

    def both(params, given):
        return jax.value_and_grad(total, has_aux=True)(params, config, given)

    with launcher.context():
        (loss, _), grads = jax.eval_shape(both, params, given)
    assert loss.shape == ()
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding.spec, b.sharding.spec), grads, params)


def test_a_mesh_gives_the_same_losses():
    config = CONFIGS["causal lstm"]
    (loss, (sums, _)), _ = gradient(params_of(config), config, batches(packed=True))
    launcher, params, given = on_mesh(config, "all")
    with launcher.context():
        found = jit(total, static_argnums=1)(params, config, given)
    np.testing.assert_allclose(found[0], loss, rtol=1e-5)
    close(found[1][0], sums)


# A head that is the identity shows the states that it stands on.
SHOWN = {head: {"kernel": jnp.eye(32), "bias": jnp.zeros(32)} for head in CLASSES}


@functools.partial(jit, static_argnums=(0, 4))
def states(config, params, key, batch, freeze_encoder=False):
    with encoded_once():
        return {
            head: losses.task_logits(config, params, batch, head=head, key=key, freeze_encoder=freeze_encoder) for head in CLASSES
        }


@pytest.mark.parametrize(
    ("hidden", "classifier", "freeze_encoder", "expected"),
    [(0.25, None, False, 0.25), (0.25, 0.0, False, 0.0), (0.0, 0.5, False, 0.5), (0.25, None, True, 0.25)],
)
def test_dropout_is_applied_before_every_head_but_question_answering(hidden, classifier, freeze_encoder, expected):
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=hidden, classifier_dropout=classifier)
    params, batch = params_of(CONFIG) | SHOWN, batches(packed=False)["sequence_classification"]
    real = batch["segment_ids"] > 0
    found = jax.device_get(states(config, params, jax.random.key(3), batch, freeze_encoder))
    whole = jax.device_get(states(CONFIG, params, None, batch))
    for head, values in found.items():
        mine, plain = (values[real], whole[head][real]) if head in heads.TOKEN_HEADS else (values, whole[head])
        dropped, rate = mine == 0, 0.0 if head == "question_answering" else expected
        assert not (plain == 0).any()
        assert abs(dropped.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / dropped.size), head
        if freeze_encoder or hidden == 0:
            # What is not dropped is that much larger, and the encoder has no dropout of its own.
            np.testing.assert_allclose(mine[~dropped], plain[~dropped] / (1 - rate), rtol=1e-5, err_msg=head)
        else:
            assert np.abs(mine[~dropped] - plain[~dropped] / (1 - rate)).max() > 1e-3


def test_dropout_differs_between_keys_and_follows_the_rows_first_example():
    config = dataclasses.replace(CONFIG, classifier_dropout=0.5)
    params, batch = params_of(CONFIG) | SHOWN, batches(packed=False)["sequence_classification"]
    count = len(EXAMPLES["sequence_classification"])
    order = np.append(np.arange(count)[::-1], np.arange(count, ROWS))
    moved = {name: value[order] for name, value in batch.items()}
    first, second = (jax.device_get(states(config, params, jax.random.key(key), batch)) for key in (0, 1))
    other = jax.device_get(states(config, params, jax.random.key(0), moved))
    for head in ("sequence_classification", "token_classification"):
        assert ((first[head] == 0) != (second[head] == 0)).mean() > 0.3
        real = slice(None) if head == "sequence_classification" else batch["segment_ids"] > 0
        np.testing.assert_allclose(other[head][np.argsort(order)][real], first[head][real], rtol=1e-5, atol=1e-6)
        # Rows are not dropped alike.
        assert ((first[head][0] == 0) != (first[head][1] == 0)).mean() > 0.3

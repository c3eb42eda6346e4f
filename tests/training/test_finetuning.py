"""Fine-tuning runs: resuming is exact, runs stop when they should, and start from the right parts of the pretrained model."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import bert_jax
from bert_jax import tokenizers
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.errors import UserError
from bert_jax.inference.predictor import Predictor
from bert_jax.models.heads import init_params
from bert_jax.tasks import registry
from bert_jax.training import losses, optimizers, scoring, step, trainer
from bert_jax.training.finetuning import finetune
from bert_jax.training.job import Result
from tests.conftest import MODEL, files_below
from tests.runs import TASK_DATA, config_of, interrupt_at, lines_of, log_every_step, one_device, save_model, write_data

# Compilation takes three minutes.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data", "classify")


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """Kind of data -> 16 training examples of it; 4 documents for named entities."""
    directory = tmp_path_factory.mktemp("small_data")

    def make(kind):
        path = directory / kind
        return str(path) if path.exists() else write_data(path, kind, train=4 if kind == "ner" else 16, dev=7)

    return make


def record_states(patch):
    """Record the last state of each run; returns a function that returns the latest one."""
    states, original = [], trainer.Trainer.run

    def run(self, stop):
        result = original(self, stop)
        states.append(jax.device_get(self.state))
        return result

    patch.setattr(trainer.Trainer, "run", run)
    return lambda: states[-1]


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_all_differ(actual, expected):
    """Every array differs."""
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, actual, expected)))


def kernels(tree):
    """Arrays with random initial values; the others start as zeros or ones."""
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if "kernel" in jax.tree_util.keystr(path)]


# Resuming.


def resumable_config(init, data, run, **changes):
    """Six steps with dropout and two evaluations."""
    usual = {"epochs": 1.0, "eval_every": 0.5, "dropout": 0.2, "keep": 9}
    return config_of("classify", init, data, run, **(usual | changes))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, init, data):
    """The config of a run of six steps that was not interrupted, and its last state."""
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        log_every_step(patch)
        state = record_states(patch)
        config = resumable_config(init, data, tmp_path_factory.mktemp("unbroken") / "run")
        finetune(config)
        return config, state()


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGINT, 4)])
def test_interrupted_and_resumed_equals_unbroken_bit_for_bit(unbroken, init, data, tmp_path, monkeypatch, number, at):
    one_device(monkeypatch)
    log_every_step(monkeypatch)
    state, config = record_states(monkeypatch), resumable_config(init, data, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, at, lambda: os.kill(os.getpid(), number))
        stopped = finetune(config)
    assert stopped.signal == number
    assert at <= stopped.step <= at + 1
    result = finetune(config)
    assert (result.step, result.signal) == (6, None)
    assert_equal(state(), unbroken[1])
    for split in ("train", "dev"):
        assert lines_of(config.run, split) == lines_of(unbroken[0].run, split)
    assert_equal(bert_jax.load(config.run).params, bert_jax.load(unbroken[0].run).params)


def test_an_evaluation_that_a_signal_stopped_is_repeated(unbroken, init, data, tmp_path, monkeypatch):
    one_device(monkeypatch)
    state, config = record_states(monkeypatch), resumable_config(init, data, tmp_path / "run")
    original = scoring.once

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "once", interrupted)
        stopped = finetune(config)
    assert (stopped.step, stopped.signal) == (3, signal.SIGTERM)
    assert lines_of(config.run) == []
    assert not (epath.Path(config.run) / "best").exists()
    finetune(config)
    assert_equal(state(), unbroken[1])
    assert lines_of(config.run) == lines_of(unbroken[0].run)


def contents_of(path):
    """Sizes and times of the files of a run by name, and the contents of those that every start writes again."""
    written = ("config.json", "metrics.jsonl", "goodput.jsonl")
    files = {}
    for file in Path(path).rglob("*"):
        if file.is_file() and "tensorboard" not in file.parts and file.name not in written:
            files[str(file)] = (file.stat().st_size, file.stat().st_mtime)
    return files, [(Path(path) / name).read_text() for name in written]


def test_a_complete_run_is_not_changed(unbroken, monkeypatch, capsys):
    one_device(monkeypatch)
    interrupt_at(monkeypatch, 1, lambda: pytest.fail("a step was taken"))
    before = contents_of(unbroken[0].run)
    result = finetune(unbroken[0])
    assert "is complete at step 6." in capsys.readouterr().err
    assert (result.step, result.signal) == (6, None)
    last_line = lines_of(unbroken[0].run)[-1]
    assert result.held_out == {name: value for name, value in last_line.items() if name not in ("step", "split")}
    assert contents_of(unbroken[0].run) == before


def test_another_config_is_refused_except_for_the_free_fields(unbroken, monkeypatch, capsys, init, tmp_path):
    one_device(monkeypatch)
    config = unbroken[0]
    for change, sentence in (
        ({"epochs": 2.0}, "epochs: 1.0 -> 2.0"),
        ({"learning_rates": (1e-4,)}, r"learning_rates: \(0.003,\) -> \(0.0001,\)"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"task_data": dataclasses.replace(TASK_DATA, sequence_length=20)}, "task_data.sequence_length: 24 -> 20"),
        ({"model": dataclasses.replace(config.model, dropout=0.1)}, "model.dropout: 0.2 -> 0.1"),
        ({"optim": dataclasses.replace(config.optim, weight_decay=0.1)}, "optim.weight_decay: 0.01 -> 0.1"),
        ({"seeds": 2}, "seeds: 1 -> 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            finetune(dataclasses.replace(config, **change))
    shutil.copytree(init, tmp_path / "moved")
    shutil.copytree(config.data, tmp_path / "data")
    for change in (
        {"keep": 2},
        {"patience": 7},
        {"eval_every": 3.0},
        {"runs_per_device": 1},
        {"model": dataclasses.replace(config.model, attention="reference")},
        {"init": str(tmp_path / "moved"), "data": str(tmp_path / "data")},
    ):
        assert finetune(dataclasses.replace(config, **change)).step == 6
        assert "is complete at step 6." in capsys.readouterr().err
    finetune(config)


def test_other_data_are_refused(unbroken, tmp_path, monkeypatch):
    """Other development examples too, by which another model could be the best."""
    one_device(monkeypatch)
    for name, seed, sizes in (("all", 1, {}), ("train", 0, {"train": 97}), ("dev", 0, {"dev": 36})):
        other = write_data(tmp_path / name, "classify", seed=seed, **sizes)
        with pytest.raises(UserError, match=r"was started with other data; restore its data, or choose another run directory\.$"):
            finetune(dataclasses.replace(unbroken[0], data=other))


def test_other_names_of_the_classes_are_other_data(unbroken, tmp_path, monkeypatch):
    """Otherwise the model would be saved with names that it was not trained on."""
    one_device(monkeypatch)
    other = tmp_path / "renamed"
    shutil.copytree(unbroken[0].data, other)
    for path in other.iterdir():
        path.write_text(path.read_text().replace("yes\t", "wet\t").replace("no\t", "dry\t"))
    with pytest.raises(UserError, match="started with other data"):
        finetune(dataclasses.replace(unbroken[0], data=str(other)))


# The best model, early stopping, and the length of a run.


def script_scores(patch, accuracies):
    """Replace the scores of classification by these, in order, after 0.5 for the constant answer."""
    task_class, values = type(registry.get("classify")), iter([0.5, *accuracies])
    original = task_class.split

    def split(task, *args, **options):
        return original(task, *args, **options)._replace(score=lambda outputs: {"accuracy": next(values)})

    patch.setattr(task_class, "split", split)


def run_at(run, step):
    """A copy of a run with the checkpoint of one step only."""
    run = epath.Path(run)
    other = run.parent / f"{run.name}-{step}"
    shutil.copytree(run / "checkpoints" / str(step), other / "checkpoints" / str(step))
    return other


def test_the_best_model_is_kept_not_the_last(init, data, tmp_path, monkeypatch, quick):
    config = config_of("classify", init, data, tmp_path / "run", epochs=1.0, eval_every=0.17, keep=9)
    script_scores(monkeypatch, [0.2, 0.4, 0.8, 0.3, 0.8, 0.7])
    result = finetune(config)
    assert [line["accuracy"] for line in lines_of(config.run)] == [0.2, 0.4, 0.8, 0.3, 0.8, 0.7]
    assert (result.step, result.held_out["accuracy"]) == (6, 0.7)
    best = bert_jax.load(config.run)
    assert_equal(best.params, bert_jax.load(run_at(config.run, 3)).params)
    # Biases of keys have no gradient, so that they are equal at every step.
    later = bert_jax.load(run_at(config.run, 5))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, best.params, later.params)))
    assert best.labels == ("no", "yes")
    assert [path.name for path in (epath.Path(config.run) / "best" / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]


def test_early_stopping_is_final_until_patience_grows(init, data, tmp_path, monkeypatch, quick, capsys):
    config = config_of("classify", init, data, tmp_path / "run", epochs=1.0, eval_every=0.17, patience=2, keep=9)
    with monkeypatch.context() as patch:
        # An equal score does not count as better.
        script_scores(patch, [0.2, 0.6, 0.6, 0.5])
        result = finetune(config)
    assert (result.step, result.signal) == (4, None)
    assert "Early stopping at step 4: no better accuracy in 2 evaluations." in capsys.readouterr().err
    before = contents_of(config.run)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, lambda: pytest.fail("a step was taken"))
        again = finetune(config)
    assert "is complete at step 4." in capsys.readouterr().err
    assert (again.step, again.held_out) == (4, result.held_out)
    assert contents_of(config.run) == before
    # With more patience the run continues.
    with monkeypatch.context() as patch:
        script_scores(patch, [0.5, 0.9])
        assert finetune(dataclasses.replace(config, patience=3)).step == 5
    assert [line["accuracy"] for line in lines_of(config.run)] == [0.2, 0.6, 0.6, 0.5, 0.5]


def test_the_last_step_is_the_last_whole_batch(init, tmp_path, quick, monkeypatch, capsys):
    """29 examples in batches of 100: a hundred epochs are 29 batches, although 29 / 100 * 100 is less than 29 in float64."""
    data = write_data(tmp_path / "data", "classify", train=29, dev=7)
    for epochs, size, steps in ((1.0, 16, 1), (2.5, 8, 9), (100.0, 100, 29)):
        config = config_of("classify", init, data, tmp_path / f"{size}", epochs=epochs, batch_size=size)
        with monkeypatch.context() as patch:
            fit = mock.Mock(return_value=Result(0, None, None))
            patch.setattr("bert_jax.training.finetuning.fit", fit)
            finetune(config)
        job = fit.call_args.args[0]
        job.batches.close()
        assert (job.train.steps, f"{steps} steps" in capsys.readouterr().err) == (steps, True)


# The parts of the pretrained model that a run starts from.


def model_at_start(kind, init, data, run, **changes):
    """A run's model before training: that after one step with a learning rate of almost zero."""
    usual = {"epochs": 1.0, "learning_rates": (1e-30,), "batch_size": 1 if kind == "ner" else 16}
    finetune(config_of(kind, init, data, run, **(usual | changes)))
    return bert_jax.load(run)


def assert_unchanged(actual, expected):
    """Equal up to the step of `model_at_start`, which changes only values near 0."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-20), actual, expected)


CLASSES, SCORE, TAGS = "sequence_classification", "regression", "token_classification"


@pytest.mark.parametrize(
    ("kind", "heads", "labels", "kept"),
    [
        ("classify", {CLASSES: 2}, ("no", "yes"), True),
        ("classify", {CLASSES: 2}, ("yes", "no"), False),
        ("classify", {CLASSES: 2}, (), False),
        ("classify", {CLASSES: 3}, ("maybe", "no", "yes"), False),
        ("classify", {TAGS: 2, "mlm": 0, "nsp": 2}, ("no", "yes"), False),
        ("regress", {SCORE: 1}, (), True),
        ("regress", {CLASSES: 2}, ("no", "yes"), False),
    ],
)
def test_a_head_is_kept_only_for_the_same_outputs(kind, heads, labels, kept, tokenizer, small_data, tmp_path, quick, capsys):
    init = save_model(tmp_path / "model", tokenizer, heads=heads, labels=labels, seed=5)
    pretrained, model = bert_jax.load(init), model_at_start(kind, init, small_data(kind), tmp_path / "run")
    head = registry.get(kind).head
    assert f"{head} head ({'kept' if kept else 'new'});" in capsys.readouterr().err
    assert set(model.params) == {"bert", head}
    assert model.labels == (("no", "yes") if kind == "classify" else ())
    assert_unchanged(model.params["bert"], pretrained.params["bert"])
    if kept:
        assert_unchanged(model.params[head], pretrained.params[head])
    elif head in pretrained.params and pretrained.params[head]["kernel"].shape == model.params[head]["kernel"].shape:
        assert_all_differ(kernels(model.params[head]), kernels(pretrained.params[head]))


def test_rte_starts_from_the_encoder_of_mnli(init, small_data, tmp_path, quick):
    """The encoder of a run's best model, with a new head."""
    pretrained = model_at_start("mnli", init, small_data("mnli"), tmp_path / "mnli", learning_rates=(1e-3,))
    model = model_at_start("rte", tmp_path / "mnli", small_data("rte"), tmp_path / "rte")
    assert pretrained.labels == ("contradiction", "entailment", "neutral")
    assert model.labels == ("entailment", "not_entailment")
    assert_unchanged(model.params["bert"], pretrained.params["bert"])
    assert_all_differ(kernels(model.params["bert"]["layers"]), kernels(bert_jax.load(init).params["bert"]["layers"]))
    assert model.params[CLASSES]["bias"].shape == (2,)


def test_a_head_is_kept_together_with_its_bilstm(tokenizer, small_data, tmp_path, quick):
    """From a model with a BiLSTM, which the run's config does not mention."""
    labels = ("B-LOC", "B-PER", "O")
    init = save_model(tmp_path / "model", tokenizer, heads={TAGS: 3}, labels=labels, lstm_layers=1, pooler=False, seed=5)
    pretrained, model = bert_jax.load(init), model_at_start("ner", init, small_data("ner"), tmp_path / "run")
    assert_unchanged(model.params[TAGS], pretrained.params[TAGS])
    assert_unchanged(model.params["readout"], pretrained.params["readout"])


def test_a_run_starts_with_an_extended_vocabulary(tokenizer, init, small_data, tmp_path, quick):
    extension = tokenizers.extend(tokenizer, ["alphabravo golfhotel"] * 9, 2).tokenizer
    tokenizers.create(extension, tmp_path / "vocab")
    pretrained, vocab = bert_jax.load(init, vocab=tmp_path / "vocab"), str(tmp_path / "vocab")
    model = model_at_start("classify", init, small_data("classify"), tmp_path / "run", vocab=vocab)
    assert model.tokenizer.tokens == extension.tokens
    assert model.config.vocab_size == len(tokenizer.tokens) + 2
    assert_unchanged(model.params["bert"], pretrained.params["bert"])


def test_a_missing_pooler_is_initialized(tokenizer, small_data, tmp_path, quick):
    init = save_model(tmp_path / "model", tokenizer, pooler=False)
    pretrained, model = bert_jax.load(init), model_at_start("classify", init, small_data("classify"), tmp_path / "run")
    pooler = model.params["bert"].pop("pooler")
    assert np.abs(pooler["kernel"]).max() > 0
    assert_unchanged(model.params["bert"], pretrained.params["bert"])


def test_from_scratch_no_parameter_is_used(tokenizer, init, small_data, tmp_path, quick):
    other = save_model(tmp_path / "other", tokenizer, heads={CLASSES: 2}, labels=("no", "yes"), seed=9)

    def params(init, name, **changes):
        return model_at_start("classify", init, small_data("classify"), tmp_path / name, from_scratch=True, **changes).params

    first = params(init, "first")
    assert_equal(first, params(other, "second"))
    assert_all_differ(kernels(first["bert"]), kernels(bert_jax.load(init).params["bert"]))
    assert_all_differ(kernels(params(init, "third", seed=1)), kernels(first))


def test_top_layers_and_the_pooler_are_reinitialized(init, small_data, tmp_path, quick):
    pretrained = bert_jax.load(init)
    model = model_at_start("classify", init, small_data("classify"), tmp_path / "run", reinit_layers=1)
    before, after = pretrained.params["bert"], model.params["bert"]
    assert_unchanged(after["embeddings"], before["embeddings"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(after["layers"]):
        old = functools.reduce(lambda tree, key: tree[key.key], path, before["layers"])
        np.testing.assert_allclose(leaf[:-1], old[:-1], rtol=0, atol=1e-20)
        if "kernel" in jax.tree_util.keystr(path):
            assert not np.isclose(leaf[-1], old[-1]).any(-1).all()
    assert_all_differ(kernels(after["pooler"]), kernels(before["pooler"]))
    # The model's initializer_range is 0.2; the normal distribution is truncated at two standard deviations.
    assert 0.15 < np.std(after["layers"]["ffn"]["inner"]["kernel"][-1]) < 0.2


@pytest.mark.parametrize("kind", ["classify", "ner"])
def test_a_frozen_encoder_does_not_change(kind, init, small_data, tmp_path, quick):
    """The feature-based approach; for named entities with a BiLSTM."""
    changes = {"lstm_layers": 1, "states": "second_to_last"} if kind == "ner" else {}
    run, data = tmp_path / "run", small_data(kind)
    config = config_of(kind, init, data, run, freeze_encoder=True, dropout=0.1, batch_size=4, **changes)
    finetune(config)
    pretrained, model = bert_jax.load(init), bert_jax.load(config.run)
    for part in ("embeddings", "layers"):
        assert_equal(model.params["bert"][part], pretrained.params["bert"][part])
    if kind == "classify":
        assert_all_differ(model.params["bert"]["pooler"], pretrained.params["bert"]["pooler"])
    else:
        assert set(model.params) == {"bert", TAGS, "readout"}
        assert model.config.states == "second_to_last"
        assert Predictor.load(config.run).evaluate(config.data)["dev"]["f1"] == max(line["f1"] for line in lines_of(config.run))
    # The head is trained.
    head, outputs = (CLASSES, 2) if kind == "classify" else (TAGS, 3)
    initial = init_params(model.config, jax.random.fold_in(jax.random.key(0), 0), heads={head: outputs})
    assert_all_differ(model.params[head], initial[head])


def test_a_bilstm_answers_questions(init, small_data, tmp_path, quick):
    config = config_of("squad", init, small_data("squad"), tmp_path / "run", lstm_layers=1, states="sum_all")
    finetune(config)
    model = bert_jax.load(config.run)
    assert (model.config.states, model.config.lstm_layers) == ("sum_all", 1)
    # The weights of the hidden states are equal at first, and are trained.
    assert np.ptp(model.params["readout"]["weights"]) > 0
    assert Predictor.load(config.run).evaluate(config.data)["dev"]["f1"] == max(line["f1"] for line in lines_of(config.run))


@pytest.mark.parametrize("kind", ["classify", "ner"])
def test_a_causal_model_is_finetuned(kind, tokenizer, tmp_path, quick):
    """Its pooler reads the last token, which attends to all others; tags need only the token itself."""
    init = save_model(tmp_path / "model", tokenizer, causal=True)
    config = config_of(kind, init, write_data(tmp_path / "data", kind), tmp_path / "run", epochs=6.0)
    finetune(config)
    assert bert_jax.load(config.run).config.causal
    main, scores = registry.get(kind).main_score, Predictor.load(config.run).evaluate(config.data)["dev"]
    assert scores[main] == max(line[main] for line in lines_of(config.run)) > 0.85


# Configs and their changes to the model.


def test_dropout_is_the_models_unless_it_is_set():
    """It replaces classifier_dropout, too."""
    model = dataclasses.replace(MODEL, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, classifier_dropout=0.5)

    def changed(**changes):
        return config_of("classify", "init", "data", "run", **changes).model_config(model)

    assert changed(dropout=None) == dataclasses.replace(model, layers="scan")
    for rate, attention in ((0.0, "xla"), (0.4, "auto")):
        rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate, "classifier_dropout": None}
        expected = dataclasses.replace(model, layers="scan", attention=attention, **rates)
        assert changed(dropout=rate, attention=attention) == expected


@pytest.mark.parametrize("freeze_encoder", [False, True])
@pytest.mark.parametrize("name", ["bert_adam", "adamw", "lamb", "muon", "schedule_free"])
def test_every_optimizer_trains_a_head_with_a_bilstm(name, freeze_encoder):
    """Only traces the step, which keeps the shapes and dtypes of the state."""
    model = dataclasses.replace(MODEL, lstm_layers=1, states="sum_all")
    config = config_of("ner", "init", "data", "run", optimizer=name, freeze_encoder=freeze_encoder)
    optimizer = optimizers.make_optimizer(config.optim_config(10), 10)
    optimizer = optimizers.freeze_encoder(optimizer) if freeze_encoder else optimizer
    names = ("input_ids", "token_type_ids", "position_ids", "segment_ids", "labels")
    tokens = {field: jax.ShapeDtypeStruct((4, 24), jnp.int32) for field in names}
    slots = {field: jax.ShapeDtypeStruct((4, 2), jnp.int32) for field in ("example_ids", "cls_positions")}
    batch = tokens | slots | {"weights": jax.ShapeDtypeStruct((4, 24), jnp.float32)}

    def init_state():
        params = init_params(model, jax.random.key(0), heads={TAGS: 3}, pooler=False)
        return step.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(jax.random.key(0)))

    sums = functools.partial(losses.task, model, head=TAGS, freeze_encoder=freeze_encoder)
    train_step = step.make_train_step(step.Objective(weights={"task_loss": "weights"}, sums=sums), optimizer)
    before = jax.eval_shape(init_state)
    after, metrics = jax.eval_shape(train_step, before, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before)
    assert set(metrics) == {"loss", "task_loss", "accuracy", "grad_norm"}


REFUSED = {
    "no model": ({"init": "{tmp}/none"}, "There is no model .*none; give a directory"),
    "no vocabulary": ({"init": "{tmp}/nameless"}, "The model has no vocabulary; put its vocab.txt beside the weights"),
    "no data": ({"data": "{tmp}/none"}, "There is no train split at .*none"),
    "an empty directory": ({"data": "{tmp}/empty"}, "There is no train split at .*empty"),
    "no dev split": ({"data": "{tmp}/undeveloped"}, "There is no dev split at .*undeveloped"),
    "no batch": ({"data": "{tmp}/few", "epochs": 1.0}, "9 examples make no batch of 16 in 1.0 epochs; use a smaller --batch-size"),
    "too long": (
        {"task_data": dataclasses.replace(TASK_DATA, sequence_length=65)},
        "length of 65 tokens exceeds the model's 64 positions; use 64 or fewer",
    ),
    "no run": ({"run": "{tmp}/taken"}, "taken exists and is not a run; choose another run directory"),
    "another column": (
        {"task_data": dataclasses.replace(TASK_DATA, label="topic")},
        "train.tsv has no column 'topic' but 'label', 'text'",
    ),
    "another task": ({"task": "rte"}, "rte has the columns 'sentence1', 'sentence2', 'label', this file has 'label', 'text'"),
    "no such label": ({"data": "{tmp}/unknown"}, r"dev.tsv, line 39: the label 'perhaps' is none of 'no', 'yes'\."),
    "attention": ({"attention": "cudnn"}, "needs a GPU"),
    "dropout": ({"attention": "xla", "dropout": 0.1}, "xla has no dropout"),
    "mesh": ({"mesh": MeshConfig(1, 3, 1)}, "does not cover"),
    "layer decay 0": ({"layer_decay": 0.0}, "optim.layer_decay is 0"),
    "layer decay 1.5": ({"layer_decay": 1.5}, "optim.layer_decay is 1.5"),
    "weight decay": ({"weight_decay": -1.0}, "optim.weight_decay is -1"),
    "a BiLSTM": ({"lstm_layers": -1}, "lstm_layers is -1"),
    "fresh layers": ({"reinit_layers": 3}, "reinit_layers is 3; the model has 2 layers"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory, init):
    """The files that REFUSED names."""
    path = tmp_path_factory.mktemp("refused")
    bert_jax.save(dataclasses.replace(bert_jax.load(init), tokenizer=None), path / "nameless", to="orbax")
    for name in ("taken", "empty"):
        (path / name).mkdir()
    (path / "taken" / "mine").write_text("mine")
    for name in ("few", "undeveloped", "unknown"):
        write_data(path / name, "classify", train=9 if name == "few" else 16)
    (path / "undeveloped" / "dev.tsv").unlink()
    with open(path / "unknown" / "dev.tsv", "a") as file:
        file.write("perhaps\talpha bravo\n")
    return str(path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_is_refused_writes_nothing(name, refused, init, small_data, tmp_path, quick):
    """Otherwise the directory would contain a run with a config that cannot be corrected."""
    changes, sentence = REFUSED[name]
    changes = {key: value.format(tmp=refused) if isinstance(value, str) else value for key, value in changes.items()}
    usual = {"task": "classify", "init": init, "data": small_data("classify"), "run": tmp_path / "run", "epochs": 1.0}
    arguments = usual | changes
    before = files_below(arguments["run"])
    with pytest.raises(UserError, match=sentence) as caught:
        finetune(config_of(**arguments))
    assert "\n" not in str(caught.value)
    assert Path(arguments["run"]).exists() == (name == "no run")
    assert files_below(arguments["run"]) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rates": ()}, "learning_rates is empty; give at least one"),
        ({"learning_rates": (1e-3, 0.0)}, "A learning rate is 0"),
        ({"peak_lr": 1e-3}, r"optim.peak_lr is 0.001; .* --learning-rates"),
        ({"warmup_steps": 10}, r"optim.warmup_steps is 10; .* --warmup-ratio"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": 2, "parallel": "pmap"}, "leave out --mesh, --parallel and --distributed"),
        ({"runs_per_device": 0}, "runs_per_device is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"epochs": 0.0}, "epochs is 0"),
        ({"warmup_ratio": 1.5}, "warmup_ratio is 1.5"),
        ({"dropout": 1.5}, "model.dropout is 1.5"),
        ({"freeze_encoder": True, "reinit_layers": 1}, "freeze_encoder trains no layer .* leave out .*--reinit-layers"),
        ({"freeze_encoder": True, "layer_decay": 0.9}, "freeze_encoder trains no layer .* leave out --optim.layer-decay"),
        ({"reinit_layers": -1}, "reinit_layers is -1"),
        ({"states": "sum_all"}, "model.states is sum_all, which needs a BiLSTM"),
        ({"task": "ax"}, "AX has no training data"),
    ],
)
def test_an_invalid_config_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        config_of(**({"task": "classify", "init": "init", "data": "data", "run": "run"} | changes))


def test_a_config_is_restored_from_json():
    config = config_of("ner", "init", "data", "run", learning_rates=(1e-5, 3e-5), lstm_layers=2, states="sum_all", patience=3)
    assert FinetuneConfig.from_json(config.to_json()) == config
    assert config.num_runs == 2

"""Fine-tuning runs: resumed equals unbroken, stopped in time, begun from whatever the model brings along."""

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
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.run import MeshConfig
from bert_jax.errors import UserError
from bert_jax.inference.predictor import Asker
from bert_jax.models.heads import init_params
from bert_jax.tasks import registry
from bert_jax.training import losses, optimizers, step, trainer
from bert_jax.training.finetuning import finetune
from bert_jax.training.logging import read_metrics
from bert_jax.training.trainer import Result
from tests.conftest import MODEL
from tests.tasks.test_registry import READING, config_of, lines_of, log_every_step, one_device, quickly, save_model, write_data
from tests.training.test_pretraining import interrupt_at

# Three minutes of compilation.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def init(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data", "classify")


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    """Kind of data -> one batch of them."""
    directory = tmp_path_factory.mktemp("sixteen")

    def make(kind):
        path = directory / kind
        return str(path) if path.exists() else write_data(path, kind, train=4 if kind == "ner" else 16, dev=7)

    return make


@pytest.fixture
def quick():
    with quickly():
        yield


def whole(patch):
    """Keep the state of runs; called with nothing, what the last one ended with."""
    kept, original = [], trainer.Trainer.run

    def run(self, stop):
        result = original(self, stop)
        kept.append(jax.device_get(self.state))
        return result

    patch.setattr(trainer.Trainer, "run", run)
    return lambda: kept[-1]


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def differ(found, expected):
    """Every array differs."""
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


def kernels(tree):
    """Arrays that are made at random, not of zeros or ones."""
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if "kernel" in jax.tree_util.keystr(path)]


# Resuming.


def broken_up(init, data, run, **changes):
    """Six steps with dropout, two scores."""
    usual = {"epochs": 1.0, "eval_every": 0.5, "dropout": 0.2, "keep": 9}
    return config_of("classify", init, data, run, **(usual | changes))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, init, data):
    """A run of six steps, its lines and its last state."""
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        log_every_step(patch)
        state = whole(patch)
        config = broken_up(init, data, tmp_path_factory.mktemp("unbroken") / "run")
        finetune(config)
        return config, state()


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGINT, 4)])
def test_interrupted_and_resumed_equals_unbroken_bit_for_bit(unbroken, init, data, tmp_path, monkeypatch, number, at):
    one_device(monkeypatch)
    log_every_step(monkeypatch)
    state, config = whole(monkeypatch), broken_up(init, data, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, at, lambda: os.kill(os.getpid(), number))
        stopped = finetune(config)
    assert stopped.signal == number
    assert at <= stopped.step <= at + 1
    result = finetune(config)
    assert (result.step, result.signal) == (6, None)
    equal(state(), unbroken[1])
    for split in ("train", "dev"):
        assert lines_of(config.run, split) == lines_of(unbroken[0].run, split)
    equal(bert_jax.load(config.run).params, bert_jax.load(unbroken[0].run).params)


def test_a_signal_while_it_is_scored_is_made_up_for(unbroken, init, data, tmp_path, monkeypatch):
    one_device(monkeypatch)
    state, config = whole(monkeypatch), broken_up(init, data, tmp_path / "run")
    original = bert_jax.inference.predictor.once

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bert_jax.ask, "once", interrupted)
        stopped = finetune(config)
    assert (stopped.step, stopped.signal) == (3, signal.SIGTERM)
    assert lines_of(config.run) == []
    assert not (epath.Path(config.run) / "best").exists()
    finetune(config)
    equal(state(), unbroken[1])
    assert lines_of(config.run) == lines_of(unbroken[0].run)


def tree_of(path):
    """Names, sizes and times of all files that a run keeps, and what its metrics hold."""
    found = {}
    for file in Path(path).rglob("*"):
        if file.is_file() and "tensorboard" not in file.parts and file.name not in ("config.json", "metrics.jsonl"):
            found[str(file)] = (file.stat().st_size, file.stat().st_mtime)
    return found, read_metrics(path), (Path(path) / "config.json").read_text()


def test_a_complete_run_is_left_as_it_is(unbroken, monkeypatch, capsys):
    one_device(monkeypatch)
    interrupt_at(monkeypatch, 1, lambda: pytest.fail("a step was taken"))
    before = tree_of(unbroken[0].run)
    result = finetune(unbroken[0])
    assert "is complete at step 6." in capsys.readouterr().err
    assert (result.step, result.signal) == (6, None)
    assert {name: value for name, value in result.held_out.items()} == {
        name: value for name, value in lines_of(unbroken[0].run)[-1].items() if name not in ("step", "split")
    }
    assert tree_of(unbroken[0].run) == before


def test_another_config_is_refused_and_what_may_differ_is_not(unbroken, monkeypatch, capsys, init, tmp_path):
    one_device(monkeypatch)
    config = unbroken[0]
    for change, said in {
        "epochs": (2.0, "epochs: 1.0 -> 2.0"),
        "learning_rates": ((1e-4,), r"learning_rates: \(0.003,\) -> \(0.0001,\)"),
        "seed": (1, "seed: 0 -> 1"),
        "reading": (dataclasses.replace(READING, length=20), "reading.length: 24 -> 20"),
        "seeds": (2, "seeds: 1 -> 2"),
    }.items():
        with pytest.raises(UserError, match=said[1]):
            finetune(dataclasses.replace(config, **{change: said[0]}))
    shutil.copytree(init, tmp_path / "moved")
    shutil.copytree(config.data, tmp_path / "data")
    for change in (
        {"keep": 2},
        {"patience": 7},
        {"eval_every": 3.0},
        {"together": 1},
        {"init": str(tmp_path / "moved"), "data": str(tmp_path / "data")},
    ):
        assert finetune(dataclasses.replace(config, **change)).step == 6
        assert "is complete at step 6." in capsys.readouterr().err
    finetune(config)


def test_other_training_data_are_refused(unbroken, tmp_path, monkeypatch):
    one_device(monkeypatch)
    # Other development examples would choose another model as the best.
    for name, seed, sizes in (("all", 1, {}), ("train", 0, {"train": 97}), ("dev", 0, {"dev": 36})):
        other = write_data(tmp_path / name, "classify", seed=seed, **sizes)
        with pytest.raises(UserError, match=r"was begun on other data; give it back its own, or choose another run directory\.$"):
            finetune(dataclasses.replace(unbroken[0], data=other))


def test_other_names_of_the_classes_are_other_data(unbroken, tmp_path, monkeypatch):
    """The model would be kept with names that it was not trained for."""
    one_device(monkeypatch)
    other = tmp_path / "renamed"
    shutil.copytree(unbroken[0].data, other)
    for path in other.iterdir():
        path.write_text(path.read_text().replace("yes\t", "wet\t").replace("no\t", "dry\t"))
    with pytest.raises(UserError, match="other data"):
        finetune(dataclasses.replace(unbroken[0], data=str(other)))


# When to stop, and what to keep.


def scripted(patch, accuracies):
    """Scores as they are written here, one after the other; the first is that of the constant answer."""
    original, values = registry.split, iter([0.5, *accuracies])
    patch.setattr(
        registry, "split", lambda *args, **more: original(*args, **more)._replace(score=lambda outputs: {"accuracy": next(values)})
    )


def steps_of(run, step):
    """A run as it was when a step was its newest."""
    run = epath.Path(run)
    other = run.parent / f"{run.name}-{step}"
    shutil.copytree(run / "checkpoints" / str(step), other / "checkpoints" / str(step))
    return other


def test_the_best_model_is_kept_not_the_last(init, data, tmp_path, monkeypatch, quick):
    config = config_of("classify", init, data, tmp_path / "run", epochs=1.0, eval_every=0.17, keep=9)
    scripted(monkeypatch, [0.2, 0.4, 0.8, 0.3, 0.8, 0.7])
    result = finetune(config)
    assert [line["accuracy"] for line in lines_of(config.run)] == [0.2, 0.4, 0.8, 0.3, 0.8, 0.7]
    assert (result.step, result.held_out["accuracy"]) == (6, 0.7)
    best = bert_jax.load(config.run)
    equal(best.params, bert_jax.load(steps_of(config.run, 3)).params)
    # All but the biases of keys, which a softmax does not see.
    assert any(not np.array_equal(a, b) for a, b in zip(
        jax.tree.leaves(best.params), jax.tree.leaves(bert_jax.load(steps_of(config.run, 5)).params), strict=True
    ))  # fmt: skip
    assert best.labels == ("no", "yes")
    assert [path.name for path in (epath.Path(config.run) / "best" / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]


def test_without_hope_a_run_ends_and_does_not_go_on(init, data, tmp_path, monkeypatch, quick, capsys):
    config = config_of("classify", init, data, tmp_path / "run", epochs=1.0, eval_every=0.17, patience=2, keep=9)
    with monkeypatch.context() as patch:
        # An equal score is no better one.
        scripted(patch, [0.2, 0.6, 0.6, 0.5])
        result = finetune(config)
    assert (result.step, result.signal) == (4, None)
    assert "No better accuracy for 2 evaluations: the run ends at step 4." in capsys.readouterr().err
    before = tree_of(config.run)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, lambda: pytest.fail("a step was taken"))
        again = finetune(config)
    assert "is complete at step 4." in capsys.readouterr().err
    assert (again.step, again.held_out) == (4, result.held_out)
    assert tree_of(config.run) == before
    # With more patience it goes on.
    with monkeypatch.context() as patch:
        scripted(patch, [0.5, 0.9])
        assert finetune(dataclasses.replace(config, patience=3)).step == 5
    assert [line["accuracy"] for line in lines_of(config.run)] == [0.2, 0.6, 0.6, 0.5, 0.5]


def test_the_last_step_is_the_last_whole_batch(init, tmp_path, quick, monkeypatch, capsys):
    """29 examples in batches of 100: a hundred epochs are 29 batches, although 29 / 100 * 100 is less in float64."""
    data = write_data(tmp_path / "data", "classify", train=29, dev=7)
    for epochs, size, steps in ((1.0, 16, 1), (2.5, 8, 9), (100.0, 100, 29)):
        config = config_of("classify", init, data, tmp_path / f"{size}", epochs=epochs, batch_size=size)
        with monkeypatch.context() as patch:
            fit = mock.Mock(return_value=Result(0, None, None))
            patch.setattr("bert_jax.training.finetuning.fit", fit)
            finetune(config)
        work = fit.call_args.args[0]
        work.batches.close()
        assert (work.train.steps, f"{steps} steps" in capsys.readouterr().err) == (steps, True)


# What a model brings along.


def begun(kind, init, data, run, capsys=None, **changes):
    """Parameters before the first step: one step is taken whose rate is next to nothing."""
    usual = {"epochs": 1.0, "learning_rates": (1e-30,), "batch_size": 1 if kind == "ner" else 16}
    finetune(config_of(kind, init, data, run, **(usual | changes)))
    return bert_jax.load(run)


def near(found, expected):
    """Equal but for 1e-30, which is seen beside a 0 only."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-20), found, expected)


@pytest.mark.parametrize(
    ("kind", "head", "labels", "kept"),
    [
        ("classify", {"classify": 2}, ("no", "yes"), True),
        ("classify", {"classify": 2}, ("yes", "no"), False),
        ("classify", {"classify": 2}, (), False),
        ("classify", {"classify": 3}, ("maybe", "no", "yes"), False),
        ("classify", {"tag": 2, "mlm": 0, "nsp": 2}, ("no", "yes"), False),
        ("regress", {"regress": 1}, (), True),
        ("regress", {"classify": 2}, ("no", "yes"), False),
    ],
)
def test_a_head_is_kept_that_says_what_is_asked(kind, head, labels, kept, tokenizer, sixteen, tmp_path, quick, capsys):
    init = save_model(tmp_path / "model", tokenizer, heads=head, labels=labels, seed=5)
    given, found = bert_jax.load(init), begun(kind, init, sixteen(kind), tmp_path / "run")
    assert f"{kind} head, {'taken over' if kept else 'fresh'};" in capsys.readouterr().err
    assert set(found.params) == {"bert", kind}
    assert found.labels == (("no", "yes") if kind == "classify" else ())
    near(found.params["bert"], given.params["bert"])
    if kept:
        near(found.params[kind], given.params[kind])
    elif kind in given.params and given.params[kind]["kernel"].shape == found.params[kind]["kernel"].shape:
        differ(kernels(found.params[kind]), kernels(given.params[kind]))


def test_rte_begins_with_the_encoder_of_mnli(init, sixteen, tmp_path, quick):
    """The encoder of the best model of a run, and a head of its own."""
    begun("mnli", init, sixteen("mnli"), tmp_path / "mnli", learning_rates=(1e-3,))
    given, found = (bert_jax.load(tmp_path / "mnli"), begun("rte", tmp_path / "mnli", sixteen("rte"), tmp_path / "rte"))
    assert (given.labels, found.labels) == (("contradiction", "entailment", "neutral"), ("entailment", "not_entailment"))
    near(found.params["bert"], given.params["bert"])
    differ(kernels(found.params["bert"]["layers"]), kernels(bert_jax.load(init).params["bert"]["layers"]))
    assert found.params["classify"]["bias"].shape == (2,)


def test_a_head_is_kept_with_what_it_stands_on(tokenizer, sixteen, tmp_path, quick):
    """Of a model with a BiLSTM, such as a run of its own."""
    init = save_model(
        tmp_path / "model", tokenizer, heads={"tag": 3}, labels=("B-LOC", "B-PER", "O"), lstm_layers=1, pooler=False, seed=5
    )
    given, found = bert_jax.load(init), begun("ner", init, sixteen("ner"), tmp_path / "run")
    near(found.params["tag"], given.params["tag"])
    near(found.params["readout"], given.params["readout"])


def test_a_pooler_that_is_not_there_is_made(tokenizer, sixteen, tmp_path, quick):
    init = save_model(tmp_path / "model", tokenizer, pooler=False)
    given, found = bert_jax.load(init), begun("classify", init, sixteen("classify"), tmp_path / "run")
    pooler = found.params["bert"].pop("pooler")
    assert np.abs(pooler["kernel"]).max() > 0
    near(found.params["bert"], given.params["bert"])


def test_from_scratch_only_the_shape_counts(tokenizer, init, sixteen, tmp_path, quick):
    other = save_model(tmp_path / "other", tokenizer, heads={"classify": 2}, labels=("no", "yes"), seed=9)
    found = [
        begun("classify", path, sixteen("classify"), tmp_path / name, scratch=True).params
        for name, path in (("a", init), ("b", other))
    ]
    equal(found[0], found[1])
    differ(kernels(found[0]["bert"]), kernels(bert_jax.load(init).params["bert"]))
    reseeded = begun("classify", init, sixteen("classify"), tmp_path / "c", scratch=True, seed=1).params
    differ(kernels(reseeded), kernels(found[0]))


def test_top_layers_and_the_pooler_begin_afresh(init, sixteen, tmp_path, quick):
    given = bert_jax.load(init)
    found = begun("classify", init, sixteen("classify"), tmp_path / "run", reinit_layers=1)
    before, after = (dict(model.params["bert"]) for model in (given, found))
    near(after["embeddings"], before["embeddings"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(after["layers"]):
        old = functools.reduce(lambda tree, key: tree[key.key], path, before["layers"])
        np.testing.assert_allclose(leaf[:-1], old[:-1], rtol=0, atol=1e-20)
        if "kernel" in jax.tree_util.keystr(path):
            assert not np.isclose(leaf[-1], old[-1]).any(-1).all()
    differ(kernels(after["pooler"]), kernels(before["pooler"]))
    # As they are made, by the model's own range.
    assert 0.15 < np.std(after["layers"]["ffn"]["inner"]["kernel"][-1]) < 0.2


@pytest.mark.parametrize("kind", ["classify", "ner"])
def test_a_frozen_encoder_stays_bit_for_bit(kind, init, sixteen, tmp_path, quick):
    """The feature-based approach; of entities with a BiLSTM."""
    more = {"lstm_layers": 1, "states": "second_to_last"} if kind == "ner" else {}
    config = config_of(kind, init, sixteen(kind), tmp_path / "run", frozen=True, dropout=0.1, batch_size=4, **more)
    finetune(config)
    given, found = bert_jax.load(init), bert_jax.load(config.run)
    for part in ("embeddings", "layers"):
        equal(found.params["bert"][part], given.params["bert"][part])
    if kind == "classify":
        differ(found.params["bert"]["pooler"], given.params["bert"]["pooler"])
    else:
        assert set(found.params) == {"bert", "tag", "readout"}
        assert found.config.states == "second_to_last"
        assert Asker.load(config.run).evaluate(config.data)["dev"]["f1"] == max(line["f1"] for line in lines_of(config.run))
    plain = init_params(
        found.config, jax.random.fold_in(jax.random.key(0), 0), heads={kind: 2} if kind == "classify" else {"tag": 3}
    )
    head = "classify" if kind == "classify" else "tag"
    differ(found.params[head], plain[head])


def test_a_bilstm_answers_questions(init, sixteen, tmp_path, quick):
    config = config_of("squad", init, sixteen("squad"), tmp_path / "run", lstm_layers=1, states="sum_all")
    finetune(config)
    found = bert_jax.load(config.run)
    assert (found.config.states, found.config.lstm_layers) == ("sum_all", 1)
    # All states have begun with one share, and have learned.
    assert np.ptp(found.params["readout"]["weights"]) > 0
    assert Asker.load(config.run).evaluate(config.data)["dev"]["f1"] == max(line["f1"] for line in lines_of(config.run))


@pytest.mark.parametrize("kind", ["classify", "ner"])
def test_a_causal_model_is_tuned(kind, tokenizer, tmp_path, quick):
    """Its pooler reads the last piece, which alone has seen the others; entities are known by their own word."""
    init = save_model(tmp_path / "model", tokenizer, causal=True)
    config = config_of(kind, init, write_data(tmp_path / "data", kind), tmp_path / "run", epochs=6.0)
    finetune(config)
    assert bert_jax.load(config.run).config.causal
    main = registry.main_score(kind)
    assert Asker.load(config.run).evaluate(config.data)["dev"][main] == max(line[main] for line in lines_of(config.run)) > 0.85


def test_dropout_is_the_models_own_unless_it_is_given(tokenizer):
    """The model's classifier_dropout falls with it."""
    model = dataclasses.replace(MODEL, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, classifier_dropout=0.5)
    own, none, much = (
        config_of("classify", "init", "data", "run", dropout=dropout, attention="xla" if dropout == 0 else "auto").model(model)
        for dropout in (None, 0.0, 0.4)
    )
    assert own == dataclasses.replace(model, layers="scan")
    assert (none.hidden_dropout_prob, none.attention_probs_dropout_prob, none.classifier_dropout, none.attention) == (
        0,
        0,
        None,
        "xla",
    )
    assert (much.hidden_dropout_prob, much.attention_probs_dropout_prob, much.classifier_dropout) == (0.4, 0.4, None)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["bert_adam", "adamw", "lamb", "muon", "schedule_free"])
def test_every_optimizer_takes_steps_of_every_head(name, frozen):
    """Shapes alone: what fails fails when it is traced."""
    model = dataclasses.replace(MODEL, lstm_layers=1, states="sum_all")
    config = config_of("ner", "init", "data", "run", optimizer=name, frozen=frozen)
    optimizer = optimizers.make_optimizer(config.optim(10), 10)
    optimizer = optimizers.frozen(optimizer) if frozen else optimizer
    wide = {field: jax.ShapeDtypeStruct((4, 24), jnp.int32) for field in ("ids", "types", "positions", "segments", "labels")}
    slots = {field: jax.ShapeDtypeStruct((4, 2), jnp.int32) for field in ("examples", "cls_positions")}
    batch = wide | slots | {"weights": jax.ShapeDtypeStruct((4, 24), jnp.float32)}

    def begin():
        params = init_params(model, jax.random.key(0), heads={"tag": 3}, pooler=False)
        return step.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(jax.random.key(0)))

    sums = functools.partial(losses.task, model, head="tag", frozen=frozen)
    take = step.make_train_step(step.Objective(weights={"task_loss": "weights"}, sums=sums), optimizer)
    before = jax.eval_shape(begin)
    after, metrics = jax.eval_shape(take, before, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before)
    assert set(metrics) == {"loss", "task_loss", "accuracy", "grad_norm"}


# What is refused.


UNFIT = {
    "no model": ({"init": "{tmp}/none"}, "There is no model .*none; give a directory"),
    "no vocabulary": ({"init": "{tmp}/nameless"}, "nameless came without a vocabulary; put its vocab.txt beside the weights"),
    "no data": ({"data": "{tmp}/none"}, "There is no train split at .*none"),
    "an empty directory": ({"data": "{tmp}/empty"}, "There is no train split at .*empty"),
    "no dev split": ({"data": "{tmp}/undeveloped"}, "There is no dev split at .*undeveloped"),
    "no batch": ({"data": "{tmp}/one", "epochs": 1.0}, "9 examples make no batch of 16 in 1.0 epochs; use a smaller one"),
    "too long": ({"reading": dataclasses.replace(READING, length=65)}, "length of 65 pieces is above the model's 64 positions"),
    "taken": ({"run": "{tmp}/taken"}, "taken exists and is not a run; choose another --run"),
    "another column": (
        {"reading": dataclasses.replace(READING, label="topic")},
        "train.tsv has no column 'topic' but 'label', 'text'",
    ),
    "another task": ({"task": "rte"}, "rte has the columns 'sentence1', 'sentence2', 'label', this file has 'label', 'text'"),
    "no such label": ({"data": "{tmp}/unknown"}, r"dev.tsv, line 39: the label 'perhaps' is none of 'no', 'yes'\."),
    "attention": ({"attention": "cudnn"}, "needs a GPU"),
    "dropout": ({"attention": "xla", "dropout": 0.1}, "xla has no dropout"),
    "mesh": ({"mesh": MeshConfig(1, 3, 1)}, "does not cover"),
    "layer decay 0": ({"layer_decay": 0.0}, "layer_decay is 0"),
    "layer decay 1.5": ({"layer_decay": 1.5}, "layer_decay is 1.5"),
    "weight decay": ({"weight_decay": -1.0}, "weight_decay is -1"),
    "a BiLSTM": ({"lstm_layers": -1}, "lstm_layers is -1"),
    "fresh layers": ({"reinit_layers": 3}, "reinit_layers is 3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def unfit(tmp_path_factory, init):
    """What the names in UNFIT mean."""
    path = tmp_path_factory.mktemp("unfit")
    bert_jax.save(dataclasses.replace(bert_jax.load(init), tokenizer=None), path / "nameless", to="orbax")
    for name in ("taken", "empty"):
        (path / name).mkdir()
    (path / "taken" / "mine").write_text("mine")
    for name in ("one", "undeveloped", "unknown"):
        write_data(path / name, "classify", train=9 if name == "one" else 16)
    (path / "undeveloped" / "dev.tsv").unlink()
    with open(path / "unknown" / "dev.tsv", "a") as file:
        file.write("perhaps\talpha bravo\n")
    return str(path)


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_before_anything_is_written(name, unfit, init, sixteen, tmp_path, quick):
    changes, sentence = UNFIT[name]
    changes = {key: value.format(tmp=unfit) if isinstance(value, str) else value for key, value in changes.items()}
    usual = config_of("classify", init, sixteen("classify"), tmp_path / "run", epochs=1.0)
    with pytest.raises(UserError, match=sentence) as caught:
        finetune(dataclasses.replace(usual, **changes))
    assert "\n" not in str(caught.value)
    # Else the directory would be that of a run with a config that cannot be mended.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rates": ()}, "No learning rate"),
        ({"learning_rates": (1e-3, 0.0)}, "A learning rate"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": 2, "parallel": "pmap"}, "leave out mesh and parallel"),
        ({"together": 0}, "together is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"epochs": 0.0}, "epochs"),
        ({"warmup": 1.5}, "warmup"),
        ({"dropout": 1.5}, "dropout"),
        ({"frozen": True, "reinit_layers": 1}, "A frozen encoder has no learning rates and no fresh layers"),
        ({"frozen": True, "layer_decay": 0.9}, "A frozen encoder"),
        ({"reinit_layers": -1}, "reinit_layers"),
        ({"states": "sum_all"}, "states"),
        ({"task": "ax"}, "AX is only for evaluation"),
    ],
)
def test_a_config_that_means_nothing_is_refused(changes, sentence):
    usual = config_of("classify", "init", "data", "run")
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(usual, **changes)


def test_a_config_comes_back_from_json():
    config = config_of("ner", "init", "data", "run", learning_rates=(1e-5, 3e-5), lstm_layers=2, states="sum_all", patience=3)
    assert FinetuneConfig.from_json(config.to_json()) == config
    assert config.members == 2

"""Every kind of task, from its files to its scores: training, evaluation and prediction, on any mesh, packed or not."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import signal
from typing import get_args

import numpy as np
import pytest

import bert_jax
from bert_jax.config.finetuning import TaskDataConfig, TaskName
from bert_jax.config.mesh import MeshConfig
from bert_jax.errors import UserError
from bert_jax.inference.predictor import Predictor
from bert_jax.tasks import registry
from bert_jax.tasks.task import Task
from bert_jax.training import scoring
from bert_jax.training.finetuning import CONSTANT, finetune
from tests.runs import (
    TASK_DATA,
    config_of,
    interrupt_at,
    lines_of,
    log_every_step,
    num_correct,
    one_device,
    quickly,
    quickly_compiled,
    save_model,
    write_classify,
    write_data,
)

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_tasks_are_registered_by_their_names():
    assert [*registry.TASKS] == [task.name for task in registry.TASKS.values()]
    assert {*registry.TASKS} == {*get_args(TaskName)}
    for name, task in registry.TASKS.items():
        assert registry.get(name) is task
        assert isinstance(task, Task)
        assert task.perfect == (100.0 if task.head == "question_answering" else 1.0)
        assert task.dev_splits[0] == "dev"
    with pytest.raises(UserError, match="There is no task 'news'; choose one of classify, regress, multilabel, ner"):
        registry.get("news")


# Least main scores after 48 steps; that of a constant answer is far below.
LEARNED = {
    "classify": 0.9, "multilabel": 0.9, "regress": 0.8, "ner": 0.9, "pos": 0.9, "squad": 80.0, "squad2": 80.0, "swag": 0.9,
    "cola": 0.8, "mnli": 0.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, init):
    """A kind of data -> the config of a run on it, which is complete, and its result."""

    @functools.cache
    def make(kind):
        directory = tmp_path_factory.mktemp(kind)
        task, data = "classify" if kind == "pairs" else kind, write_data(directory / "data", kind)
        config = config_of(task, init, data, directory / "run", epochs=8.0, eval_every=2.5)
        with quickly():
            return config, finetune(config)

    return make


# One of each head, in `make test`.
HEADS = ("classify", "regress", "multilabel", "ner", "squad2", "swag")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in HEADS else pytest.mark.slow) for kind in (*LEARNED, "pairs", "rte")]
)
def test_every_kind_is_learned_scored_and_kept(kind, trained, quick):
    config, result = trained(kind)
    lines, main = lines_of(config.run), registry.get(config.task).main_score
    assert (lines[-1]["step"], result.signal) == (result.step, None)
    assert {name: value for name, value in lines[-1].items() if name not in ("step", "split")} == result.held_out
    if kind in LEARNED:
        assert lines[-1][main] >= LEARNED[kind] > lines[-1][CONSTANT] + 0.3
    # The kept model is the first of the best, and has the same scores as in the run.
    best = max(lines, key=lambda line: line[main])
    found = Predictor.load(config.run, threshold=0.0).evaluate(config.data)
    flat = found.pop("dev") | {f"{split}/{name}": value for split, scores in found.items() for name, value in scores.items()}
    assert flat | {CONSTANT: best[CONSTANT], "step": best["step"], "split": "dev"} == best
    assert set(found) == ({"dev_mismatched"} if kind == "mnli" else set())


def test_the_constant_answer_of_squad2_is_none(trained):
    """13 of 37 questions have no answer, so that is the score of a model that answers none."""
    assert lines_of(trained("squad2")[0].run)[-1][CONSTANT] == pytest.approx(100 * 13 / 37)


# As on one device, to 1e-5: dropout belongs to the rows' first examples, and sums are divided once.
WAYS = {
    "data": {},
    "mixed": {"mesh": MeshConfig(2, 2, 2)},
    "pmap": {"parallel": "pmap"},
    "accumulate": {"accumulate": 2},
}
ALIKE = {"sequence_length": 24}


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Texts of one length, three to a row: which texts share a row does not depend on the number of rows."""
    directory = tmp_path_factory.mktemp("alike") / "data"
    directory.mkdir()
    rng = random.Random(1)
    write_classify(directory, {"train": 80}, rng, low=6, high=6)
    write_classify(directory, {"dev": 53}, rng)
    return str(directory)


def trained_alike(init, data, run, **changes):
    usual = {"task_data": TaskDataConfig(**ALIKE), "epochs": 1.0, "eval_every": 0.6, "dropout": 0.3, "learning_rates": (1e-3,)}
    with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
        log_every_step(patch)
        if "devices" not in changes:
            one_device(patch)
        changes.pop("devices", None)
        finetune(config_of("classify", init, data, run, **(usual | changes)))
    return lines_of(run, "train"), lines_of(run)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, init, alike):
    return trained_alike(init, alike, tmp_path_factory.mktemp("alone") / "run")


def close(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("step", "loss", "accuracy", "grad_norm", "examples_per_step"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_mesh_and_launcher_trains_and_scores_alike(way, alone, init, alike, tmp_path):
    changes = WAYS[way] | ({} if way == "accumulate" else {"devices": 8})
    train, dev = trained_alike(init, alike, tmp_path / "run", **changes)
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in dev] == [3, 5]
    close(train, alone[0])
    assert dev == alone[1]


@pytest.mark.slow
def test_a_run_may_go_on_on_another_mesh(alone, init, alike, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped, _ = trained_alike(init, alike, tmp_path / "run")
    assert 2 <= len(stopped) < 5
    train, dev = trained_alike(init, alike, tmp_path / "run", devices=8, mesh=MeshConfig(2, 2, 2))
    close(train, alone[0])
    assert dev == alone[1]


@pytest.mark.slow
def test_packing_changes_no_loss_and_no_score(init, tmp_path, quick, monkeypatch):
    """Without dropout, whose mask is the row's."""
    log_every_step(monkeypatch)
    data, found = write_data(tmp_path / "data", "classify"), []
    for packing in (1, 32):
        run = tmp_path / str(packing)
        task_data = dataclasses.replace(TASK_DATA, packing=packing, sequence_length=48)
        finetune(config_of("classify", init, data, run, task_data=task_data, epochs=1.0, learning_rates=(1e-3,)))
        found.append((lines_of(run, "train"), lines_of(run)))
    assert found[1][0][0]["fill"] > 1.5 * found[0][0][0]["fill"]
    close(found[1][0], found[0][0])
    assert found[0][1] == found[1][1]


def test_every_example_counts_once_on_every_mesh(tokenizer, tmp_path, monkeypatch):
    """53 examples, which no number of devices divides."""
    data = write_data(tmp_path / "data", "classify", dev=53)
    with quickly():
        head = {"sequence_classification": 2}
        path = save_model(tmp_path / "model", tokenizer, heads=head, labels=("no", "yes"), seed=3, initializer_range=0.5)
        model = bert_jax.load(path)
        predictor = Predictor.load(path, task="classify", task_data=TASK_DATA)
    rows = [line.split("\t")[::-1] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    right = num_correct(model, rows)
    assert 10 < right < 43
    monkeypatch.setattr(scoring, "_TOKENS", {"cpu": 64})
    for mesh, packing in ((MeshConfig(), 32), (MeshConfig(2, 2, 2), 1)):
        changed = dataclasses.replace(predictor, task_data=dataclasses.replace(TASK_DATA, packing=packing))
        with quickly_compiled():
            assert changed.evaluate(data, mesh=mesh)["dev"]["accuracy"] == right / 53

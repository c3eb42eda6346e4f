"""Ensembles: each run equals a single run of its own, and one that diverges does not harm the others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import bert_jax
from bert_jax.config.logging import LogConfig
from bert_jax.errors import RunError, UserError
from bert_jax.inference.predictor import Predictor
from bert_jax.tasks import registry
from bert_jax.training import ensemble
from bert_jax.training.finetuning import BEST_RUN, finetune
from bert_jax.training.logging import RUN_PREFIX, read_metrics
from tests.runs import config_of, interrupt_at, lines_of, log_every_step, one_device, quickly_compiled, save_model, write_data
from tests.training.test_finetuning import assert_equal, record_states, script_scores

# Compilation takes two minutes.
pytestmark = pytest.mark.slow

# The second is not a power of two times the first, by which a multiplication would be exact.
RATES = (1e-3, 3e-3)


@pytest.fixture(scope="module")
def init(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer, num_hidden_layers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data", "classify", train=48, seed=7)


def devices(patch, count):
    """Use ``count`` devices for the groups of runs, each of which compiles a program; meshes have one device."""
    local = jax.local_devices()[:count]
    one_device(patch)
    patch.setattr(jax, "local_devices", lambda *args, **options: local)


def train(init, data, run, *, task="classify", num_devices=1, **changes):
    """Train three steps with two evaluations; returns the lines of both splits and the last state."""
    usual = {"epochs": 1.0, "eval_every": 0.7, "dropout": 0.2, "keep": 9}
    with pytest.MonkeyPatch.context() as patch:
        devices(patch, num_devices)
        log_every_step(patch)
        state = record_states(patch)
        finetune(config_of(task, init, data, run, **(usual | changes)))
        return lines_of(run, "train"), lines_of(run), state()


# An ensemble of six runs: two learning rates, three seeds each.
SIX = {"learning_rates": RATES, "seed": 5, "seeds": 3}


@pytest.fixture(scope="module")
def singles(tmp_path_factory, init, data):
    """Three of the six runs, each trained alone, by their indices."""
    path, runs = tmp_path_factory.mktemp("singles"), {}
    for index in (0, 4, 5):
        rate, seed = RATES[index // 3], 5 + index % 3
        runs[index] = train(init, data, path / str(index), learning_rates=(rate,), seed=seed)
    return runs


@pytest.fixture(scope="module")
def six(tmp_path_factory, init, data):
    """The run directory of the six runs as an ensemble, and what `train` returns."""
    run = tmp_path_factory.mktemp("six") / "run"
    return run, train(init, data, run, **SIX, runs_per_device=1)


def scores(lines):
    """The main score of each run at each evaluation [evaluations, runs]."""
    count = sum(name.startswith(RUN_PREFIX) for name in lines[0])
    return np.array([[line[f"{RUN_PREFIX}{index}"] for index in range(count)] for line in lines])


def states_of(state, runs_per_device, count):
    groups = ensemble.group_runs(count, runs_per_device)
    return [ensemble.select_run(groups, state, index) for index in range(count)]


def test_runs_equal_single_runs_bit_for_bit(singles, six):
    _, (train_lines, dev_lines, state) = six
    states = states_of(state, 1, 6)
    for index, (single_train, single_dev, single_state) in singles.items():
        assert_equal(states[index], single_state)
        assert [line[f"{RUN_PREFIX}{index}"] for line in dev_lines] == [line["accuracy"] for line in single_dev]
        assert len(single_train) == len(train_lines) == 3
    # The six runs differ.
    assert len({float(jax.tree.leaves(run.params)[-1].sum()) for run in states}) == 6


def test_the_log_contains_means_over_the_runs(singles, init, data, tmp_path):
    train_lines, _, _ = train(init, data, tmp_path / "run", learning_rates=(RATES[1],), seed=6, seeds=2, runs_per_device=1)
    for name in ("loss", "accuracy", "grad_norm"):
        expected = np.mean([[line[name] for line in singles[index][0]] for index in (4, 5)], 0)
        np.testing.assert_allclose([line[name] for line in train_lines], expected, rtol=1e-6)


def test_norms_of_layers_are_means_over_the_runs(init, data, tmp_path):
    log = LogConfig(norms=True)
    singles = [train(init, data, tmp_path / str(seed), learning_rates=RATES[:1], seed=seed, log=log)[0] for seed in (5, 6)]
    lines = train(init, data, tmp_path / "run", learning_rates=RATES[:1], seed=5, seeds=2, runs_per_device=1, log=log)[0]
    norms = {name for name in lines[0] if "/" in name}
    assert {"grad_norm/layer_00", "update_norm/embeddings"} <= norms == {name for name in singles[0][0] if "/" in name}
    for name in norms:
        expected = np.mean([[line[name] for line in single] for single in singles], 0)
        np.testing.assert_allclose([line[name] for line in lines], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory, init, data):
    """Runs per device -> what `train` returns for the six runs, and the ids of the devices of their groups, of two."""

    @functools.cache
    def make(runs_per_device):
        run, place, placements = tmp_path_factory.mktemp("side") / "run", ensemble.EnsembleLauncher.place, set()

        def watched(launcher, batch):
            placed = place(launcher, batch)
            placements.add(tuple(next(iter(group["input_ids"].devices())).id for group in placed))
            return placed

        with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(ensemble.EnsembleLauncher, "place", watched)
            return *train(init, data, run, num_devices=2, **SIX, runs_per_device=runs_per_device), placements

    return make


@pytest.mark.parametrize("runs_per_device", [2, 4])
def test_runs_side_by_side_equal_single_runs(runs_per_device, singles, side_by_side):
    """To 1e-5. With four per device the last two are a smaller group; with two, three groups take turns on two devices."""
    _, dev_lines, state, placements = side_by_side(runs_per_device)
    assert [jax.tree.leaves(group)[0].shape for group in state] == ([(2,)] * 3 if runs_per_device == 2 else [(4,), (2,)])
    assert placements == ({(0, 1, 0)} if runs_per_device == 2 else {(0, 1)})
    states = states_of(state, runs_per_device, 6)
    for index, (_, single_dev, single_state) in singles.items():
        run = states[index]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), run.params, single_state.params)
        np.testing.assert_array_equal(run.key, single_state.key)
        assert [line[f"{RUN_PREFIX}{index}"] for line in dev_lines] == [line["accuracy"] for line in single_dev]


def test_the_best_run_is_kept_and_its_scores_are_logged(six, data, monkeypatch):
    run, (_, dev_lines, state) = six
    for line, accuracies in zip(dev_lines, scores(dev_lines), strict=True):
        assert line["accuracy"] == accuracies.max()
        assert line[BEST_RUN] == accuracies.argmax()
    best = max(dev_lines, key=lambda line: line["accuracy"])
    one_device(monkeypatch)
    kept = Predictor.load(run).evaluate(data)["dev"]
    assert kept == {name: best[name] for name in ("accuracy", "macro_f1", "matthews")}
    assert best is dev_lines[-1], "choose data for which the last scores are the best"
    assert_equal(bert_jax.load(run).params, states_of(state, 1, 6)[best[BEST_RUN]].params)
    assert bert_jax.load(run).labels == ("no", "yes")


def test_the_best_of_all_evaluations_is_kept(init, data, tmp_path):
    """That of the second run at the second of three evaluations."""
    with pytest.MonkeyPatch.context() as patch:
        script_scores(patch, [0.2, 0.6, 0.1, 0.9, 0.3, 0.8])
        _, dev_lines, state = train(init, data, tmp_path / "run", seeds=2, runs_per_device=1, eval_every=0.34)
    assert [(line["accuracy"], line[BEST_RUN]) for line in dev_lines] == [(0.6, 1), (0.9, 1), (0.8, 1)]
    path = tmp_path / "run" / "best" / "checkpoints"
    assert [entry.name for entry in path.iterdir() if entry.name.isdigit()] == ["2"]
    # Neither run has these parameters at the last step.
    kept = bert_jax.load(tmp_path / "run").params
    for last in states_of(state, 1, 2):
        assert not np.array_equal(kept["sequence_classification"]["kernel"], last.params["sequence_classification"]["kernel"])


@pytest.mark.parametrize("runs_per_device", [1, 4])
def test_interrupted_and_resumed_equals_unbroken_bit_for_bit(runs_per_device, six, side_by_side, init, data, tmp_path, monkeypatch):
    changes = SIX | {"runs_per_device": runs_per_device, "num_devices": 1 if runs_per_device == 1 else 2}
    with contextlib.nullcontext() if runs_per_device == 1 else quickly_compiled():
        unbroken = six[1] if runs_per_device == 1 else side_by_side(runs_per_device)
        with monkeypatch.context() as patch:
            interrupt_at(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
            stopped_train, stopped_dev, _ = train(init, data, tmp_path / "run", **changes)
        assert 0 < len(stopped_train) < 3
        assert len(stopped_dev) < 2
        train_lines, dev_lines, state = train(init, data, tmp_path / "run", **changes)
    assert_equal(state, unbroken[2])
    assert (train_lines, dev_lines) == (unbroken[0], unbroken[1])


def test_the_grouping_belongs_to_the_run(six, init, data):
    """Checkpoints are divided into the groups; the default number of runs per device is stored in the config."""
    run, (_, dev_lines, _) = six
    with pytest.raises(UserError, match="runs_per_device: 1 -> 4"):
        train(init, data, run, **SIX, runs_per_device=4)
    assert train(init, data, run, **SIX)[1] == dev_lines


# With the learning rates of the tests below, weight decay alone makes a run diverge in a few steps.
DIVERGING = {"decay": "from_peak", "warmup_ratio": 0.0, "runs_per_device": 1, "batch_size": 8, "dropout": 0.0}


@pytest.mark.parametrize("task", ["regress", "squad"])
def test_a_diverging_run_does_not_stop_the_others(task, init, tmp_path):
    """The mean loss is that of the others, and scores are finite."""
    data = write_data(tmp_path / "data", task, train=48 if task == "regress" else 30)
    with quickly_compiled():
        train_lines, dev_lines, state = train(init, data, tmp_path / "run", task=task, learning_rates=(1e-3, 2e9), **DIVERGING)
        good, diverged = states_of(state, 1, 2)
        assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(diverged.params))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.params))
        assert all(np.isfinite(line["loss"]) for line in train_lines)
        assert np.isfinite(scores(dev_lines)).all()
        if task == "regress":
            single = train(init, data, tmp_path / "single", task=task, learning_rates=(1e-3,), **DIVERGING)
            assert_equal(good, single[2])
            assert scores(dev_lines)[:, 0].tolist() == [line[registry.get(task).main_score] for line in single[1]]
            assert train_lines[-1]["loss"] == single[0][-1]["loss"]


def test_a_diverged_run_is_never_the_best(tokenizer, tmp_path):
    """Without finite outputs it always predicts the first class, which is right here; the other run predicts the second."""
    heads = {"sequence_classification": 2}
    model = bert_jax.load(save_model(tmp_path / "model", tokenizer, heads=heads, labels=("no", "yes"), num_hidden_layers=1))
    model.params["sequence_classification"]["bias"] = jnp.array([0.0, 50.0])
    bert_jax.save(model, tmp_path / "biased", to="orbax")
    data = write_data(tmp_path / "data", "classify", train=48)
    (tmp_path / "data" / "dev.tsv").write_text("label\ttext\n" + "no\talpha bravo\n" * 15 + "yes\tgolf\n")
    with quickly_compiled():
        _, dev_lines, _ = train(tmp_path / "biased", data, tmp_path / "run", learning_rates=(1e-9, 2e9), **DIVERGING)
    assert (dev_lines[-1][f"{RUN_PREFIX}0"], dev_lines[-1][f"{RUN_PREFIX}1"]) == (1 / 16, 15 / 16)
    assert dev_lines[-1][BEST_RUN] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bert_jax.load(tmp_path / "run").params))


def test_an_ensemble_fails_if_all_runs_diverge(init, data, tmp_path):
    with quickly_compiled(), pytest.raises(RunError, match=r"is (nan|inf) at step [2-6]; the run stops"):
        train(init, data, tmp_path / "run", learning_rates=(2e9, 1e9), **DIVERGING)


def test_one_seed_more_is_another_ensemble(six, init, data, monkeypatch):
    devices(monkeypatch, 1)
    usual = config_of("classify", init, data, six[0], epochs=1.0, eval_every=0.7, dropout=0.2, keep=9, runs_per_device=1, **SIX)
    with pytest.raises(UserError, match="seeds: 3 -> 4"):
        finetune(dataclasses.replace(usual, seeds=4))
    before = read_metrics(six[0])
    assert finetune(usual).step == 3
    assert read_metrics(six[0]) == before


def test_an_ensemble_without_scores_has_no_model(init, data, tmp_path, monkeypatch):
    """It was stopped before its first evaluation, so that none of its models is the best."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(init, data, tmp_path / "run", learning_rates=RATES, runs_per_device=1, eval_every=1.0)
    assert not (epath.Path(tmp_path) / "run" / "best").exists()
    with pytest.raises(UserError, match="contains 2 runs that have not been scored; resume it"):
        Predictor.load(tmp_path / "run")


def test_groups():
    assert ensemble.group_runs(6, 4) == [range(0, 4), range(4, 6)]
    assert ensemble.group_runs(3, 1) == [range(0, 1), range(1, 2), range(2, 3)]
    assert ensemble.group_runs(2, 5) == [range(0, 2)]
    values = ensemble.Groups([{"a": np.arange(4) * 10}, {"a": np.int64(40)}])
    assert [int(state["a"]) for state in states_of(values, 4, 5)] == [0, 10, 20, 30, 40]
    launcher = ensemble.EnsembleLauncher(5, 4)
    assert [int(launcher.run(values, index)["a"]) for index in range(5)] == [0, 10, 20, 30, 40]


def test_as_many_runs_per_device_as_memory_allows(monkeypatch):
    """Eight times the size of the parameters for each run; one on a CPU, whose memory is unknown."""

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 8 * 1000 * 3 + 100}

    assert ensemble.default_runs_per_device(6, 1000) == 1
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    sizes = ((6, 1000), (2, 1000), (6, 10_000))
    assert [ensemble.default_runs_per_device(count, size) for count, size in sizes] == [3, 2, 1]


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="run in one process; start one command on each host"):
        ensemble.EnsembleLauncher(3, 1)

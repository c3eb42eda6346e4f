"""Runs with anomalies: stopped, skipped and rolled back, equal to loops made by hand, and the same after any resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from etils import epath

from bert_jax.config.mesh import MeshConfig
from bert_jax.data import pipeline, sources
from bert_jax.errors import RunError, UserError
from bert_jax.training import launchers, learning_rate, pretraining
from bert_jax.training.pretraining import PretrainingJob, pretrain
from tests.runs import interrupt_at, lines_of, quickly_compiled
from tests.training.test_anomalies import assert_same, spikes
from tests.training.test_pretraining import final_state

pytestmark = pytest.mark.usefixtures("unoptimized")


class Killed(Exception):
    """The end of a process that saves nothing."""


def kill():
    raise Killed


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def first_examples(config, count=16):
    """The first example of each batch, by which batches are told apart."""
    data = sources.open_data(config.data)
    batches = data.train_batches(seed=config.train.seed, rows=np.arange(config.data.batch_size))
    found = [int(next(batches)["example_ids"][0, 0]) for _ in range(count)]
    batches.close()
    assert len({*found}) == count
    return found


@pytest.fixture
def poison(run_config, monkeypatch):
    """Give batches, counted from 1, a position that no table has, so that the states of a row are NaN."""
    examples, original, bad = first_examples(run_config), pipeline.assemble, set()

    def assemble(*arguments):
        batch = original(*arguments)
        if int(batch["example_ids"][0, 0]) in bad:
            batch["position_ids"][0, 0] = 10_000
        return batch

    monkeypatch.setattr(pipeline, "assemble", assemble)
    return lambda *numbers: bad.update(examples[number - 1] for number in numbers)


def by_hand(config, numbers):
    """The state after a loop over batches, counted from 1: None for a step that is skipped, a number for a batch that is used."""
    opened, data, policy = pretraining.open_run(config)
    job = PretrainingJob(opened, data, policy, launchers.launch(opened))
    with job.launcher.context():
        step = job.launcher.compile_step(job.train_step)
        state = launchers.create(lambda: job.init({}), job.launcher.shardings(jax.eval_shape(job.init, {})))
        batches = [next(job.batches) for _ in range(max(number or 0 for number in numbers))]
        job.batches.close()
        for number in numbers:
            if number is None:
                state = state._replace(step=state.step + 1)
            else:
                state, _ = step(state, job.launcher.place(batches[number - 1]))
        return jax.device_get(state)


def lines(config, split):
    return lines_of(config.run, split)


def dumps_of(config):
    return {path.parent.name for path in (epath.Path(config.run) / "anomalies").glob("*/anomaly.json")}


def test_skipping_equals_a_loop_that_leaves_the_batches_out(run_config, poison, quick, capsys):
    poison(3, 6, 7)
    config = with_train(run_config, on_anomaly="skip")
    assert pretrain(config).step == 8
    assert_same(final_state(config)[0], by_hand(config, [1, 2, None, 4, 5, None, None, 8]))
    assert [(line["step"], line["skipped"]) for line in lines(config, "anomaly")] == [(3, 1), (6, 2), (7, 3)]
    trained = lines(config, "train")
    assert [line["step"] for line in trained] == [1, 2, 4, 5, 8]
    assert all(np.isfinite(value) for line in trained for value in line.values() if not isinstance(value, str))
    # The optimizer counts the updates, not the steps.
    rate = learning_rate.schedule(config.optim, 8)
    assert [line["learning_rate"] for line in trained] == [float(rate(count)) for count in range(5)]
    assert dumps_of(config) == {"step-3", "step-6", "step-7"}
    assert "loss is nan at step 3, which is skipped (1 so far)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"mesh": MeshConfig(2, 2, 2)}, {"parallel": "pmap"}])
def test_skipping_on_eight_devices(run_config, poison, way):
    poison(3, 4)
    config = with_train(dataclasses.replace(run_config, **way), on_anomaly="skip", steps=5, eval_every=5)
    with quickly_compiled():
        assert pretrain(config).step == 5
        assert_same(final_state(config)[0], by_hand(config, [1, 2, None, None, 5]))
    assert dumps_of(config) == {"step-3", "step-4"}


@pytest.mark.parametrize("stop_at", [3, *(pytest.param(at, marks=pytest.mark.slow) for at in (4, 6))])
def test_a_run_that_skips_and_is_resumed_equals_the_unbroken_one(run_config, poison, tmp_path, monkeypatch, quick, stop_at):
    poison(3, 6)
    config = with_train(run_config, on_anomaly="skip", spike_factor=1.0, spike_window=2)
    unbroken = dataclasses.replace(config, run=str(tmp_path / "unbroken"))
    pretrain(unbroken)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert pretrain(config).signal == signal.SIGTERM
    assert pretrain(config).step == 8
    (state, meta), (expected, expected_meta) = final_state(config), final_state(unbroken)
    assert_same(state, expected)
    assert (meta.data, meta.anomalies) == (expected_meta.data, expected_meta.anomalies)
    assert meta.anomalies["skipped"] >= 2
    for split in ("train", "anomaly", "held_out"):
        assert lines(config, split) == lines(unbroken, split)


def test_a_rollback_passes_over_the_batches_since_the_checkpoint(run_config, poison, quick, capsys):
    """Saved are steps 3 and 4; the anomaly is at step 6."""
    poison(6)
    config = with_train(run_config, on_anomaly="rollback")
    assert pretrain(config).step == 8
    state, meta = final_state(config)
    assert_same(state, by_hand(config, [1, 2, 3, 4, 7, 8, 9, 10]))
    assert not meta.anomalies
    assert [line["step"] for line in lines(config, "train")] == [*range(1, 9)]
    assert "step 4; the batches up to that of step 6 are passed over" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("skips", "first"), [(2, 5), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 5), (3, 5), (2, 6), (2, 4)))]
)
def test_so_many_anomalies_in_a_row_roll_back(run_config, poison, quick, skips, first):
    """To the checkpoint before the first of them, although steps that are skipped are saved, too."""
    bad = [*range(first, first + skips)]
    poison(*bad)
    config = with_train(run_config, on_anomaly="skip", max_skips=skips, eval_every=8)
    assert pretrain(config).step == 8
    saved = 3
    used = [*range(1, saved + 1), *range(bad[-1] + 1, bad[-1] + 1 + 8 - saved)]
    assert_same(final_state(config)[0], by_hand(config, used))
    stored = json.loads((epath.Path(config.run) / "anomalies" / "rollbacks.json").read_text())["rollbacks"]
    assert [(rollback["step"], rollback["to"]) for rollback in stored] == [(bad[-1], saved)]


def test_without_a_checkpoint_a_rollback_begins_again(run_config, poison, quick):
    poison(2)
    config = with_train(run_config, on_anomaly="rollback", steps=3, eval_every=3)
    assert pretrain(config).step == 3
    assert_same(final_state(config)[0], by_hand(config, [3, 4, 5]))


@pytest.mark.parametrize("killed_at", [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (6, 8))])
def test_a_run_that_is_killed_after_a_rollback_equals_the_unbroken_one(run_config, poison, tmp_path, monkeypatch, quick, killed_at):
    poison(5, 9)
    config = with_train(run_config, on_anomaly="rollback")
    unbroken = dataclasses.replace(config, run=str(tmp_path / "unbroken"))
    pretrain(unbroken)
    with monkeypatch.context() as patch:
        interrupt_at(patch, killed_at, kill)
        with pytest.raises(Killed):
            pretrain(config)
    assert pretrain(config).step == 8
    (state, meta), (expected, expected_meta) = final_state(config), final_state(unbroken)
    assert_same(state, expected)
    assert (meta.data, meta.anomalies) == (expected_meta.data, expected_meta.anomalies)
    assert [path.read_text() for path in (epath.Path(config.run) / "anomalies").glob("*.json")] == [
        path.read_text() for path in (epath.Path(unbroken.run) / "anomalies").glob("*.json")
    ]
    assert lines(config, "train") == lines(unbroken, "train")


def test_a_run_that_has_rolled_back_too_often_stops(run_config, poison, quick):
    poison(*range(5, 12))
    config = with_train(run_config, on_anomaly="rollback", max_rollbacks=2, anomaly_dumps=1)
    for _ in range(2):
        sentence = (
            r"loss is nan at step 5; the run stops, after 2 rollbacks .train.max_rollbacks.. Step 4 is the last good checkpoint"
        )
        with pytest.raises(RunError, match=sentence):
            pretrain(config)
        # The first step, and the one that stops the run.
        assert dumps_of(config) == {"step-5", "step-5-after-rollback-2"}


def test_a_stopped_run_goes_on_when_it_may_skip(run_config, poison, quick):
    poison(6)
    with pytest.raises(RunError, match=r"loss is nan at step 6; the run stops. Step 4 is the last good .*for bert-jax replay"):
        pretrain(run_config)
    assert dumps_of(run_config) == {"step-6"}
    config = with_train(run_config, on_anomaly="skip")
    assert pretrain(config).step == 8
    assert_same(final_state(config)[0], by_hand(config, [1, 2, 3, 4, 5, None, 7, 8]))


@pytest.mark.slow
def test_spikes_are_skipped_as_by_hand(run_config, quick):
    """With a learning rate at which the loss is not steady, and a low limit."""
    config = dataclasses.replace(run_config, optim=dataclasses.replace(run_config.optim, peak_lr=0.03))
    config = with_train(config, on_anomaly="skip", spike_factor=0.3, spike_window=3, max_skips=9)
    assert pretrain(config).step == 8
    opened, data, policy = pretraining.open_run(config)
    job = PretrainingJob(opened, data, policy, launchers.launch(opened))
    losses = []
    with job.launcher.context():
        step = jax.jit(job.train_step)
        state = launchers.create(lambda: job.init({}), job.launcher.shardings(jax.eval_shape(job.init, {})))
        for _ in range(8):
            after, metrics = step(state, job.launcher.place(next(job.batches)))
            losses.append(float(metrics["loss"]))
            fine = spikes(losses, 0.3, 3)[0][-1] == 0
            state = after if fine else state._replace(step=state.step + 1)
    job.batches.close()
    skipped = [number for number, kind in enumerate(spikes(losses, 0.3, 3)[0], 1) if kind]
    assert 0 < len(skipped) < 8
    assert [line["step"] for line in lines(config, "anomaly")] == skipped
    assert_same(final_state(config)[0], jax.device_get(state))


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_done_at_an_anomaly_changes_nothing_without_one(run_config, tmp_path, quick, accumulate):
    config = dataclasses.replace(run_config, optim=dataclasses.replace(run_config.optim, accumulate=accumulate))
    pretrain(config)
    expected = final_state(config)
    assert_same(expected[0], by_hand(config, [*range(1, 9)]))
    other = with_train(dataclasses.replace(config, run=str(tmp_path / "other")), on_anomaly="rollback", spike_factor=100.0)
    pretrain(other)
    assert_same(final_state(other)[0], expected[0])
    assert not expected[1].anomalies
    assert not (epath.Path(other.run) / "anomalies").exists()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("spike_factor", 0.0, "train.spike_factor is 0.0; it must be greater than 0"),
        ("spike_window", 0, "train.spike_window is 0; it must be greater than 0"),
        ("max_skips", 0, "train.max_skips is 0; it must be greater than 0"),
        ("max_rollbacks", -1, "train.max_rollbacks is -1; it must not be negative"),
    ],
)
def test_invalid_settings_are_refused(run_config, field, value, sentence):
    with pytest.raises(UserError, match=sentence):
        with_train(run_config, **{field: value})

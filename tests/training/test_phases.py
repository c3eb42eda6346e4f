"""Phases of a run: other rows from a step on, with everything else carried over."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.config.data import DataConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.phases import Phase
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.data import sources
from bert_jax.errors import UserError
from bert_jax.training import launchers, learning_rate, pretraining
from bert_jax.training.logging import read_metrics
from bert_jax.training.phases import Part, part_at
from bert_jax.training.pretraining import PretrainingJob, pretrain
from tests.runs import interrupt_at
from tests.training.test_pretraining import assert_bit_equal, elsewhere

PHASES = (Phase(4, sequence_length=48, batch_size=8),)


@pytest.mark.usefixtures("quick")
def test_a_second_phase_is_the_run_by_hand(run_config):
    """Phase 1 is a run without phases; phase 2 goes on with its parameters and optimizer on rows of its own."""
    config = dataclasses.replace(run_config, phases=PHASES)
    assert pretrain(config).step == 8
    lines = read_metrics(config.run, split="train")
    jobs = []
    for _, part in config.parts():
        opened, data, policy = pretraining.open_run(part)
        jobs.append(PretrainingJob(opened, data, policy, launchers.launch(opened)))
    first, second = jobs
    # The second phase does not repeat the order of the first one.
    longer = sources.open_data(second.config.data).train_batches(seed=run_config.train.seed + 1, rows=np.arange(8))
    steps = [jax.jit(job.train_step) for job in jobs]
    state = launchers.create(lambda: first.init({}), first.launcher.shardings(jax.eval_shape(first.init, {})))
    with first.launcher.context():
        for number in range(8):
            batch = next(first.batches if number < 4 else longer)
            assert batch["input_ids"].shape == ((16, 32) if number < 4 else (8, 48))
            state, metrics = steps[number // 4](state, first.launcher.place(batch))
            np.testing.assert_allclose(lines[number]["loss"], float(metrics["loss"]), rtol=1e-5)
    for batches in (first.batches, second.batches, longer):
        batches.close()
    # Each phase is evaluated with its own rows: longer ones have more predictions.
    held_out = read_metrics(config.run, split="held_out")
    assert [line["step"] for line in held_out] == [4, 8]


@pytest.mark.parametrize("stop_at", [pytest.param(2, marks=pytest.mark.slow), 4, 6])
@pytest.mark.usefixtures("quick")
def test_a_run_resumes_in_either_phase_bit_for_bit(run_config, tmp_path, monkeypatch, stop_at):
    config = dataclasses.replace(run_config, phases=PHASES)
    unbroken = elsewhere(config, tmp_path)
    pretrain(unbroken)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = pretrain(config)
    assert stopped.signal == signal.SIGTERM
    assert stopped.step < 8
    pretrain(config)
    assert_bit_equal(unbroken, config)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_micro_batches_of_a_phase_change_nothing(run_config, tmp_path):
    plain = dataclasses.replace(run_config, phases=PHASES)
    pretrain(plain)
    divided = elsewhere(run_config, tmp_path, phases=(dataclasses.replace(PHASES[0], accumulate=4),))
    pretrain(divided)
    losses = [[line["loss"] for line in read_metrics(config.run, split="train")] for config in (plain, divided)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_learning_rate_goes_on_or_starts_anew():
    """NVIDIA's phases have schedules of their own; in the paper the second phase is the end of one schedule."""
    config = OptimConfig(peak_lr=1.0, warmup_steps=10)
    one = learning_rate.schedule(config, 100)
    carried_on = learning_rate.schedule(config, 100, (Phase(90, sequence_length=512),))
    assert [carried_on(step) for step in range(101)] == [one(step) for step in range(101)]
    anew = learning_rate.schedule(config, 100, (Phase(60, sequence_length=512), Phase(80, peak_lr=0.5, warmup_steps=4)))
    first, second = learning_rate.schedule(config, 80), learning_rate.schedule(OptimConfig(peak_lr=0.5, warmup_steps=4), 20)
    assert [anew(step) for step in range(101)] == [*(first(step) for step in range(80)), *(second(step) for step in range(21))]


def test_the_config_of_each_part_and_its_json():
    config = Config("run", DataConfig("a"), train=TrainConfig(steps=10, save_every=1), optim=OptimConfig(warmup_steps=1))
    config = dataclasses.replace(config, phases=(Phase(4, sequence_length=256), Phase(8, batch_size=64, corpus="b")))
    assert Config.from_json(config.to_json()) == config
    parts = [(start, part.data.sequence_length, part.data.batch_size, part.data.corpus) for start, part in config.parts()]
    # What a phase does not name is the run's, not the phase's before it.
    assert parts == [(0, 128, 256, "a"), (4, 256, 256, "a"), (8, 128, 64, "b")]
    assert [part.phases for _, part in config.parts()] == [()] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": (Phase(8),)}, "starts at step 8; it must lie between 0 and 8"),
        ({"phases": (Phase(5), Phase(5))}, "starts at step 5; it must lie between 0 and 5"),
        ({"phases": (Phase(5, sequence_length=65),)}, "65 exceeds model.max_position_embeddings 64"),
        ({"phases": (Phase(5, batch_size=15, sequence_length=48, accumulate=2),)}, "15 is not divisible by optim.accumulate 2"),
        ({"phases": (Phase(5, accumulate=2),)}, "32 tokens in a row differ in accumulate"),
        ({"phases": (Phase(5, peak_lr=1e-3, warmup_steps=3),)}, "leaves none for the decay"),
        ({"phases": (Phase(5),), "train": TrainConfig(words="1M")}, "give train.steps"),
    ],
)
def test_phases_that_cannot_be(run_config, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(run_config, **changes)


def test_a_phase_with_values_that_cannot_be():
    with pytest.raises(UserError, match=r"phases\.start is 0"):
        Phase(0)
    with pytest.raises(UserError, match=r"needs a schedule of its own; give phases\.peak_lr"):
        Phase(1, warmup_steps=3)


def test_a_batch_that_does_not_divide_over_the_devices_names_its_phase(run_config):
    config = dataclasses.replace(run_config, phases=(Phase(4, batch_size=12),))
    with pytest.raises(UserError, match="The batch size of the phase from step 4, 12 is not divisible by 8 devices"):
        pretrain(config)


def test_a_phase_with_another_vocabulary_is_refused(run_config, tmp_path, text):
    tokenizer = bert_jax.tokenizers.train(lambda: text.read_text().splitlines(), kind="wordpiece", size=60)
    documents = bert_jax.data.readers.read_documents([text])
    bert_jax.data.building.write_corpus(documents, tmp_path / "other", tokenizer, held_out=0.1)
    config = dataclasses.replace(run_config, phases=(Phase(4, corpus=str(tmp_path / "other")),))
    with pytest.raises(UserError, match="has another vocabulary than"):
        pretrain(config)


@pytest.mark.usefixtures("quick")
def test_another_start_of_a_phase_is_another_run(run_config, monkeypatch):
    interrupt_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    pretrain(dataclasses.replace(run_config, phases=PHASES))
    with pytest.raises(UserError, match="phases"):
        pretrain(dataclasses.replace(run_config, phases=(dataclasses.replace(PHASES[0], start=5),)))


def test_the_part_of_a_step():
    parts = [Part(start, None, None) for start in (0, 4)]
    assert [part_at(parts, step).start for step in (0, 1, 4, 5)] == [0, 0, 0, 4]

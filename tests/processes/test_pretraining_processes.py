"""Runs of two and more processes: they agree, end together, say why, and go on by the same command."""

from __future__ import annotations

import dataclasses
import math
import signal
import time

import numpy as np
import pytest
from etils import epath

from bert_jax.cluster.replay import replay
from bert_jax.data import sources
from bert_jax.training.logging import read_metrics
from bert_jax.training.pretraining import pretrain
from tests.processes.hosts import Hosts, steps
from tests.runs import is_measured


def longer(config, **changes):
    """A run that does not end before something happens to it."""
    train = dataclasses.replace(config.train, **{"steps": 100_000, "eval_every": 100_000, "save_every": 20} | changes)
    return dataclasses.replace(config, train=train)


def assert_continues(config, tmp_path, *, steps_more=3):
    """The same command goes on from the newest checkpoint; it is stopped by SIGTERM."""
    last = read_metrics(config.run)[-1]["step"]
    hosts = Hosts(config, tmp_path / "hosts")
    hosts.wait_for_step(last + steps_more)
    hosts.send(signal.SIGTERM, 0)
    for status, error in hosts.ended().values():
        assert status == 128 + signal.SIGTERM, error
    lines = [line["step"] for line in read_metrics(config.run, split="train")]
    assert lines == list(range(1, lines[-1] + 1))
    assert steps(config)[-1] == lines[-1]


def test_hosts_that_differ_end_before_the_first_step(run_config, tmp_path):
    hosts = Hosts(run_config, tmp_path / "hosts", differing={1: ["--optim.peak-lr=0.002"]})
    for status, error in hosts.ended().values():
        assert status == 2
        assert "process 1 on" in error
        assert "(optim.peak_lr: 0.002, not 0.001)" in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data.corpus=nowhere"], "nowhere is not a corpus"),
        (["--run={other}"], "(run: "),
        (["--mesh.fsdp=2"], "(mesh.fsdp: 2, not 1)"),
    ],
)
def test_what_one_host_cannot_do_ends_all(run_config, tmp_path, arguments, sentence):
    arguments = [argument.format(other=tmp_path / "other") for argument in arguments]
    (status, error), (other_status, other_error) = Hosts(run_config, tmp_path / "hosts", differing={1: arguments}).ended().values()
    assert (status, other_status) == (2, 2)
    assert error.startswith("bert-jax: process 1 on")
    assert sentence in error
    assert sentence in other_error


@pytest.mark.slow
def test_run_directories_that_are_not_shared_are_refused(run_config, tmp_path):
    patch = (
        "from bert_jax.training import run_directory\n"
        "run_directory._PATIENCE_SECONDS = 0.5\n"
        "if INDEX: run_directory._read = lambda path: None"
    )
    for status, error in Hosts(run_config, tmp_path / "hosts", patch=patch).ended().values():
        assert status == 2
        assert "does not see what process 0 on" in error
        assert "must be on a file system that all hosts share" in error


@pytest.mark.slow
def test_a_missing_host_is_named(run_config, tmp_path):
    hosts = Hosts(run_config, tmp_path / "hosts", absent=[1], arguments=["--train.process-timeout=2"])
    ((status, error),) = hosts.ended().values()
    assert (status, "Process 1 of 2 did not come within 2 seconds (train.process_timeout)" in error) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_others_end_when_one_is_killed_or_stopped(run_config, tmp_path, victim, number):
    config = longer(run_config)
    hosts = Hosts(config, tmp_path / "hosts")
    hosts.wait_for_step(30)
    hosts.send(number, victim)
    began = time.monotonic()
    ((status, error),) = hosts.ended(of=[1 - victim]).values()
    hosts.kill()
    assert time.monotonic() - began < 30
    what = "has died" if number == signal.SIGKILL else "has been silent for 20 seconds"
    assert status == 1
    assert f"bert-jax: process {victim} on" in error
    assert what in error
    assert "is the newest complete checkpoint; start the same command again on every host" in error
    hosts.ended()
    assert_continues(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "victims"), [(15, [0]), (15, [1]), (15, [0, 1]), (2, [0, 1]), (2, [1])])
def test_a_signal_saves_the_same_step_everywhere(run_config, tmp_path, number, victims):
    config = longer(run_config)
    hosts = Hosts(config, tmp_path / "hosts")
    hosts.wait_for_step(25)
    hosts.send(number, *victims)
    for status, error in hosts.ended().values():
        assert status == 128 + number, error
    last = read_metrics(config.run, split="train")[-1]["step"]
    assert steps(config)[-1] == last
    assert_continues(config, tmp_path)


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_all(run_config, tmp_path):
    """A full disk on the second host."""
    patch = """
import errno
from orbax.checkpoint._src.serialization import type_handlers
if INDEX:
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoints/40")
    from bert_jax.checkpoints import Checkpoints
    original = Checkpoints._save
    def save(self, step, state, content):
        if step == 40:
            full()
        original(self, step, state, content)
    Checkpoints._save = save
"""
    config = longer(run_config)
    hosts = Hosts(config, tmp_path / "hosts", patch=patch)
    (status, error), (other_status, other_error) = hosts.ended().values()
    assert status == other_status == 1
    assert "process 1 on" in error
    assert "the disk is full (checkpoints/40)" in error
    assert "Step 20 is the newest" in error
    assert "the disk is full" in other_error
    assert steps(config) == [20]
    assert_continues(config, tmp_path)


@pytest.mark.slow
def test_damage_that_one_process_sees_is_agreed(run_config, tmp_path):
    """The second process cannot read the newest checkpoint: both go back to the one before it, and the step is saved again."""
    config = longer(run_config, steps=60)
    for status, error in Hosts(config, tmp_path / "first").ended().values():
        assert status == 0, error
    whole = read_metrics(config.run, split="train")
    patch = """
from bert_jax.checkpoints import Checkpoints
original = Checkpoints._read
def read(self, step, abstract):
    if INDEX and step == 60:
        raise ValueError("made up")
    return original(self, step, abstract)
Checkpoints._read = read
import time
from bert_jax.io import remote
rename = remote.rename
def slow(*args):
    time.sleep(0.5)
    rename(*args)
remote.rename = slow
"""
    for index, (status, error) in Hosts(config, tmp_path / "second", patch=patch).ended().items():
        assert status == 0, error
        assert ("made up" in error) == (index == 0)
    assert steps(config)[-1] == 60
    for line, expected in zip(read_metrics(config.run, split="train"), whole, strict=True):
        for name in expected:
            assert is_measured(name) or line[name] == expected[name]


@pytest.mark.slow
def test_a_process_that_lags_is_named(run_config, tmp_path):
    patch = """
import time
from bert_jax.training import trainer
original = trainer.Trainer.report
def report(self, done, *more):
    original(self, done, *more)
    if INDEX and done == 30:
        time.sleep(1000)
trainer.Trainer.report = report
"""
    hosts = Hosts(longer(run_config), tmp_path / "hosts", patch=patch, arguments=["--train.process-timeout=40"])
    for status, error in hosts.ended().values():
        assert (status, "bert-jax: process 1 on" in error, "though alive" in error) == (1, True, True), error


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (2, 2), (4, 1)])
def test_logged_figures_do_not_depend_on_the_number_of_hosts(run_config, tmp_path, count, devices):
    alone = dataclasses.replace(run_config, run=str(tmp_path / "alone"))
    pretrain(alone)
    for status, error in Hosts(run_config, tmp_path / "hosts", count=count, devices=devices).ended().values():
        assert status == 0, error
    for line, expected in zip(read_metrics(run_config.run), read_metrics(alone.run), strict=True):
        for name in expected:
            if is_measured(name):
                continue
            if name in ("fill", "examples_per_step", "step", "split", "learning_rate"):
                assert line[name] == expected[name], name
            else:
                assert line[name] == pytest.approx(expected[name], rel=2e-4), name


@pytest.mark.slow
def test_an_anomaly_on_one_host_is_skipped_by_all(run_config, tmp_path):
    """A token of the second host's rows has a position that no table has: its states are NaN in that process only."""
    batches = sources.open_data(run_config.data).train_batches(seed=run_config.train.seed, rows=np.arange(16))
    bad = [int(next(batches)["example_ids"][8, 0]) for _ in range(5)][4]
    batches.close()
    train = dataclasses.replace(run_config.train, on_anomaly="skip")
    config = dataclasses.replace(run_config, train=train)
    patch = f"""
from bert_jax.data import pipeline
original = pipeline.assemble
def assemble(*arguments):
    batch = original(*arguments)
    if INDEX and batch["example_ids"][0, 0] == {bad}:
        batch["position_ids"][0, 0] = 10_000
    return batch
pipeline.assemble = assemble
"""
    for index, (status, error) in Hosts(config, tmp_path / "hosts", patch=patch).ended().items():
        assert status == 0, error
        assert ("loss is nan at step 5, which is skipped" in " ".join(error.split())) == (index == 0)
    assert [(line["step"], line["skipped"]) for line in read_metrics(config.run, split="anomaly")] == [(5, 1)]
    assert [line["step"] for line in read_metrics(config.run, split="train")] == [1, 2, 3, 4, 6, 7, 8]
    assert steps(config)[-1] == 8
    result = replay(epath.Path(config.run) / "anomalies" / "step-5")
    assert math.isnan(result.replayed["loss"])
    assert "position" in " ".join(result.inputs)


@pytest.mark.slow
def test_checkpoints_of_four_processes_are_restored_by_one_and_two(run_config, tmp_path):
    config = dataclasses.replace(run_config, train=dataclasses.replace(run_config.train, steps=8, save_every=4))
    unbroken = dataclasses.replace(config, run=str(tmp_path / "unbroken"))
    pretrain(unbroken)
    patch = (
        "from bert_jax.training import trainer\noriginal = trainer.Trainer.report\ndef report(self, done, *more):\n"
        "    original(self, done, *more)\n    if done == 5:\n        self.checkpoints.wait()\n        import os; os._exit(9)\n"
        "trainer.Trainer.report = report"
    )
    for count, devices in ((1, 8), (2, 1), (4, 2)):
        run = dataclasses.replace(config, run=str(tmp_path / f"run-{count}"))
        Hosts(run, tmp_path / "killed", count=4, devices=1, patch=patch).ended()
        assert steps(run) == [4]
        for status, error in Hosts(run, tmp_path / "resumed", count=count, devices=devices).ended().values():
            assert status == 0, error
        for line, expected in zip(read_metrics(run.run), read_metrics(unbroken.run), strict=True):
            assert line["step"] == expected["step"]
            if "loss" in expected:
                assert line["loss"] == pytest.approx(expected["loss"], rel=2e-4)


def test_a_second_job_in_a_run_directory_is_refused(run_config, tmp_path, quick):
    import filelock

    (tmp_path / "run").mkdir()
    with (
        filelock.FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(Exception, match="run is in use by another process; wait for it"),
    ):
        pretrain(run_config)
    assert pretrain(run_config).step == 8

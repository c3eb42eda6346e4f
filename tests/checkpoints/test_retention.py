"""Which checkpoints are kept: in a run, and by the command."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import time
from pathlib import Path

import pytest

import bert_jax
from bert_jax.checkpoints.retention import Saved, reasons
from bert_jax.config.retention import Retention
from bert_jax.training.logging import held_out_losses
from tests.cli.test_cli import here

pytestmark = pytest.mark.usefixtures("unoptimized")

HOUR = datetime.timedelta(hours=1)


def command(*arguments):
    """Exit status, standard output and standard error of the command."""
    done = here(*arguments)
    return done.returncode, done.stdout, done.stderr


def saved(*hours):
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return [Saved(100 * (index + 1), start + hour * HOUR) for index, hour in enumerate(hours)]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(2), {400, 500}),
        (Retention(1, (100, 350)), {100, 500}),
        (Retention(1, every=200), {200, 400, 500}),
        # 0 h, then the first after 2 h, which is 2.5 h, then 4.5 h or later.
        (Retention(1, hours=2), {100, 300, 500}),
        (Retention(1, best=2), {200, 300, 500}),
        (Retention(1, (100,), every=400, best=1), {100, 300, 400, 500}),
    ],
)
def test_what_each_rule_keeps(retention, kept):
    losses = {100: 5.0, 200: 3.0, 300: 2.0, 400: 4.0, 900: 0.1}
    why = reasons(retention, saved(0, 1, 2.5, 4, 5), losses)
    assert {step for step, rules in why.items() if rules} == kept
    assert [*why] == [100, 200, 300, 400, 500]


def test_saving_follows_the_rules(small):
    losses = {2: 1.5, 3: 1.0, 4: 2.0}
    small.save(range(1, 10), keep=Retention(1, (1,), every=4, best=2), losses=lambda: losses)
    assert small.directories() == ["1", "2", "3", "4", "8", "9"]


def test_a_run_keeps_its_best_steps_and_may_change_the_rules_when_it_is_resumed(run_config, quick):
    """The best two of the evaluated steps, by metrics.jsonl, beside the newest one."""
    train = dataclasses.replace(run_config.train, steps=8, eval_every=2, save_every=1, keep=1, keep_best=2)
    config = dataclasses.replace(run_config, train=train)
    bert_jax.pretrain(config)
    losses = held_out_losses(config.run)
    assert [*losses] == [2, 4, 6, 8]
    # Step 8 was scored after it was saved, so that it did not count yet.
    best = sorted([2, 4, 6], key=losses.__getitem__)[:2]
    assert sorted(path.name for path in (Path(config.run) / "checkpoints").iterdir()) == sorted({*map(str, best), "8"})
    changed = dataclasses.replace(train, keep_best=0, keep=2, keep_every=2, keep_hours=1)
    assert bert_jax.pretrain(dataclasses.replace(config, train=changed)).step == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_best": -1}, "train.keep_best is -1; it must not be negative"),
        ({"keep_every": 1500}, "train.keep_every is 1500, but steps are saved every 1000"),
        ({"keep_every": 0}, "train.keep_every is 0; it must be greater than 0"),
        ({"keep_hours": 0}, "train.keep_hours is 0; it must be greater than 0"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(changes, message):
    with pytest.raises(bert_jax.UserError, match=message):
        bert_jax.TrainConfig(**changes)


@pytest.fixture
def run(small):
    """Steps 1 to 4, one that was set aside, and a directory of a save that was killed an hour ago."""
    small.save(range(1, 5))
    (small.path / "config.json").write_text(json.dumps({"train": {"keep": 2, "save_at": [1]}}))
    checkpoints = small.path / "checkpoints"
    shutil.copytree(checkpoints / "1", checkpoints / "damaged-7")
    unfinished = shutil.copytree(checkpoints / "1", checkpoints / "5.orbax-checkpoint-tmp")
    for path in (unfinished, *unfinished.rglob("*")):
        os.utime(path, (time.time() - 3600,) * 2)
    return small


def listed(run, *options):
    status, output, errors = command("checkpoints", run.path, "--json", *options)
    return status, {Path(entry["path"]).name: entry for entry in json.loads(output)}, errors


def test_the_command_lists_steps_and_leftovers(run):
    status, entries, _ = listed(run)
    assert status == 0
    assert {name: entry["kept"] for name, entry in entries.items()} == {
        "1": ["for good"],
        "2": [],
        "3": ["newest"],
        "4": ["newest"],
        "5.orbax-checkpoint-tmp": [],
        "damaged-7": [],
    }
    assert [name for name, entry in entries.items() if entry["removable"]] == ["2", "5.orbax-checkpoint-tmp", "damaged-7"]
    path = run.path / "checkpoints" / "4"
    assert entries["4"]["size"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert entries["4"]["version"] == 2
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(entries["4"]["saved"])
    assert datetime.timedelta(-1) < age < datetime.timedelta(minutes=10)
    status, output, _ = command("checkpoints", run.path)
    assert [line.split()[0] for line in output.splitlines()[1:]] == [f"checkpoints/{name}" for name in entries]


def test_pruning_deletes_what_is_listed(run):
    expected = [name for name, entry in listed(run, "--keep", "1")[1].items() if entry["removable"]]
    before, size = run.directories(), sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    status, output, _ = command("checkpoints", run.path, "--keep", "1", "--prune")
    assert status == 0
    assert "deleted 4 of 6 directories" in output
    assert run.directories() == [name for name in before if name not in expected] == ["1", "4"]
    assert sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file()) < size
    assert run.restore() == 4


def test_a_directory_that_is_being_written_is_not_deleted(run):
    (run.path / "checkpoints" / "5.orbax-checkpoint-tmp" / "state" / "new").write_text("")
    command("checkpoints", run.path, "--prune")
    assert "5.orbax-checkpoint-tmp" in run.directories()


def test_damaged_steps_fail_and_are_neither_counted_nor_deleted(run):
    step = run.path / "checkpoints" / "4"
    largest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    status, _, errors = command("checkpoints", run.path, "--verify", "--prune", "--keep", "1")
    assert status == 1
    assert "1 of 4 checkpoints are damaged" in errors
    assert "array params/kernel" in errors
    assert run.directories() == ["1", "3", "4"]


def test_the_best_model_of_a_fine_tuning_run_is_listed(run):
    shutil.copytree(run.path / "checkpoints" / "3", run.path / "best" / "checkpoints" / "3")
    _, output, _ = command("checkpoints", run.path)
    assert any(line.startswith("best/checkpoints/3") and "best model" in line for line in output.splitlines())


def test_a_directory_without_checkpoints(tmp_path):
    status, _, errors = command("checkpoints", tmp_path)
    assert status == 2
    assert errors == f"bert-jax: {tmp_path} has no checkpoints; name the directory of a run.\n"

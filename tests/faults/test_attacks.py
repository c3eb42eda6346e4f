"""Runs that are attacked at random end as unbroken ones: `make test-slow`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.training.logging import read_metrics
from tests.runs import is_measured
from tests.training.test_pretraining import assert_bit_equal

ROOT = Path(__file__).parent.parent.parent
# Number of attacks, which ones, steps, and steps between checkpoints; half of the kills fall into a save.
ATTACKS = {
    "kills": (100, ["kill", "kill_saving", "kill_starting", "kill_committing"], 4000, 10),
    "signals": (20, ["terminate", "interrupt"], 1500, 10),
    "damage": (20, ["damage", "lose"], 3000, 10),
    "disks": (20, ["fill", "protect", "slow"], 2000, 20),
    "others": (10, ["two", "hang"], 5000, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_attacked_runs_equal_unbroken_ones(run_config, tmp_path, name):
    rounds, attacks, steps, save_every = ATTACKS[name]
    train = dataclasses.replace(run_config.train, steps=steps, save_every=save_every, eval_every=steps // 2, keep=3)
    config = dataclasses.replace(run_config, train=train)
    (tmp_path / "config.json").write_text(config.to_json())
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "import pathlib, bert_jax\n\n\n"
        f"def config():\n    return bert_jax.Config.from_json(pathlib.Path({str(tmp_path / 'config.json')!r}).read_text())\n"
    )
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.attacks", str(experiment), str(rounds), "0", *attacks]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=3600, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["attacks"].values()) == rounds
    assert report["unfinished"] == []
    unbroken = dataclasses.replace(config, run=str(tmp_path / "unbroken"))
    # In a process of its own as well, with the same number of devices.
    (tmp_path / "config.json").write_text(unbroken.to_json())
    subprocess.run([*command[:5], str(experiment), "0", "0"], stdout=subprocess.PIPE, cwd=ROOT, timeout=3600, check=True)
    assert_bit_equal(config, unbroken)
    assert lines(config) == lines(unbroken)


def lines(config):
    """Lines of metrics without those that measure time."""
    return [{name: value for name, value in line.items() if not is_measured(name)} for line in read_metrics(config.run)]

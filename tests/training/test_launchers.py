"""Joining the processes of a multi-host run, and what its batches contain."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bert_jax.training.job import Counts
from bert_jax.training.throughput import count_all
from bert_jax.training.trainer import Trainer
from tests.processes.groups import connected, together
from tests.runs import save_model, write_data

# JAX reads these variables under Slurm: a job of one process.
SLURM = {
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "1",
}
EXPERIMENT = """
import dataclasses, bert_jax
def config():
    config = bert_jax.Config.from_json({config!r})
    mask = dataclasses.replace(config.mask, rate=lambda step: 0.2 + 0.01 * step)
    return dataclasses.replace(config, mask=mask)
"""


def run_under_slurm(*arguments):
    """Run the command as Slurm would start it; return its standard error."""
    environment = os.environ | SLURM | {"SLURM_JOB_ID": str(random.randrange(4096)), "BERT_JAX_ALLOCATOR": "system"}
    program = [sys.executable, "-c", "import sys; from bert_jax.cli import main; sys.exit(main())", *map(str, arguments)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_pretraining_joins_before_schedules_are_evaluated(run_config, tmp_path):
    """``jax.distributed.initialize`` fails once a device has been used."""
    experiment = tmp_path / "experiment.py"
    experiment.write_text(EXPERIMENT.format(config=run_config.to_json()))
    assert "step 8: held out" in run_under_slurm("pretrain", experiment, "--train.distributed")


@pytest.mark.slow
def test_a_grid_joins_once(tokenizer, tmp_path):
    save_model(tmp_path / "model", tokenizer)
    data = write_data(tmp_path / "data", "classify")
    run = ("finetune", "classify", "--init", tmp_path / "model", "--data", data, "--run", tmp_path / "run", "--distributed")
    log = run_under_slurm(*run, "--batch-sizes", "16,32", "--epochs", "1", "--sequence-length", "32")
    assert log.count("dev: accuracy") == 2


def test_rows_that_processes_share_are_counted_once():
    """With a tensor axis over hosts, processes 0 and 1 have the same rows, and so have 2 and 3."""
    counts = [Counts(tokens=7, examples=3, slots=8), Counts(tokens=5, examples=2, slots=8)]
    with connected(4) as groups:
        found = together(groups, lambda group: count_all(group, 2 * (group.index // 2), counts[group.index // 2]))
    assert found == [Counts(tokens=12, examples=5, slots=16)] * 4


def test_a_batch_is_counted():
    trainer = SimpleNamespace(job=SimpleNamespace(texts_per_example=1))
    assert Trainer._count(trainer, np.array([[1, 1, 2, 0], [1, 1, 1, 1]])) == Counts(tokens=7, examples=3, slots=8)

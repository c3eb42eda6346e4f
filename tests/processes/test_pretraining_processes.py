"""Runs of two and more processes: they agree, end together, and say why."""

from __future__ import annotations

import dataclasses
import signal
import time

import pytest

from bert_jax.training.logging import read_metrics
from bert_jax.training.pretraining import pretrain
from tests.processes.hosts import Hosts, steps


def test_hosts_that_differ_end_before_the_first_step(run_config, tmp_path):
    hosts = Hosts(run_config, tmp_path / "hosts", differing={1: ["--optim.peak-lr=0.002"]})
    for status, error in hosts.ended().values():
        assert status == 2
        assert "process 1 on" in error and "(optim.peak_lr: 0.002, not 0.001)" in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()

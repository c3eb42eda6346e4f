"""Object stores: corpora, runs, checkpoints and exports on ``gs://`` and ``s3://``, with real clients on emulators."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid

import jax
import numpy as np
import pytest
from etils import epath

import bert_jax
from bert_jax import cli
from bert_jax.checkpoints import DIRECTORY, Checkpoints
from bert_jax.errors import UserError
from bert_jax.io import atomic, lease, remote
from bert_jax.training.logging import read_metrics
from tests.stores import BUCKET, SCHEMES, emulators


@pytest.fixture(scope="module")
def addresses():
    with emulators() as found:
        yield found


@pytest.fixture(params=SCHEMES)
def store(request, addresses):
    """A new directory on each store."""
    return epath.Path(f"{request.param}://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def unchecked():
    """Buckets are checked again."""
    remote._check.cache_clear()
    yield
    remote._check.cache_clear()


@pytest.fixture
def stored_run(run_config, store):
    return dataclasses.replace(run_config, run=str(store / "run"))


def names(path):
    root = str(path).partition("://")[2]
    return sorted(name.removeprefix(f"{root}/") for name in remote.filesystem(path).find(root))


def test_a_run_on_a_store_is_the_run_on_files(quick, run_config, stored_run, tmp_path):
    bert_jax.pretrain(run_config)
    bert_jax.pretrain(dataclasses.replace(stored_run, train=dataclasses.replace(stored_run.train, steps=8)))
    local, stored = (bert_jax.load(run) for run in (run_config.run, stored_run.run))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), local.params, stored.params)
    losses = [[(line["step"], line["split"], line.get("loss")) for line in read_metrics(c.run)] for c in (run_config, stored_run)]
    assert losses[0] == losses[1]
    found = names(stored_run.run)
    assert {"config.json", "curves.png", "metrics.jsonl"} <= {*found}
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in found)
    # The newest two of steps 3, 4, 6 and 8, each complete.
    assert {name.split("/")[1] for name in found if name.startswith(f"{DIRECTORY}/")} == {"6", "8"}
    assert not os.path.exists("gs:") and not os.path.exists("s3:")

"""Checkpoints of a small state, which need no model and no compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.checkpoints import Checkpoints, Meta, abstract
from tests.conftest import MODEL


class SmallRun:
    """A run directory with checkpoints of a small state."""

    def __init__(self, path, tokenizer):
        self.path = path
        self.meta = Meta({"steps": 9}, MODEL, tokenizer, "digest", {"row": 48})

    def state(self, step):
        params = {
            "kernel": jax.random.normal(jax.random.key(step), (1000,)),
            "norm": {"scale": jnp.full((33, 7), step, jnp.float32)},
        }
        return {"step": jnp.int32(step), "params": params, "optimizer": optax.adamw(1e-3).init(params)}

    def open(self, **options):
        return Checkpoints(self.path, **options)

    def save(self, steps, **options):
        checkpoints = self.open(**({"keep": 5} | options))
        for step in steps:
            checkpoints.save(step, self.state(step), self.meta)
        checkpoints.wait()
        checkpoints.close()

    def restore(self, **options):
        """The number of the restored step, after a comparison of every value."""
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.eval_shape(lambda: self.state(0))
        checkpoints = self.open(**options)
        try:
            state, meta = checkpoints.restore(abstract(shapes, jax.tree.map(lambda _: place, shapes)))
        finally:
            checkpoints.close()
        step = int(state["step"])
        jax.tree.map(np.testing.assert_array_equal, state, self.state(step))
        assert (meta.config, meta.data, meta.corpus) == (self.meta.config, self.meta.data, self.meta.corpus)
        return step

    def directories(self):
        return sorted(path.name for path in (self.path / "checkpoints").iterdir())


@pytest.fixture
def small(tmp_path, tokenizer):
    return SmallRun(tmp_path / "run", tokenizer)

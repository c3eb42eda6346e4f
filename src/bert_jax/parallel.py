"""Launchers: how the pure steps are compiled and where their arrays live. Nothing else knows which one runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax import sharding
from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.model import Batch

AXIS = sharding.DATA


class Launcher(NamedTuple):
    """One way to run a step on the devices at hand."""

    axis_name: str | None
    """What the step sums over, given to its factory."""
    rows: np.ndarray
    """Rows of the global batch that this process makes."""
    shards: int
    """Parts into which a batch is divided; a batch size has to be a multiple."""
    compile: Callable[..., Any]
    """compile(step, donate=…) -> the compiled step."""
    place: Callable[[dict[str, np.ndarray]], Batch]
    """This process's rows -> the device batch."""
    shardings: Callable[[Any], Any]
    """Shapes of a state or of parameters -> where each leaf lives."""
    context: Callable[[], contextlib.AbstractContextManager[Any]]
    """To be entered around every call."""


def launch(config: Config) -> Launcher:
    """The launcher that ``config.parallel`` names.

    Raises:
      UserError: the devices, the model or the batch do not divide as asked.
    """
    launcher = on_mesh(config, sharding.make_mesh(config.mesh)) if config.parallel == "mesh" else _pmap(config)
    size, parts = config.data.batch_size, launcher.shards * config.optim.accumulate
    if size % parts:
        raise UserError(
            f"data.batch_size {size} is not divisible by {launcher.shards} devices x {config.optim.accumulate} accumulated parts; "
            f"use a multiple of {parts}."
        )
    return launcher


def on_mesh(config: Config, mesh: Mesh) -> Launcher:
    """A launcher for an explicit mesh (data, fsdp, tensor) of one's own making."""
    model = config.model
    sharding.check_divisible(mesh, heads=model.num_attention_heads, hidden=model.hidden_size, ffn=model.intermediate_size)
    layout = sharding.batch_sharding(mesh)
    shards = sharding.batch_shards(mesh)
    rows = sharding.local_rows(layout, config.data.batch_size) if config.data.batch_size % shards == 0 else np.empty(0, int)
    return Launcher(
        axis_name=None,
        rows=rows,
        shards=shards,
        compile=lambda step, donate=False: jax.jit(step, donate_argnums=0 if donate else ()),
        place=lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(layout, x), batch),
        shardings=lambda tree: sharding.state_shardings(tree, mesh),
        context=lambda: jax.set_mesh(mesh),
    )


def _pmap(config: Config) -> Launcher:
    if jax.process_count() > 1:
        raise UserError("parallel is pmap, which this package runs in one process; use --parallel mesh on several hosts.")
    count = jax.local_device_count()
    mesh = jax.make_mesh((count,), (AXIS,), (AxisType.Auto,))
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

    def place(batch: dict[str, np.ndarray]) -> Batch:
        return {name: jax.device_put(x.reshape(count, x.shape[0] // count, *x.shape[1:]), divided) for name, x in batch.items()}

    return Launcher(
        axis_name=AXIS,
        rows=np.arange(config.data.batch_size),
        shards=count,
        # The state goes in and comes out once, not once for each device: replicas are equal by construction.
        compile=lambda step, donate=False: jax.pmap(
            step, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0 if donate else ()
        ),
        place=place,
        shardings=lambda tree: jax.tree.map(lambda _: replicated, tree),
        context=contextlib.nullcontext,
    )

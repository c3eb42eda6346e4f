"""Launchers: how the pure steps are compiled and where their arrays live. Nothing else knows which one runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax import sharding
from bert_jax.config.run import Config, MeshConfig, ModelConfig
from bert_jax.errors import UserError
from bert_jax.models.encoder import Batch

AXIS = sharding.DATA


class Launcher(NamedTuple):
    """One way to run a step on the devices at hand."""

    axis_name: str | None
    """What the step sums over, given to its factory."""
    rows: Callable[[int], np.ndarray]
    """Size of a global batch -> the rows of it that this process makes."""
    shards: int
    """Parts into which a batch is divided; a batch size has to be a multiple."""
    compile: Callable[..., Any]
    """compile(step, donate=…) -> the compiled step; what it returns is the same on every device."""
    compile_rows: Callable[..., Any]
    """compile_rows(function) -> the compiled function(params, batch) of rows, to be read with ``collect``."""
    create: Callable[..., Any]
    """create(init, shardings, source) -> init(source), made where it will live."""
    place: Callable[[dict[str, np.ndarray]], Any]
    """This process's rows -> the device batch."""
    collect: Callable[[Any], Any]
    """What ``compile_rows``'s function returned -> all rows of the global batch, on every process."""
    shardings: Callable[[Any], Any]
    """Shapes of a state or of parameters -> where each leaf lives."""
    context: Callable[[], contextlib.AbstractContextManager[Any]]
    """To be entered around every call."""


def launch(config: Config) -> Launcher:
    """The launcher that ``config.parallel`` names.

    Raises:
      UserError: the devices, the model or the batch do not divide as asked.
    """
    launcher = for_model(config.model, config.mesh, config.parallel)
    size, parts = config.data.batch_size, launcher.shards * config.optim.accumulate
    if size % parts:
        raise UserError(
            f"data.batch_size {size} is not divisible by {launcher.shards} devices x {config.optim.accumulate} accumulated parts; "
            f"use a multiple of {parts}."
        )
    return launcher


def for_model(model: ModelConfig, mesh: MeshConfig, kind: Literal["mesh", "pmap"]) -> Launcher:
    """The launcher of a kind for a model, whatever the batch.

    Raises:
      UserError: the devices or the model do not divide as asked.
    """
    return on_mesh(model, sharding.make_mesh(mesh)) if kind == "mesh" else _pmap()


def on_mesh(model: ModelConfig, mesh: Mesh) -> Launcher:
    """A launcher for an explicit mesh (data, fsdp, tensor) of one's own making."""
    sharding.check_divisible(mesh, heads=model.num_attention_heads, hidden=model.hidden_size, ffn=model.intermediate_size)
    layout = sharding.batch_sharding(mesh)
    return Launcher(
        axis_name=None,
        rows=functools.cache(lambda size: sharding.local_rows(layout, size)),
        shards=sharding.batch_shards(mesh),
        compile=lambda step, donate=False: jax.jit(step, donate_argnums=0 if donate else ()),
        compile_rows=jax.jit,
        create=_create,
        place=lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(layout, x), batch),
        collect=_collect,
        shardings=lambda tree: sharding.state_shardings(tree, mesh),
        context=lambda: jax.set_mesh(mesh),
    )


def _create(init: Callable[[Any], Any], shardings: Any, source: Any) -> Any:
    return jax.jit(init, out_shardings=shardings)(source)


def _collect(tree: Any) -> Any:
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree)


def _pmap() -> Launcher:
    if jax.process_count() > 1:
        raise UserError("parallel is pmap, which this package runs in one process; use --parallel mesh on several hosts.")
    count = jax.local_device_count()
    mesh = jax.make_mesh((count,), (AXIS,), (AxisType.Auto,))
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

    def place(batch: dict[str, np.ndarray]) -> Batch:
        return {name: jax.device_put(x.reshape(count, x.shape[0] // count, *x.shape[1:]), divided) for name, x in batch.items()}

    return Launcher(
        axis_name=AXIS,
        rows=np.arange,
        shards=count,
        # The state goes in and comes out once, not once for each device: replicas are equal by construction.
        compile=lambda step, donate=False: jax.pmap(
            step, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0 if donate else ()
        ),
        compile_rows=lambda function: jax.pmap(function, AXIS, in_axes=(None, 0)),
        create=_create,
        place=place,
        collect=lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree)),
        shardings=lambda tree: jax.tree.map(lambda _: replicated, tree),
        context=contextlib.nullcontext,
    )

"""Launchers: how the pure steps are compiled and where their arrays live. No other module depends on which one runs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax import processes, sharding
from bert_jax.batch import Batch, HostBatch, Params
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.run import Config
from bert_jax.errors import UserError

AXIS = sharding.DATA
# Bytes of initial values that one program computes, unless a single array is larger.
_PART = 2**28

Kind = Literal["mesh", "pmap"]


@runtime_checkable
class Launcher(Protocol):
    """One way to run the pure steps on the devices at hand."""

    axis_name: str | None
    """Axis that the step sums over with ``psum``; None where arrays are global."""
    shards: int
    """Parts into which a batch is divided; batch sizes are multiples of it."""

    def rows(self, batch_size: int) -> np.ndarray:
        """Rows [R] of a global batch that this process makes."""
        ...

    def compile_step(self, step: Callable[..., Any]) -> Any:
        """Compile ``step(state, batch) -> (state, metrics)``; the state is donated, metrics are equal on every device."""
        ...

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``function(params, batch)``, the result of which is equal on every device."""
        ...

    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``function(params, batch)``, the result of which has the batch's rows; read it with ``collect``."""
        ...

    def place(self, batch: HostBatch) -> Any:
        """This process's rows as a batch on the devices."""
        ...

    def collect(self, tree: Any) -> Any:
        """All rows of a result of ``compile_rows``, as NumPy arrays on every process."""
        ...

    def shardings(self, shapes: Any) -> Any:
        """Where each leaf of a state or of parameters lives."""
        ...

    def params(self, state: Any) -> Any:
        """Parameters of a state."""
        ...

    def storable(self, state: Any) -> Any:
        """A state as a checkpoint stores it, with global arrays."""
        ...

    def means(self, metrics: Any) -> dict[str, float]:
        """Metrics of a step as numbers."""
        ...

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """A context for every call."""
        ...


def launch(config: Config) -> Launcher:
    """The launcher for a pretraining run.

    Raises:
      UserError: the devices, the model or the batch do not divide as configured.
    """
    launcher = for_model(config.model, config.mesh, config.parallel)
    for start, part in config.parts():
        divisor = max(part.optim.accumulate, part.optim.replicas)
        size, parts = part.data.batch_size, launcher.shards * divisor
        if size % parts:
            name = "data.batch_size" if not start else f"The batch size of the phase from step {start},"
            what = "accumulated parts" if part.optim.accumulate > 1 else "replicas"
            raise UserError(
                f"{name} {size} is not divisible by {launcher.shards} devices x {divisor} {what}; use a multiple of {parts}."
            )
    return launcher


def for_model(model: ModelConfig, mesh: MeshConfig, kind: Kind) -> Launcher:
    """A launcher of a kind for a model, whatever the batch.

    Raises:
      UserError: the devices or the model do not divide as configured.
    """
    if kind == "pmap":
        return PmapLauncher()
    return MeshLauncher(model, sharding.make_mesh(data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor, slices=mesh.slices))


def create(init: Callable[..., Any], shardings: Any, *source: Any) -> Any:
    """Compute ``init(*source)`` on one device, some arrays at a time, and place the arrays.

    The result is the same on every mesh, bit for bit: XLA may round the float arithmetic of random draws differently in programs
    that are partitioned differently, so no program here is partitioned, and what each one computes depends on shapes only. All
    processes compute all values; JAX raises an error if they differ.

    Args:
      init: a pure function that returns a tree of arrays.
      shardings: where each of them lives.
      source: trees of arrays.

    Examples:
      >>> place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      >>> create(lambda: {"bias": jnp.zeros(2)}, {"bias": place})["bias"].tolist()
      [0.0, 0.0]
    """
    traced, shapes = jax.make_jaxpr(init, return_shape=True)(*source)
    compute, arguments = jaxpr_as_fun(traced), jax.tree.leaves(source)
    leaves, structure = jax.tree.flatten(shapes)
    places = jax.tree.leaves(shardings)
    created: list[jax.Array] = []
    for part in _parts([leaf.size * leaf.dtype.itemsize for leaf in leaves]):
        program = jax.jit(lambda *arguments, part=part: compute(*arguments)[part])
        created += jax.device_put(program(*arguments), places[part])
    return jax.tree.unflatten(structure, created)


def _parts(sizes: list[int]) -> list[slice]:
    """Divide arrays of these sizes into runs of at most ``_PART`` bytes, or of one array."""
    starts, total = [0], 0
    for index, size in enumerate(sizes):
        if total + size > _PART and index > starts[-1]:
            starts.append(index)
            total = 0
        total += size
    return [slice(*bounds) for bounds in itertools.pairwise([*starts, len(sizes)])]


def _connect(mesh: Mesh) -> None:
    """Connect the devices of several processes for collectives over any axes.

    On CPUs, Gloo connects them in the first collective of a group, and gives up after 30 seconds, in which another process may
    still be compiling; once they are connected, collectives wait for longer.
    """
    if jax.process_count() == 1 or jax.devices()[0].platform != "cpu":
        return
    processes.group().gather("connecting devices", None)
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for chosen in itertools.chain.from_iterable(itertools.combinations(axes, count) for count in range(1, len(axes) + 1)):

        def places(chosen: tuple[str, ...] = chosen) -> jax.Array:
            return jax.lax.psum(sum(jax.lax.axis_index(axis) for axis in chosen), chosen)

        jax.jit(jax.shard_map(places, mesh=mesh, in_specs=(), out_specs=P()))().block_until_ready()


class _SingleRun:
    """What launchers of one run share."""

    def params(self, state: Any) -> Params:
        params: Params = state.params
        return params

    def means(self, metrics: dict[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in jax.device_get(metrics).items()}


class MeshLauncher(_SingleRun):
    """``jax.jit`` on an explicit mesh (slice, data, fsdp, tensor).

    Args:
      model: its dimensions must divide over the mesh.
      mesh: an explicit mesh.

    Raises:
      UserError: a dimension of the model does not divide over its mesh axis.
    """

    axis_name: str | None = None

    def __init__(self, model: ModelConfig, mesh: Mesh) -> None:
        sharding.check_divisible(mesh, heads=model.num_attention_heads, hidden=model.hidden_size, ffn=model.intermediate_size)
        self.mesh, self._layout = mesh, sharding.batch_sharding(mesh)
        _connect(mesh)
        self.shards = sharding.batch_shards(mesh)
        self._rows: dict[int, np.ndarray] = {}

    def rows(self, batch_size: int) -> np.ndarray:
        if batch_size not in self._rows:
            self._rows[batch_size] = sharding.local_rows(self._layout, batch_size)
        return self._rows[batch_size]

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(step, donate_argnums=0)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)

    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)

    def place(self, batch: HostBatch) -> Batch:
        return {name: jax.make_array_from_process_local_data(self._layout, value) for name, value in batch.items()}

    def collect(self, tree: Any) -> Any:
        return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree)

    def shardings(self, shapes: Any) -> Any:
        return sharding.state_shardings(shapes, self.mesh)

    def storable(self, state: Any) -> Any:
        return state

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return jax.set_mesh(self.mesh)


class PmapLauncher(_SingleRun):
    """``jax.pmap``: replicated data parallelism over all devices of one or several processes.

    The state is one array per leaf, not one per device: replicas are equal by construction. In several processes ``pmap``
    returns arrays of the process's own devices, which ``storable`` makes global again.
    """

    axis_name: str | None = AXIS

    def __init__(self) -> None:
        local = jax.local_devices()
        self.shards, self._local = jax.device_count(), len(local)
        self._mesh = jax.make_mesh((self.shards,), (AXIS,), (AxisType.Auto,))
        _connect(self._mesh)
        self._divided = NamedSharding(jax.make_mesh((self._local,), (AXIS,), (AxisType.Auto,), devices=local), P(AXIS))

    def rows(self, batch_size: int) -> np.ndarray:
        return np.arange(batch_size).reshape(jax.process_count(), -1)[jax.process_index()]

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=None)

    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.pmap(function, AXIS, in_axes=(None, 0))

    def place(self, batch: HostBatch) -> Batch:
        def split(value: np.ndarray) -> jax.Array:
            return jax.device_put(value.reshape(self._local, value.shape[0] // self._local, *value.shape[1:]), self._divided)

        return {name: split(value) for name, value in batch.items()}

    def collect(self, tree: Any) -> Any:
        rows = multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree)
        return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:]), rows)

    def shardings(self, shapes: Any) -> Any:
        return jax.tree.map(lambda _: NamedSharding(self._mesh, P()), shapes)

    def storable(self, state: Any) -> Any:
        if jax.process_count() == 1:
            return state

        def globalize(leaf: jax.Array) -> jax.Array:
            if not leaf.is_fully_addressable:
                return leaf
            whole: jax.Array = multihost_utils.host_local_array_to_global_array(leaf, self._mesh, P())
            return whole

        return jax.tree.map(globalize, state)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

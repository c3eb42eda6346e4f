"""How fast the devices of a run exchange arrays."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

_ROUNDS = 3
_AXIS = "devices"


class AllReduce(NamedTuple):
    """A measured sum of an array over all devices."""

    size: int
    """Bytes of the array on each device."""
    seconds: float
    rate: float
    """Bytes per second that each device sends in the ring algorithm: 2 (N - 1) / N of the size, for N devices."""


def time_all_reduce(size: int = 2**25) -> AllReduce:
    """Sum an array over all devices of all processes, each of which calls it; the fastest of three times counts.

    Args:
      size: bytes of the array on each device.

    Examples:
      >>> time_all_reduce(2**20).size
      1048576
    """
    count = jax.device_count()
    mesh = jax.make_mesh((count,), (_AXIS,), (AxisType.Auto,))

    def place() -> jax.Array:
        return jnp.full(size // 4, jax.lax.axis_index(_AXIS), jnp.float32)

    def add(array: jax.Array) -> jax.Array:
        return jax.lax.psum(array, _AXIS)

    array = jax.jit(jax.shard_map(place, mesh=mesh, in_specs=(), out_specs=P(_AXIS)))()
    total = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=P(_AXIS), out_specs=P()))
    total(array).block_until_ready()
    best = min(_timed(total, array) for _ in range(_ROUNDS))
    return AllReduce(size, best, 2 * (count - 1) / count * size / best)


def _timed(function: jax.stages.Wrapped, array: jax.Array) -> float:
    began = time.perf_counter()
    function(array).block_until_ready()
    return time.perf_counter() - began
